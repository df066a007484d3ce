"""Kernel ridge regression and the influence of its training points, in closed form (Eq 5-15).

One factorisation of A = K + λI gives Q = A⁻¹, and everything else is a product with Q:
predictions, leverages, leave-one-out predictions for all pairs, influences and their estimates.
Letters are those of the paper: Y labels, lam the ridge λ, k = K∞(X, x_te), β = QY, α = Qk,
r = f − y a residual, ρ = f^{∖i} − y_i a leave-one-out residual, h = diag(KQ) the leverage.
Indices: i runs over the n training points (rows), te over the t test points (columns).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas, cho_factor, cho_solve, eigh, eigvalsh_tridiagonal, lapack

from lib import check


def objective(K, Y, lam: float, coefficients) -> float:
    """Return the loss of kernel ridge regression at f = Σ_j c_j K∞(·, x_j).

    Eq 5:  ½ ‖Kc − Y‖² + ½ λ cᵀKc:  a sum over the training points, not a mean.

    K is (n, n), Y and `coefficients` are (n,); the result is in squared label units. Raises
    `ValueError` for bad shapes or values. Source: Zhang and Zhang (2022), Eq 5.

    >>> objective([[0.5]], [1.0], 0.5, [1.0])
    0.25
    """
    K, Y, lam = check.regression(K, Y, lam)
    c = check.array("coefficients", coefficients, ndim=1)
    if len(c) != len(Y):
        raise ValueError(f"coefficients has {len(c)} entries, but Y has {len(Y)}; pass one a point")
    Kc = K @ c
    return float(0.5 * np.sum((Kc - Y) ** 2) + 0.5 * lam * (c @ Kc))


def refit_without(K, k, Y, lam: float, removed) -> np.ndarray:
    """Return the predictions of a model fitted afresh to what `removed` leaves, (t,).

    Eq 6 on K_{∖I} and Y_{∖I}: brute force, one factorisation a call, to hold the closed forms to.

    K is (n, n), k (n, t) or (n,), Y (n,) and λ ≥ 0 as for `Ridge`; `removed` is an index or a list
    of them, and [] removes none. A single column `k` of shape (n,) gives a number. Raises
    `LinAlgError` if what is left is singular, `ValueError` for bad values, `IndexError` for bad
    indices.

    >>> K, k = [[0.5, 0.0], [0.0, 0.5]], [[0.5], [0.25]]
    >>> refit_without(K, k, [1.0, -1.0], 0.5, 0).tolist()
    [-0.25]
    """
    K, Y, lam = check.regression(K, Y, lam)
    columns = check.columns(k, len(Y))
    k = columns[:, 0] if np.ndim(k) == 1 else columns
    if np.size(removed):
        removed = check.indices("removed", removed, len(Y))
    keep = np.delete(np.arange(len(Y)), removed)
    A = K[np.ix_(keep, keep)]
    A[np.diag_indices(len(keep))] += lam
    return k[keep].T @ cho_solve(cho_factor(A.T, lower=True, overwrite_a=True), Y[keep])


class Ridge:
    """Kernel ridge regression on the kernel matrix K with labels Y and ridge λ.

    Eq 5, 6:  β = (K + λI)⁻¹Y minimises `objective`, and f(x_te) = kᵀβ.

    Source: Zhang and Zhang (2022), Eq 5, 6 and the identities behind Eq 9.

    Parameters
    ----------
    K : (n, n) symmetric kernel of the training points, for instance `lib.kernel.ntk(X)`
    Y : (n,) labels in [-1, 1]
    lam : ridge λ ≥ 0 in units of K; λ = 0 interpolates and needs a regular K

    Attributes
    ----------
    K : (n, n) as passed and no copy, for K may fill the memory: no method reads it after the fit
    diagonal : (n,) K_ii
    Q : (n, n) inverse of A = K + λI
    beta : (n,) dual coefficients β = QY
    h : (n,) leverage h_i = [KQ]_ii = 1 − λQ_ii, the share of f(x_i) that comes from y_i, in [0, 1]
    r : (n,) training residual r_i = f(x_i) − y_i = −λβ_i
    rho : (n,) leave-one-out residual ρ_i = f^{∖i}(x_i) − y_i = −β_i/Q_ii

    Raises
    ------
    ValueError
        for bad shapes, labels or λ, if A is singular, naming the duplicates, and for a K that is
        not positive semidefinite. That is certain where A is not or some h_i < −0.002, and has a
        chance above 0.999 (n ≤ 10,000) where K has an eigenvalue below −λ/10; −λ/1000 passes

    Examples
    --------
    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> model.beta.tolist(), model.h.tolist(), model.rho.tolist()
    ([1.0, -1.0], [0.5, 0.5], [-1.0, 1.0])
    """

    def __init__(self, K, Y, lam: float):
        self.K, self.Y, self.lam = check.regression(K, Y, lam)
        self.Q = _inverse(self.K, self.lam)
        q, self.diagonal = self.Q.diagonal(), self.K.diagonal().copy()
        if self.lam > 0:
            rounding = len(q) * np.finfo(float).eps * (self.diagonal.sum() + len(q) * self.lam)
            lowest = 1 / max(q.max(), _largest(self.Q)) - self.lam
            check.semidefinite(lowest, max(1e-3 * self.lam, rounding))
        self.beta = _times(self.Q, self.Y)
        self.r = -self.lam * self.beta
        self.rho = -self.beta / q
        # λQ_ii → 1 for large λ: there the subtraction loses digits and the product keeps them
        products = np.einsum("ij,ij->i", self.K, self.Q)
        self.h = np.where(self.lam * q < 0.5, 1 - self.lam * q, products)

    def __repr__(self) -> str:
        return f"Ridge: n = {len(self.Y)}, lam = {self.lam:g}"

    @property
    def dof(self) -> float:
        """Degrees of freedom Σ_i h_i = tr KQ, 0 to n; over n, about the error of IHVP (Fig 2)."""
        return float(self.h.sum())

    def predict(self, k) -> np.ndarray:
        """Return f(x_te) = kᵀβ (Eq 6), shape (t,), for k = K∞(X, X_te) of shape (n, t) or (n,)."""
        return _times(check.columns(k, len(self.Y)).T, self.beta)

    def remove(self, groups: Iterable, k) -> np.ndarray:
        """Return the predictions after removing each group of training points, (groups, t).

        f^{∖I}(x_te) = f(x_te) − α_Iᵀ (Q_II)⁻¹ β_I: the block form of Eq 9, no refit.

        A group is an index or a list of distinct indices, `k` is (n, t). Raises `IndexError` for
        an index out of range or named twice.

        >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
        >>> model.remove([0, [0, 1]], [[0.5], [0.25]]).tolist()
        [[-0.25], [0.0]]
        """
        k = check.columns(k, len(self.Y))
        f = k.T @ self.beta
        result = []
        for I in check.groups(groups, len(self.Y)):  # noqa: E741 the paper's letter
            lost = np.linalg.solve(self.Q[np.ix_(I, I)], self.beta[I])
            result.append(f - (self.Q[I] @ k).T @ lost)
        return np.array(result)

    def influence(self, k, y_te) -> Influence:
        """Return the influence of every training point on every test point.

        `k` = K∞(X, X_te) is (n, t), `y_te` the (t,) test labels in [-1, 1]. See `Influence`.
        """
        k = check.columns(k, len(self.Y))
        y_te = check.labels("y_te", y_te, k.shape[1])
        return Influence(self, _times(self.Q, k), _times(k.T, self.beta), y_te)


@dataclass(frozen=True)
class Influence:
    """Influence of n training points (rows) on the squared loss at t test points (columns).

    A positive influence says that removing the point raises the loss: the point is helpful.
    Every quantity is computed when asked for, from α, β and Q_ii; losses are in squared label
    units, predictions in label units.

    Source: Zhang and Zhang (2022), Eq 8, 9, 13, 14, 15.

    Attributes
    ----------
    model : the `Ridge` it belongs to
    alpha : (n, t) α = Qk, how much f(x_te) moves per unit of y_i
    f : (t,) predictions f(x_te), Eq 6
    y_te : (t,) test labels

    Examples
    --------
    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> inf = model.influence([[0.5], [0.25]], [1.0])
    >>> inf.exact.tolist(), inf.ihvp.tolist()
    ([[0.5], [-0.15625]], [[0.1875], [-0.09375]])
    >>> (inf.T1 + inf.T2).tolist(), (0.5 * (inf.loo - 1) ** 2 - 0.5 * (inf.f - 1) ** 2).tolist()
    ([[0.5], [-0.15625]], [[0.5], [-0.15625]])
    """

    model: Ridge
    alpha: np.ndarray
    f: np.ndarray
    y_te: np.ndarray

    def __repr__(self) -> str:
        n, t = self.alpha.shape
        return f"Influence: n = {n}, t = {t}, lam = {self.model.lam:g}"

    @property
    def r_te(self) -> np.ndarray:
        """Test residuals r_te = f(x_te) − y_te, (t,)."""
        return self.f - self.y_te

    @property
    def shift(self) -> np.ndarray:
        """What removing x_i does to f(x_te): f^{∖i} − f = −α_iβ_i/Q_ii = α_iρ_i, (n, t)."""
        return self.alpha * self.model.rho[:, None]

    @property
    def loo(self) -> np.ndarray:
        """Leave-one-out predictions f^{∖i}(x_te) = f(x_te) − α_iβ_i/Q_ii (Eq 9), (n, t)."""
        return self.f + self.shift

    @property
    def exact(self) -> np.ndarray:
        """Exact influence I = ½(f^{∖i} − y_te)² − ½(f − y_te)² (Eq 8), (n, t).

        Computed as (f^{∖i} − f)(r_te + ½(f^{∖i} − f)), which subtracts no two close squares.
        """
        shift = self.shift
        influence = 0.5 * shift
        influence += self.r_te
        influence *= shift
        return influence

    @property
    def T1(self) -> np.ndarray:
        """First-order term T₁ = α_i r_te ρ_i of I = T₁ + T₂ (Eq 14, 15), (n, t)."""
        return self.shift * self.r_te

    @property
    def T2(self) -> np.ndarray:
        """Second-order term T₂ = ½ α_i² ρ_i² ≥ 0 of I = T₁ + T₂ (Prop 2, Eq 14), (n, t)."""
        return 0.5 * self.shift**2

    @property
    def ihvp(self) -> np.ndarray:
        """Inverse-Hessian-vector-product estimate Î = α_i r_te r_i (Eq 13), (n, t).

        Î = (1 − h_i) T₁, hence I − Î = h_i I + (1 − h_i) T₂. It is 0 for λ = 0.
        """
        return self.alpha * self.r_te * self.model.r[:, None]

    @property
    def rescaled(self) -> np.ndarray:
        """Repaired estimate Î/(1 − h_i), which is T₁ (Eq 15) and so defined for λ = 0 too, (n, t).

        Source: the rescaled influence function, arXiv 2506.06656.
        """
        return self.T1


def _times(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return A @ b for b (n,) or (n, t), by the BLAS of SciPy as the inverse by its LAPACK.

    NumPy brings a BLAS of its own: when both take turns, the idle threads of one wait actively for
    work and slow the other down, by a third on two cores.
    """
    if b.ndim == 1:  # column-major views, so that nothing is copied
        across = not A.flags.f_contiguous
        return blas.dgemv(1.0, A.T if across else A, b, trans=across)
    return blas.dgemm(1.0, b.T, A.T).T


