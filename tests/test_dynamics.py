"""Influence along training (Eq 3, 8, 9, 13): by hand, matrix exponentials, an ODE solver."""

import math
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from lib.data import load
from lib.dynamics import Flow, exponential
from lib.kernel import ntk
from lib.ridge import Ridge
from tests.cases import digits, labels, loss, powers, regressions, several, unit_points

TIMES = (1e-3, 0.3, 5.0, 80.0, 3e3)


def train(K, Y, lam, k, t, without=()):
    """Predictions at time t of training without some points: a matrix exponential of what is left.

    The exponential of [[−A, Y], [0, 0]] t holds ∫₀ᵗ e^{−As} ds Y = A⁻¹(I − e^{−At})Y in its last
    columns, so nothing is inverted and λ = 0 is no special case.
    """
    keep = np.setdiff1d(np.arange(len(Y)), without)
    columns = Y.reshape(len(Y), -1)[keep]
    n, c = columns.shape
    block = np.zeros((n + c, n + c))
    block[:n, :n] = -K[np.ix_(keep, keep)] - lam * np.eye(n)
    block[:n, n:] = columns
    return k[keep].T @ expm(t * block)[:n, n:].reshape(n, *Y.shape[1:])


@pytest.fixture(scope="module")
def images():
    return digits()


# --- the partial fractions --------------------------------------------------------------------

Z = -np.concatenate([[0], np.logspace(-12, 4, 40001), [1e6, 1e16, 1e300]])


def error(pairs):
    zeta, c = exponential(pairs)
    return np.abs(2 * (c / (zeta - Z[:, None])).sum(axis=1).real - np.exp(Z)).max()


def test_partial_fractions_of_the_exponential():
    assert error(7) < 1e-13  # 1e-11 is what the rest needs
    zeta, c = exponential()
    assert abs(2 * (c / zeta).sum().real - 1) < 1e-13
    assert (zeta.imag > 0).all()


def test_error_falls_by_the_constant_of_halphen():
    # Gonchar and Rakhmanov: the best error of a fraction with n poles falls as 9.28902…⁻ⁿ
    errors = np.log([error(pairs) for pairs in range(1, 7)])
    rate = -np.diff(errors) / 2
    np.testing.assert_allclose(rate, math.log(9.28902549192081), rtol=0.1)
    assert error(5) > 1e-11  # control


def test_number_of_pairs_is_bounded():
    with pytest.raises(ValueError, match="pairs = 8 is more than float64 resolves; use 1 to 7"):
        exponential(8)
    with pytest.raises(ValueError, match="pairs must be at least 1"):
        exponential(0)


# --- by hand ----------------------------------------------------------------------------------

# K = ½ I, λ = ½, Y = (1, −1): A = I, β(t) = (1 − e^{−t}) Y. At t = ln 2: β = (½, −½).
# k = (½, ¼), y_te = 1: f = ⅛, r_te = −7/8. Points do not interact: without x_1 f = −⅛,
# without x_2 f = ¼, so I = ½(81/64 − 49/64) = ¼ and ½(36/64 − 49/64) = −13/128.
# α = k, r_i(t) = −y_i (½ + ½ e^{−t}) = ∓¾, so Î = α r_te r_i = 21/64 and −21/128.
# Unrolled: −k_i y_i ∫ e^{−(t−s)} (½ + ½ e^{−s}) ds = −k_i y_i (¼ + ¼ ln 2).


