"""Kernel ridge regression and the influence of its training points, in closed form (Eq 5-15).

One factorisation of A = K + λI gives Q = A⁻¹, and everything else is a product with Q:
predictions, leverages, leave-one-out predictions for all pairs, influences and their estimates.
Letters are those of the paper: Y labels, lam the ridge λ, k = K∞(X, x_te), β = QY, α = Qk,
r = f − y a residual, ρ = f^{∖i} − y_i a leave-one-out residual, h = diag(KQ) the leverage.
Indices: i runs over the n training points (rows), te over the t test points (columns). Labels may
have c outputs, (n, c): then β, r, ρ and f have c columns, and α, h and influences do not change
their shape.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lib import check
from lib.influence import Influence
from lib.inverse import Inverse, times
from lib.packed import PackedInverse


class Ridge:
    """Kernel ridge regression on the kernel matrix K with labels Y and ridge λ.

    Eq 5, 6:  β = (K + λI)⁻¹Y minimises ½ ‖Kc − Y‖² + ½ λ cᵀKc over c, and f(x_te) = kᵀβ.

    K is the symmetric (n, n) kernel of the training points, for instance `lib.kernel.ntk(X)`, Y
    are (n,) labels of any finite size, or (n, c), and λ ≥ 0 has the unit of K; λ = 0 interpolates
    and needs a regular K. The model has these attributes:

    - K: as passed and no copy, for K may fill the memory; no method reads it after the fit
    - diagonal: K_ii, (n,)
    - Q: `lib.inverse.Inverse` of A = K + λI
    - beta: dual coefficients β = QY, shaped like Y
    - h: leverage h_i = [KQ]_ii = 1 − λQ_ii, the share of f(x_i) that comes from y_i, (n,), 0 to 1
    - r: training residual r_i = f(x_i) − y_i = −λβ_i, shaped like Y
    - rho: leave-one-out residual ρ_i = f^{∖i}(x_i) − y_i = −β_i/Q_ii, shaped like Y

    Raises `ValueError` for bad shapes, labels or λ; if A is singular, naming the duplicates; and
    for a K that is not positive semidefinite. It is certain to refuse K if A is not positive
    definite or some h_i < −0.002. It refuses K with a chance above 0.999 (n ≤ 10,000) if K has an
    eigenvalue below −λ/10, and never if all are above −λ/1000.
    Source: Zhang and Zhang (2022), Eq 5, 6 and the identities behind Eq 9.

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> model.beta.tolist(), model.h.tolist(), model.rho.tolist()
    ([1.0, -1.0], [0.5, 0.5], [-1.0, 1.0])
    """

    def __init__(self, K, Y, lam: float):
        self.K, Y, lam = check.regression(K, Y, lam)
        self._fit(Inverse(self.K, lam), self.K.diagonal().copy(), Y, lam, lambda i: self.K[i])

    @classmethod
    def packed(cls, Q: PackedInverse, Y) -> Ridge:
        """Return the model of an inverse that is there already, for n beyond the dense one's reach.

        β is refined to float64, see `PackedInverse.solve`; other products with Q have its dtype,
        and h its absolute error. An eigenvalue of K is taken for rounding below λ/1000 or ε tr K, ε
        the precision of that dtype. The model has no K: all else is as above.

        >>> from lib.kernel import ntk
        >>> X, Y = np.eye(2), [1.0, -1.0]
        >>> Ridge.packed(PackedInverse(ntk, X, lam=0.5, progress=False), Y).beta.tolist()
        [1.0, -1.0]
        """
        model = cls.__new__(cls)
        model.K, Y = None, check.targets("Y", Y, len(Q.X))
        model._fit(Q, Q.kernel_diagonal(), Y, Q.lam)
        return model

    def _fit(self, Q, diagonal: np.ndarray, Y: np.ndarray, lam: float, rows_of_K=None) -> None:
        self.Q, self.diagonal, self.Y, self.lam = Q, diagonal, Y, lam
        q = Q.diagonal()
        if lam > 0:
            eps = max(len(q) * np.finfo(float).eps, np.finfo(Q.dtype).eps)
            rounding = eps * (diagonal.sum() + len(q) * lam)
            lowest = 1 / max(q.max(), Q.largest()) - lam
            check.semidefinite(lowest, max(1e-3 * lam, rounding))
        self.beta = Q.solve(Y)
        self.r = -lam * self.beta
        self.rho = (-self.beta.T / q).T
        self.h = 1 - lam * q
        if rows_of_K is None:
            return
        weak = np.flatnonzero(lam * q >= 0.5)  # there products keep digits that 1 − λq loses
        for rows in np.split(weak, range(256, len(weak), 256)):
            self.h[rows] = np.einsum("ij,ij->i", rows_of_K(rows), Q.rows(rows))

    def __repr__(self) -> str:
        outputs = f", c = {self.Y.shape[1]}" if self.Y.ndim == 2 else ""
        return f"Ridge: n = {len(self.Y)}{outputs}, lam = {self.lam:g}"

    @property
    def dof(self) -> float:
        """Degrees of freedom Σ_i h_i = tr KQ, 0 to n; over n, about the error of IHVP (Fig 2)."""
        return float(self.h.sum())

    def predict(self, k) -> np.ndarray:
        """Return f(x_te) = kᵀβ (Eq 6), (t,) or (t, c), for k = K∞(X, X_te) of (n, t) or (n,)."""
        return times(check.columns(k, len(self.Y)).T, self.beta)

    def remove(self, groups: Iterable, k) -> np.ndarray:
        """Return the predictions after removing each group of training points, (groups, t[, c]).

        f^{∖I}(x_te) = f(x_te) − α_Iᵀ (Q_II)⁻¹ β_I: the block form of Eq 9, no refit.

        A group is an index or a list of distinct indices, `k` is (n, t). Raises `IndexError` for
        an index out of range or named twice.

        >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
        >>> model.remove([0, [0, 1]], [[0.5], [0.25]]).tolist()
        [[-0.25], [0.0]]
        """
        k = check.columns(k, len(self.Y))
        f = k.T @ self.beta
        groups = check.groups(groups, len(self.Y))
        return np.array([f + (self.Q.rows(I) @ k).T @ self.without(I) for I in groups])

    def without(self, I) -> np.ndarray:
        """Return the residuals of a group that leaves together, shaped like Y_I.

        ρ_I = f^{∖I}(x_I) − y_I = −(Q_II)⁻¹ β_I: the group meets a model that has seen none of it.

        >>> model = Ridge([[0.5, 0.25], [0.25, 0.5]], [1.0, -1.0], lam=0.5)
        >>> model.without([0, 1]).round(9).tolist()
        [-1.0, 1.0]
        """
        I = check.indices("I", I, len(self.Y))
        return -np.linalg.solve(self.Q.block(I), self.beta[I])

    def influence(self, k, y_te) -> RidgeInfluence:
        """Return the influence of every training point on every test point.

        `k` = K∞(X, X_te) is (n, t), `y_te` the test labels, (t,) or (t, c) as Y. See
        `RidgeInfluence` and `lib.influence.Influence`.
        """
        k = check.columns(k, len(self.Y))
        return RidgeInfluence(self, self.Q @ k, times(k.T, self.beta), y_te)


class RidgeInfluence(Influence):
    """Influence of every training point of a `Ridge`, and its estimates, from α, ρ and r.

    shift = f^{∖i} − f = −α_i β_i/Q_ii = α_i ρ_i (Eq 9); `Influence` makes I, T₁ and T₂ of it.

    `model` is the `Ridge`, `alpha` = Qk (n, t) says how much f(x_te) moves per unit of y_i, and f
    and y_te are predictions and test labels, (t,) or (t, c). Every quantity is computed when asked
    for; with c outputs only `shift` and `loo` hold n·t·c numbers.
    Source: Zhang and Zhang (2022), Eq 8, 9, 13, 14, 15.

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> one = model.influence([[0.5], [0.25]], [1.0])
    >>> one.exact.tolist(), one.ihvp.tolist()
    ([[0.5], [-0.15625]], [[0.1875], [-0.09375]])
    """

    def __init__(self, model: Ridge, alpha: np.ndarray, f: np.ndarray, y_te):
        super().__init__(f, y_te, None)
        self.model, self.alpha = model, alpha

    def __repr__(self) -> str:
        n, t = self.alpha.shape
        return f"Influence: n = {n}, t = {t}, lam = {self.model.lam:g}"

    @property
    def shift(self) -> np.ndarray:
        """What removing x_i does to f(x_te): f^{∖i} − f = α_i ρ_i (Eq 9), (n, t) or (n, t, c)."""
        alpha = self.alpha if self.f.ndim == 1 else self.alpha[:, :, None]
        return alpha * self.model.rho[:, None]

    @property
    def ihvp(self) -> np.ndarray:
        """Inverse-Hessian-vector-product estimate Î = α_i ⟨r_i, r_te⟩ (Eq 13), (n, t).

        Î = (1 − h_i) T₁, hence I − Î = h_i I + (1 − h_i) T₂. It is 0 for λ = 0.
        """
        return self.alpha * products(self.model.r, self.r_te)

    @property
    def rescaled(self) -> np.ndarray:
        """Repaired estimate Î/(1 − h_i), which is T₁ (Eq 15) and so defined for λ = 0 too, (n, t).

        Source: the rescaled influence function, arXiv 2506.06656.
        """
        return self.T1

    @property
    def T2(self) -> np.ndarray:
        """Second-order term T₂ = ½ α_i² ‖ρ_i‖² ≥ 0 of I = T₁ + T₂ (Prop 2, Eq 14), (n, t)."""
        return 0.5 * (self.alpha**2 * squares(self.model.rho)[:, None])

    def _along(self, r: np.ndarray) -> np.ndarray:
        return self.alpha * products(self.model.rho, r)


def squares(x: np.ndarray) -> np.ndarray:
    """Return the squared size of each row, (n,), for x (n,) or (n, c)."""
    return (x.reshape(len(x), -1) ** 2).sum(axis=1)


def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the product of each row of a with each row of b, (n, t), summed over outputs.

    >>> products(np.array([1.0, 2.0]), np.array([3.0])).tolist()
    [[3.0], [6.0]]
    """
    return a.reshape(len(a), -1) @ b.reshape(len(b), -1).T
