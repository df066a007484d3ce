"""Influence at every moment of training, for all points at once (Eq 3 in the limit of width).

Under gradient flow from f = 0 the infinitely wide network is f(x_te) = kᵀβ(t) with
β(t) = A⁻¹(I − e^{−At})Y, A = K + λI, and what a point or a group changes by its absence follows
without training again. A rational function stands in for the exponential,
e^z ≈ 2 Re Σ_k c_k/(ζ_k − z) on (−∞, 0] to 3e-14; it turns e^{−At} into a few resolvents
R_k = (ζ_k + At)⁻¹, and a resolvent loses a row and a column as easily as Q does in Eq 9. It is the
same rational function for every submatrix of A, so the error is uniform in i, t and K.

All points at once need no product for each pole. With D_k the diagonal matrix of what scales each
row, f^{∖i}(t) − f(t) is row i of (Re Σ_k D_k R_k) k = (V ∘ M) Vᵀk, where V are the eigenvectors of
K, a_j the eigenvalues of A and M_ij = Re Σ_k (D_k)_ii / (ζ_k + a_j t): the sum over the poles is
a matrix of rank 14, and one product with Vᵀk does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property, lru_cache

import numpy as np
from scipy.linalg import hankel

from lib import check
from lib.influence import Influence
from lib.ridge import Ridge, products


@lru_cache
def exponential(pairs: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Return poles ζ and residues c, each (pairs,), with e^z ≈ 2 Re Σ_k c_k/(ζ_k − z) for z ≤ 0.

    Carathéodory and Fejér: with z = 9(x − 1)/(x + 1) and the Chebyshev coefficients of e^z in x in
    a Hankel matrix, the singular vector of rank 2·pairs, read as a polynomial, has the poles as
    its roots outside the unit circle. The residues are then fitted by least squares. The error
    falls by 9.289² a pair, to 3e-14 for 7 pairs, where float64 ends: so `pairs` is 1 to 7, and
    `ValueError` is raised for another.

    Source: Trefethen, Weideman and Schmelzer (2006), Section 4, who take the residues from CF too.

    >>> zeta, c = exponential()
    >>> bool(abs(2 * (c / (zeta + 1.5)).sum().real - math.exp(-1.5)) < 1e-13)
    True
    """
    pairs = check.integer("pairs", pairs)
    if pairs > 7:
        raise ValueError(f"pairs = {pairs} is more than float64 resolves; use 1 to 7")
    unit = np.exp(2j * np.pi * np.arange(1024) / 1024)
    with np.errstate(divide="ignore"):  # x = −1 is z = −∞
        z = 9 * (unit.real - 1) / (unit.real + 1)
    coefficients = np.fft.fft(np.exp(z)).real[1:76]
    vector = np.linalg.svd(hankel(coefficients))[2][2 * pairs]
    roots = np.roots(vector)
    roots = roots[(np.abs(roots) > 1) & (roots.imag > 0)]
    zeta = 9 * ((roots - 1) / (roots + 1)) ** 2
    zeta = np.sort_complex(np.where(zeta.imag > 0, zeta, zeta.conj()))
    z = z[:512]  # the other half of the circle repeats them
    terms = 2 / (zeta - z[:, None])
    fitted = np.linalg.lstsq(np.hstack([terms.real, -terms.imag]), np.exp(z), rcond=None)[0]
    return zeta, fitted[:pairs] + 1j * fitted[pairs:]