def _inverse(K: np.ndarray, lam: float) -> np.ndarray:
    """Return (K + λI)⁻¹ from one Cholesky factorisation, in place of one copy of K."""
    n = len(K)
    A = np.array(K, order="C").T  # symmetric, so the transpose is what LAPACK wants: column-major
    A[np.diag_indices(n)] += lam
    trace = A.trace()
    factor, info = lapack.dpotrf(A, lower=True, clean=False, overwrite_a=True)
    if info == 0:
        Q, info = lapack.dpotri(factor, lower=True, overwrite_c=True)
    # tr A tr Q is no smaller than the condition number, and takes no pass over the matrices
    rcond = 1 / (trace * Q.trace()) if info == 0 else 0.0
    if not rcond >= n * np.finfo(float).eps:
        raise ValueError(_singular(K, lam, rcond))
    above = np.triu(np.ones((256, 256), dtype=bool), 1)
    for i in range(0, n, 256):  # dpotri fills one triangle: mirror it, by squares
        for j in range(0, i, 256):
            Q[j : j + 256, i : i + 256] = Q[i : i + 256, j : j + 256].T
        square = Q[i : i + 256, i : i + 256]
        np.copyto(square, square.T, where=above[: len(square), : len(square)])
    return Q.T  # the same matrix, stored row by row