def test_eq_8_eq_9_eq_13_at_time_t_by_hand():
    flow, t = Flow(0.5 * np.eye(2), [1.0, -1.0], lam=0.5), math.log(2)
    now = flow.influence([0.5, 0.25], [1.0], t)
    close = {"rtol": 0, "atol": 1e-13}
    np.testing.assert_allclose(flow.beta(t), [0.5, -0.5], **close)
    np.testing.assert_allclose(flow.r(t), [-0.75, 0.75], **close)
    np.testing.assert_allclose(now.f, [1 / 8], **close)
    np.testing.assert_allclose(now.loo[:, 0], [-1 / 8, 1 / 4], **close)
    np.testing.assert_allclose(now.exact[:, 0], [1 / 4, -13 / 128], **close)
    np.testing.assert_allclose(now.ihvp[:, 0], [21 / 64, -21 / 128], **close)
    first = (1 + math.log(2)) / 4 * 7 / 8
    np.testing.assert_allclose(now.unrolled[:, 0], [first / 2, -first / 4], **close)
    np.testing.assert_allclose(flow.remove([0, [0, 1]], [0.5, 0.25], t), [[-1 / 8], [0]], **close)


def test_what_no_eigenvector_of_the_kernel_sees_is_learnt_at_a_constant_rate():
    # K = diag(½, 0), λ = 0, Y = (1, −1): β = (2 (1 − e^{−t/2}), −t), r(s) = (−e^{−s/2}, 1).
    # k = (½, ¼), y_te = 0: f = r_te = 1 − e^{−t/2} − t/4, and points do not interact. Unrolled:
    # r_te ½ ∫ e^{−(t−s)/2} (−e^{−s/2}) ds = −r_te ½ t e^{−t/2} and r_te ¼ ∫ ds = r_te ¼ t.
    flow, t = Flow(np.diag([0.5, 0.0]), [1.0, -1.0], 0.0), 3.0
    with warnings.catch_warnings(action="error"):  # no 0/0 on the way
        now, one = flow.influence([0.5, 0.25], [0.0], t), 1 - math.exp(-t / 2)
        unrolled = now.unrolled[:, 0]
    close = {"rtol": 0, "atol": 1e-11}
    np.testing.assert_allclose(flow.beta(t), [2 * one, -t], **close)
    np.testing.assert_allclose(now.f, [one - t / 4], **close)
    np.testing.assert_allclose(now.loo[:, 0], [-t / 4, one], **close)
    np.testing.assert_allclose(unrolled / now.f, [-t * (1 - one) / 2, t / 4], **close)


# --- against training each submatrix ----------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_eq_9_every_point_at_time_t_against_matrix_exponentials(images, lam):
    K, Y, k, y_te = images
    flow = Flow(K, Y, lam)
    for t in TIMES:
        now = flow.influence(k, y_te, t)
        truth = np.array([train(K, Y, lam, k, t, [i]) for i in range(len(Y))])
        full = train(K, Y, lam, k, t)
        assert np.abs(now.f - full).max() < 1e-10, t
        assert np.abs(now.loo - truth).max() < 1e-10, t
        influence = loss(truth, y_te) - loss(full, y_te)
        assert np.abs(now.exact - influence).max() < 1e-10, t


def test_eq_9_control_the_rank_one_update_of_the_exponential_itself_fails(images):
    # Eq 9 at time t with A⁻¹(I − e^{−At}) in place of Q: right only at the end
    K, Y, k, y_te = images
    flow, t = Flow(K, Y, 0.0), 5.0
    S = (flow.V * flow._learnt(t)) @ flow.V.T
    wrong = k.T @ S @ Y - (S @ k) * (S @ Y / S.diagonal())[:, None]
    assert np.abs(wrong - flow.influence(k, y_te, t).loo).max() > 1e-6  # and not < 1e-10


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_eq_9_groups_at_time_t_against_matrix_exponentials(images, lam):
    K, Y, k, _ = images
    flow, rng = Flow(K, Y, lam), np.random.default_rng(0)
    groups = [rng.choice(150, size, replace=False) for size in (1, 2, 10, 75, 149)]
    for t in TIMES:
        truth = np.array([train(K, Y, lam, k, t, group) for group in groups])
        assert np.abs(flow.remove(groups, k, t) - truth).max() < 1e-10, t
    assert np.abs(flow.remove([np.arange(150)], k, 5.0)).max() < 1e-10


