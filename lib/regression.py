"""Kernel regression with any loss of `lib.losses`, and the influence of its training points.

Minimise Σ_i ℓ(f_i, y_i) + ½ λ tr βᵀKβ, f = Kβ. With Λ_i = ∂²ℓ/∂f² (c×c) at the minimum, features Φ
of K and the Hessian H = ΦᵀΛΦ + λI, everything is a product with C = ΦH⁻¹Φᵀ = (λI + KΛ)⁻¹K. It is of
size nc, and is never formed: see `Curvature`. Inside, arrays are (c, n, …).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from lib import check
from lib.influence import Influence
from lib.losses import SQUARED


def repair(g: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ω_i = (I − D_i)⁻¹ g_i and the effective leverage 1 − ‖g_i‖²/⟨g_i, ω_i⟩ of each point.

    g (n, c) are gradients ∂ℓ/∂f, and D = Λ_i C_ii (n, c, c) leverages. Where g_i = 0 nothing is
    seen of D_i, and the mean of its diagonal stands in.

    >>> omega, h = repair(np.array([[0.5], [0.0]]), np.array([[[0.2]], [[0.3]]]))
    >>> omega.tolist(), h.round(6).tolist()
    ([[0.625], [0.0]], [0.2, 0.3])
    """
    omega = np.linalg.solve(np.eye(g.shape[1]) - blocks, g[:, :, None])[:, :, 0]
    seen, unseen = (g * g).sum(axis=1), (g * omega).sum(axis=1)
    given = seen > 0
    mean = np.trace(blocks, axis1=1, axis2=2) / g.shape[1]
    return omega, np.where(given, 1 - seen / np.where(given, unseen, 1.0), mean)


class Estimates:
    """Three estimates of an influence, from two shifts of the test outputs, (n, t) or (n, t, c).

    `first` is C_te,i g_i, and `step` C_te,i ω_i, the shift by one Newton step without the point.
    `f`, `y_te` and `loss` are outputs and labels at the test points, and the loss.
    """

    @property
    def ihvp(self) -> np.ndarray:
        """Inverse-Hessian-vector-product estimate Î = ⟨g_te, C_te,i g_i⟩ (Eq 12), (n, t)."""
        return self._influence(self.first).T1

    @property
    def rescaled(self) -> np.ndarray:
        """Repaired estimate ⟨g_te, step⟩, (n, t): with one output Î/(1 − h_i)."""
        return self._influence(self.step).T1

    @property
    def newton(self) -> np.ndarray:
        """Newton-step estimate ℓ(f + step) − ℓ(f), (n, t); exact for squared loss and fixed K."""
        return self._influence(self.step).exact

    def _influence(self, shift: np.ndarray) -> Influence:
        return Influence(self.f, self.y_te, shift, self.loss)


class Curvature:
    """C = (λI + KΛ)⁻¹K for Λ_i = diag(d_i) − v_i v_iᵀ, with d and v (c, n).

    C = C_D + C_D V T⁻¹ Vᵀ C_D with T = I − VᵀC_D V (n×n): for Λ = diag(d), C_D has a block D_a =
    (λI + K diag(d_a))⁻¹K for each output. That is c + 1 factorisations of size n, and no division
    by Λ. Source: Woodbury; for softmax compare Rasmussen and Williams (2006), Algorithm 3.3.
    """

    def __init__(self, K: np.ndarray, lam: float, d: np.ndarray, v: np.ndarray):
        self.lam, self.d, self.v = lam, d, v
        A = d[:, None, :] * K
        A[:, np.arange(len(K)), np.arange(len(K))] += lam
        self.D = np.linalg.solve(A, np.broadcast_to(K, A.shape))
        self.inverse = np.linalg.inv(np.eye(len(K)) - np.einsum("ai,aij,aj->ij", v, self.D, v))
        self.Z = self.inverse @ (v[:, :, None] * self.D)  # T⁻¹VᵀC_D

    def hessian(self, s: np.ndarray) -> np.ndarray:
        """Λ s for s (c, n, p)."""
        return self.d[:, :, None] * s - self._outer(self._inner(s))

    def own(self) -> tuple[np.ndarray, np.ndarray]:
        """The blocks C_ii and Λ_i of each point, (n, c, c)."""
        diagonal, eye = np.einsum("aii->ai", self.D), np.eye(len(self.d))
        C = np.einsum("aj,aji,bji->iab", self.v, self.D, self.Z, optimize=True)
        hessian = -np.einsum("ai,bi->iab", self.v, self.v)
        return (x + np.einsum("ai,ab->iab", y, eye) for x, y in ((C, diagonal), (hessian, self.d)))

    def times(self, s: np.ndarray, points=None, M=None) -> np.ndarray:
        """C s for s (c, n, p), or in column j with Λ_i = 0 at i = points[j].

        That is C (s + e_i m), m = M_i (Cs)_i, with M_i = (I − Λ_i C_ii)⁻¹ Λ_i, (p, c, c).
        """
        q = self.D @ s
        w = self.inverse @ self._inner(q)
        if points is not None:
            own = np.einsum("apj,aj,jp->ap", self.D[:, points], self.v, w, optimize=True)
            m = np.einsum("pab,bp->ap", M, own + q[:, points, np.arange(len(points))])[:, None]
            q += self.D[:, :, points] * m
            w += (self.Z[:, :, points] * m).sum(axis=0)
        return q + self.D @ self._outer(w)

    def towards(self, k: np.ndarray, s: np.ndarray) -> np.ndarray:
        """C_te,i s_i for every point and test point, (c, n, t), for k (n, t) and s (c, n)."""
        across = (k - self.D @ (self.d[:, :, None] * k)) / self.lam  # C_D between X and X_te
        through = (self.Z * s[:, None, :]).sum(axis=0).T
        return across * s[:, :, None] + through @ (self.v[:, :, None] * across)

    def _inner(self, q: np.ndarray) -> np.ndarray:
        return np.einsum("an,anp->np", self.v, q)

    def _outer(self, w: np.ndarray) -> np.ndarray:
        return self.v[:, :, None] * w


