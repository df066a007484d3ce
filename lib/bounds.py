"""How far the usual estimate Î is from the influence I: Theorem 3, a certificate (Eq 16, 17).

All of it follows from I − Î = h_i I + (1 − h_i) T₂ and, with the extreme eigenvalues of K, from
λ_min/(λ_min + λ) ≤ h_i ≤ λ_max/(λ_max + λ).
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigvalsh

from lib import check
from lib.ridge import Ridge, RidgeInfluence, squares


def extremes(K) -> tuple[float, float]:
    """Return λ_min and λ_max of the kernel, moved outwards by the rounding of their computation.

    n eps λ_max covers what LAPACK's backward stable eigenvalues of an (n, n) kernel are off by, so
    that bounds from these numbers need no slack for it; λ_min is at least 0. Raises `ValueError`
    for a K that is not square, not symmetric or not positive semidefinite.

    >>> lam_min, lam_max = extremes([[0.5, 0.25], [0.25, 0.5]])
    >>> round(lam_min, 12), round(lam_max, 12), lam_min < 0.25 < 0.75 < lam_max
    (0.25, 0.75, True)
    """
    K = check.symmetric("K", K)
    spectrum = eigvalsh(K)
    rounding = len(K) * np.finfo(float).eps * np.abs(spectrum).max()
    check.semidefinite(spectrum[0], 100 * rounding)
    return max(0.0, float(spectrum[0] - rounding)), float(spectrum[-1] + rounding)


def lower_bound(influence: RidgeInfluence, lam_min: float, *, sharp: bool = False) -> np.ndarray:
    """Return the lower bound of Theorem 3 (Thm 3) on the error of Î, for every pair.

    Eq 16:  abs(I − Î) ≥ g abs(I) − T₂,  g = λ_min/(λ_min + λ),

    and with `sharp` the larger g abs(I) − (1 − g) T₂, which is attained where it is positive, I < 0
    and h_i = g. A negative bound says nothing. Since T₂ is subtracted, the error rate may lie below
    g: it does for some pairs with I < 0, and for none with I ≥ 0.

    `lam_min` is the smallest eigenvalue of K, from `extremes`; the result is (n, t), in the unit of
    the influence. Raises `ValueError` for a `lam_min` that is negative or larger than the diagonal
    of K allows. Source: Zhang and Zhang (2022), Thm 3, Eq 16.

    >>> one = Ridge([[0.5, 0], [0, 0.5]], [1, -1], lam=0.5).influence([[0.5], [0.25]], [1])
    >>> np.abs(one.exact - one.ihvp).tolist()
    [[0.3125], [0.0625]]
    >>> lower_bound(one, 0.5).tolist(), lower_bound(one, 0.5, sharp=True).tolist()
    ([[0.125], [0.046875]], [[0.1875], [0.0625]])
    """
    g = _share(_of(influence), lam_min, smallest=True)
    share = 1 - g if check.flag("sharp", sharp) else 1
    return g * np.abs(influence.exact) - share * influence.T2


def upper_bound(influence: RidgeInfluence, lam_max: float) -> np.ndarray:
    """Return the upper bound on the error of Î that goes with Theorem 3, for every pair.

    abs(I − Î) ≤ G abs(I) + T₂,  G = λ_max/(λ_max + λ).

    `lam_max` is the largest eigenvalue of K, from `extremes`; the result is (n, t), in the unit of
    the influence. Raises `ValueError` for a `lam_max` smaller than the diagonal of K allows.
    Source: Zhang and Zhang (2022), the remark after Thm 3.

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> upper_bound(model.influence([[0.5], [0.25]], [1.0]), 0.5).tolist()
    [[0.375], [0.109375]]
    """
    G = _share(_of(influence), lam_max, smallest=False)
    return G * np.abs(influence.exact) + influence.T2


def gamma_eq_17(alpha) -> np.ndarray:
    """Return the smallest γ of each test point for which the condition of Eq 17 holds, (t,).

    abs(α_i) ≤ √(γ/n) ‖α‖ for every i:  γ = n max_i α_i² / ‖α‖², between 1 (equal shares) and n.

    `alpha` is (n, t) or (n,), dimensionless. Raises `ValueError` for a column of zeros, which has
    no γ. Source: Zhang and Zhang (2022), Eq 17.

    >>> gamma_eq_17([[1.0, 3.0], [1.0, 0.0], [-1.0, 0.0]]).tolist()
    [1.0, 3.0]
    """
    shares = check.array("alpha", alpha, ndim=(1, 2)) ** 2
    shares = shares.reshape(len(shares), -1)
    total = shares.sum(axis=0)
    if not total.all():
        raise ValueError(
            f"alpha[:, {int(np.argmin(total))}] is zero, so no training point moves that "
            "prediction; remove the test point"
        )
    return len(shares) * shares.max(axis=0) / total


def subtracted_term(influence: RidgeInfluence, delta: float, k_xx: float) -> np.ndarray:
    """Return the bound of Eq 17 on the T₂ that Theorem 3 subtracts, with its constant, (t,).

    Eq 17:  T₂ ≤ γ k_xx E / (8 δ λ n) for all i but a share δ,  E = (1/n) Σ_i ‖ρ_i‖².

    The share is exact: ‖ρ_i‖² ≤ E/δ for all but a share δ of the points (Markov), and
    α_i² ≤ γ‖α‖²/n with ‖α‖² ≤ k(x, x) max_μ μ/(μ + λ)² ≤ k_xx/(4λ). With E = O(n^{-1/2}) and a
    constant γ this is the paper's O(γ / (δ λ n^{3/2})).

    `delta` is in (0, 1]; `k_xx` is the largest k(x, x) of the test points, `lib.kernel.DIAGONAL`
    for the NTK; the result is in the unit of the influence. Raises `ValueError` for another
    `delta` or `k_xx`, and λ = 0. Source: Zhang and Zhang (2022), Eq 17.

    >>> one = Ridge([[0.5, 0], [0, 0.5]], [1, -1], lam=0.5).influence([[0.5], [0.25]], [1])
    >>> subtracted_term(one, 0.5, k_xx=0.5).tolist(), one.T2.tolist()
    ([0.2], [[0.125], [0.03125]])
    """
    model, delta = _of(influence), check.number("delta", delta, above=0)
    if delta > 1:
        raise ValueError(f"delta = {delta:g} is no probability; choose one in (0, 1]")
    if model.lam == 0:
        raise ValueError("lam = 0 has no bound of this form; fit with lam > 0")
    E = np.mean(squares(model.rho)) * _largest(model, k_xx)
    gamma, moved = np.zeros(influence.alpha.shape[1]), influence.alpha.any(axis=0)
    if moved.any():  # elsewhere T₂ is 0
        gamma[moved] = gamma_eq_17(influence.alpha[:, moved])
    return gamma * E / (8 * delta * model.lam * len(model.Y))


def certificate(model: Ridge, k_xx: float) -> np.ndarray:
    """Return for each training point a bound τ_i on T₂ that holds for every test point, (n,).

    τ_i = ½ k_xx ‖ρ_i‖² [QKQ]_ii ≥ T₂ = ½ α_i² ‖ρ_i‖²,  since abs(α_i(x)) ≤ √(k(x, x) [QKQ]_ii).
    It needs no test point, only `k_xx`, the largest k(x, x) there is: `lib.kernel.DIAGONAL` for the
    NTK. By Prop 2 it locates the influence:

    Î/(1 − h_i) ≤ I ≤ Î/(1 − h_i) + τ_i,  and  abs(I − Î) ≤ h_i/(1 − h_i) abs(Î) + τ_i.

    The unit is that of the influence. Raises `ValueError` for a k_xx below some K_ii.
    Source: this project, by Cauchy and Schwarz from Prop 2 of Zhang and Zhang (2022).

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> one = model.influence([[0.5], [0.25]], [1.0])
    >>> certificate(model, k_xx=0.5).tolist(), one.T2.tolist()
    ([0.125, 0.125], [[0.125], [0.03125]])
    """
    # [QKQ]_ii = Q_ii h_i − λ Σ_{j≠i} Q_ij²: unlike Q_ii − λ [Q²]_ii it keeps its digits
    k_xx = _largest(check.made("model", model, Ridge, "pass Ridge(K, Y, lam)"), k_xx)
    Q = model.Q
    norm = np.clip(Q.diagonal() * model.h - model.lam * Q.off_diagonal(), 0, None)
    return 0.5 * k_xx * squares(model.rho) * norm


def worst_case(model: Ridge, k_xx: float) -> np.ndarray:
    """Return for each training point a bound on the error of Î at every test point, (n,).

    abs(I − Î) = abs(h_i T₁ + T₂) ≤ h_i √(2 τ_i) R + τ_i,  R = 1 + √(k_xx tr βᵀKβ),

    with τ_i of `certificate` and its `k_xx`: abs(T₁) ≤ √(2 τ_i) ‖r_te‖, and ‖r_te‖ ≤ R for every
    test point whose label has a size ‖y‖ ≤ 1. Like τ_i it is in the unit of the influence and
    needs no test point. Raises `ValueError` for training labels of a larger size, since test labels
    of their kind are beyond the bound, and for k_xx ≤ 0. Source: this project, by Cauchy and
    Schwarz from Prop 2 of Zhang and Zhang (2022).

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> one = model.influence([[0.5], [0.25]], [1.0])
    >>> worst_case(model, k_xx=0.5).round(6).tolist(), np.abs(one.exact - one.ihvp).tolist()
    ([0.551777, 0.551777], [[0.3125], [0.0625]])
    """
    tau, size = certificate(model, k_xx), squares(model.Y)
    if size.max() > 1 + 1e-12:
        i = int(size.argmax())
        raise ValueError(
            f"Y[{i}] has size {size[i] ** 0.5:g}, but the bound is for labels of size <= 1; scale "
            "the targets, or use certified, which takes the test labels"
        )
    norm = max(0.0, np.sum(model.beta * (model.Y + model.r)))  # tr βᵀKβ, as Kβ = f
    return model.h * np.sqrt(2 * tau) * (1 + np.sqrt(k_xx * norm)) + tau


def certified(
    influence: RidgeInfluence, tolerance: float, k_xx: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a bound on the error of every Î, and whether it is certainly within a tolerance.

    abs(I − Î) ≤ h_i/(1 − h_i) abs(Î) + τ_i, which is certainly at most `tolerance` abs(I) if it is
    that of the smallest abs(I) in the interval of `certificate`. A leverage h_i ≤ `tolerance` is
    necessary for I > 0, and not sufficient.

    Both are (n, t), the bound in the unit of the influence; `tolerance` > 0 is a share of the
    influence, `k_xx` as for `certificate`. Raises `ValueError` for another tolerance, λ = 0, where
    Î vanishes, and k_xx ≤ 0. Source: this project, from Prop 2 of Zhang and Zhang (2022).

    >>> one = Ridge([[0.5, 0], [0, 0.5]], [1, -1], lam=9.5).influence([[0.5], [0.25]], [1])
    >>> bound, within = certified(one, tolerance=0.1, k_xx=0.5)
    >>> bound.round(8).tolist(), within.tolist()
    ([[0.0036875], [0.00246875]], [[True], [False]])
    """
    model, tolerance = _of(influence), check.number("tolerance", tolerance, above=0)
    if model.lam == 0:
        raise ValueError("lam = 0 makes every estimate 0; fit with lam > 0, or use the exact one")
    h, tau, low = model.h[:, None], certificate(model, k_xx)[:, None], influence.rescaled
    bound = h * np.abs(low) + tau
    return bound, bound <= tolerance * np.maximum(low, -low - tau)


