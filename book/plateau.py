"""What a plain initialisation leaves of its untrained output, at any width (Prop 1)."""

from __future__ import annotations

import numpy as np

from lib import check
from lib.ridge import RidgeInfluence


def plateau(limit: RidgeInfluence, X, X_te, kappa: float) -> np.ndarray:
    """Return the rms of Î_nn − Î_ntk that a network with f₀ ≠ 0 keeps as m → ∞, (n, t).

    Prop 1 (Eq 13) needs f₀ = 0. A plain initialisation has a Gaussian f₀ instead, of covariance
    Σ = κ²/2π (√(1 − u²) + u (π − arccos u)), u = x·x'. Training leaves δ = f₀(x_te) − αᵀf₀(X) of
    it at a test point and ε = λQf₀(X) at the training points; Î moves by α (δ r + r_te ε + δε):

        E(Î_nn − Î_ntk)² = α² [r² E δ² + r_te² E ε² + 2 r r_te E δε + E δ² E ε² + 2 (E δε)²].

    `limit` is `Ridge(ntk(X), Y, lam).influence(ntk(X, X_te), y_te)`, X (n, d) and X_te (t, d) have
    unit rows, kappa > 0 is the standard deviation of W(0). Proportional to kappa where that is
    small. Raises `ValueError` for arguments outside these ranges and shapes that do not match.
    Source: derived here; the covariance is that of Cho and Saul (2009).

    >>> from lib.ridge import Ridge
    >>> limit = Ridge([[0.5]], [1.0], 0.5).influence([[0.0]], [1.0])  # orthogonal points: α = 0
    >>> plateau(limit, [[1.0, 0.0]], [[0.0, 1.0]], kappa=0.1).tolist()
    [[0.0]]
    """
    X, X_te = (
        check.unit(name, check.tensor(name, x)).numpy() for name, x in (("X", X), ("X_te", X_te))
    )
    alpha, model = limit.alpha, limit.model
    if limit.f.ndim == 2:
        raise ValueError("limit has several outputs, but Eq 1 has one; pass labels Y of shape (n,)")
    if (len(X), len(X_te)) != alpha.shape:
        raise ValueError(
            f"X and X_te have {len(X)} and {len(X_te)} rows, but limit is of {alpha.shape[0]} "
            f"training and {alpha.shape[1]} test points; pass the points that limit was made of"
        )
    S, S_te, own = (covariance(x, kappa) for x in (X @ X.T, X @ X_te.T, np.ones(1)))
    left = S_te - S @ alpha  # E f₀(X) δ
    test = own - np.sum(alpha * (S_te + left), axis=0)  # E δ², (t,)
    Q = model.Q.rows(slice(None))
    train = model.lam**2 * np.sum((model.Q @ S) * Q, axis=1)[:, None]  # E ε², (n, 1)
    both = model.lam * (model.Q @ left)  # E δε
    r, r_te = model.r[:, None], limit.r_te
    square = r**2 * test + r_te**2 * train + 2 * r * r_te * both + test * train + 2 * both**2
    return np.abs(alpha) * np.sqrt(np.maximum(square, 0))


def covariance(u: np.ndarray, kappa: float) -> np.ndarray:
    """Return the covariance of the untrained network (Eq 1) at pairs of points with u = x·x'.

    E f₀(x) f₀(x') = κ² (√(1 − u²) + u (π − arccos u)) / 2π, of the shape of u, in [0, κ²/2].

    Raises `ValueError` for kappa ≤ 0 and abs(u) > 1 beyond rounding. Source: Cho and Saul (2009).

    >>> covariance([1.0, 0.5, -1.0], kappa=2.0).round(6).tolist()
    [2.0, 1.217996, 0.0]
    """
    u = check.array("u", u, ndim=(0, 1, 2))
    worst = u.flat[np.abs(u).argmax()]
    if abs(worst) > 1 + 1e-9:
        raise ValueError(
            f"u must lie in [-1, 1], but holds {worst:g}; pass products of unit vectors, "
            "from lib.data.unit_rows"
        )
    u = np.clip(u, -1, 1)
    arc = np.sqrt(1 - u**2) + u * (np.pi - np.arccos(u))
    return check.number("kappa", kappa, above=0) ** 2 / (2 * np.pi) * arc
