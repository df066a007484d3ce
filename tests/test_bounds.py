"""Thm 3, Eq 16, 17 and the certificate: by hand, for all pairs, where attained, where violated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.bounds import (
    certificate,
    certified,
    extremes,
    gamma_eq_17,
    lower_bound,
    subset_bound,
    subtracted_term,
    upper_bound,
    worst_case,
)
from lib.kernel import DIAGONAL, ntk
from lib.ridge import Ridge, squares
from tests.cases import (
    EPS,
    HAND,
    OUTPUTS,
    digits,
    labels,
    loss,
    powers,
    refits,
    regressions,
    several,
    unit_points,
)

LAMS = 2.0 ** np.arange(-4, 5)
PROBLEMS = regressions(lams=powers(-3, 3), gaps=powers(-4, -1))


def slack(influence):
    """Rounding of I and Î, a few eps of the terms that they are sums of."""
    return 8 * EPS * (np.abs(influence.T1) + influence.T2)


def room(K, lam):
    """What rounding costs a leverage: 8 eps times the condition of K + λI."""
    return 8 * EPS * np.linalg.cond(K + lam * np.eye(len(K)))


def error(influence):
    return np.abs(influence.exact - influence.ihvp)


@pytest.fixture(scope="module", params=["digits:3/8", "digits:4/9"])
def real(request):
    """Influences of two classes of digits along λ, with the kernels."""
    K, Y, k, y_te = digits(request.param, 160, 60)
    return K, Y, k, [Ridge(K, Y, lam).influence(k, y_te) for lam in LAMS]


def test_thm_3_eq_16_by_hand():
    # I = (55, −5)/72, Î = (5, −1)/32, T₂ = (25, 1)/72; K has ¼ and ¾
    close = {"rtol": 0, "atol": 8 * EPS}
    I, T2 = np.array([[55], [-5]]) / 72, np.array([[25], [1]]) / 72
    np.testing.assert_allclose(error(HAND), [[55 / 72 - 5 / 32], [5 / 72 - 1 / 32]], **close)
    np.testing.assert_allclose(lower_bound(HAND, 0.25), abs(I) / 2 - T2, **close)
    np.testing.assert_allclose(lower_bound(HAND, 0.25, sharp=True), abs(I) / 2 - T2 / 2, **close)
    np.testing.assert_allclose(upper_bound(HAND, 0.75), 3 / 4 * abs(I) + T2, **close)
    assert extremes([[0.5, 0.25], [0.25, 0.5]]) == pytest.approx((0.25, 0.75))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_extremes_are_moved_outwards_by_n_eps_of_the_largest(scale):
    low, high = extremes(scale * np.diag([1.0, 2.0, 3.0]))
    rounding = 3 * EPS * 3 * scale
    np.testing.assert_allclose([scale - low, high - 3 * scale], [rounding] * 2, rtol=0.3)
    assert extremes(np.full((2, 2), scale))[0] == 0  # and not below


@given(PROBLEMS)
def test_thm_3_eq_16_and_its_remark_hold_for_all_pairs(problem):
    K, Y, lam, k, y_te = problem
    influence, (lam_min, lam_max) = Ridge(K, Y, lam).influence(k, y_te), extremes(K)
    rounding = room(K, lam) * (np.abs(influence.T1) + influence.T2)
    paper, sharp = lower_bound(influence, lam_min), lower_bound(influence, lam_min, sharp=True)
    assert (paper <= sharp).all() and (sharp <= error(influence) + rounding).all()
    assert (error(influence) <= upper_bound(influence, lam_max) + rounding).all()


def test_thm_3_eq_16_on_real_data_with_controls(real):
    K, _, _, influences = real
    lam_min, lam_max = extremes(K)
    prose = swapped = 0
    for influence in influences:
        assert (
            lower_bound(influence, lam_min, sharp=True) <= error(influence) + slack(influence)
        ).all()
        assert (error(influence) <= upper_bound(influence, lam_max) + slack(influence)).all()
        g = lam_min / (lam_min + influence.model.lam)
        below = error(influence) < g * np.abs(influence.exact)
        prose += below.sum()
        assert (influence.exact[below] < 0).all(), (
            "a helpful point has at least its leverage as error"
        )
        small = lam_min / (lam_min + influence.model.lam) * np.abs(influence.exact) + influence.T2
        swapped += (error(influence) > small + slack(influence)).sum()
    assert prose > 0, "T₂ has to be subtracted: without it there are violations"
    assert swapped > 0, "the upper bound needs λ_max"


def test_eq_16_sharp_is_attained_for_orthogonal_inputs():
    # K = ½I: every leverage is g, so h|I| − (1−h)T₂ is the error where I < 0 and h|I| > (1−h)T₂
    rng = np.random.default_rng(0)
    k, y_te = rng.uniform(-0.05, 0.05, (6, 40)), rng.uniform(-1, 1, 40)
    influence = Ridge(np.eye(6) / 2, rng.uniform(-1, 1, 6), 0.5).influence(k, y_te)
    sharp = lower_bound(influence, 0.5, sharp=True)
    attained = (influence.exact < 0) & (sharp > 0)
    assert attained.sum() > 20
    np.testing.assert_allclose(sharp[attained], error(influence)[attained], rtol=1e-12)
    assert (lower_bound(influence, 0.5)[attained] < error(influence)[attained]).all()


def test_eq_17_gamma_by_hand():
    np.testing.assert_allclose(gamma_eq_17([3.0, 4.0]), [2 * 16 / 25])
    assert gamma_eq_17([3.0, 4.0]).shape == (1,)
    np.testing.assert_allclose(gamma_eq_17(np.ones((5, 2))), [1, 1])
    np.testing.assert_allclose(gamma_eq_17(np.eye(4)), [4] * 4)


def test_eq_17_test_point_that_no_training_point_moves():
    model = Ridge(np.eye(2) / 2, [1.0, -1.0], 0.5)
    both = model.influence([[0.5, 0.0], [0.25, 0.0]], [1.0, 1.0])
    one = model.influence([[0.5], [0.25]], [1.0])
    found = subtracted_term(both, 0.5, DIAGONAL)
    assert found.tolist() == [*subtracted_term(one, 0.5, DIAGONAL), 0] and not both.T2[:, 1].any()
    assert subtracted_term(model.influence([[0.0], [0.0]], [1.0]), 0.5, DIAGONAL).tolist() == [0]


def test_eq_17_subtracted_term_by_hand():
    # α = (5/8, 1/8), so γ = 2 · 25/26; ρ² = 16/9 = E; γE / (16 · ½ · ¼ · 2) = 100/117
    np.testing.assert_allclose(subtracted_term(HAND, 0.5, DIAGONAL), [100 / 117], rtol=8 * EPS)
    np.testing.assert_allclose(subtracted_term(HAND, 1, DIAGONAL), [50 / 117], rtol=8 * EPS)


@pytest.mark.parametrize("delta", [0.05, 0.1, 0.5])
def test_eq_17_holds_for_all_but_a_share_of_the_points(real, delta):
    for influence in real[3]:
        above = influence.T2 > subtracted_term(influence, delta, DIAGONAL) * (1 + 8 * EPS)
        assert above.any(axis=1).mean() <= delta
    influence = real[3][4]  # control: neither the worst α_i (γ = 1) nor the worst ρ_i (δ = 1)
    typical = subtracted_term(influence, 1, DIAGONAL) / gamma_eq_17(influence.alpha)
    assert (influence.T2 > typical).any(axis=1).mean() > 0.1


def test_eq_17_norm_of_alpha(real):
    largest = max((8 * i.model.lam * (i.alpha**2).sum(axis=0)).max() for i in real[3])
    assert 0.1 < largest <= 1
    # attained by one orthogonal training point at itself: α = ½/(½ + λ) with λ = ½
    influence = Ridge(np.eye(1) / 2, [1.0], 0.5).influence([[0.5]], [1.0])
    np.testing.assert_allclose(8 * 0.5 * influence.alpha**2, 1)


@given(PROBLEMS)
def test_prop_2_certificate_covers_every_test_point(problem):
    K, Y, lam, k, y_te = problem
    influence = Ridge(K, Y, lam).influence(k, y_te)
    tau = certificate(influence.model, DIAGONAL)[:, None]
    rounding = room(K, lam) * (tau + influence.T2)
    assert (influence.T2 <= tau + rounding).all()
    rounding += slack(influence)
    assert (influence.rescaled <= influence.exact + rounding).all()
    assert (influence.exact <= influence.rescaled + tau + rounding).all()


@given(PROBLEMS)
def test_worst_case_covers_every_test_point(problem):
    K, Y, lam, k, y_te = problem
    influence = Ridge(K, Y, lam).influence(k, y_te)
    bound = worst_case(influence.model, DIAGONAL)[:, None]
    assert (error(influence) <= bound * (1 + room(K, lam)) + slack(influence)).all()


def test_worst_case_is_more_than_the_certificate(real):
    influence = real[3][4]
    tau = certificate(influence.model, DIAGONAL)[:, None]
    assert (error(influence) <= worst_case(influence.model, DIAGONAL)[:, None]).all()
    assert (error(influence) > tau).any()  # control


def test_certificate_against_refits_on_real_data(real):
    K, Y, k, influences = real
    influence = influences[4]
    tau, h = certificate(influence.model, DIAGONAL)[:, None], influence.model.h[:, None]
    truth = loss(refits(K, Y, 1.0, k), influence.y_te) - loss(influence.f, influence.y_te)
    gap = np.abs(truth - influence.ihvp)
    rounding = len(K) * EPS  # of losses of order 1
    assert (gap <= h / (1 - h) * np.abs(influence.ihvp) + tau + rounding).all()
    bound, within = certified(influence, tolerance=0.15, k_xx=DIAGONAL)
    np.testing.assert_allclose(bound, h / (1 - h) * np.abs(influence.ihvp) + tau, rtol=1e-12)
    beyond = gap > 0.15 * np.abs(truth) + rounding
    assert within.any() and not (within & beyond).any()
    assert (beyond & (h <= 0.15)).any()  # control: a small leverage is no certificate
    assert (gap > h / (1 - h) * np.abs(influence.ihvp) + rounding).any()  # control: without τ
    assert (gap > h * np.abs(influence.ihvp) + tau + rounding).any()  # control: without 1/(1 − h)


def test_certified_by_hand():
    # K = ½I, λ = 9.5: h = 1/20, ρ = (−1, 1), τ = 1/800; k = (½, ¼): α = (1/20, 1/40), f = 1/40,
    # r_te = −39/40, T₁ = (39/800, −39/1600): I lies in (39, 40)/800, (−39, −37)/1600
    influence = Ridge(np.eye(2) / 2, [1.0, -1.0], 9.5).influence([0.5, 0.25], [1.0])
    expected = np.array([[39 / 16000 + 1 / 800], [39 / 32000 + 1 / 800]])
    least = np.array([[39 / 800], [37 / 1600]])  # of abs(I): for I < 0 at the other end
    for i, tolerance in enumerate((expected / least)[:, 0]):
        for factor, within in ((1 - 1e-9, False), (1 + 1e-9, True)):
            bound, found = certified(influence, tolerance * factor, DIAGONAL)
            np.testing.assert_allclose(bound, expected, rtol=8 * EPS)
            assert found[i, 0] == within


@pytest.mark.parametrize("lam", [1e-6, 1.0, 1e6, 1e12])
def test_certificate_keeps_its_digits(lam):
    K, Y = ntk(unit_points(300, 6)), np.sign(unit_points(300, 1)[:, 0])
    mu, V = np.linalg.eigh(K)
    model = Ridge(K, Y, lam)
    expected = 0.25 * model.rho**2 * (V**2 @ (mu / (mu + lam) ** 2))  # a sum of positive terms
    np.testing.assert_allclose(certificate(model, DIAGONAL), expected, rtol=1e-10)


def test_certificate_is_never_negative_where_little_is_left_of_it():
    for lam in np.logspace(-14.5, -10, 40):  # duplicates: Q_ii h_i is 1/λ times what is left
        model = Ridge(np.full((2, 2), 0.5), [1.0, -1.0], lam)
        assert (certificate(model, DIAGONAL) >= 0).all()
        assert (worst_case(model, DIAGONAL) >= 0).all()


def test_certificate_is_attained():
    # one training point, tested at itself: α = ½/(½ + λ) reaches √(½ [QKQ]_ii)
    influence = Ridge([[0.5]], [1.0], 0.25).influence([[0.5]], [-1.0])
    np.testing.assert_allclose(
        certificate(influence.model, DIAGONAL)[:, None], influence.T2, rtol=8 * EPS
    )


def test_fig_2_the_error_rate_follows_the_leverage(real):
    K, _, _, influences = real
    lam_min, _ = extremes(K)
    rates = [np.median(error(i) / np.abs(i.exact)) for i in influences]
    leverage = [i.model.dof / len(K) for i in influences]
    np.testing.assert_allclose(rates, leverage, rtol=0.25)
    assert (np.diff(rates) < 0).all()
    g = lam_min / (lam_min + LAMS)
    assert (np.abs(g / rates - 1) > 0.25).all()  # control: the share of Eq 16 lies far below


def test_lambda_zero():
    X, Y = unit_points(12, 9), np.sign(unit_points(12, 1)[:, 0])
    K = ntk(X[:8])
    influence = Ridge(K, Y[:8], 0).influence(ntk(X[:8], X[8:]), Y[8:])
    bound = lower_bound(influence, extremes(K)[0], sharp=True)  # Î = 0, so the error is |I|
    np.testing.assert_allclose(bound, np.abs(influence.exact), rtol=1e-12)
    assert (influence.T2 <= certificate(influence.model, DIAGONAL)[:, None]).all()
    np.testing.assert_array_equal(
        lower_bound(influence, 0.0), -influence.T2
    )  # λ_min = λ = 0: nothing is said


# --- several outputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 2, 10])
def test_thm_3_eq_16_and_certificate_of_several_outputs(c):
    K, Y, k, y_te = several(c, 100)
    influence, (lam_min, lam_max) = Ridge(K, Y, 0.5).influence(k, y_te), extremes(K)
    single = [Ridge(K, y, 0.5).influence(k, z) for y, z in zip(Y.T, y_te.T, strict=True)]
    assert (lower_bound(influence, lam_min) <= error(influence) + slack(influence)).all()
    assert (
        lower_bound(influence, lam_min, sharp=True) <= error(influence) + slack(influence)
    ).all()
    assert (error(influence) <= upper_bound(influence, lam_max) + slack(influence)).all()
    tau = certificate(influence.model, DIAGONAL)
    close = {"rtol": 1e-9, "atol": 1e-14}
    parts = [certificate(one.model, DIAGONAL) for one in single]
    np.testing.assert_allclose(tau, np.sum(parts, axis=0), **close)
    assert tau.shape == (100,) and (influence.T2 <= tau[:, None]).all()
    bound, within = certified(influence, 0.1, DIAGONAL)
    assert (
        bound.shape == within.shape == (100, 40)
        and (error(influence) <= bound + slack(influence)).all()
    )
    assert not (
        within & (error(influence) > 0.1 * np.abs(influence.exact) + slack(influence))
    ).any()
    assert (
        error(influence) <= worst_case(influence.model, DIAGONAL)[:, None] + slack(influence)
    ).all()
    term = [subtracted_term(one, 0.1, DIAGONAL) for one in single]
    np.testing.assert_allclose(
        subtracted_term(influence, 0.1, DIAGONAL), np.sum(term, axis=0), **close
    )
    above = influence.T2 > subtracted_term(influence, 0.1, DIAGONAL)
    assert above.any(axis=1).mean() <= 0.1
    if c == 10:  # control: what holds for one output, or for their mean, is too small
        for small in (parts[0], np.mean(parts, axis=0)):
            assert (influence.T2 > small[:, None]).any()
        assert (error(influence) > worst_case(single[0].model, DIAGONAL)[:, None]).any()


def test_certificate_of_several_outputs_against_a_test_point_that_attains_it():
    # one training point, tested at itself: α = ½/(½ + λ) reaches √(½ [QKQ]_ii)
    influence = Ridge([[0.5]], [[0.6, 0.8, -3.0]], 0.25).influence([[0.5]], [[0.0, 1.0, 2.0]])
    np.testing.assert_allclose(
        certificate(influence.model, DIAGONAL)[:, None], influence.T2, rtol=8 * EPS
    )


def test_worst_case_of_one_hot_rows():
    K, Y, k, y_te = digits("digits:all", 100, 40)
    assert np.linalg.norm(Y, axis=1).max() < 1  # √(1 − 1/c)
    influence = Ridge(K, Y + 0.1, 1.0).influence(k, y_te + 0.1)  # one-hot, of size 1
    assert (error(influence) <= worst_case(influence.model, DIAGONAL)[:, None]).all()
    for large in (1.01 * (Y + 0.1), 1e3 * Y):
        with pytest.raises(ValueError, match="but the bound is for labels of size <= 1; scale the"):
            worst_case(Ridge(K, large, 1.0), DIAGONAL)


@pytest.mark.parametrize("scale", [0.5, 1e3])
def test_bounds_that_take_the_labels_take_any_size(real, scale):
    K, Y, k, influences = real
    influence = influences[4]
    other = Ridge(K, scale * Y, 1.0).influence(k, scale * influence.y_te)
    one, two = (certified(i, 0.1, DIAGONAL)[0] for i in (influence, other))
    np.testing.assert_allclose(two, scale**2 * one, rtol=1e-9)
    for bound in (
        lambda i: certificate(i.model, DIAGONAL),
        lambda i: subtracted_term(i, 0.1, DIAGONAL),
        lambda i: lower_bound(i, extremes(K)[0]),
        lambda i: upper_bound(i, extremes(K)[1]),
    ):
        np.testing.assert_allclose(bound(other), scale**2 * bound(influence), rtol=1e-8)


def test_worst_case_is_for_labels_of_the_size_of_those_of_training(real):
    K, Y, *_ = real
    for large in (1e3 * Y, 1.001 * Y, (1 + 1e-10) * Y):
        with pytest.raises(ValueError, match=r"Y\[0\] has size .*, but the bound is for labels"):
            worst_case(Ridge(K, large, 1.0), DIAGONAL)
    worst_case(Ridge(K, (1 + 1e-14) * Y, 1.0), DIAGONAL)  # rounding is no reason


# --- kernels of another diagonal ------------------------------------------------------------------


def gaussian(X, X2):
    return np.exp(-((X[:, None] - X2) ** 2).sum(axis=2))


def linear(X, X2):
    return X @ X2.T


@st.composite
def other_kernels(draw):
    """A kernel that is not the NTK, at points that are not of unit norm; its largest k(x, x)."""
    n, t, d = draw(st.integers(1, 12)), 4, draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    X = 3 * rng.standard_normal((n + t, d))
    X[n] = X[0]  # a test point at a training point
    kernel, c = draw(st.sampled_from([gaussian, linear])), draw(st.sampled_from(OUTPUTS))
    Y, lam = labels(rng, n + t, c), 10.0 ** draw(st.floats(-2, 2))
    k_xx = kernel(X, X).diagonal().max()
    influence = Ridge(kernel(X[:n], X[:n]), Y[:n], lam).influence(kernel(X[:n], X[n:]), Y[n:])
    return influence, k_xx


@given(other_kernels())
def test_bounds_hold_for_any_kernel_with_its_own_diagonal(case):
    influence, k_xx = case
    K, lam = influence.model.K, influence.model.lam
    tau = certificate(influence.model, k_xx)[:, None]
    # rounding in [QKQ]_ii is that of Q_ii, which may be much larger; 1 − h_i = λQ_ii
    q, sizes = influence.model.Q.diagonal()[:, None], squares(influence.model.rho)[:, None]
    rounding = 0.5 * k_xx * sizes * q + (np.abs(influence.T1) + influence.T2) / (lam * q)
    rounding *= room(K, lam) * (1 + 1 / (lam * q))
    assert (influence.T2 <= tau + rounding).all()
    bound, within = certified(influence, 0.1, k_xx)
    assert (error(influence) <= bound + rounding).all()
    assert not (within & (error(influence) > 0.1 * np.abs(influence.exact) + rounding)).any()
    assert (error(influence) <= worst_case(influence.model, k_xx)[:, None] + rounding).all()
    for delta in (0.1, 0.5):
        above = influence.T2 > subtracted_term(influence, delta, k_xx) * (1 + 1e-9) + rounding
        assert above.any(axis=1).mean() <= delta
    lam_min, lam_max = extremes(K)
    assert (lower_bound(influence, lam_min, sharp=True) <= error(influence) + rounding).all()
    assert (error(influence) <= upper_bound(influence, lam_max) + rounding).all()


@pytest.mark.parametrize("kernel", [gaussian, linear])
def test_control_the_diagonal_of_the_ntk_is_too_small_for_other_kernels(kernel):
    X, Y = np.random.default_rng(0).standard_normal((12, 4)), np.linspace(-1, 1, 12)
    K, k_xx = kernel(X, X), kernel(X, X).diagonal().max()
    assert k_xx >= 1 > DIAGONAL
    influence = Ridge(K, Y, 1.0).influence(K, Y)  # tested at the training points themselves
    assert (influence.T2 <= certificate(influence.model, k_xx)[:, None] * (1 + 1e-12)).all()
    assert (influence.T2 > certificate(influence.model, k_xx)[:, None] * DIAGONAL / k_xx).any()
    assert (error(influence) <= certified(influence, 0.1, k_xx)[0] * (1 + 1e-12)).all()
    for call in (certificate, worst_case):
        with pytest.raises(ValueError, match="k_xx = 0.5 is below K.i, i. = .* pass the largest"):
            call(influence.model, DIAGONAL)


@pytest.mark.parametrize("kernel", [gaussian, linear])
def test_control_eq_17_and_the_worst_case_need_the_diagonal(kernel):
    # one point, tested at itself with λ = k(x, x): α = ½, and both bounds are attained in k_xx
    x = np.array([[0.0, 1.0, 2.0]])
    K = kernel(x, x)
    k_xx = K[0, 0]
    influence = Ridge(K, [1.0], k_xx).influence(K, [-1.0])
    np.testing.assert_allclose(subtracted_term(influence, 1, k_xx), influence.T2[0], rtol=8 * EPS)
    assert (subtracted_term(influence, 1, k_xx) * DIAGONAL / k_xx < influence.T2[0]).all()
    assert (error(influence)[0] <= worst_case(influence.model, k_xx)).all()


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_nothing_supposes_a_scale_of_the_kernel(real, scale):
    K, Y, k, influences = real
    influence = influences[4]
    other = Ridge(scale * K, Y, scale).influence(scale * k, influence.y_te)
    lows, highs = zip(extremes(K), extremes(scale * K), strict=True)
    for bound in (
        lambda i, k_xx, _, __: certificate(i.model, k_xx),
        lambda i, k_xx, _, __: worst_case(i.model, k_xx),
        lambda i, k_xx, _, __: certified(i, 0.1, k_xx)[0],
        lambda i, k_xx, _, __: subtracted_term(i, 0.1, k_xx),
        lambda i, _, low, __: lower_bound(i, low),
        lambda i, _, __, high: upper_bound(i, high),
    ):
        one = bound(influence, DIAGONAL, lows[0], highs[0])
        two = bound(other, scale * DIAGONAL, lows[1], highs[1])
        np.testing.assert_allclose(two, one, rtol=1e-8)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input():
    with pytest.raises(ValueError, match="K must be square, but its shape is"):
        extremes(np.ones((2, 3)))
    with pytest.raises(ValueError, match="K must be symmetric, but K and Kᵀ differ by 0.25; pass"):
        extremes([[0.5, 0.25], [0.0, 0.5]])
    with pytest.raises(ValueError, match="lam_min must be a finite number >= 0, not -1"):
        lower_bound(HAND, -1)
    with pytest.raises(ValueError, match="lam_min = 0.75 is not the smallest eigenvalue"):
        lower_bound(HAND, 0.75)
    with pytest.raises(ValueError, match="lam_max = 0.25 is not the largest .* extremes"):
        upper_bound(HAND, 0.25)
    with pytest.raises(ValueError, match=r"alpha\[:, 1\] is zero, .*; remove the test point"):
        gamma_eq_17([[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="delta = 2 is no probability; choose"):
        subtracted_term(HAND, 2, DIAGONAL)
    with pytest.raises(ValueError, match="delta must be a finite number > 0, not 0"):
        subtracted_term(HAND, 0, DIAGONAL)
    free = Ridge(np.eye(2) / 2, [1, -1], 0).influence([0.5, 0], [1])
    with pytest.raises(ValueError, match="lam = 0 has no bound of this form; fit with lam > 0"):
        subtracted_term(free, 0.1, DIAGONAL)
    for call in (subtracted_term, certified):
        with pytest.raises(ValueError, match="k_xx must be a finite number > 0, not 0"):
            call(HAND, 0.1, k_xx=0)
    for call in (certificate, worst_case):
        with pytest.raises(ValueError, match="k_xx must be a finite number > 0, not -1"):
            call(HAND.model, k_xx=-1)
    large = Ridge(np.eye(2) / 2, [[0.6, 0.8], [0.8, 0.9]], 1)
    with pytest.raises(ValueError, match=r"Y\[1\] has size 1.2\d+, but the bound is for .* <= 1"):
        worst_case(large, DIAGONAL)


def test_eigenvalues_that_no_kernel_of_this_diagonal_has():
    influence = Ridge(np.diag([0.5, 1.0]), [1.0, -1.0], 0.5).influence([0.5, 0.25], [1.0])
    g, G = 0.5, 2 / 3  # of λ_min = ½ and λ_max = 1, as large and as small as they may be
    np.testing.assert_allclose(
        lower_bound(influence, 0.5), g * np.abs(influence.exact) - influence.T2, rtol=8 * EPS
    )
    np.testing.assert_allclose(
        upper_bound(influence, 1.0), G * np.abs(influence.exact) + influence.T2, rtol=8 * EPS
    )
    with pytest.raises(ValueError, match="lam_min = 0.501 is not .* whose diagonal reaches 0.5;"):
        lower_bound(influence, 0.501)
    with pytest.raises(ValueError, match="lam_max = 0.999 is not .* whose diagonal reaches 1;"):
        upper_bound(influence, 0.999)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_eigenvalues_are_held_to_the_diagonal_but_for_rounding(scale):
    inf = Ridge(scale * np.eye(2) / 2, [1.0, -1.0], scale).influence([0.5, 0.25], [1.0])
    lower_bound(inf, scale * 0.5 * (1 + 1e-13))
    upper_bound(inf, scale * 0.5 * (1 - 1e-13))
    with pytest.raises(ValueError, match="lam_min = .* is not the smallest eigenvalue"):
        lower_bound(inf, scale * 0.5 * (1 + 1e-10))
    with pytest.raises(ValueError, match="lam_max = .* is not the largest eigenvalue"):
        upper_bound(inf, scale * 0.5 * (1 - 1e-10))


def test_certified_refuses_what_has_no_answer():
    influence = Ridge(np.eye(1) / 2, [1.0], 0.0).influence([[0.5]], [1.0])
    with pytest.raises(ValueError, match="lam = 0 makes every estimate 0; fit with lam > 0"):
        certified(influence, tolerance=0.1, k_xx=DIAGONAL)
    with pytest.raises(ValueError, match="tolerance must be a finite number > 0"):
        certified(influence, tolerance=0, k_xx=DIAGONAL)


def test_an_indefinite_kernel_has_no_extremes():
    with pytest.raises(ValueError, match="not positive semidefinite .* <= -0.25.; pass K = ntk"):
        extremes([[0.5, 0.75], [0.75, 0.5]])
    assert extremes(np.full((3, 3), 0.5))[0] == 0  # duplicates: rounding is no reason


def test_thm_4_subset_bound_by_hand():
    # n = 3: K_12 = ¼, K_13 = K_23 = 0, λ = ¼. For point 1: |S| = 1: 1, |S| = 2: ½ + ¼·½/¼ = 1,
    # |S| = 3: ⅓ + (½ − ⅔·¾ + (3·½ + 2·¼)/9)/¼ = ⅓ + 8/9 = 11/9. For λ = 1: 1, 5/8, ⅓ + 2/9 = 5/9.
    K = [[0.5, 0.25, 0.0], [0.25, 0.5, 0.0], [0.0, 0.0, 0.5]]
    bound, size = subset_bound(K, 0.25)
    np.testing.assert_allclose(bound, 1, rtol=4 * EPS)
    bound, size = subset_bound(K, 1.0)
    # point 3: |S| = 3: ⅓ + (½ − ⅔·½ + 2/9) = 13/18, |S| = 2: ½ + ¼·1 = ¾
    np.testing.assert_allclose(bound, [5 / 9, 5 / 9, 13 / 18], rtol=8 * EPS)
    assert size.tolist() == [3, 3, 3]


@given(st.integers(0, 10**6), st.integers(2, 40), st.floats(-3, 3))
def test_thm_4_subset_bound_against_features(seed, n, log_lam):
    rng, lam = np.random.default_rng(seed), 10**log_lam
    K = ntk(unit_points(n, 4, rng))
    bound, size = subset_bound(K, lam)
    phi = np.linalg.cholesky(K + 1e-14 * np.eye(n))  # K = ΦΦᵀ
    for i in range(n):
        order = np.argsort(np.linalg.norm(phi - phi[i], axis=1))
        found = {
            m: 1 / m + np.sum((phi[i] - phi[order[:m]].mean(axis=0)) ** 2) / lam
            for m in range(1, n + 1)
        }
        assert bound[i] == pytest.approx(found[size[i]], rel=1e-9, abs=1e-11 / lam)
        assert bound[i] >= min(found.values()) - 1e-11 / lam
        tried = sorted({min(n, round(2 ** (j / 2))) for j in range(20)} & found.keys())
        assert bound[i] == pytest.approx(min(found[m] for m in tried), rel=1e-9, abs=1e-11 / lam)


def test_thm_4_subset_bound_of_features_of_any_length():
    phi = np.random.default_rng(0).standard_normal((30, 2)) * [1, 3]
    bound, size = subset_bound(phi @ phi.T, 0.1)
    for i in range(30):
        near = phi[np.argsort(np.linalg.norm(phi - phi[i], axis=1))[: size[i]]].mean(axis=0)
        assert bound[i] == pytest.approx(1 / size[i] + np.sum((phi[i] - near) ** 2) / 0.1)
    assert len(set(size)) > 3


@given(st.integers(0, 10**6), st.integers(2, 60), st.floats(-4, 4))
def test_thm_4_subset_bound_holds(seed, n, log_lam):
    rng, lam = np.random.default_rng(seed), 10**log_lam
    X = unit_points(n, 5, rng)
    X[: n // 2] = X[:1] + 0.01 * X[: n // 2]  # a dense half
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    K = ntk(X)
    h = Ridge(K, np.ones(n), lam).h
    bound, size = subset_bound(K, lam)
    assert (h <= bound).all() and (bound <= 1).all() and (size >= 1).all() and (size <= n).all()


def test_thm_4_subset_bound_is_a_choice_of_weights():
    # λ h_i = min over c of λ‖c‖² + ‖φ_i − Φᵀc‖², at c = α(x_i)
    (K, Y, *_), lam = digits(n=60, t=2), 0.7
    model = Ridge(K, Y, lam)
    alpha = model.Q @ K
    value = lam * np.sum(alpha**2, 0) + K.diagonal() - 2 * np.sum(alpha * K, 0)
    value += np.einsum("ji,jk,ki->i", alpha, K, alpha)
    np.testing.assert_allclose(value, lam * model.h, rtol=1e-11)
    other = alpha + 1e-3 * np.random.default_rng(0).standard_normal(alpha.shape)  # control
    worse = lam * np.sum(other**2, 0) + K.diagonal() - 2 * np.sum(other * K, 0)
    worse += np.einsum("ji,jk,ki->i", other, K, other)
    assert (worse > lam * model.h * (1 + 1e-9)).all()


def test_a_subset_bound_needs_a_kernel():
    with pytest.raises(ValueError, match="K is not positive semidefinite; pass K = ntk"):
        subset_bound([[0.5, 0.9], [0.9, 0.5]], 1.0)


def test_what_is_no_model_and_no_influence_is_named():
    for call in (certificate, worst_case):
        with pytest.raises(TypeError, match="model must be a lib.ridge.Ridge, not .*; pass Ridge"):
            call(np.eye(2), 0.5)
    I = np.eye(2)
    for call in (
        lambda: lower_bound(I, 0.5), lambda: upper_bound(I, 0.5),
        lambda: subtracted_term(I, 0.5, 0.5), lambda: certified(I, 0.5, 0.5),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="influence must be a lib.ridge.RidgeInfluence, not .*"):
            call()


@pytest.mark.parametrize("lam", [0, -1.0])
def test_thm_4_subset_bound_needs_a_ridge(lam):
    with pytest.raises(
        ValueError, match=f"lam must be a finite number > 0, not {lam}; choose a la"
    ):
        subset_bound(np.eye(2), lam)


def test_sharp_is_true_or_false():
    one = Ridge([[0.5, 0], [0, 0.5]], [1, -1], lam=0.5).influence([[0.5], [0.25]], [1])
    with pytest.raises(TypeError, match="sharp must be True or False, not 1; pass one of them"):
        lower_bound(one, 0.5, sharp=1)
