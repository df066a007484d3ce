"""Theorem 4 (Def 1, Eq 18), the bound by neighbours and Figure 3: by hand, brute force, fast."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr
from sklearn.neighbors import KernelDensity

from book import density
from lib.bounds import subset_bound
from lib.data import load
from lib.kernel import ntk
from lib.ridge import Ridge
from tests.cases import EPS, HAND, OUTPUTS, labels, unit_points


@st.composite
def mixtures(draw):
    """Random mixtures that satisfy every hypothesis of Theorem 4, and test points of each."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    k, d, n = draw(st.integers(1, 5)), draw(st.integers(2, 20)), draw(st.integers(10, 60))
    r = 10.0 ** draw(st.floats(-4, -0.7))
    counts = 1 + rng.multinomial(n - k, rng.dirichlet(np.ones(k)))
    centres = unit_points(k, d, rng)
    X, component = density.mixture(centres, counts / n, n, r, seed=1)
    X_te, _ = density.mixture(centres, np.full(k, 1 / k), 5 * k, r, seed=2)
    K = ntk(X)
    needed = density.required_ridge(np.linalg.eigvalsh(K)[-1], r)
    lam = needed * (1 + 10.0 ** draw(st.floats(-3, 2)))
    c = draw(st.sampled_from(OUTPUTS))
    Y = rng.choice([-1.0, 1.0], n) if c is None else labels(rng, n, c)
    inf = Ridge(K, Y, lam).influence(ntk(X, X_te), labels(rng, 5 * k, c))
    return X, centres, component, counts / n, r, inf


# --- Def 1 ------------------------------------------------------------------------------------


@given(mixtures())
def test_def_1_a1_and_a2_hold_and_features_stay_within_epsilon(mixture):
    X, centres, component, p, r, inf = mixture
    n = len(X)
    assert np.abs(np.linalg.norm(X, axis=1) - 1).max() <= 8 * EPS
    np.testing.assert_array_equal(np.bincount(component), np.rint(p * n))  # A1
    mean = centres * np.sin(r) / r  # E cos θ, for θ uniform in [0, r)
    assert np.linalg.norm(X - mean[component], axis=1).max() < r  # A2
    K = inf.model.K
    distance = np.sqrt(np.maximum(1 - 2 * K, 0))
    assert distance[component[:, None] == component].max() <= density.epsilon(r)


def test_def_1_mean_of_a_cap_is_where_a2_says():
    centre = np.array([[0.6, 0.8, 0.0]])
    X, _ = density.mixture(centre, [1.0], 20_000, r=0.9, seed=3)
    error = np.abs(X.mean(axis=0) - centre[0] * np.sin(0.9) / 0.9)
    assert (error <= 4 * X.std(axis=0) / np.sqrt(len(X))).all()  # four standard errors
    control = np.abs(X.mean(axis=0) - centre[0])
    assert (control > 4 * X.std(axis=0) / np.sqrt(len(X))).any()


def test_def_1_is_drawn_again_by_the_same_seed():
    one, two, other = (density.mixture(np.eye(3), [0.5, 0.25, 0.25], 8, 0.1, s) for s in (4, 4, 5))
    np.testing.assert_array_equal(one[0], two[0])
    assert np.abs(one[0] - other[0]).max() > 0
    default, zero = (density.mixture(np.eye(2), [0.5, 0.5], 8, 0.1, *seed) for seed in ((), (0,)))
    np.testing.assert_array_equal(default[0], zero[0])


def test_def_1_radius_by_hand():
    # means (½, ½) and (0, −1): distances √½ and 0
    X = [[1.0, 0.0], [0.0, -1.0], [0.0, 1.0]]
    np.testing.assert_allclose(density.radius(X, [0, 1, 0]), [0.5**0.5, 0], atol=EPS)


# --- Thm 4, Eq 18 -----------------------------------------------------------------------------


def test_thm_4_eq_18_by_hand():
    # QK = I − ¼Q = [[5/8, 1/8], …]: γ = 2 · (25/64) / (26/64) = 25/13, √(γ/(4 p)) = 5/√52 for p = 1
    np.testing.assert_allclose(density.gamma_thm_4(HAND.model), [25 / 13, 25 / 13], rtol=8 * EPS)
    first, T2 = 5 / 52**0.5 * np.array([55, 5]) / 72, np.array([25, 1]) / 72
    bound = density.bound(HAND, 1.0, density.gamma_thm_4(HAND.model))[:, 0]
    np.testing.assert_allclose(bound, first + T2)
    half = density.bound(HAND, [0.5, 0.5], 25 / 13)[:, 0]
    np.testing.assert_allclose(half, 2**0.5 * first + T2)