def subset_bound(K, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Return an upper bound of every leverage from nearest neighbours alone, without an inverse.

    λ h_i = min over c of λ‖c‖² + ‖φ_i − Σ_j c_j φ_j‖², where φ are the features of K, and the
    minimiser is α(x_i) = QKe_i of Theorem 4. The mean over a subset S of m points is one choice:
    λ h_i ≤ λ/m + ‖φ_i − mean φ_S‖². Here S is x_i and its nearest neighbours in feature space, and
    m the best of 1, 2, 3, 4, 6, 8, 11, …, n (powers of √2). Each size costs 2n³ operations.

    K is (n, n) and λ > 0. Returns the bound (n,), at least h_i and at most 1, and the m (n,) that
    gives it. Raises `ValueError` for bad shapes or λ, a K that is not symmetric, and one
    found not to be positive semidefinite. Source: ours, in place of Zhang and Zhang (2022), Thm 4.

    >>> b, size = subset_bound([[0.5, 0.25], [0.25, 0.5]], lam=1.0)
    >>> b.tolist(), size.tolist()
    ([0.625, 0.625], [2, 2])
    """
    K, lam = check.symmetric("K", K), check.number("lam", lam, above=0)
    n = len(K)
    own = K.diagonal()
    distance = own[:, None] + own - 2 * K
    np.fill_diagonal(distance, -1)  # the point itself comes first
    order = np.argsort(distance, axis=1, kind="stable")
    best, size = np.full(n, np.inf), np.ones(n, dtype=int)
    for m in np.unique(np.rint(2 ** np.arange(0, np.log2(n) + 0.5, 0.5))).astype(int):
        m = min(int(m), n)
        C = np.zeros((n, n))
        np.put_along_axis(C, order[:, :m], 1 / m, axis=1)
        CK = C @ K
        away = own - 2 * CK.diagonal() + np.einsum("ij,ij->i", CK, C)  # ‖φ_i − mean φ_S‖²
        if away.min() < -1e-6 * own.max():
            raise ValueError("K is not positive semidefinite; pass K = ntk(X)")
        found = 1 / m + np.maximum(away, 0) / lam
        better = found < best
        best[better], size[better] = found[better], m
    return best, size


def _of(influence: RidgeInfluence) -> Ridge:
    """Return the model of an influence."""
    remedy = "pass Ridge(K, Y, lam).influence(k, y_te)"
    return check.made("influence", influence, RidgeInfluence, remedy).model


def _largest(model: Ridge, k_xx: float) -> float:
    """Return the largest k(x, x) there is, which is no smaller than that of the training points."""
    k_xx, own = check.number("k_xx", k_xx, above=0), model.diagonal.max()
    if k_xx < (1 - 1e-9) * own:
        raise ValueError(f"k_xx = {k_xx:g} is below K[i, i] = {own:g}; pass the largest k(x, x)")
    return k_xx


def _share(model: Ridge, eigenvalue: float, smallest: bool) -> float:
    """Return μ/(μ + λ) for an extreme eigenvalue, which the diagonal of K must allow."""
    name = "lam_min" if smallest else "lam_max"
    mu = check.number(name, eigenvalue, at_least=0)
    diagonal = model.diagonal
    limit = diagonal.min() if smallest else diagonal.max()
    if (mu - limit if smallest else limit - mu) > 1e-12 * limit:
        side = "smallest" if smallest else "largest"
        raise ValueError(
            f"{name} = {mu:g} is not the {side} eigenvalue of K, whose diagonal reaches {limit:g}; "
            "pass lam_min, lam_max = extremes(K)"
        )
    return mu / (mu + model.lam) if mu > 0 else 0.0
