"""How far the usual estimate Î is from the influence I: Theorem 3 and a certificate (Eq 16, 17).

All of it follows from I − Î = h_i I + (1 − h_i) T₂ and from where the leverage lies,
λ_min/(λ_min + λ) ≤ h_i ≤ λ_max/(λ_max + λ), with the extreme eigenvalues of K.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigvalsh

from lib import check
from lib.ridge import Influence, Ridge


def extremes(K) -> tuple[float, float]:
    """Return λ_min and λ_max of the kernel, moved outwards by the rounding of their computation.

    n eps λ_max covers what LAPACK's backward stable eigenvalues of an (n, n) kernel are off by, so
    that bounds from these numbers need no slack for it; λ_min is at least 0. Raises `ValueError`
    for a K that is not square or not symmetric.

    >>> lam_min, lam_max = extremes([[0.5, 0.25], [0.25, 0.5]])
    >>> round(lam_min, 12), round(lam_max, 12), lam_min < 0.25 < 0.75 < lam_max
    (0.25, 0.75, True)
    """
    K = check.symmetric("K", K)
    spectrum = eigvalsh(K)
    rounding = len(K) * np.finfo(float).eps * np.abs(spectrum).max()
    return max(0.0, float(spectrum[0] - rounding)), float(spectrum[-1] + rounding)


def lower_bound(influence: Influence, lam_min: float, *, sharp: bool = False) -> np.ndarray:
    """Return the lower bound of Theorem 3 (Thm 3) on the error of Î, for every pair.

    Eq 16:  abs(I − Î) ≥ g abs(I) − T₂,  g = λ_min/(λ_min + λ),

    and with `sharp` the larger g abs(I) − (1 − g) T₂, which is attained where it is positive, I < 0
    and h_i = g. Where a bound is negative it says nothing. Since T₂ is subtracted, the error rate
    may lie below g: it does for some pairs with I < 0, and for none with I ≥ 0.

    Source: Zhang and Zhang (2022), Thm 3, Eq 16.

    Parameters
    ----------
    influence : of n training points on t test points, from `lib.ridge.Ridge.influence`
    lam_min : smallest eigenvalue of its K, from `extremes`
    sharp : subtract λ/(λ + λ_min) T₂ instead of T₂

    Returns
    -------
    (n, t) bounds, in the unit of the influence.

    Raises
    ------
    ValueError
        for a `lam_min` that is negative or larger than the diagonal of K allows

    Examples
    --------
    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> inf = model.influence([[0.5], [0.25]], [1.0])
    >>> np.abs(inf.exact - inf.ihvp).tolist()
    [[0.3125], [0.0625]]
    >>> lower_bound(inf, 0.5).tolist(), lower_bound(inf, 0.5, sharp=True).tolist()
    ([[0.125], [0.046875]], [[0.1875], [0.0625]])
    """
    g = _share(influence.model, lam_min, smallest=True)
    return g * np.abs(influence.exact) - ((1 - g) if sharp else 1) * influence.T2


def upper_bound(influence: Influence, lam_max: float) -> np.ndarray:
    """Return the upper bound on the error of Î that goes with Theorem 3, for every pair.

    abs(I − Î) ≤ G abs(I) + T₂,  G = λ_max/(λ_max + λ).

    `lam_max` is the largest eigenvalue of K, from `extremes`; the result is (n, t), in the unit of
    the influence. Raises `ValueError` for a `lam_max` smaller than the diagonal of K allows.
    Source: Zhang and Zhang (2022), the remark after Thm 3.

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> upper_bound(model.influence([[0.5], [0.25]], [1.0]), 0.5).tolist()
    [[0.375], [0.109375]]
    """
    G = _share(influence.model, lam_max, smallest=False)
    return G * np.abs(influence.exact) + influence.T2


def gamma(alpha) -> np.ndarray:
    """Return the smallest γ of each test point for which the condition of Eq 17 holds, (t,).

    abs(α_i) ≤ √(γ/n) ‖α‖ for every i:  γ = n max_i α_i² / ‖α‖², between 1 (equal shares) and n.

    `alpha` is (n, t) or (n,), dimensionless. Raises `ValueError` for a column of zeros, which has
    no γ. Source: Zhang and Zhang (2022), Eq 17.

    >>> gamma([[1.0, 3.0], [1.0, 0.0], [-1.0, 0.0]]).tolist()
    [1.0, 3.0]
    """
    squares = check.array("alpha", alpha, ndim=(1, 2)) ** 2
    squares = squares.reshape(len(squares), -1)
    total = squares.sum(axis=0)
    if not total.all():
        raise ValueError(
            f"alpha[:, {int(np.argmin(total))}] is zero, so no training point moves that "
            "prediction; remove the test point"
        )
    return len(squares) * squares.max(axis=0) / total


def subtracted_term(influence: Influence, delta: float) -> np.ndarray:
    """Return the bound of Eq 17 on the T₂ that Theorem 3 subtracts, with its constant, (t,).

    Eq 17:  T₂ ≤ γ E / (16 δ λ n) for all i but a share δ,  E = (1/n) Σ_i ρ_i².

    The share is exact: ρ_i² ≤ E/δ for all but a share δ of the points (Markov), and
    α_i² ≤ γ‖α‖²/n with ‖α‖² ≤ K∞(x, x) max_μ μ/(μ + λ)² ≤ 1/(8λ). With E = O(n^{-1/2}) and a
    constant γ this is the paper's O(γ / (δ λ n^{3/2})).

    `delta` is in (0, 1], the kernel has the diagonal ½, and the result is in the unit of the
    influence. Raises `ValueError` for another `delta`, λ = 0 or another diagonal.
    Source: Zhang and Zhang (2022), Eq 17.

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> inf = model.influence([[0.5], [0.25]], [1.0])
    >>> subtracted_term(inf, 0.5).tolist(), inf.T2.tolist()
    ([0.2], [[0.125], [0.03125]])
    """
    model, delta = influence.model, check.number("delta", delta, above=0)
    if delta > 1:
        raise ValueError(f"delta = {delta:g} is no probability; choose one in (0, 1]")
    if model.lam == 0:
        raise ValueError("lam = 0 has no bound of this form; fit with lam > 0")
    _unit_inputs(model)
    E = np.mean(model.rho**2)
    return gamma(influence.alpha) * E / (16 * delta * model.lam * len(model.Y))


def certificate(model: Ridge) -> np.ndarray:
    """Return for each training point a bound τ_i on T₂ that holds for every test point, (n,).

    τ_i = ¼ ρ_i² [QKQ]_ii ≥ T₂ = ½ α_i² ρ_i²,  since abs(α_i(x)) ≤ √(K∞(x, x) [QKQ]_ii) and
    K∞(x, x) = ½. It needs no test point, and by Prop 2 it locates the influence:

    Î/(1 − h_i) ≤ I ≤ Î/(1 − h_i) + τ_i,  and  abs(I − Î) ≤ h_i/(1 − h_i) abs(Î) + τ_i.

    The unit is that of the influence. Raises `ValueError` if the diagonal of K is not ½, as it is
    for `lib.kernel.ntk`. Source: this project, by Cauchy and Schwarz from Prop 2 of Zhang and
    Zhang (2022).

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> certificate(model).tolist(), model.influence([[0.5], [0.25]], [1.0]).T2.tolist()
    ([0.125, 0.125], [[0.125], [0.03125]])
    """
    _unit_inputs(model)
    # [QKQ]_ii = Q_ii h_i − λ Σ_{j≠i} Q_ij²: unlike Q_ii − λ [Q²]_ii it keeps its digits
    Q, n = model.Q, len(model.Y)
    others = np.empty(n)
    for i in range(0, n, 256):  # by rows that fit the cache
        here = slice(i, i + 256)
        square = Q[here, here].copy()
        np.fill_diagonal(square, 0)
        parts = Q[here, :i], square, Q[here, i + 256 :]
        others[here] = sum(np.einsum("ij,ij->i", part, part) for part in parts)
    norm = np.clip(model.Q.diagonal() * model.h - model.lam * others, 0, None)
    return 0.25 * model.rho**2 * norm


def worst_case(model: Ridge) -> np.ndarray:
    """Return for each training point a bound on the error of Î at every test point, (n,).

    abs(I − Î) = abs(h_i T₁ + T₂) ≤ h_i √(2 τ_i) R + τ_i,  R = 1 + √(½ βᵀKβ),

    with τ_i of `certificate`: abs(T₁) ≤ √(2 τ_i) abs(r_te), and abs(r_te) ≤ R for every test point
    with a label in [-1, 1]. Like τ_i it is in the unit of the influence, needs no test point, and
    raises `ValueError` for another diagonal than ½. Source: this project, by Cauchy and Schwarz
    from Prop 2 of Zhang and Zhang (2022).

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> inf = model.influence([[0.5], [0.25]], [1.0])
    >>> worst_case(model).round(6).tolist(), np.abs(inf.exact - inf.ihvp).tolist()
    ([0.551777, 0.551777], [[0.3125], [0.0625]])
    """
    tau = certificate(model)
    largest = 1 + np.sqrt(0.5 * model.beta @ model.K @ model.beta)
    return model.h * np.sqrt(2 * tau) * largest + tau


def certified(influence: Influence, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a bound on the error of every Î, and whether it is certainly within a tolerance.

    abs(I − Î) ≤ h_i/(1 − h_i) abs(Î) + τ_i, which is certainly at most `tolerance` abs(I) if it is
    that of the smallest abs(I) in the interval of `certificate`. A leverage h_i ≤ `tolerance` is
    necessary for I > 0, and not sufficient.

    Both are (n, t), the bound in the unit of the influence; `tolerance` > 0 is a share of the
    influence. Raises `ValueError` for another tolerance, λ = 0, where Î vanishes, and as
    `certificate` does. Source: this project, from Prop 2 of Zhang and Zhang (2022).

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=9.5)
    >>> bound, within = certified(model.influence([[0.5], [0.25]], [1.0]), tolerance=0.1)
    >>> bound.round(8).tolist(), within.tolist()
    ([[0.0036875], [0.00246875]], [[True], [False]])
    """
    model, tolerance = influence.model, check.number("tolerance", tolerance, above=0)
    if model.lam == 0:
        raise ValueError("lam = 0 makes every estimate 0; fit with lam > 0, or use the exact one")
    h, tau, low = model.h[:, None], certificate(model)[:, None], influence.rescaled
    bound = h * np.abs(low) + tau
    return bound, bound <= tolerance * np.maximum(low, -low - tau)


def _share(model: Ridge, eigenvalue: float, smallest: bool) -> float:
    """Return μ/(μ + λ) for an extreme eigenvalue, which the diagonal of K must allow."""
    name = "lam_min" if smallest else "lam_max"
    mu = check.number(name, eigenvalue, at_least=0)
    diagonal = model.K.diagonal()
    limit = diagonal.min() if smallest else diagonal.max()
    if (mu - limit if smallest else limit - mu) > 1e-12 * limit:
        side = "smallest" if smallest else "largest"
        raise ValueError(
            f"{name} = {mu:g} is not the {side} eigenvalue of K, whose diagonal reaches {limit:g}; "
            "pass lam_min, lam_max = extremes(K)"
        )
    return mu / (mu + model.lam) if mu > 0 else 0.0


def _unit_inputs(model: Ridge) -> None:
    diagonal = model.K.diagonal()
    worst = int(np.abs(diagonal - 0.5).argmax())
    if abs(diagonal[worst] - 0.5) > 1e-9:
        raise ValueError(
            f"K[{worst}, {worst}] = {diagonal[worst]:g}, but the bound is for K∞ of unit inputs, "
            "whose diagonal is 0.5; pass K = ntk(X)"
        )