@pytest.mark.parametrize("r", [1e-12, 1e-4, 0.1, 0.7, 1.0])
def test_thm_4_epsilon_keeps_its_digits(r):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        exact = mpmath.sqrt(2 * mpmath.mpf(r) ** 2 + mpmath.acos(1 - 2 * mpmath.mpf(r) ** 2))
        assert abs(density.epsilon(r) / exact - 1) <= 4 * EPS
        spread = mpmath.sqrt(2) * exact
        if spread < 1:
            needed = 3 * spread / (1 - spread)
            assert abs(density.required_ridge(3, r) / needed - 1) <= 8 * EPS / (1 - spread)
        else:
            assert density.required_ridge(3, r) == np.inf


@given(mixtures())
def test_thm_4_gamma_by_brute_force(mixture):
    *_, inf = mixture
    K, n = inf.model.K, len(inf.model.K)
    alpha = np.linalg.solve(K + inf.model.lam * np.eye(n), K)  # column i: α(x_i) = QKe_i
    brute = n * alpha.diagonal() ** 2 / np.sum(alpha**2, axis=0)
    # λ is no smaller than a fiftieth of λ_max here, so the condition number is at most 51
    np.testing.assert_allclose(density.gamma_thm_4(inf.model), brute, rtol=1e-10)


@given(mixtures())
def test_thm_4_eq_18_has_no_violation(mixture):
    *_, component, p, _, inf = mixture
    bound = density.bound(inf, p[component], density.gamma_thm_4(inf.model))
    assert (np.abs(inf.exact - inf.ihvp) <= bound).all()


@pytest.mark.parametrize("c", [1, 2, 10])
def test_thm_4_eq_18_of_several_outputs(c):
    X, component = density.mixture(np.eye(4)[:2], [0.75, 0.25], 100, 1e-3)
    K, k, rng = ntk(X), ntk(X, unit_points(6, 4)), np.random.default_rng(c)
    lam = 1.01 * density.required_ridge(np.linalg.eigvalsh(K)[-1], 1e-3)
    Y, y_te, p = labels(rng, 100, c), labels(rng, 6, c), np.array([0.75, 0.25])[component]
    inf = Ridge(K, Y, lam).influence(k, y_te)
    single = [Ridge(K, y, lam).influence(k, z) for y, z in zip(Y.T, y_te.T, strict=True)]
    bound = density.bound(inf, p, density.gamma_thm_4(inf.model))
    assert bound.shape == (100, 6) and (np.abs(inf.exact - inf.ihvp) <= bound).all()
    for one in single:  # γ is a matter of the inputs alone
        np.testing.assert_array_equal(
            density.gamma_thm_4(one.model), density.gamma_thm_4(inf.model)
        )
    total, T2 = (sum(getattr(one, name) for one in single) for name in ("exact", "T2"))
    share = np.sqrt(density.gamma_thm_4(inf.model) / (100**2 * p))[:, None]
    np.testing.assert_allclose(bound, share * np.abs(total) + T2, rtol=1e-9)
    if c > 1:  # control: a bound that counts one output only
        assert (np.abs(inf.exact - inf.ihvp) > density.bound(single[0], p, 0.0)).any()


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_thm_4_supposes_no_diagonal_of_the_kernel(scale):
    X, component = density.mixture(np.eye(4)[:2], [0.75, 0.25], 100, 0.5)
    K, k, Y = ntk(X), ntk(X, np.eye(4)), np.sign(X[:, 0] - X[:, 1])
    one = Ridge(K, Y, 1.0).influence(k, np.ones(4))
    other = Ridge(scale * K, Y, scale).influence(scale * k, np.ones(4))
    gammas = [density.gamma_thm_4(inf.model) for inf in (one, other)]
    np.testing.assert_allclose(*gammas, rtol=1e-10)
    bounds = [density.bound(inf, 0.25, g) for inf, g in zip((one, other), gammas, strict=True)]
    np.testing.assert_allclose(*bounds, rtol=1e-10)
    (h, size), (h2, size2) = (subset_bound(s * K, s) for s in (1, scale))
    np.testing.assert_allclose(h, h2, rtol=1e-10)
    np.testing.assert_array_equal(size, size2)


