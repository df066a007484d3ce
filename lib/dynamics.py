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
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.linalg import hankel

from lib import check
from lib.ridge import Ridge


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
    if not 1 <= check.integer("pairs", pairs) <= 7:
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

    Time has the unit of 1/K: the loss is a sum, so the direction of the j-th eigenvector is learnt
    at t ≈ 1/(λ_j + λ). Any t from 0 to `math.inf` is allowed, and any λ ≥ 0. One eigendecomposition
    is done at the start, and serves every t.

    Source: Zhang and Zhang (2022), Eq 3, 8, 9; Jacot, Gabriel and Hongler (2018).

    Parameters
    ----------
    K : (n, n) symmetric kernel of the training points, for instance `lib.kernel.ntk(X)`
    Y : (n,) labels in [-1, 1]
    lam : ridge λ ≥ 0 in units of K

    Attributes
    ----------
    mu : (n,) eigenvalues of K, ascending
    V : (n, n) eigenvectors of K, in columns

    Raises
    ------
    ValueError
        for bad shapes, labels or λ, for a K that is not positive semidefinite, and at t = ∞ with
        λ = 0 for duplicate points, naming them

    Examples
    --------
    >>> flow = Flow([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> flow.beta(0.0).tolist(), flow.beta(math.inf).tolist()
    ([0.0, 0.0], [1.0, -1.0])
    >>> flow.influence([[0.5], [0.25]], [1.0], t=math.log(2)).exact.round(9).tolist()
    [[0.25], [-0.1015625]]
    """

    def __init__(self, K, Y, lam: float):
        self.K, self.Y, self.lam = check.regression(K, Y, lam)
        self.mu, self.V = np.linalg.eigh(self.K)
        rounding = len(self.mu) * np.finfo(float).eps * np.abs(self.mu).max()
        if self.mu[0] < -100 * rounding:
            raise ValueError(
                f"K is not positive semidefinite (its smallest eigenvalue is {self.mu[0]:.3g}); "
                "pass K = ntk(X)"
            )
        self.mu = self.mu.clip(0)
        self._a = self.mu + self.lam
        self._y = self.V.T @ self.Y

    @cached_property
    def end(self) -> Ridge:
        """The model at t = ∞; `ValueError` if λ = 0 and two points are duplicates."""
        return Ridge(self.K, self.Y, self.lam)

    def beta(self, t: float) -> np.ndarray:
        """Return the dual coefficients β(t) = A⁻¹(I − e^{−At})Y, (n,)."""
        t = _time(t)
        return self.end.beta if t == math.inf else self.V @ (self._learnt(t) * self._y)

    def r(self, t: float) -> np.ndarray:
        """Return the training residuals r_i(t) = f(x_i; t) − y_i, (n,)."""
        return self.end.r if _time(t) == math.inf else self.K @ self.beta(t) - self.Y

    def predict(self, k, t: float) -> np.ndarray:
        """Return f(x_te; t) = kᵀβ(t), (t_e,), for k = K∞(X, X_te) of shape (n, t_e) or (n,)."""
        return check.columns(k, len(self.Y)).T @ self.beta(t)

    def remove(self, groups: Iterable, k, t: float) -> np.ndarray:
        """Return the predictions at time t of training without each group, (groups, t_e).

        f^{∖I}(t) = f(t) − 2t Re Σ_k (c_k/ζ_k) [kᵀR_k]_I ([R_k]_II)⁻¹ [R_kY]_I, no training again.

        A group is an index or a list of distinct indices, `k` is (n, t_e). Raises `IndexError` for
        an index out of range or named twice. Source: Eq 9 applied to the resolvents.

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
            change = self._learnt(t) * self._y
            for resolvent, weight in zip(poles, weights, strict=True):
                block = (rows * resolvent) @ rows.T
                lost = np.linalg.solve(block, rows @ (resolvent * self._y))
                change -= (weight * (lost @ rows) * resolvent).real
            result.append(change @ basis)
        return np.array(result)

    def influence(self, k, y_te, t: float) -> Moment:
        """Return the influence at time t of every training point on every test point.

        `k` = K∞(X, X_te) is (n, t_e), `y_te` the (t_e,) test labels in [-1, 1]. See `Moment`.
        Costs two products of (n, n) and (n, t_e), however many poles there are. Source: Eq 8 along
        the flow of Eq 3, as in Fig 6 and 7.
        """
        k, t = check.columns(k, len(self.Y)), _time(t)
        y_te = check.labels("y_te", y_te, k.shape[1])
        if t == math.inf:
            end = self.end.influence(k, y_te)
            return Moment(self, t, k, end.f, end.shift, y_te)
        poles, weights = self._poles(t)
        factor = -weights * (poles * self._y @ self.V.T).T / (self.V**2 @ poles.T)
        # M_ij = Re Σ_k factor_ik / (ζ_k + a_j t)
        M = np.hstack([factor.real, -factor.imag]) @ np.vstack([poles.real, poles.imag])
        M *= self.V
        return Moment(self, t, k, self.predict(k, t), M @ (self.V.T @ k), y_te)

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


@dataclass(frozen=True)
class Moment:
    """Influence of n training points (rows) on the loss at t_e test points (columns) at time t.

    Both the full training and the training without a point have run for the same time t. A
    positive influence says that removing the point raises the loss: the point is helpful.

    Source: Zhang and Zhang (2022), Eq 8, 9, 13 along the flow of Eq 3.

    Attributes
    ----------
    flow, t, k : the `Flow`, the time and the (n, t_e) kernel it belongs to
    f : (t_e,) predictions f(x_te; t)
    shift : (n, t_e) what removing x_i does to them: f^{∖i}(t) − f(t)
    y_te : (t_e,) test labels

    Examples
    --------
    >>> flow = Flow([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> now = flow.influence([[0.5], [0.25]], [1.0], t=math.log(2))
    >>> now.loo.round(9).tolist(), now.ihvp.round(6).tolist(), now.unrolled.round(6).tolist()
    ([[-0.125], [0.25]], [[0.328125], [-0.164062]], [[0.185188], [-0.092594]])
    """

    flow: Flow
    t: float
    k: np.ndarray
    f: np.ndarray
    shift: np.ndarray
    y_te: np.ndarray

    @property
    def r_te(self) -> np.ndarray:
        """Test residuals r_te(t) = f(x_te; t) − y_te, (t_e,)."""
        return self.f - self.y_te

    @property
    def loo(self) -> np.ndarray:
        """Predictions f^{∖i}(x_te; t) of training without a point for the time t, (n, t_e)."""
        return self.f + self.shift

    @property
    def exact(self) -> np.ndarray:
        """Exact influence I = ½(f^{∖i} − y_te)² − ½(f − y_te)² at time t (Eq 8), (n, t_e)."""
        return self.shift * (self.r_te + 0.5 * self.shift)

    @property
    def ihvp(self) -> np.ndarray:
        """Eq 13 with the residuals of time t: Î = α_i r_te(t) r_i(t), α = A⁻¹k, (n, t_e).

        What one computes who takes the estimate before training has ended: it supposes a minimum,
        and is not small at t = 0, where the influence is. The Hessian is the same at every t.
        """
        return self.flow.end.Q @ self.k * self.r_te * self.flow.r(self.t)[:, None]

    @property
    def unrolled(self) -> np.ndarray:
        """First order in the weight of x_i, followed along training, (n, t_e).

        Î(t) = r_te(t) ∫₀ᵗ [kᵀ e^{−A(t−s)}]_i r_i(s) ds,  which tends to Eq 13 for t → ∞.

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
        first = flow.V * ((flow.V * flow._y) @ integral.T)
        return self.r_te * (first @ (flow.V.T @ self.k))


def _time(t) -> float:
    if np.ndim(t):
        raise TypeError(f"t must be one time, not {t!r}; call again for each")
    if t == math.inf:
        return math.inf
    if check.number("t", t, at_least=0) > 1e100:
        raise ValueError(f"t = {t:g} is beyond the arithmetic; use math.inf for the end")
    return float(t)