def _largest(Q: np.ndarray, steps: int = 20) -> float:
    """Return a lower bound of the largest eigenvalue of Q > 0, from `steps` steps of Lanczos.

    For a random start it lies below (1 − ε) times that eigenvalue with a probability of at most
    1.65 √n e^{−√ε (2·steps − 1)}. Source: Kuczyński and Woźniakowski (1992), Theorem 4.2.

    >>> round(_largest(np.diag([1.0, 2.0, 4.0])), 12)
    4.0
    """
    v = np.random.default_rng(0).standard_normal(len(Q))
    v, before, b = v / np.linalg.norm(v), np.zeros(len(Q)), 0.0
    main, side = [], []
    for _ in range(min(steps, len(Q))):
        w = blas.dsymv(1.0, Q.T, v) - b * before
        main.append(w @ v)
        w -= main[-1] * v
        b = np.linalg.norm(w)
        side.append(b)
        if b <= 1e-12 * main[0]:
            break
        before, v = v, w / b
    return float(eigvalsh_tridiagonal(main, side[:-1])[-1])


def _singular(K: np.ndarray, lam: float, rcond: float) -> str:
    """Say why K + λI has no inverse, naming two points that depend on each other."""
    (lowest,), vector = eigh(K, subset_by_index=[0, 0])
    check.semidefinite(lowest, 1e-6 * K.diagonal().max())
    scale = np.maximum(np.abs(K.diagonal()), np.finfo(float).tiny) ** 0.5
    correlation = np.tril(np.abs(K) / np.outer(scale, scale), -1)
    j, i = np.unravel_index(correlation.argmax(), K.shape)
    if abs(correlation[j, i] - 1) < 1e-6:
        cause = (
            f"training points {i} and {j} are duplicates (or nearly so: their kernel correlation "
            f"is {correlation[j, i]:.12g})"
        )
    else:
        i, j = sorted(np.abs(vector[:, 0]).argsort()[-2:].tolist())
        cause = (
            f"training points {i} and {j} depend on the others (more than d antipodal pairs do "
            "that)"
        )
    return (
        f"K + lam I with lam = {lam:g} is singular to working precision (reciprocal condition "
        f"{rcond:.1e}): {cause}; remove one of them or choose lam > {lam:g}"
    )