class Flow:
    """Gradient flow of the infinitely wide network from f = 0: Eq 3 on the loss of Eq 5.

    β(t) = A⁻¹(I − e^{−At})Y  with  A = K + λI,  f(x_te; t) = kᵀβ(t);  t = ∞ is `lib.ridge.Ridge`.

    K, Y and λ are those of `Ridge`. Time has the unit of 1/K: the loss is a sum, so the direction
    of the j-th eigenvector is learnt at t ≈ 1/(λ_j + λ). Any t from 0 to `math.inf` is allowed. One
    eigendecomposition at the start, K = V diag(mu) Vᵀ with mu ascending, serves every t.

    Raises `ValueError` for bad shapes, labels or λ, for a K that is not positive semidefinite, and
    at t = ∞ with λ = 0 for duplicate points, naming them.
    Source: Zhang and Zhang (2022), Eq 3, 8, 9; Jacot, Gabriel and Hongler (2018).

    >>> flow = Flow([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> flow.beta(0.0).tolist(), flow.beta(math.inf).tolist()
    ([0.0, 0.0], [1.0, -1.0])
    >>> flow.influence([[0.5], [0.25]], [1.0], t=math.log(2)).exact.round(9).tolist()
    [[0.25], [-0.1015625]]
    """

    def __init__(self, K, Y, lam: float):
        K, self.Y, self.lam = check.regression(K, Y, lam)
        self.K = K.copy()  # for `end`, which may come after the caller has changed K
        self.mu, self.V = np.linalg.eigh(self.K)
        rounding = len(self.mu) * np.finfo(float).eps * np.abs(self.mu).max()
        check.semidefinite(self.mu[0], 100 * rounding)
        self.mu = self.mu.clip(0)
        self._a = self.mu + self.lam
        self._y = self.V.T @ self.Y

    def __repr__(self) -> str:
        outputs = f", c = {self.Y.shape[1]}" if self.Y.ndim == 2 else ""
        return f"Flow: n = {len(self.Y)}{outputs}, lam = {self.lam:g}"

    @cached_property
    def end(self) -> Ridge:
        """The model at t = ∞; `ValueError` if λ = 0 and two points are duplicates."""
        return Ridge(self.K, self.Y, self.lam)

    def beta(self, t: float) -> np.ndarray:
        """Return the dual coefficients β(t) = A⁻¹(I − e^{−At})Y, shaped like Y."""
        t = _time(t)
        return self.end.beta if t == math.inf else self.V @ (self._learnt(t) * self._y.T).T

    def r(self, t: float) -> np.ndarray:
        """Return the training residuals r_i(t) = f(x_i; t) − y_i, shaped like Y."""
        return self.end.r if _time(t) == math.inf else self.K @ self.beta(t) - self.Y

    def rho(self, t: float) -> np.ndarray:
        """Return the leave-one-out residuals ρ_i(t) = f^{∖i}(x_i; t) − y_i, shaped like Y.

        `remove` for each point on its own: ρ_i = r_i − Re Σ_k 2t (c_k/ζ_k) [KR_k]_ii [R_kY]_i /
        [R_k]_ii (Eq 9 for resolvents).

        >>> Flow([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5).rho(math.log(2)).round(9).tolist()
        [-1.0, 1.0]
        """
        t = _time(t)
        if t == math.inf:
            return self.end.rho
        poles, weights = self._poles(t)
        squared = self.V**2
        factor = weights * (squared @ (self.mu * poles).T) / (squared @ poles.T)
        lost = sum(
            (((self.V * pole) @ self._y).T * part).real
            for pole, part in zip(poles, factor.T, strict=True)
        )
        return self.r(t) - lost.T

    def predict(self, k, t: float) -> np.ndarray:
        """Return f(x_te; t) = kᵀβ(t), (t_e,) or (t_e, c), for k = K∞(X, X_te), (n, t_e) or (n,)."""
        return check.columns(k, len(self.Y)).T @ self.beta(t)

    def remove(self, groups: Iterable, k, t: float) -> np.ndarray:
        """Return the predictions at time t of training without each group, (groups, t_e[, c]).

        f^{∖I}(t) = f(t) − 2t Re Σ_k (c_k/ζ_k) [kᵀR_k]_I ([R_k]_II)⁻¹ [R_kY]_I: Eq 9 for resolvents.

        Groups, `k` (n, t_e) and errors are those of `Ridge.remove`.

        >>> flow = Flow([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
        >>> flow.remove([0, [1]], [[0.5], [0.25]], t=math.log(2)).round(9).tolist()
        [[-0.125], [0.25]]
        """
        k, t = check.columns(k, len(self.Y)), _time(t)
        if t == math.inf:
            return self.end.remove(groups, k)
        poles, weights = self._poles(t)
        basis, result = self.V.T @ k, []
        for group in check.groups(groups, len(self.Y)):
            rows = self.V[group]
            change = (self._learnt(t) * self._y.T).T
            for resolvent, weight in zip(poles, weights, strict=True):
                block = (rows * resolvent) @ rows.T
                lost = np.linalg.solve(block, (rows * resolvent) @ self._y)
                change -= (weight * ((rows * resolvent).T @ lost)).real
            result.append(basis.T @ change)
        return np.array(result)

    def influence(self, k, y_te, t: float) -> FlowInfluence:
        """Return the influence at time t of every training point on every test point.

        `k` = K∞(X, X_te) is (n, t_e), `y_te` the test labels, (t_e,) or (t_e, c) as Y. See
        `FlowInfluence`. Costs a product of (n, n) and (n, t_e), and another for each output,
        however many poles there are. Source: Eq 8 along the flow of Eq 3, as in Fig 6 and 7.
        """
        k, t = check.columns(k, len(self.Y)).copy(), _time(t)
        if t == math.inf:
            end = self.end.influence(k, y_te)
            return FlowInfluence(self, t, k, end.f, y_te, end.shift)
        poles, weights = self._poles(t)
        basis, own = self.V.T @ k, self.V**2 @ poles.T
        shifts = []
        for y in np.atleast_2d(self._y.T):
            factor = -weights * (poles * y @ self.V.T).T / own
            # M_ij = Re Σ_k factor_ik / (ζ_k + a_j t)
            M = np.hstack([factor.real, -factor.imag]) @ np.vstack([poles.real, poles.imag])
            M *= self.V
            shifts.append(M @ basis)
        shift = shifts[0] if self.Y.ndim == 1 else np.stack(shifts, axis=2)
        return FlowInfluence(self, t, k, self.predict(k, t), y_te, shift)

    def _learnt(self, t: float) -> np.ndarray:
        """Return (1 − e^{−at})/a for the eigenvalues a of A, and its limit t for a = 0."""
        safe = np.where(self._a > 0, self._a, 1)
        return np.where(self._a > 0, -np.expm1(-self._a * t) / safe, t)

    def _poles(self, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the eigenvalues of each R_k, (7, n), and 2t c_k/ζ_k, (7,).

        β(t) ≈ Re Σ_k (2t c_k/ζ_k) R_k Y.
        """
        zeta, c = exponential()
        return 1 / (zeta[:, None] + self._a * t), 2 * t * c / zeta


class FlowInfluence(Influence):
    """Influence of n training points (rows) on the loss at t_e test points (columns) at time t.

    Both the full training and the training without a point have run for the same time t. `flow`,
    `t` and `k` (n, t_e) are what it was asked of; all else is that of `Influence`, with
    shift = f^{∖i}(t) − f(t). Source: Zhang and Zhang (2022), Eq 8, 9, 13 along the flow of Eq 3.

    >>> flow = Flow([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> now = flow.influence([[0.5], [0.25]], [1.0], t=math.log(2))
    >>> now.loo.round(9).tolist(), now.ihvp.round(6).tolist(), now.unrolled.round(6).tolist()
    ([[-0.125], [0.25]], [[0.328125], [-0.164062]], [[0.185188], [-0.092594]])
    """

    def __init__(self, flow: Flow, t: float, k: np.ndarray, f: np.ndarray, y_te, shift: np.ndarray):
        super().__init__(f, y_te, shift)
        self.flow, self.t, self.k = flow, t, k

    def __repr__(self) -> str:
        n, t_e = self.k.shape
        return f"Influence: n = {n}, t_e = {t_e}, t = {self.t:g}, lam = {self.flow.lam:g}"

    @property
    def ihvp(self) -> np.ndarray:
        """Eq 13 with the residuals of time t: Î = α_i ⟨r_i(t), r_te(t)⟩, α = A⁻¹k, (n, t_e).

        The estimate that one gets before training has ended. It assumes a minimum: at t = 0 it is
        not small, although the influence is 0. The Hessian is the same at every t.
        """
        return self.flow.end.Q @ self.k * products(self.flow.r(self.t), self.r_te)

    @property
    def unrolled(self) -> np.ndarray:
        """First order in the weight of x_i, followed along training, (n, t_e).

        Î(t) = ⟨r_te(t), ∫₀ᵗ [kᵀ e^{−A(t−s)}]_i r_i(s) ds⟩,  which tends to Eq 13 for t → ∞.

        Source: the derivative of the flow; for stochastic gradient descent Hara, Nitanda and
        Maehara (2019).
        """
        flow, t = self.flow, self.t
        if t == math.inf:
            return self.ihvp
        a, low = flow._a, np.minimum.outer(flow._a, flow._a)
        gap = np.abs(np.subtract.outer(a, a))
        safe = np.where(gap > 0, gap, 1)
        divided = np.exp(-low * t) * np.where(gap > 0, -np.expm1(-gap * t) / safe, t)
        share = np.where(a > 0, flow.mu / np.where(a > 0, a, 1), 1)  # r_q(s) = −(1−h)y − h e^{−as}y
        integral = -(np.multiply.outer(flow._learnt(t), 1 - share) + divided * share)
        basis, estimate = flow.V.T @ self.k, np.zeros(self.k.shape)
        for y, r_te in zip(np.atleast_2d(flow._y.T), np.atleast_2d(self.r_te.T), strict=True):
            estimate += r_te * ((flow.V * ((flow.V * y) @ integral.T)) @ basis)
        return estimate


def _time(t) -> float:
    if np.ndim(t):
        raise TypeError(f"t must be one time, not {t!r}; call again for each")
    with suppress(TypeError):  # a missing value is neither equal to infinity nor not
        if t == math.inf:
            return math.inf
    if check.number("t", t, at_least=0) > 1e100:
        raise ValueError(f"t = {t:g} is beyond the arithmetic; use math.inf for the end")
    return float(t)