def test_thm_4_eq_18_fails_without_its_hypotheses():
    X, component = density.mixture(np.eye(4)[:2], [0.9, 0.1], 100, 1e-3)
    K = ntk(X)
    needed = density.required_ridge(np.linalg.eigvalsh(K)[-1], 1e-3)
    p = np.array([0.9, 0.1])[component]

    def violations(lam, p, gamma=None):
        inf = Ridge(K, np.ones(100), lam).influence(ntk(X, np.eye(4)), np.zeros(4))
        bound = density.bound(inf, p, density.gamma_thm_4(inf.model) if gamma is None else gamma)
        return (np.abs(inf.exact - inf.ihvp) > bound).sum()

    assert violations(1.01 * needed, p) == 0
    assert violations(1e-5 * needed, p) > 0  # λ too small
    assert violations(1.01 * needed, np.sqrt(p)) > 0  # not the shares of A1
    assert violations(1.01 * needed, p, gamma=0.5) > 0


# --- the bound that takes its place -----------------------------------------------------------


# --- Fig 3 ------------------------------------------------------------------------------------


def test_fig_3_density_by_hand_and_by_scikit_learn():
    D = squareform(pdist(np.array([[0.0], [1.0], [3.0]])))
    expected = [(np.exp(-1 / 2) + np.exp(-9 / 2)) / 2, (np.exp(-1 / 2) + np.exp(-2)) / 2,
                (np.exp(-2) + np.exp(-9 / 2)) / 2]  # fmt: skip
    np.testing.assert_allclose(np.exp(density.log_density(D, 1.0)), expected, rtol=8 * EPS)
    assert density.bandwidth(D) == 1
    repeated = D[:, [0, 0, 0, 1, 1, 2]][[0, 0, 0, 1, 1, 2]]  # more than half of them duplicates
    assert density.bandwidth(repeated) == 1
    X, width = np.random.default_rng(0).standard_normal((30, 3)), 0.4
    peer = [
        KernelDensity(bandwidth=width).fit(np.delete(X, i, axis=0)).score_samples(X[i : i + 1])[0]
        for i in range(30)
    ]
    constant = -1.5 * np.log(2 * np.pi * width**2)
    found = density.log_density(squareform(pdist(X)), width)
    np.testing.assert_allclose(found + constant, peer, rtol=1e-12)
    itself = KernelDensity(bandwidth=width).fit(X).score_samples(X)  # control: nothing left out
    assert np.abs(found + constant - itself).max() > 0.1


def test_fig_3_density_of_a_point_far_from_all_is_finite():
    D = squareform(pdist(np.array([[0.0], [1e-3], [1e3]])))
    density_ = density.log_density(D, 1e-3)
    assert np.isfinite(density_).all() and density_.argmin() == 2