class Regression:
    """The minimum of Σ_i ℓ(f_i, y_i) + ½ λ tr βᵀKβ, f = Kβ, for a loss ℓ of `lib.losses`.

    K is the symmetric (n, n) kernel, Y are the labels that the loss asks for, (n,) or (n, c), and
    λ > 0. Newton's method, damped, ends when no prediction with k(x, x) ≤ max K_ii is further than
    `tol` from that at the minimum. The objective is λ-convex, so abs(f − f*) ≤ √(k(x, x) tr sᵀKs)/λ
    with s = λβ + ∂ℓ/∂f. Attributes:

    - beta, f, g: coefficients β, outputs Kβ and gradients ∂ℓ/∂f = −λβ, shaped like Y
    - gap: that bound on abs(f − f*), at most tol
    - C: the `Curvature` at the minimum
    - leverage: C_ii Λ_i, (n, c, c), or (n,) for one output
    - omega: ω_i = (I − Λ_i C_ii)⁻¹ g_i, the gradient at a point after one Newton step without it
    - h: effective leverage 1 − ‖g_i‖²/⟨g_i, ω_i⟩, (n,): C_ii Λ_i for one output, and h_i of `Ridge`
      for squared loss, see `repair`

    Raises `ValueError` for bad shapes, labels or λ and for a K that is not positive semidefinite,
    and `RuntimeError` if Newton's method does not reach `tol`. Source: this project.

    >>> from lib.losses import Logistic
    >>> model = Regression([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5, loss=Logistic())
    >>> model.beta.round(6).tolist(), model.h.round(6).tolist()  # β = 2/(1 + e^{β/2})
    ([0.802116, -0.802116], [0.193685, 0.193685])
    """

    def __init__(self, K, Y, lam: float, loss=SQUARED, *, tol: float = 1e-8):
        self.K, self.loss = check.symmetric("K", K).copy(), loss
        self.lam, self.tol = check.number("lam", lam, above=0), check.number("tol", tol, above=0)
        self.Y, n = loss.labels("Y", Y, len(self.K)), len(self.K)
        rounding = n * np.finfo(float).eps * self.K.trace()
        check.semidefinite(np.linalg.eigvalsh(self.K)[0], max(1e-3 * self.lam, rounding))
        self._y = self.Y.reshape(n, 1, -1)
        start = np.zeros((self._y.shape[-1], n, 1))
        beta, gap, self.C = self._descend(start, np.ones((n, 1)))
        f, self.gap = self.K @ beta, float(gap[0])
        self.beta, self.f, self.g = (
            x[..., 0].T.reshape(self.Y.shape) for x in (beta, f, self._gradient(f))
        )
        (C, hessian), g = self.C.own(), self.g.reshape(n, -1)
        self._M = np.linalg.solve(np.eye(g.shape[1]) - hessian @ C, hessian)
        self.leverage = C @ hessian if self.Y.ndim == 2 else (C * hessian).reshape(-1)
        omega, self.h = repair(g, hessian @ C)
        self.omega = omega.reshape(self.Y.shape)

    def __repr__(self) -> str:
        return f"Regression: {type(self.loss).__name__}, n = {len(self.Y)}, lam = {self.lam:g}"

    def predict(self, k) -> np.ndarray:
        """Return f(x_te) = kᵀβ, (t,) or (t, c), for k of (n, t) or (n,)."""
        return check.columns(k, len(self.Y)).T @ self.beta

    def without(self, points, *, block: int = 250) -> np.ndarray:
        """Return the coefficients β of refits without each of p points, (p, n) or (p, n, c).

        Newton's method, damped, goes on from the full fit to the same `tol`, `block` refits side by
        side. Its first step is the Newton-step estimate, and others keep the factorisation of the
        full fit. A point that this does not bring to the minimum in 25 steps gets its own.
        """
        points, n = check.indices("points", points, len(self.Y)), len(self.Y)
        found = np.repeat(self.beta.reshape(n, -1).T[:, :, None], len(points), axis=2)
        for at in range(0, len(points), block):
            some, keep = points[at : at + block], np.ones((n, len(points[at : at + block])))
            keep[some, np.arange(len(some))] = 0
            beta, gap, _ = self._descend(found[:, :, at : at + block], keep, some)
            for j in np.flatnonzero(gap > self.tol):
                beta[:, :, [j]] = self._descend(beta[:, :, [j]], keep[:, [j]])[0]
        return found.transpose(2, 1, 0).reshape(len(points), *self.Y.shape)

    def influence(self, k, y_te) -> RegressionInfluence:
        """Return the influence of every training point on every test point, and its estimates."""
        return RegressionInfluence(self, k, y_te)

    def _gradient(self, f: np.ndarray) -> np.ndarray:
        return np.moveaxis(self.loss.gradient(np.moveaxis(f, 0, -1), self._y), -1, 0)

    def _objective(self, beta, f, keep) -> np.ndarray:
        values = self.loss.value(np.moveaxis(f, 0, -1), self._y)
        return np.sum(keep * values, axis=0) + 0.5 * self.lam * np.sum(beta * f, axis=(0, 1))

    def _descend(self, beta, keep, points=None):
        """Newton's method, damped, for p sets of points, keep (n, p); it changes beta (c, n, p).

        Steps halve until the objective falls, or rises by rounding. With `points` (p,), the set j
        lacks points[j], C is that of the full fit, and 25 steps may leave some sets short of tol.
        Without, p = 1, and C is fresh in each step.
        """
        gap, steps = np.full(beta.shape[2], np.inf), 60 if points is None else 25
        for _ in range(steps):
            go = np.flatnonzero(gap > self.tol)
            b, there = beta[:, :, go], keep[:, go]
            f = self.K @ b
            s = self.lam * b + there * self._gradient(f)
            squares = np.sum(s * (self.K @ s), axis=(0, 1)).clip(0)
            gap[go] = np.sqrt(self.K.diagonal().max() * squares) / self.lam
            if points is None:
                d, v = self.loss.curvature(np.moveaxis(f[..., 0], 0, -1))
                C, without = Curvature(self.K, self.lam, d.T * there.T, v.T * there.T), ()
            else:
                C, without = self.C, (points[go], self._M[points[go]])
            if (gap <= self.tol).all():
                return beta, gap, C
            df = -C.times(s, *without)
            db = -(s + there * C.hessian(df)) / self.lam
            before, size, above = self._objective(b, f, there), np.ones(len(go)), True
            while np.any(above):
                after = self._objective(b + size * db, f + size * df, there)
                above = ~(after <= before + 1e-13 * (1 + np.abs(before))) & (size > 1e-12)
                size[above] /= 2
            beta[:, :, go] = b + size * db
        if points is None:
            raise RuntimeError(
                f"Newton's method is within {gap[0]:.1e} of the minimum after {steps} steps, not "
                f"within tol = {self.tol:g}; choose a larger lam or tol"
            )
        return beta, gap, C