def test_eq_3_against_an_ode_solver(images):
    # dc/dt = Y − (K + λI)c, the flow of Eq 3 in the coefficients of the features
    K, Y, k, y_te = images
    for lam in (0.0, 1.0):
        flow, t = Flow(K, Y, lam), 3.0
        now = flow.influence(k, y_te, t)
        for i, got in ((None, now.f), (7, now.loo[7])):
            keep = np.setdiff1d(np.arange(150), [] if i is None else [i])
            A, y = K[np.ix_(keep, keep)] + lam * np.eye(len(keep)), Y[keep]
            c = solve_ivp(
                lambda _, c, A=A, y=y: y - A @ c, (0, t), 0 * y, "DOP853", rtol=1e-13, atol=1e-14,
                max_step=1 / np.linalg.norm(A, 2),  # well inside the stability of the method
            ).y[:, -1]  # fmt: skip
            assert np.abs(k[keep].T @ c - got).max() < 1e-10


# near-duplicates and duplicates, and λ = 0 among the ridges
PROBLEMS = regressions(
    lams=st.sampled_from([0.0, 1e-3, 1.0, 100.0]), gaps=st.sampled_from([0.0, 1e-6, 0.1])
)


@given(PROBLEMS, powers(-6, 3))
def test_eq_9_at_time_t_for_any_data(problem, t):
    K, Y, lam, k, y_te = problem
    flow = Flow(K, Y, lam)
    now = flow.influence(k, y_te, t)
    truth = np.array([train(K, Y, lam, k, t, [i]) for i in range(len(Y))])
    tolerance = 1e-10 + 1e-15 * t * len(Y)  # β grows as t along a duplicate, and so does rounding
    assert np.abs(now.f - train(K, Y, lam, k, t)).max() < tolerance
    assert np.abs(now.loo - truth).max() < tolerance
    pair = [[0, 1]]
    assert np.abs(flow.remove(pair, k, t) - train(K, Y, lam, k, t, pair[0])).max() < tolerance