def test_fig_3_error_falls_where_density_rises():
    data = load("digits:4/9", n_train=200, n_test=50)
    model = Ridge(ntk(data.X), data.Y, 1.0)
    inf = model.influence(ntk(data.X, data.X_te), data.Y_te)
    rate = np.abs(inf.exact - inf.ihvp).sum(1) / np.abs(inf.exact).sum(1)
    D = squareform(pdist(data.X))
    found = density.log_density(D, density.bandwidth(D))
    assert spearmanr(found, rate).statistic < -0.5
    width, other = density.bandwidth(D), np.empty(len(D))
    for y in (1, -1):  # control: how dense the images of the other class are there
        peer = KernelDensity(bandwidth=width).fit(data.X[data.Y == -y])
        other[data.Y == y] = peer.score_samples(data.X[data.Y == y])
    assert abs(spearmanr(other, rate).statistic) < 0.5


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: density.mixture(2 * np.eye(2), [0.5, 0.5], 4, 0.1), "centres must have rows of u"),
        (lambda: density.mixture([[1.0]], [1.0], 4, 0.1), "centres must have at least 2 columns"),
        (lambda: density.mixture(np.eye(2), [1.0], 4, 0.1), "p has 1 entries, but there are 2 ce"),
        (lambda: density.mixture(np.eye(2), [0.3, 0.7], 4, 0.1), r"p\[0\] n = 1.2; choose p = co"),
        (lambda: density.mixture(np.eye(2), [0.5, 0.25], 4, 0.1), "their sum 0.75; choose p = c"),
        (lambda: density.mixture(np.eye(2), [1.0, 0.0], 4, 0.1), r"p\[1\] n = 0; choose p = cou"),
        (lambda: density.mixture(np.eye(2), [0.5, 0.5], 4, 1.5), "r must be at most 1, not 1.5"),
        (lambda: density.mixture(np.eye(2), [0.5, 0.5], 4, 0), "r must be a finite number > 0"),
        (lambda: density.mixture(np.eye(2), [0.5, 0.5], 4, 0.1, -1), "seed must be at least 0, no"),
        (lambda: density.epsilon(2), "r must be at most 1, not 2"),
        (lambda: density.required_ridge(-1, 0.1), "lam_max must be a finite number > 0"),
        (lambda: density.radius(np.eye(2), [0]), "component must be 2 integers, one a point"),
        (lambda: density.radius(np.eye(2), [0, 2]), "component must use every number from 0 on"),
        (lambda: density.radius(np.eye(2), [0, -1]), "component must use every number from 0 on"),
        (lambda: subset_bound(np.ones((2, 3)), 1), r"K must be square, .* pass K = ntk"),
        (lambda: subset_bound([[0.5, 0.25], [0, 0.5]], 1), "K must be symmetric, but K a"),
        (lambda: subset_bound(np.eye(2), 0), "lam must be a finite number > 0, not 0"),
        (lambda: density.bandwidth(np.ones((2, 3))), "D must hold the distances .* pass squaref"),
        (lambda: density.bandwidth(np.zeros((2, 2))), "D is 0 everywhere, .* points that differ"),
        (lambda: density.log_density([[0.0]], 1), "D must hold the distances of at least two"),
        (lambda: density.log_density(-np.ones((2, 2)), 1), "smallest entry -1; pass squareform"),
        (lambda: density.log_density(np.ones((2, 2)), 0), "width must be a finite number > 0"),
        (lambda: density.log_density([[0, np.nan], [1, 0]], 1), "D has 1 value that is not fin"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_shares_and_gamma():
    with pytest.raises(ValueError, match=r"p must lie in \(0, 1\], but holds 0 to 0.5; pass n_k/n"):
        density.bound(HAND, [0.0, 0.5], 1)
    with pytest.raises(ValueError, match=r"p must lie in \(0, 1\], but holds 0.5 to 1.001;"):
        density.bound(HAND, [1.001, 0.5], 1)
    with pytest.raises(ValueError, match="gamma must be >= 0, but holds -1; pass gamma"):
        density.bound(HAND, 0.5, [-1, 1])
    with pytest.raises(ValueError, match="p has 3 entries, but there are 2 training points"):
        density.bound(HAND, [0.1, 0.2, 0.3], 1)


def test_arrays_of_any_strides_and_whole_floats():
    centres = np.eye(3)
    X, component = density.mixture(centres, [0.5, 0.3, 0.2], 10, 0.1)
    back, same = density.mixture(centres[::-1][::-1], [0.5, 0.3, 0.2], 1e1, 0.1, seed=0.0)
    np.testing.assert_array_equal(back, X)
    np.testing.assert_array_equal(same, component)
    flipped, _ = density.mixture(centres[::-1], [0.2, 0.3, 0.5], 10.0, 0.1)
    assert flipped.shape == (10, 3)
    np.testing.assert_array_equal(
        density.radius(X[::-1], component[::-1]), density.radius(X, component)
    )


def test_masked_components_are_refused():
    with pytest.raises(ValueError, match="component has 1 masked entry; remove"):
        density.radius(np.eye(2), np.ma.array([0, 1], mask=[False, True]))


def test_arguments_stay_as_they_were():
    K, D = np.eye(3) / 2, squareform(pdist(np.eye(3)))
    before = K.copy(), D.copy()
    subset_bound(K, 1.0)
    density.log_density(D, density.bandwidth(D))
    np.testing.assert_array_equal((K, D), before)