class RegressionInfluence(Estimates, Influence):
    """Influence of every training point of a `Regression`, exact by refits, and its estimates.

    `k` is (n, t) and `y_te` the test labels, as Y. `shift`, and with it `exact`, `T1`, `T2` and
    `loo`, comes from removing every point and fitting again. The estimates need no refit.
    """

    def __init__(self, model: Regression, k, y_te):
        self.model, self.k = model, check.columns(k, len(model.Y)).copy()
        super().__init__(model.predict(self.k), y_te, None, model.loss)

    def __repr__(self) -> str:
        n, t = self.k.shape
        return f"RegressionInfluence: n = {n}, t = {t}, lam = {self.model.lam:g}"

    @cached_property
    def shift(self) -> np.ndarray:
        """What removing x_i does to f(x_te), f^{∖i} − f, by n refits, (n, t) or (n, t, c)."""
        change = self.model.without(np.arange(len(self.k))) - self.model.beta
        return np.einsum("in...,nt->it...", change, self.k, optimize=True)

    @property
    def first(self) -> np.ndarray:
        """Shift C_te,i g_i that IHVP takes the removal to cause, shaped like `shift`."""
        return self._towards(self.model.g)

    @cached_property
    def step(self) -> np.ndarray:
        """Shift C_te,i ω_i of one Newton step without the point, shaped like `shift`."""
        return self._towards(self.model.omega)

    def _towards(self, s: np.ndarray) -> np.ndarray:
        moved = self.model.C.towards(self.k, s.reshape(len(s), -1).T)
        return np.moveaxis(moved, 0, -1) if self.f.ndim == 2 else moved[0]