# --- several outputs ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2, 10])
def outputs(request):
    return several(request.param, 60, 20)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_eq_9_of_several_outputs_at_time_t_against_matrix_exponentials(outputs, lam):
    (K, Y, k, y_te), groups = outputs, [3, [5, 7], range(40)]
    flow = Flow(K, Y, lam)
    for t in (0.3, 80.0):
        now, full = flow.influence(k, y_te, t), train(K, Y, lam, k, t)
        truth = np.array([train(K, Y, lam, k, t, [i]) for i in range(60)])
        assert now.f.shape == y_te.shape and now.loo.shape == truth.shape
        np.testing.assert_allclose(now.f, full, rtol=0, atol=1e-10)
        np.testing.assert_allclose(now.loo, truth, rtol=0, atol=1e-10)
        expected = loss(truth, y_te) - loss(full, y_te)
        np.testing.assert_allclose(now.exact, expected, rtol=0, atol=1e-10)
        expected = [train(K, Y, lam, k, t, group) for group in groups]
        np.testing.assert_allclose(flow.remove(groups, k, t), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("t", [0.0, 0.3, 80.0, math.inf])
def test_several_outputs_flow_as_single_ones(outputs, lam, t):
    (K, Y, k, y_te), groups = outputs, [3, [5, 7], range(40)]
    flow, alone = Flow(K, Y, lam), [Flow(K, y, lam) for y in Y.T]
    now = flow.influence(k, y_te, t)
    single = [one.influence(k, y, t) for one, y in zip(alone, y_te.T, strict=True)]
    close = {"rtol": 1e-9, "atol": 1e-11}
    for name in ("exact", "T1", "T2", "ihvp", "unrolled"):
        parts, found = np.array([getattr(one, name) for one in single]), getattr(now, name)
        assert found.shape == (60, 20)
        np.testing.assert_allclose(found, parts.sum(axis=0), **close)
        if len(parts) > 1 and parts.any():  # control: their mean, and one of them
            for wrong in (parts.mean(axis=0), parts[0]):
                assert np.abs(found - wrong).max() > 0.1 * np.abs(found).max()
    for name in ("f", "loo", "shift"):
        parts = [getattr(one, name) for one in single]
        np.testing.assert_allclose(getattr(now, name), np.stack(parts, axis=-1), **close)
    for call in (
        lambda flow: flow.beta(t),
        lambda flow: flow.r(t),
        lambda flow: flow.predict(k, t),
        lambda flow: flow.remove(groups, k, t),
    ):
        expected = np.stack([call(one) for one in alone], axis=-1)
        np.testing.assert_allclose(call(flow), expected, rtol=1e-8, atol=1e-10)


def test_eq_13_unrolled_of_several_outputs_tends_to_the_estimate_of_ridge_regression(outputs):
    K, Y, k, y_te = outputs
    late = Flow(K, Y, 1.0).influence(k, y_te, 1e6)
    expected = Ridge(K, Y, 1.0).influence(k, y_te).ihvp
    np.testing.assert_allclose(late.unrolled, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(late.ihvp, expected, rtol=0, atol=1e-10)


def test_control_a_sum_over_the_wrong_axis_is_seen():
    # as many training points as test points as outputs, so that no shape tells
    X, rng = unit_points(8, 6), np.random.default_rng(0)
    flow = Flow(ntk(X[:4]), labels(rng, 4, 4), 0.3)
    now = flow.influence(ntk(X[:4], X[4:]), labels(rng, 4, 4), 2.0)
    shift, r = now.shift, now.r_te
    np.testing.assert_allclose(now.T1, np.einsum("itc,tc->it", shift, r), rtol=1e-12)
    alpha = flow.end.Q @ now.k
    np.testing.assert_allclose(now.ihvp, alpha * np.einsum("ic,tc->it", flow.r(2.0), r), rtol=1e-12)
    for right, wrong in (
        (now.T1, np.einsum("itc,ct->it", shift, r)),
        (now.T1, np.einsum("ict,tc->it", shift, r)),
        (now.ihvp, alpha * np.einsum("ci,tc->it", flow.r(2.0), r)),
        (now.unrolled, Flow(flow.K, flow.Y.T, 0.3).influence(now.k, now.y_te, 2.0).unrolled),
    ):
        assert np.abs(right - wrong).max() > 0.1 * np.abs(wrong).max()


@pytest.mark.parametrize("t", [0.3, math.inf])
def test_targets_of_any_size_and_kernels_of_any_scale(outputs, t):
    K, Y, k, y_te = outputs
    one = Flow(K, Y, 0.5).influence(k, y_te, t)
    for scale in (1e3, 1e-6):
        large = Flow(K, scale * Y, 0.5).influence(k, scale * y_te, t)
        other = Flow(scale * K, Y, 0.5 * scale).influence(scale * k, y_te, t / scale)
        for name in ("exact", "ihvp", "unrolled"):
            expected = getattr(one, name)
            room = {"rtol": 1e-9, "atol": 1e-11}
            np.testing.assert_allclose(getattr(large, name) / scale**2, expected, **room)
            np.testing.assert_allclose(getattr(other, name), expected, **room)


# --- the two ends -----------------------------------------------------------------------------


def test_nothing_is_learnt_and_nothing_matters_at_the_start(images):
    K, Y, k, y_te = images
    flow = Flow(K, Y, 1.0)
    start, soon = (flow.influence(k, y_te, t) for t in (0.0, 1e-9))
    assert (start.f == 0).all() and (start.exact == 0).all() and (start.unrolled == 0).all()
    assert (flow.remove([3, [1, 2]], k, 0) == 0).all()
    # first step: f = t kᵀY, and without x_i it lacks t k_i y_i
    np.testing.assert_allclose(soon.shift, -1e-9 * k * Y[:, None], rtol=1e-6, atol=1e-20)
    assert np.abs(start.ihvp).max() > 0.01  # the estimate for the end does not know that


@pytest.mark.parametrize("lam", [0.0, 1e-3, 1.0])
def test_the_end_of_training_is_ridge_regression(images, lam):
    K, Y, k, y_te = images
    flow, ridge = Flow(K, Y, lam), Ridge(K, Y, lam)
    end, truth = flow.influence(k, y_te, math.inf), ridge.influence(k, y_te)
    late = flow.influence(k, y_te, 1e14)
    groups = [4, [1, 2, 3]]
    for moment in (end, late):
        np.testing.assert_allclose(moment.f, truth.f, rtol=0, atol=1e-10)
        np.testing.assert_allclose(moment.exact, truth.exact, rtol=0, atol=1e-10)
        np.testing.assert_allclose(moment.ihvp, truth.ihvp, rtol=0, atol=1e-10)
        np.testing.assert_allclose(moment.unrolled, truth.ihvp, rtol=0, atol=1e-10)
        got = flow.remove(groups, k, moment.t)
        np.testing.assert_allclose(got, ridge.remove(groups, k), rtol=0, atol=1e-10)
    np.testing.assert_allclose(flow.r(math.inf), ridge.r, rtol=0, atol=1e-12)
    np.testing.assert_allclose(flow.beta(math.inf), ridge.beta, rtol=0, atol=1e-12)


# --- first order ------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 1.0])
@pytest.mark.parametrize("t", [0.1, 4.0, 100.0])
def test_eq_13_unrolled_is_the_derivative_in_the_weight_of_a_point(images, lam, t):
    K, Y, k, y_te = images
    now = Flow(K, Y, lam).influence(k, y_te, t)

    def loss(i, weight):
        # θ = Φᵀc with dc/dt = −W(Kc − Y) − λc, and W the identity but for point i
        w = np.ones(150)
        w[i] = weight
        block = np.zeros((151, 151))
        block[:150, :150] = -w[:, None] * K - lam * np.eye(150)
        block[:150, 150] = w * Y
        return 0.5 * (k.T @ expm(t * block)[:150, 150] - y_te) ** 2

    for i in (0, 60):
        step = 1e-4
        slope = (loss(i, 1 + step) - loss(i, 1 - step)) / (2 * step)
        np.testing.assert_allclose(now.unrolled[i], -slope, rtol=0, atol=1e-8)
        assert np.abs(now.unrolled[i] - now.exact[i]).max() > 1e-8 or t < 1  # it is first order


def test_eq_13_taken_before_the_end_is_off_where_unrolled_is_not(images):
    K, Y, k, y_te = images
    flow = Flow(K, Y, 1.0)
    early = flow.influence(k, y_te, 0.01)
    gap = {name: np.abs(getattr(early, name) - early.exact).sum() for name in ("ihvp", "unrolled")}
    total = np.abs(early.exact).sum()
    assert gap["unrolled"] < 0.05 * total and gap["ihvp"] > total


# --- what influence shows ---------------------------------------------------------------------


def test_fig_6_the_nearest_image_is_the_most_influential_at_first_and_not_at_the_end(images):
    K, Y, k, y_te = images
    flow, nearest = Flow(K, Y, 0.0), np.abs(k).argmax(axis=0)
    top = [np.abs(flow.influence(k, y_te, t).exact).argmax(axis=0) for t in (1e-6, 1e4)]
    assert (top[0] == nearest).all() and (top[1] != nearest).mean() > 0.3


def test_fig_7_noisy_points_gain_influence_and_lose_it_without_a_ridge():
    curves = {0.0: [], 1.0: []}
    for seed in range(3):
        data = load("digits:0+2+4+6+8/1+3+5+7+9", n_train=300, n_test=200, seed=seed)
        noisy = np.isin(np.arange(300), np.random.default_rng(seed).choice(300, 120, replace=False))
        K, k = ntk(data.X), ntk(data.X, data.X_te)
        for lam, curve in curves.items():
            flow = Flow(K, np.where(noisy, -data.Y, data.Y), lam)
            for t in (0.01, 0.3, 1e3):
                I = flow.influence(k, data.Y_te, t).exact
                curve.append(
                    [noisy[np.abs(I).argmax(axis=0)].mean(), noisy[I.argmax(axis=0)].mean()]
                )
    free, ridge = (np.reshape(curve, (3, 3, 2)).mean(axis=0).T for curve in curves.values())
    for start, peak, end, fall in ((*free[0], 0.1), (*ridge[0], -0.1)):
        assert peak > start + 0.05 and peak - end > fall
    assert ridge[0, 1] - ridge[0, 2] < 0.5 * (free[0, 1] - free[0, 2])
    assert free[1].max() < 0.4 and free[1].argmax() == 2  # signed: no rise and fall


# --- duplicates and bad input -----------------------------------------------------------------


def test_duplicates_without_ridge_train_but_have_no_end():
    X = unit_points(20, 4)
    X[11] = X[3]
    K, k, Y = ntk(X[:15]), ntk(X[:15], X[15:]), np.sign(unit_points(15, 1)[:, 0])
    flow = Flow(K, Y, 0.0)
    assert np.abs(flow.influence(k, Y[:5], 9.0).loo[3] - train(K, Y, 0, k, 9.0, [3])).max() < 1e-10
    for call in (flow.beta, flow.r, lambda t: flow.remove([0], k, t)):
        with pytest.raises(ValueError, match="lam = 0 is singular .* points 3 and 11 are dup"):
            call(math.inf)
    with pytest.raises(ValueError, match="points 3 and 11 are duplicates .* choose lam > 0"):
        flow.influence(k, Y[:5], math.inf)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_rounding_of_eigenvalues_is_that_of_the_scale_of_the_kernel(scale):
    K = scale * ntk(np.repeat(unit_points(20, 4), 2, axis=0))  # eigenvalues 0, up to rounding
    assert np.linalg.eigvalsh(K)[0] < 0 <= Flow(K, np.ones(40), 0.0).mu.min()
    with pytest.raises(ValueError, match="K is not positive semidefinite"):
        Flow(K - 1e-9 * scale * np.eye(40), np.ones(40), 0.0)


@pytest.mark.parametrize("t", [-1.0, math.nan, -math.inf])
def test_bad_time(t):
    flow = Flow(np.eye(2), [1, -1], 1)
    with pytest.raises(ValueError, match="t must be a finite number >= 0, not .*"):
        flow.influence([0.5, 0.25], [1.0], t)
    with pytest.raises(TypeError, match="t must be a number, not 'end'"):
        flow.beta("end")


def test_bad_input():
    flow = Flow(np.eye(2), [1, -1], 1)
    with pytest.raises(ValueError, match=r"y_te has shape \(1, 2\), but the predictions have"):
        flow.influence([0.5, 0.25], [[1.0, -1.0]], 1.0)
    with pytest.raises(ValueError, match=r"y_te has shape \(1,\), but the predictions have"):
        Flow(np.eye(2), np.eye(2), 1).influence([0.5, 0.25], [1.0], 1.0)
    with pytest.raises(ValueError, match=r"k has shape \(3, 1\), but there are 2 training points"):
        flow.predict(np.ones((3, 1)), 1.0)
    with pytest.raises(ValueError, match="y_te has 2 entries, but there are 1 points"):
        flow.influence([0.5, 0.25], [1.0, 1.0], 1.0)
    with pytest.raises(IndexError, match=r"groups\[0\] = 2 is out of range; use 0 to 1"):
        flow.remove([[0, 2]], [0.5, 0.25], 1.0)
    with pytest.raises(ValueError, match="K is not positive semidefinite .* -0.5.*pass K = ntk"):
        Flow([[0.5, 1.0], [1.0, 0.5]], [1, 1], 1)
    with pytest.raises(ValueError, match="K must be symmetric"):
        Flow([[0.5, 0.1], [0.2, 0.5]], [1, 1], 1)
    with pytest.raises(ValueError, match="lam must be a finite number >= 0"):
        Flow(np.eye(2), [1, 1], -1)


def test_times_that_are_none():
    flow = Flow([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    with pytest.raises(ValueError, match="t = 1e.308 is beyond the arithmetic; use math.inf"):
        flow.beta(1e308)
    with pytest.raises(TypeError, match="t must be one time, not array"):
        flow.beta(np.array([1.0, 2.0]))
    for t in (pd.NA, None, "1"):
        with pytest.raises(TypeError, match="t must be a number, not .*; pass one, such as 20"):
            flow.beta(t)
    for end in (np.float32(np.inf), torch.tensor(np.inf), Decimal("inf")):
        assert flow.beta(end).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("t", [1.0, math.inf])
def test_groups_that_are_none(t):
    flow = Flow([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    with pytest.raises(TypeError, match=r"groups must be a list of groups, not 1; pass \[1\]"):
        flow.remove(1, [0.5, 0.5], t)
    with pytest.raises(IndexError, match="groups is empty; name at least one"):
        flow.remove([], [0.5, 0.5], t)


def test_a_flow_stays_as_it_was_made():
    X, Y = unit_points(20, 5), np.linspace(-1, 1, 15)
    K, k, y_te = ntk(X[:15]), ntk(X[:15], X[15:]), np.ones(5)
    flow, copy = Flow(K, Y, 0.5), k.copy()
    moments = [flow.influence(k, y_te, t) for t in (2.0, math.inf)]

    def everything():
        parts = [getattr(m, name) for m in moments for name in ("exact", "ihvp", "unrolled", "loo")]
        parts += [f(t) for t in (2.0, math.inf) for f in (flow.r, flow.beta)]
        return parts + [flow.predict(copy, 2.0), flow.remove([0, [1, 2]], copy, math.inf)]

    changed = Flow(K.copy(), Y.copy(), 0.5)  # the same flow, of which nothing is computed before
    for array in (K, k, Y, y_te):
        array[:] = 0.25
    now, flow = everything(), changed
    moments = [flow.influence(copy, np.ones(5), t) for t in (2.0, math.inf)]
    for a, b in zip(now, everything(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_flow_and_moment_say_shapes_and_settings():
    flow = Flow(np.eye(2) / 2, [1, -1], 0.25)
    now = flow.influence([0.5, 0.25], [1.0], t=math.inf)
    assert str(flow) == repr(flow) == "Flow: n = 2, lam = 0.25"
    assert repr(Flow(np.eye(2) / 2, np.eye(2), 0.25)) == "Flow: n = 2, c = 2, lam = 0.25"
    assert str(now) == repr(now) == "Influence: n = 2, t_e = 1, t = inf, lam = 0.25"


def test_labels_0_and_1_are_refused():
    with pytest.raises(ValueError, match="Y has labels 0 and 1"):
        Flow(np.eye(2) / 2, [0, 1], 0.25)
    with pytest.raises(ValueError, match="y_te has labels False and True"):
        Flow(np.eye(2) / 2, [-1, 1], 0.25).influence(np.eye(2) / 2, [True, False], 1.0)


def test_whole_floats_count():
    np.testing.assert_array_equal(exponential(5.0), exponential(5))


def test_negative_strides_change_nothing():
    X, Y = unit_points(12, 4), np.linspace(-1, 1, 12)
    K, k = ntk(X), ntk(X, unit_points(3, 4, 1))
    y_te = np.array([1.0, -1.0, 0.5])
    there = Flow(K, Y, 0.1).influence(k, y_te, 2.0).exact
    back = Flow(K[::-1, ::-1], Y[::-1], 0.1).influence(k[::-1, ::-1], y_te[::-1], 2.0).exact
    np.testing.assert_allclose(back[::-1, ::-1], there, atol=1e-12)
