"""Density and the error of IHVP: Theorem 4 (Def 1, Eq 18) and Figure 3.

Theorem 4 says that the inverse-Hessian-vector product errs little in the large components of a
mixture. Its right-hand side and its hypotheses are numbers here, so that anyone can see whether
they hold. `lib.bounds.subset_bound` takes its place where they do not.
"""

from __future__ import annotations

import numpy as np
from scipy.special import logsumexp

from lib import check
from lib.ridge import Ridge, RidgeInfluence


def mixture(centres, p, n: int, r: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw n points on the sphere from a mixture that satisfies Definition 1, A1 and A2.

    Def 1:  component k has the share p_k of the points, (A1) n_k = p_k n of them exactly, and
    (A2) ‖x − E_{D_k} z‖ < r for each of its points. D_k is a cap around the centre c_k:
    x = cos θ c_k + sin θ v, with v uniform among the unit vectors orthogonal to c_k and θ uniform
    in [0, r). The mean lies between c_k and cos(r) c_k, both closer than r to every x.

    `centres` (k, d) are unit vectors with d ≥ 2, `p` (k,) positive shares of sum 1, each with a
    whole p_k n, and r is in (0, 1]. Returns X (n, d) with unit rows in random order, and the
    component of each point, (n,) integers in 0 .. k − 1. Raises `ValueError` for centres that are
    not of unit norm, shares that break A1 and another r. Source: Zhang and Zhang (2022), Def 1, for
    the conditions; the caps are ours.

    >>> X, component = mixture(np.eye(3), p=[0.5, 0.3, 0.2], n=10, r=0.1)
    >>> X.shape, np.bincount(component).tolist(), bool(radius(X, component).max() < 0.1)
    ((10, 3), [5, 3, 2], True)
    """
    centres = check.unit("centres", check.tensor("centres", centres)).numpy()
    if centres.shape[1] < 2:
        raise ValueError("centres must have at least 2 columns; a sphere needs two dimensions")
    rng = np.random.default_rng(check.integer("seed", seed, at_least=0))
    n = check.integer("n", n)
    counts = _counts(p, len(centres), n)
    r = _radius(r)
    component = rng.permutation(np.repeat(np.arange(len(centres)), counts))
    c = centres[component]
    g = rng.standard_normal((n, c.shape[1] - 1))
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    theta = r * rng.random((n, 1))
    y = np.hstack([np.cos(theta), np.sin(theta) * g])  # around e₁
    sign = np.where(c[:, :1] < 0, -1.0, 1.0)
    w = c + sign * np.eye(1, c.shape[1])  # the reflection along w takes e₁ to −sign c
    along = 2 * np.sum(w * y, axis=1) / np.sum(w * w, axis=1)
    return sign * (along[:, None] * w - y), component


def radius(X, component) -> np.ndarray:
    """Return the largest distance of a point from the mean of its component, (k,): r of Def 1, A2.

    X is (n, d), `component` (n,) integers 0 .. k − 1, none of them without a point. The mean is
    that of the points given. Raises `ValueError` for shapes that do not match.

    >>> radius([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0]], [0, 0, 1]).tolist()
    [1.0, 0.0]
    """
    X = check.array("X", X, ndim=2)
    component = _component(component, len(X))
    groups = [X[component == k] for k in range(component.max() + 1)]
    return np.array([np.linalg.norm(x - x.mean(axis=0), axis=1).max() for x in groups])


def epsilon(r: float) -> float:
    """Return ε_r of Theorem 4:  ε_r² = 2r² + arccos(1 − 2r²), for r in (0, 1].

    It bounds the distance of two points of a component in feature space. Raises `ValueError` for
    r outside (0, 1]. Source: Zhang and Zhang (2022), Thm 4.

    >>> round(2**0.5 * epsilon(0.2), 6)  # the theorem needs √2 ε_r < 1
    0.982564
    """
    r = _radius(r)
    return float(np.sqrt(2 * r**2 + 2 * np.arcsin(r)))  # arccos(1 − 2r²) = 2 arcsin r, all digits


def required_ridge(lam_max: float, r: float) -> float:
    """Return what λ must exceed in Theorem 4:  √2 λ_max ε_r / (1 − √2 ε_r).

    `lam_max` > 0 is the largest eigenvalue of K, r the radius of A2; infinite unless √2 ε_r < 1,
    since no λ satisfies the theorem then. Source: Zhang and Zhang (2022), Thm 4.

    >>> round(required_ridge(100.0, 0.01), 6), required_ridge(100.0, 0.3)
    (25.156316, inf)
    """
    spread = np.sqrt(2) * epsilon(r)
    lam_max = check.number("lam_max", lam_max, above=0)
    return float(lam_max * spread / (1 - spread)) if spread < 1 else float("inf")


def gamma_thm_4(model: Ridge) -> np.ndarray:
    """Return the smallest γ that Theorem 4 allows for each point, (n,), in [0, n].

    With α(x_i) = QKe_i the theorem asks that [α(x_i)]_i ≤ √(γ/n) ‖α(x_i)‖, and [α(x_i)]_i is the
    leverage h_i, so γ_i = n h_i² / ‖α(x_i)‖². Source: Zhang and Zhang (2022), Thm 4.

    >>> gamma_thm_4(Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)).tolist()
    [2.0, 2.0]
    """
    return len(model.h) * model.h**2 / _alpha_squared(model)


def bound(influence: RidgeInfluence, p, gamma) -> np.ndarray:
    """Return the bound of Theorem 4 on the error of IHVP, (n, t), in units of the influence.

    Eq 18:  abs(I − Î) ≤ √(γ/(n² p_k)) abs(I) + T₂  for x_i in component k, under the hypotheses
    of the theorem. Without them the number may be too small.

    `p` (n,) is the share p_k of the component that each training point belongs to, in (0, 1], and
    `gamma` (n,) or a number, for instance `gamma_thm_4(influence.model)`. Raises `ValueError` for
    shapes that do not match, shares outside (0, 1] and negative γ.
    Source: Zhang and Zhang (2022), Thm 4, Eq 18.

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> one = model.influence([0.5, 0.25], [1.0])
    >>> bound(one, p=[0.5, 0.5], gamma=2.0).tolist(), np.abs(one.exact - one.ihvp).tolist()
    ([[0.625], [0.1875]], [[0.3125], [0.0625]])
    """
    n = len(influence.alpha)
    p, gamma = _each("p", p, n), _each("gamma", gamma, n)
    if not ((p > 0) & (p <= 1)).all():
        raise ValueError(f"p must lie in (0, 1], but holds {p.min():g} to {p.max():g}; pass n_k/n")
    if (gamma < 0).any():
        raise ValueError(
            f"gamma must be >= 0, but holds {gamma.min():g}; pass gamma_thm_4(influence.model)"
        )
    share = np.sqrt(gamma / (n**2 * p))
    return share[:, None] * np.abs(influence.exact) + influence.T2


def bandwidth(D) -> float:
    """Return the median distance of a point to its nearest neighbour: the rule for Figure 3.

    D is the (n, n) matrix of distances, n ≥ 2, for instance scipy's `squareform(pdist(X))`; the
    result has its unit. Duplicates of a point, at the distance 0, are no neighbours of it. Raises
    `ValueError` for bad shapes, and if all points are equal. Source: ours, for Fig 3 of Zhang and
    Zhang (2022).

    >>> bandwidth([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]])
    1.0
    """
    D = _distances(D)
    if not D.any():
        raise ValueError("D is 0 everywhere, so all points are equal; pass points that differ")
    return float(np.median(np.where(D > 0, D, np.inf).min(axis=1)))


def log_density(D, width: float) -> np.ndarray:
    """Return the logarithm of a Gaussian kernel density at each point, itself excluded, (n,).

    log 1/(n−1) Σ_{j≠i} exp(−D_ij² / 2b²), up to the constant (2πb²)^{−d/2} that no comparison of
    points depends on; D is the (n, n) matrix of distances, n ≥ 2, b = `width` > 0 in their unit.
    Raises `ValueError` for bad shapes and widths. Source: Zhang and Zhang (2022), Fig 3; leaving
    the point itself out is ours.

    >>> log_density([[0.0, 1.0], [1.0, 0.0]], width=1.0).tolist()
    [-0.5, -0.5]
    """
    exponent = -0.5 * (_distances(D) / check.number("width", width, above=0)) ** 2
    np.fill_diagonal(exponent, -np.inf)
    return logsumexp(exponent, axis=1) - np.log(len(exponent) - 1)


def _distances(D) -> np.ndarray:
    """Return a copy of D, if it is square, for at least two points, and not negative."""
    D = check.array("D", D, ndim=2).copy()
    if D.shape[0] != D.shape[1] or len(D) < 2 or D.min() < 0:
        raise ValueError(
            f"D must hold the distances of at least two points, but its shape is {D.shape} and its "
            f"smallest entry {D.min():g}; pass squareform(pdist(X))"
        )
    return D


def _alpha_squared(model: Ridge) -> np.ndarray:
    """Return ‖α(x_i)‖² = ‖QKe_i‖², (n,): off the diagonal QK = −λQ, on it h."""
    return model.lam**2 * model.Q.off_diagonal() + model.h**2


def _each(name: str, x, n: int) -> np.ndarray:
    """Return `x` as (n,), one number for each training point or the same for all."""
    x = check.array(name, x, ndim=(0, 1))
    if x.ndim and len(x) != n:
        raise ValueError(
            f"{name} has {len(x)} entries, but there are {n} training points; pass one a point"
        )
    return np.broadcast_to(x, n)


def _radius(r) -> float:
    r = check.number("r", r, above=0)
    if r > 1:
        raise ValueError(f"r must be at most 1, not {r:g}; two unit vectors are at most 2 apart")
    return r


def _component(component, n: int) -> np.ndarray:
    component = check.plain("component", component)
    if component.shape != (n,) or not np.issubdtype(component.dtype, np.integer):
        raise ValueError(f"component must be {n} integers, one a point, not {component!r}")
    counts = np.bincount(component) if component.min() >= 0 else np.zeros(1)
    if (counts == 0).any():
        raise ValueError("component must use every number from 0 on; number the components anew")
    return component


def _counts(p, k: int, n: int) -> np.ndarray:
    """Return n_k = p_k n (A1), or say which share breaks it."""
    p = check.array("p", p, ndim=1)
    if len(p) != k:
        raise ValueError(f"p has {len(p)} entries, but there are {k} centres; pass one a centre")
    counts = np.rint(p * n).astype(int)
    wrong = np.flatnonzero((np.abs(p * n - counts) > 1e-6) | (counts < 1))
    if len(wrong) or counts.sum() != n:
        worst = f"p[{wrong[0]}] n = {p[wrong[0]] * n:g}" if len(wrong) else f"their sum {p.sum():g}"
        raise ValueError(
            f"p must give every component a whole number p_k n >= 1 of the n = {n} points (A1), "
            f"but has {worst}; choose p = counts / n"
        )
    return counts
