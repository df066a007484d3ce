"""Thm 3, Eq 16, 17 and the certificate: by hand, for all pairs, where attained, where violated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.bounds import (
    certificate,
    certified,
    extremes,
    gamma,
    lower_bound,
    subtracted_term,
    upper_bound,
    worst_case,
)
from lib.data import load
from lib.kernel import ntk
from lib.ridge import Ridge

EPS = np.finfo(float).eps
LAMS = 2.0 ** np.arange(-4, 5)


def slack(inf):
    """Rounding of I and Î, a few eps of the terms that they are sums of."""
    return 8 * EPS * (np.abs(inf.T1) + inf.T2)


def error(inf):
    return np.abs(inf.exact - inf.ihvp)


@pytest.fixture(scope="module", params=["digits:3/8", "digits:4/9"])
def real(request):
    """Influences of two classes of digits along λ, with the kernels."""
    data = load(request.param, n_train=160, n_test=60)
    K, k = ntk(data.X), ntk(data.X, data.X_te)
    return data, K, k, [Ridge(K, data.Y, lam).influence(k, data.Y_te) for lam in LAMS]


@st.composite
def problems(draw):
    """Random unit points, some of them close, labels in [-1, 1], λ over six decades."""
    n, d, t = draw(st.integers(2, 12)), draw(st.integers(2, 8)), 4
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    X = rng.standard_normal((n + t, d))
    for i in range(draw(st.integers(0, 3))):
        X[i + 1] = X[i] + 10.0 ** draw(st.integers(-4, -1)) * rng.standard_normal(d)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    Y = np.clip(rng.standard_normal(n + t), -1, 1)
    K, lam = ntk(X[:n]), 10.0 ** draw(st.floats(-3, 3))
    return K, Ridge(K, Y[:n], lam).influence(ntk(X[:n], X[n:]), Y[n:])


# the example of test_ridge: I = (55, −5)/72, Î = (5, −1)/32, T₂ = (25, 1)/72; K has ¼ and ¾
HAND = Ridge([[0.5, 0.25], [0.25, 0.5]], [1.0, -1.0], lam=0.25).influence([[0.5], [0.25]], [1.0])


def test_thm3_eq16_by_hand():
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


@given(problems())
def test_thm3_eq16_and_its_remark_hold_for_all_pairs(problem):
    K, inf = problem
    lam_min, lam_max = extremes(K)
    room = slack(inf) * np.linalg.cond(K + inf.model.lam * np.eye(len(K)))  # h has this rounding
    paper, sharp = lower_bound(inf, lam_min), lower_bound(inf, lam_min, sharp=True)
    assert (paper <= sharp).all() and (sharp <= error(inf) + room).all()
    assert (error(inf) <= upper_bound(inf, lam_max) + room).all()


def test_thm3_eq16_on_real_data_with_controls(real):
    _, K, _, influences = real
    lam_min, lam_max = extremes(K)
    prose = swapped = 0
    for inf in influences:
        assert (lower_bound(inf, lam_min, sharp=True) <= error(inf) + slack(inf)).all()
        assert (error(inf) <= upper_bound(inf, lam_max) + slack(inf)).all()
        g = lam_min / (lam_min + inf.model.lam)
        below = error(inf) < g * np.abs(inf.exact)
        prose += below.sum()
        assert (inf.exact[below] < 0).all(), "a helpful point has at least its leverage as error"
        small = lam_min / (lam_min + inf.model.lam) * np.abs(inf.exact) + inf.T2
        swapped += (error(inf) > small + slack(inf)).sum()
    assert prose > 0, "T₂ has to be subtracted: without it there are violations"
    assert swapped > 0, "the upper bound needs λ_max"


def test_eq16_sharp_is_attained_for_orthogonal_inputs():
    # K = ½I: every leverage is g, so h|I| − (1−h)T₂ is the error where I < 0 and h|I| > (1−h)T₂
    rng = np.random.default_rng(0)
    k, y_te = rng.uniform(-0.05, 0.05, (6, 40)), rng.uniform(-1, 1, 40)
    inf = Ridge(np.eye(6) / 2, rng.uniform(-1, 1, 6), 0.5).influence(k, y_te)
    sharp = lower_bound(inf, 0.5, sharp=True)
    attained = (inf.exact < 0) & (sharp > 0)
    assert attained.sum() > 20
    np.testing.assert_allclose(sharp[attained], error(inf)[attained], rtol=1e-12)
    assert (lower_bound(inf, 0.5)[attained] < error(inf)[attained]).all()


def test_eq17_gamma_by_hand():
    np.testing.assert_allclose(gamma([3.0, 4.0]), [2 * 16 / 25])
    assert gamma([3.0, 4.0]).shape == (1,)
    np.testing.assert_allclose(gamma(np.ones((5, 2))), [1, 1])
    np.testing.assert_allclose(gamma(np.eye(4)), [4] * 4)


def test_eq17_subtracted_term_by_hand():
    # α = (5/8, 1/8), so γ = 2 · 25/26; ρ² = 16/9 = E; γE / (16 · ½ · ¼ · 2) = 100/117
    np.testing.assert_allclose(subtracted_term(HAND, 0.5), [100 / 117], rtol=8 * EPS)
    np.testing.assert_allclose(subtracted_term(HAND, 1), [50 / 117], rtol=8 * EPS)


@pytest.mark.parametrize("delta", [0.05, 0.1, 0.5])
def test_eq17_holds_for_all_but_a_share_of_the_points(real, delta):
    for inf in real[3]:
        above = inf.T2 > subtracted_term(inf, delta) * (1 + 8 * EPS)
        assert above.any(axis=1).mean() <= delta
    inf = real[3][4]  # control: neither the worst α_i (γ = 1) nor the worst ρ_i (δ = 1)
    typical = subtracted_term(inf, 1) / gamma(inf.alpha)
    assert (inf.T2 > typical).any(axis=1).mean() > 0.1


def test_eq17_norm_of_alpha(real):
    largest = max((8 * i.model.lam * (i.alpha**2).sum(axis=0)).max() for i in real[3])
    assert 0.1 < largest <= 1
    # attained by one orthogonal training point at itself: α = ½/(½ + λ) with λ = ½
    inf = Ridge(np.eye(1) / 2, [1.0], 0.5).influence([[0.5]], [1.0])
    np.testing.assert_allclose(8 * 0.5 * inf.alpha**2, 1)


@given(problems())
def test_prop2_certificate_covers_every_test_point(problem):
    K, inf = problem
    tau = certificate(inf.model)[:, None]
    room = 8 * EPS * (tau + inf.T2) * np.linalg.cond(K + inf.model.lam * np.eye(len(K)))
    assert (inf.T2 <= tau + room).all()
    total = slack(inf) + room
    assert (inf.rescaled <= inf.exact + total).all()
    assert (inf.exact <= inf.rescaled + tau + total).all()


@given(problems())
def test_worst_case_covers_every_test_point(problem):
    K, inf = problem
    error, bound = np.abs(inf.exact - inf.ihvp), worst_case(inf.model)[:, None]
    room = 8 * EPS * bound * np.linalg.cond(K + inf.model.lam * np.eye(len(K)))
    assert (error <= bound + room + slack(inf)).all()


def test_worst_case_is_more_than_the_certificate(real):
    inf = real[3][4]
    error, tau = np.abs(inf.exact - inf.ihvp), certificate(inf.model)[:, None]
    assert (error <= worst_case(inf.model)[:, None]).all()
    assert (error > tau).any()  # control


def test_certificate_against_refits_on_real_data(real):
    data, K, k, influences = real
    inf = influences[4]
    tau, h = certificate(inf.model)[:, None], inf.model.h[:, None]
    truth = np.empty_like(inf.exact)
    for i in range(len(K)):
        keep = np.delete(np.arange(len(K)), i)
        f = k[keep].T @ np.linalg.solve(K[np.ix_(keep, keep)] + np.eye(len(keep)), data.Y[keep])
        truth[i] = 0.5 * (f - data.Y_te) ** 2 - 0.5 * (inf.f - data.Y_te) ** 2
    gap = np.abs(truth - inf.ihvp)
    room = len(K) * EPS  # of losses of order 1
    assert (gap <= h / (1 - h) * np.abs(inf.ihvp) + tau + room).all()
    bound, within = certified(inf, tolerance=0.15)
    np.testing.assert_allclose(bound, h / (1 - h) * np.abs(inf.ihvp) + tau, rtol=1e-12)
    beyond = gap > 0.15 * np.abs(truth) + room
    assert within.any() and not (within & beyond).any()
    assert (beyond & (h <= 0.15)).any()  # control: a small leverage is no certificate
    assert (gap > h / (1 - h) * np.abs(inf.ihvp) + room).any()  # control: without τ
    assert (gap > h * np.abs(inf.ihvp) + tau + room).any()  # control: without 1/(1 − h)


def test_certified_by_hand():
    # K = ½I, λ = 9.5: h = 1/20, ρ = (−1, 1), τ = 1/800; k = (½, ¼): α = (1/20, 1/40), f = 1/40,
    # r_te = −39/40, T₁ = (39/800, −39/1600): I lies in (39, 40)/800, (−39, −37)/1600
    inf = Ridge(np.eye(2) / 2, [1.0, -1.0], 9.5).influence([0.5, 0.25], [1.0])
    expected = np.array([[39 / 16000 + 1 / 800], [39 / 32000 + 1 / 800]])
    least = np.array([[39 / 800], [37 / 1600]])  # of abs(I): for I < 0 at the other end
    for i, tolerance in enumerate((expected / least)[:, 0]):
        for factor, within in ((1 - 1e-9, False), (1 + 1e-9, True)):
            bound, found = certified(inf, tolerance * factor)
            np.testing.assert_allclose(bound, expected, rtol=8 * EPS)
            assert found[i, 0] == within


@pytest.mark.parametrize("lam", [1e-6, 1.0, 1e6, 1e12])
def test_certificate_keeps_its_digits(points, lam):
    K, Y = ntk(points(300, 6)), np.sign(points(300, 1)[:, 0])
    mu, V = np.linalg.eigh(K)
    model = Ridge(K, Y, lam)
    expected = 0.25 * model.rho**2 * (V**2 @ (mu / (mu + lam) ** 2))  # a sum of positive terms
    np.testing.assert_allclose(certificate(model), expected, rtol=1e-10)


def test_certificate_is_never_negative_where_little_is_left_of_it():
    for lam in np.logspace(-14.5, -10, 40):  # duplicates: Q_ii h_i is 1/λ times what is left
        model = Ridge(np.full((2, 2), 0.5), [1.0, -1.0], lam)
        assert (certificate(model) >= 0).all() and (worst_case(model) >= 0).all()


def test_certificate_is_attained():
    # one training point, tested at itself: α = ½/(½ + λ) reaches √(½ [QKQ]_ii)
    inf = Ridge([[0.5]], [1.0], 0.25).influence([[0.5]], [-1.0])
    np.testing.assert_allclose(certificate(inf.model)[:, None], inf.T2, rtol=8 * EPS)


def test_fig2_the_error_rate_follows_the_leverage(real):
    _, K, _, influences = real
    lam_min, _ = extremes(K)
    rates = [np.median(error(i) / np.abs(i.exact)) for i in influences]
    leverage = [i.model.dof / len(K) for i in influences]
    np.testing.assert_allclose(rates, leverage, rtol=0.25)
    assert (np.diff(rates) < 0).all()
    g = lam_min / (lam_min + LAMS)
    assert (np.abs(g / rates - 1) > 0.25).all()  # control: the share of Eq 16 lies far below


def test_lambda_zero(points):
    X, Y = points(12, 9), np.sign(points(12, 1)[:, 0])
    K = ntk(X[:8])
    inf = Ridge(K, Y[:8], 0).influence(ntk(X[:8], X[8:]), Y[8:])
    bound = lower_bound(inf, extremes(K)[0], sharp=True)  # Î = 0, so the error is |I|
    np.testing.assert_allclose(bound, np.abs(inf.exact), rtol=1e-12)
    assert (inf.T2 <= certificate(inf.model)[:, None]).all()
    np.testing.assert_array_equal(lower_bound(inf, 0.0), -inf.T2)  # λ_min = λ = 0: nothing is said


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
        gamma([[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="delta = 2 is no probability; choose"):
        subtracted_term(HAND, 2)
    with pytest.raises(ValueError, match="delta must be a finite number > 0, not 0"):
        subtracted_term(HAND, 0)
    free = Ridge(np.eye(2) / 2, [1, -1], 0).influence([0.5, 0], [1])
    with pytest.raises(ValueError, match="lam = 0 has no bound of this form; fit with lam > 0"):
        subtracted_term(free, 0.1)
    other = Ridge(np.eye(2), [1, -1], 1)
    with pytest.raises(ValueError, match=r"K\[0, 0\] = 1, but .* pass K = ntk\(X\)"):
        certificate(other)
    with pytest.raises(ValueError, match=r"K\[1, 1\] = 0.6, but .* pass K = ntk\(X\)"):
        certificate(Ridge(np.diag([0.5, 0.6, 0.5]), [1, -1, 1], 1))
    with pytest.raises(ValueError, match=r"K\[2, 2\] = 0.4, but .* pass K = ntk\(X\)"):
        certificate(Ridge(np.diag([0.5, 0.5, 0.4]), [1, -1, 1], 1))
    with pytest.raises(ValueError, match=r"K\[0, 0\] = 1, but .* pass K = ntk\(X\)"):
        subtracted_term(other.influence([1, 0], [1]), 0.1)


def test_eigenvalues_that_no_kernel_of_this_diagonal_has():
    inf = Ridge(np.diag([0.5, 1.0]), [1.0, -1.0], 0.5).influence([0.5, 0.25], [1.0])
    g, G = 0.5, 2 / 3  # of λ_min = ½ and λ_max = 1, as large and as small as they may be
    np.testing.assert_allclose(lower_bound(inf, 0.5), g * np.abs(inf.exact) - inf.T2, rtol=8 * EPS)
    np.testing.assert_allclose(upper_bound(inf, 1.0), G * np.abs(inf.exact) + inf.T2, rtol=8 * EPS)
    with pytest.raises(ValueError, match="lam_min = 0.501 is not .* whose diagonal reaches 0.5;"):
        lower_bound(inf, 0.501)
    with pytest.raises(ValueError, match="lam_max = 0.999 is not .* whose diagonal reaches 1;"):
        upper_bound(inf, 0.999)


def test_certified_refuses_what_has_no_answer():
    inf = Ridge(np.eye(1) / 2, [1.0], 0.0).influence([[0.5]], [1.0])
    with pytest.raises(ValueError, match="lam = 0 makes every estimate 0; fit with lam > 0"):
        certified(inf, tolerance=0.1)
    with pytest.raises(ValueError, match="tolerance must be a finite number > 0"):
        certified(inf, tolerance=0)


def test_an_indefinite_kernel_has_no_extremes():
    with pytest.raises(ValueError, match="not positive semidefinite .* <= -0.25.; pass K = ntk"):
        extremes([[0.5, 0.75], [0.75, 0.5]])
    assert extremes(np.full((3, 3), 0.5))[0] == 0  # duplicates: rounding is no reason
