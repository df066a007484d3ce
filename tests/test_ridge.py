"""Eq 5-15: by hand, by refitting, by identities under hypothesis, against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV

from book.oracles import objective, refit_without
from lib.bounds import certificate, certified, upper_bound, worst_case
from lib.kernel import ntk
from lib.ridge import Ridge, products, squares
from tests.cases import (
    EPS,
    HAND,
    digits,
    labels,
    loss,
    near,
    refit,
    refits,
    regressions,
    relative,
    several,
    size,
    unit_points,
)

MODEL = HAND.model


def test_n2_by_hand():
    close = {"rtol": 0, "atol": 4 * EPS}
    np.testing.assert_allclose(MODEL.Q, [[1.5, -0.5], [-0.5, 1.5]], **close)
    np.testing.assert_allclose(MODEL.beta, [2, -2], **close)
    np.testing.assert_allclose(MODEL.h, [5 / 8, 5 / 8], **close)
    np.testing.assert_allclose(MODEL.r, [-0.5, 0.5], **close)
    np.testing.assert_allclose(MODEL.rho, [-4 / 3, 4 / 3], **close)
    np.testing.assert_allclose(MODEL.predict([0.5, 0.25]), [0.5], **close)
    assert MODEL.diagonal.tolist() == [0.5, 0.5]
    assert MODEL.dof == pytest.approx(5 / 4) and type(MODEL.dof) is float
    removed = MODEL.remove([0, 1, [0, 1]], [0.5, 0.25])
    np.testing.assert_allclose(removed, [[-1 / 3], [2 / 3], [0]], **close)
    # ½ (½ − 1)² + ½ (−½ + 1)² + ½ ¼ βᵀKβ with Kβ = (½, −½)
    assert objective(MODEL.K, MODEL.Y, 0.25, MODEL.beta) == pytest.approx(0.25 + 0.25)


def test_eq_8_eq_9_eq_13_eq_14_eq_15_by_hand():
    close = {"rtol": 0, "atol": 4 * EPS}
    np.testing.assert_allclose(HAND.alpha[:, 0], [5 / 8, 1 / 8], **close)
    np.testing.assert_allclose(HAND.loo[:, 0], [-1 / 3, 2 / 3], **close)
    np.testing.assert_allclose(HAND.exact[:, 0], [55 / 72, -5 / 72], **close)
    np.testing.assert_allclose(HAND.T1[:, 0], [5 / 12, -1 / 12], **close)
    np.testing.assert_allclose(HAND.T2[:, 0], [25 / 72, 1 / 72], **close)
    np.testing.assert_allclose(HAND.ihvp[:, 0], [5 / 32, -1 / 32], **close)
    np.testing.assert_allclose(HAND.rescaled, HAND.T1, **close)


def test_eq_8_eq_9_eq_13_eq_14_eq_15_of_two_outputs_by_hand():
    # the same K, λ and k; the second output has Y = (1, 1), y_te = 0: β = (1, 1), f = ¾ = r_te,
    # r = −¼, ρ = −⅔, so T₁ = α r_te ρ = −½ α = (−5/16, −1/16), Î = −3/16 α = (−15, −3)/128,
    # T₂ = ½ (αρ)² = (25/288, 1/288), and f^{∖i} = ¾ − ⅔ α = (1/3, 2/3)
    close = {"rtol": 0, "atol": 4 * EPS}
    model = Ridge(MODEL.K, [[1.0, 1.0], [-1.0, 1.0]], 0.25)
    inf = model.influence([[0.5], [0.25]], [[1.0, 0.0]])
    np.testing.assert_allclose(model.rho, [[-4 / 3, -2 / 3], [4 / 3, -2 / 3]], **close)
    np.testing.assert_allclose(model.h, [5 / 8, 5 / 8], **close)
    np.testing.assert_allclose(inf.loo, [[[-1 / 3, 1 / 3]], [[2 / 3, 2 / 3]]], **close)
    np.testing.assert_allclose(inf.T1, [[5 / 12 - 5 / 16], [-1 / 12 - 1 / 16]], **close)
    np.testing.assert_allclose(inf.T2, [[25 / 72 + 25 / 288], [1 / 72 + 1 / 288]], **close)
    np.testing.assert_allclose(inf.ihvp, [[5 / 32 - 15 / 128], [-1 / 32 - 3 / 128]], **close)
    np.testing.assert_allclose(inf.exact, inf.T1 + inf.T2, **close)
    # ½ (½ − 1)² + ½ (−½ + 1)² + ¼ ½ 2 = ½ as above, and ½ 2 (¼)² + ½ ¼ βᵀKβ = 1/16 + 3/16
    assert objective(MODEL.K, model.Y, 0.25, model.beta) == pytest.approx(3 / 4)


@given(regressions())
def test_eq_5_eq_6_minimise_the_sum_not_the_mean(problem):
    K, Y, lam, k, _ = problem
    model, n = Ridge(K, Y, lam), len(Y)
    near(model.predict(k), refit(K, Y, lam, k), relative(K, lam) * size(K, Y, lam, k))
    # gradient of Eq 5 in c: K(Kc − Y + λc)
    residual = K @ model.beta - Y
    near(residual, model.r, relative(K, lam) * np.linalg.norm(Y))
    # Eq 5 is quadratic: J(β + δ) − J(β) = ½ δᵀK(K + λI)δ, whatever the direction δ
    delta = np.random.default_rng(0).standard_normal(Y.shape)
    rise = objective(K, Y, lam, model.beta + delta) - objective(K, Y, lam, model.beta)
    expected = 0.5 * np.sum(delta * (K @ (K @ delta + lam * delta)))
    near(rise, expected, relative(K, lam) * (1 + lam) * (n + np.sum(model.beta**2)) * Y.size)


@given(regressions())
def test_eq_9_all_pairs_against_refitting(problem):
    K, Y, lam, k, y_te = problem
    inf = Ridge(K, Y, lam).influence(k, y_te)
    near(inf.loo, refits(K, Y, lam, k), relative(K, lam) * size(K, Y, lam, k))


@given(regressions())
def test_eq_8_influence_against_refitting(problem):
    K, Y, lam, k, y_te = problem
    inf = Ridge(K, Y, lam).influence(k, y_te)
    expected = loss(refits(K, Y, lam, k), y_te) - loss(inf.f, y_te)
    sizes = size(K, Y, lam, k).reshape(len(y_te), -1)
    largest = ((1 + sizes) ** 2).sum(axis=1)  # losses ≤ ½ (1 + size)² in each output
    near(inf.exact, expected, relative(K, lam) * largest)


@given(regressions(), st.data())
def test_eq_9_groups_against_refitting(problem, data):
    K, Y, lam, k, _ = problem
    n = len(Y)
    group = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    model = Ridge(K, Y, lam)
    expected = [refit(K, Y, lam, k, without) for without in (group, [0], range(n))]
    assert not expected[2].any()
    got = model.remove([group, 0, range(n)], k)
    near(got, expected, relative(K, lam) * size(K, Y, lam, k))


@given(regressions())
def test_prop_2_eq_13_eq_14_eq_15_identities(problem):
    K, Y, lam, k, y_te = problem
    model = Ridge(K, Y, lam)
    inf, h = model.influence(k, y_te), model.h[:, None]
    # the sizes of what T₁ sums over the outputs
    terms = np.abs(inf.alpha) * products(np.abs(model.rho), np.abs(inf.r_te))
    terms += inf.T2 + np.finfo(float).tiny
    near(inf.exact, inf.T1 + inf.T2, 4 * EPS * terms)
    near(inf.rescaled, inf.T1, terms * EPS)
    assert (inf.T2 >= 0).all()
    # h comes from λQ_ii or from KQ; the two agree to the accuracy of Q
    tolerance = relative(K, lam) * terms
    near(inf.ihvp, (1 - h) * inf.T1, tolerance)
    near(inf.exact - inf.ihvp, h * inf.exact + (1 - h) * inf.T2, tolerance)
    expected = (lam * model.Q.diagonal() * model.rho.T).T
    near(model.r, expected, 4 * EPS * np.abs(model.r) + 1e-300)


@given(regressions())
def test_leverages_lie_between_their_bounds(problem):
    K, Y, lam, _, _ = problem
    model, spectrum = Ridge(K, Y, lam), np.linalg.eigvalsh(K)
    shares = spectrum / (spectrum + lam)
    slack = relative(K, lam)
    assert (model.h >= shares.min() - slack).all() and (model.h <= shares.max() + slack).all()
    near(model.dof, shares.sum(), len(K) * slack)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("lam", [1e-2, 1.0, 1e3, 1e8, 1e14])
def test_leverages_keep_their_digits_for_large_lambda(lam, scale):
    K, ridge, lam = scale * ntk(unit_points(30, 6)), lam, scale * lam
    spectrum, V = np.linalg.eigh(K)
    expected = V**2 @ (spectrum / (spectrum + lam))  # a sum of positive terms
    h = Ridge(K, np.ones(30), lam).h
    np.testing.assert_allclose(h, expected, rtol=relative(K, lam))
    q = Ridge(K, np.ones(30), lam).Q.diagonal()
    if ridge > 1e3:  # control: 1 − λQ_ii has lost them
        assert np.abs((1 - lam * q) / expected - 1).max() > 100 * relative(K, lam)


def test_influence_keeps_its_digits_where_it_is_small():
    # a strong ridge: f^{∖i} − f is tiny beside r_te, so a difference of two squares is lost
    X, Y = unit_points(40, 5), np.sign(unit_points(40, 1, 1)[:, 0])
    inf = Ridge(ntk(X[:30]), Y[:30], 1e8).influence(ntk(X[:30], X[30:]), Y[30:])
    rounded = loss(inf.loo, inf.y_te) - loss(inf.f, inf.y_te)
    exact = inf.shift * (inf.r_te + 0.5 * inf.shift)
    np.testing.assert_allclose(inf.exact, exact, rtol=4 * EPS)
    assert np.median(np.abs(rounded / exact - 1)) > 1e6 * EPS  # control


def test_eq_6_library_refit_against_the_refit_here():
    X = unit_points(12, 5)
    K, k, Y = ntk(X[:9]), ntk(X[:9], X[9:]), np.linspace(-1, 1, 9)
    for y in (Y, np.stack([Y, Y**2], axis=1)):
        for without in ([], 3, 0, [0, 8, 2], np.array([0]), np.array([1, 4])):
            expected = refit(K, y, 0.3, k, without)
            found = refit_without(K, k, y, 0.3, without)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
            alone = refit_without(K, k[:, 1], y, 0.3, without)  # a number, or one for each output
            assert alone.shape == y.shape[1:]
            np.testing.assert_allclose(alone, expected[1], rtol=0, atol=1e-13)


def test_groups_that_are_no_list():
    X = unit_points(4, 3)
    with pytest.raises(TypeError, match=r"groups must be a list of groups, not 0; pass \[0\]"):
        Ridge(ntk(X), np.ones(4), 1.0).remove(0, ntk(X, X))


def test_lambda_zero_interpolates_and_still_has_influence():
    X = unit_points(30, 10)
    K, k, Y = ntk(X[:20]), ntk(X[:20], X[20:]), np.sign(unit_points(30, 1)[:, 0])
    model = Ridge(K, Y[:20], 0)
    inf = model.influence(k, Y[20:])
    np.testing.assert_allclose(K @ model.beta, Y[:20], atol=relative(K, 0) * 20**0.5)
    np.testing.assert_allclose(model.h, 1, atol=relative(K, 0))
    assert (inf.ihvp == 0).all() and (inf.exact != 0).all()
    assert np.isfinite(inf.rescaled).all()
    near(inf.loo, refits(K, Y[:20], 0, k), relative(K, 0) * size(K, Y[:20], 0, k))


@pytest.mark.parametrize("lam", [1e-3, 1.0, 100.0])
def test_eq_6_eq_9_agree_with_scikit_learn(lam):
    K, Y, k, _ = digits()
    model = Ridge(K, Y, lam)
    peer = KernelRidge(kernel="precomputed", alpha=lam).fit(K, Y)
    np.testing.assert_allclose(model.predict(k), peer.predict(k.T), rtol=0, atol=1e-9)
    features = np.linalg.cholesky(K)
    peer = RidgeCV(alphas=[lam], fit_intercept=False, store_cv_results=True).fit(features, Y)
    np.testing.assert_allclose(model.rho**2, peer.cv_results_.squeeze(), rtol=0, atol=1e-9)
    wrong = Ridge(K, Y, lam * len(K)).predict(k)  # control: a mean in the loss, not a sum
    assert np.abs(wrong - model.predict(k)).max() > 1e-3


# --- several outputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 2, 10])
def test_eq_8_eq_9_of_several_outputs_against_refitting(c):
    (K, Y, k, y_te), lam = several(c), 0.5
    model = Ridge(K, Y, lam)
    inf, truth = model.influence(k, y_te), refits(K, Y, lam, k)
    assert Y.shape == (150, c) and inf.f.shape == (40, c) and inf.loo.shape == (150, 40, c)
    np.testing.assert_allclose(inf.loo, truth, rtol=0, atol=1e-11)
    expected = loss(truth, y_te) - loss(refit(K, Y, lam, k), y_te)
    np.testing.assert_allclose(inf.exact, expected, rtol=0, atol=1e-11)
    groups = [3, [5, 7], range(40), range(1, 150)]
    expected = [refit(K, Y, lam, k, group) for group in groups]
    np.testing.assert_allclose(model.remove(groups, k), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(refit_without(K, k, Y, lam, [5, 7]), expected[1], atol=1e-11)


@pytest.mark.parametrize("c", [1, 2, 10])
@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_several_outputs_are_as_many_single_fits(c, lam):
    K, Y, k, y_te = several(c)
    model = Ridge(K, Y, lam)
    inf, alone = model.influence(k, y_te), [Ridge(K, y, lam) for y in Y.T]
    single = [one.influence(k, y) for one, y in zip(alone, y_te.T, strict=True)]
    close = {"rtol": 1e-9, "atol": 1e-11}
    for name in ("exact", "T1", "T2", "ihvp", "rescaled"):
        parts = np.array([getattr(one, name) for one in single])
        found = getattr(inf, name)
        assert found.shape == (150, 40)
        np.testing.assert_allclose(found, parts.sum(axis=0), **close)
        if c > 1 and parts.any():  # control: the mean of the outputs, and one of them
            for wrong in (parts.mean(axis=0), parts[0]):
                assert np.abs(found - wrong).max() > 0.1 * np.abs(found).max()
    for name in ("f", "r_te", "loo", "shift"):
        parts = [getattr(one, name) for one in single]
        np.testing.assert_allclose(getattr(inf, name), np.stack(parts, axis=-1), **close)
    for name in ("beta", "r", "rho"):
        parts = [getattr(one, name) for one in alone]
        np.testing.assert_allclose(getattr(model, name), np.stack(parts, axis=-1), **close)
    for one in alone:
        np.testing.assert_array_equal(model.h, one.h)


def test_control_a_sum_over_the_wrong_axis_is_seen():
    # as many training points as test points as outputs, so that no shape tells
    X, rng = unit_points(8, 6), np.random.default_rng(0)
    K, k = ntk(X[:4]), ntk(X[:4], X[4:])
    inf = Ridge(K, labels(rng, 4, 4), 0.3).influence(k, labels(rng, 4, 4))
    rho, r_te, alpha = inf.model.rho, inf.r_te, inf.alpha
    right = {"T1": alpha * np.einsum("ic,tc->it", rho, r_te)}
    right["T2"] = 0.5 * alpha**2 * np.einsum("ic->i", rho**2)[:, None]
    right["ihvp"] = alpha * np.einsum("ic,tc->it", inf.model.r, r_te)
    wrong = {
        "T1": [
            alpha * np.einsum("ic,ct->it", rho, r_te),
            alpha * np.einsum("ci,tc->it", rho, r_te),
            alpha * np.outer(rho.sum(axis=1), r_te.sum(axis=1)),
        ],
        "T2": [
            0.5 * alpha**2 * np.sum(rho**2, axis=0)[:, None],
            0.5 * alpha**2 * np.sum(rho**2, axis=0),
            0.5 * alpha**2 * np.sum(rho, axis=1)[:, None] ** 2,
        ],
    }
    for name, expected in right.items():
        np.testing.assert_allclose(getattr(inf, name), expected, rtol=0, atol=1e-14)
    for name, others in wrong.items():
        for other in others:
            assert np.abs(getattr(inf, name) - other).max() > 0.1 * np.abs(other).max()


@pytest.mark.parametrize("c", [1, 2, 10])
@pytest.mark.parametrize("lam", [1e-3, 1.0])
def test_eq_6_of_several_outputs_agrees_with_scikit_learn(c, lam):
    K, Y, k, _ = several(c)
    peer = KernelRidge(kernel="precomputed", alpha=lam).fit(K, Y)
    model = Ridge(K, Y, lam)
    np.testing.assert_allclose(model.predict(k), peer.predict(k.T), rtol=0, atol=1e-9)
    np.testing.assert_allclose(model.beta, peer.dual_coef_, rtol=0, atol=1e-9)
    peer = KernelRidge(kernel="precomputed", alpha=lam).fit(np.delete(K[1:], 0, 1), Y[1:])
    np.testing.assert_allclose(model.remove([0], k)[0], peer.predict(k[1:].T), rtol=0, atol=1e-9)


def test_one_output_as_a_column_gives_the_same_influence():
    K, Y, k, y_te = digits()
    one, column = Ridge(K, Y, 1.0), Ridge(K, Y[:, None], 1.0)
    a, b = one.influence(k, y_te), column.influence(k, y_te[:, None])
    for name in ("exact", "T1", "T2", "ihvp"):
        np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(b.loo[:, :, 0], a.loo, rtol=0, atol=1e-13)
    assert str(column) == "Ridge: n = 150, c = 1, lam = 1"


def test_one_hot_rows_are_targets():
    K = np.eye(3) / 2
    inf = Ridge(K, np.eye(3), 0.5).influence(K, np.eye(3))
    np.testing.assert_allclose(inf.f, np.eye(3) / 2)
    # without x_i it predicts 0 there: ½ − ½ ¼, and nothing elsewhere
    np.testing.assert_allclose(inf.exact, 3 / 8 * np.eye(3))


@pytest.mark.parametrize("scale", [1e-3, 1e3, 1e8])
@pytest.mark.parametrize("c", [None, 3])
def test_targets_of_any_size_are_welcome(scale, c):
    X, rng = unit_points(36, 5), np.random.default_rng(0)
    K, k = ntk(X[:30]), ntk(X[:30], X[30:])
    Y, y_te = labels(rng, 30, c), labels(rng, 6, c)
    one = Ridge(K, Y, 0.3)
    other = Ridge(K, scale * Y, 0.3)
    a, b = one.influence(k, y_te), other.influence(k, scale * y_te)
    np.testing.assert_allclose(b.loo, scale * a.loo, rtol=1e-10, atol=1e-12 * scale)
    for name in ("exact", "T1", "T2", "ihvp"):
        expected = scale**2 * getattr(a, name)
        np.testing.assert_allclose(getattr(b, name), expected, rtol=1e-9, atol=1e-12 * scale**2)
    np.testing.assert_allclose(other.remove([[0, 3]], k), scale * one.remove([[0, 3]], k))


def test_outputs_of_the_test_labels_are_those_of_the_model():
    K = np.eye(3) / 2
    one, three = Ridge(K, [1, -1, 1], 1.0), Ridge(K, np.eye(3), 1.0)
    for model, y_te, message in (
        (one, np.eye(3), r"y_te has shape \(3, 3\), but the predictions have \(3,\); pass as many"),
        (three, [1, -1, 1], r"y_te has shape \(3,\), but the predictions have \(3, 3\)"),
        (three, np.eye(3)[:, :2], r"y_te has shape \(3, 2\), but the predictions have \(3, 3\)"),
        (three, np.eye(2), "y_te has 2 entries, but there are 3 points"),
        (three, np.ones((3, 3, 1)), r"y_te must have 1 or 2 axes, but its shape is \(3, 3, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.influence(K, y_te)


def test_products_and_squares_of_rows():
    a, b = np.arange(6.0).reshape(3, 2), np.array([[1.0, -1.0]])
    assert products(a, b).tolist() == [[-1], [-1], [-1]] and squares(a).tolist() == [1, 13, 41]
    assert products(a[:, 1], b[0]).tolist() == [[1, -1], [3, -3], [5, -5]]
    assert squares(a[:, 1]).tolist() == [1, 9, 25]


# --- arguments ------------------------------------------------------------------------------------


def test_tensors_lists_and_single_precision_are_welcome():
    X, Y = unit_points(12, 4), np.sign(unit_points(12, 1)[:, 0])
    K, k = ntk(X), ntk(X, unit_points(3, 4, 1))
    expected = Ridge(K, Y, 0.1).influence(k, [1, -1, 1]).exact
    tensors = Ridge(torch.tensor(K), torch.tensor(Y), 0.1).influence(torch.tensor(k), [1, -1, 1])
    np.testing.assert_array_equal(tensors.exact, expected)
    np.testing.assert_array_equal(
        Ridge(K.tolist(), Y.tolist(), 0.1).influence(k.tolist(), [1, -1, 1]).exact, expected
    )
    single = Ridge(K.astype(np.float32), Y, 0.1).influence(k.astype(np.float32), [1, -1, 1])
    assert single.exact.dtype == np.float64
    np.testing.assert_allclose(single.exact, expected, atol=1e-5)


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda k: np.repeat(k, 2, axis=1)[:, ::2]])
def test_kernels_in_any_layout(layout):
    X, y_te = unit_points(12, 4), np.linspace(-1, 1, 5)
    K, k = ntk(X), ntk(X, unit_points(5, 4, 1))
    model, other = Ridge(K, X[:, 0], 0.1), Ridge(layout(K), X[:, 0], 0.1)
    np.testing.assert_allclose(other.predict(layout(k)), k.T @ model.beta, atol=1e-13)
    np.testing.assert_allclose(other.predict(layout(k)[:, 1]), k[:, 1] @ model.beta, atol=1e-13)
    found = other.influence(layout(k), y_te)
    np.testing.assert_allclose(found.exact, model.influence(k, y_te).exact, atol=1e-13)


def test_arguments_stay_as_they_were():
    K, Y = ntk(unit_points(300, 9)), np.ones(300)
    before = K.copy()
    model = Ridge(K, Y, 0.5)
    model.influence(K, Y).exact.sort()
    np.testing.assert_array_equal(K, before)
    np.testing.assert_array_equal(model.Q, np.array(model.Q).T)


I2, Y2 = np.eye(2) / 2, [1.0, -1.0]


@pytest.mark.parametrize(
    ("K", "Y", "lam", "message"),
    [
        (np.ones(2), Y2, 1, r"K must have 2 axes, but its shape is \(2,\); reshape"),
        (np.ones((2, 3)), Y2, 1, r"K must be square, but its shape is \(2, 3\); pass K = ntk\(X\)"),
        ([[0.5, 0.1], [0.2, 0.5]], Y2, 1, "K must be symmetric.* differ by 0.1; pass"),
        ([[0.5, np.nan], [0.2, 0.5]], Y2, 1, r"K has 1 value .* index \(0, 1\): nan; remove"),
        (I2, [1.0, np.inf], 1, r"Y has 1 value .* index \(1,\): inf; remove"),
        (I2, [1.0], 1, "Y has 1 entries, but there are 2 points; pass one a point"),
        (I2, np.ones((2, 1, 1)), 1, r"Y must have 1 or 2 axes, but its shape is \(2, 1, 1\)"),
        (I2, Y2, -0.1, "lam must be a finite number >= 0, not -0.1; choose a larger one"),
        (I2, Y2, float("nan"), "lam must be a finite number >= 0, not nan; pass a finite"),
    ],
)
def test_bad_input(K, Y, lam, message):
    with pytest.raises(ValueError, match=message):
        Ridge(K, Y, lam)
    with pytest.raises(ValueError, match=message):
        objective(K, Y, lam, [0.0, 0.0])


def test_bad_test_points():
    with pytest.raises(ValueError, match=r"k has shape \(3, 1\), but there are 2 training points"):
        MODEL.predict(np.ones((3, 1)))
    with pytest.raises(ValueError, match="y_te has 2 entries, but there are 1 points"):
        MODEL.influence([0.5, 0.25], [1.0, 1.0])
    with pytest.raises(
        ValueError, match=r"y_te has shape \(1, 2\), but the predictions have \(1,\)"
    ):
        MODEL.influence([0.5, 0.25], [[3.0, 1.0]])
    with pytest.raises(ValueError, match=r"coefficients has shape \(1,\), but Y has \(2,\)"):
        objective(MODEL.K, MODEL.Y, 1, [1.0])
    with pytest.raises(IndexError, match=r"groups\[0\] = 2 is out of range; use 0 to 1"):
        MODEL.remove([[0, 2]], [0.5, 0.25])
    with pytest.raises(IndexError, match=r"groups\[0\] names 1 more than once"):
        MODEL.remove([[1, 1]], [0.5, 0.25])


def test_a_matrix_that_is_no_kernel():
    with pytest.raises(ValueError, match="K is not positive semidefinite .* -0.5.*pass K = ntk"):
        Ridge([[0.5, 1.0], [1.0, 0.5]], [1, 1], 0)
    with pytest.raises(ValueError, match="lam = 0 is singular .* points 0 and 1 .* lam > 0"):
        Ridge(np.full((2, 2), 0.5), [1, 1], 0)


def kernel_with(lowest, n, V):
    """A kernel of eigenvectors V whose spectrum falls from n/4, but for its smallest eigenvalue."""
    mu = np.geomspace(n / 4, 0.03, n)
    mu[-1] = lowest
    K = V * mu @ V.T
    return (K + K.T) / 2


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("n", [2, 10, 300])
def test_indefinite_kernels_are_refused(n, spread):
    # an eigenvector over all points, or near to one of them
    A = np.random.default_rng(n).standard_normal((n, n))
    V = np.linalg.qr(A if spread else 1e-3 * A + np.eye(n))[0]
    for lam in (1e-6, 1e-4, 0.1, 1.0, 30.0):
        for share in (0.9, 0.5, 0.1, 0.02):
            K = kernel_with(-share * lam, n, V)
            with pytest.raises(
                ValueError, match="not positive semidefinite .* eigenvalue <= -.*ntk"
            ):
                Ridge(K, np.ones(n), lam)
        for lowest in (0.0, 1e-12, 1e-3 * lam):
            h = Ridge(kernel_with(lowest, n, V), np.ones(n), lam).h
            assert (h > -1e-9).all() and (h <= 1).all()


def test_a_matrix_with_many_negative_eigenvalues_is_refused():
    X = unit_points(200, 10)
    for K in (np.tanh(X @ X.T - 1), 0.5 - np.linalg.norm(X[:, None] - X, axis=2) ** 3):
        lowest = np.linalg.eigvalsh(K)[0]
        for lam in (0.5 * -lowest, -1.1 * lowest, -8 * lowest):
            with pytest.raises(ValueError, match="not positive semidefinite"):
                Ridge(K, np.ones(200), lam)


@pytest.mark.parametrize("lam", [1e-6, 1e-3, 1.0, 1e8])
def test_kernels_with_duplicates_are_not_indefinite(lam):
    X = unit_points(400, 20)[np.arange(600) % 400]
    assert np.isfinite(Ridge(ntk(X), np.ones(600), lam).beta).all()
    if lam >= 1e-3:  # single precision moves eigenvalues by some 1e-6
        X = X.astype(np.float32)
        assert np.isfinite(Ridge(ntk(X, dtype="float32"), np.ones(600), lam).beta).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounding_makes_no_kernel_of_duplicates_indefinite(scale):
    for n in (2, 3, 6):
        K = scale * ntk(np.repeat(unit_points(2, 4), n // 2 + 1, axis=0)[:n])
        for lam in scale * np.logspace(-15, -9, 90):  # 1e-3 λ is less than rounding, then more
            try:
                assert np.isfinite(Ridge(K, np.ones(n), lam).beta).all()
            except ValueError as error:  # which it says of λ that are too small
                assert lam < 1e-13 * scale and "are duplicates" in str(error)


def test_a_model_stays_as_it_was_fitted():
    X, Y = unit_points(20, 5), np.linspace(-1, 1, 15)
    K, k, y_te = ntk(X[:15]), ntk(X[:15], X[15:]), np.ones(5)
    model = Ridge(K, Y, 0.5)
    inf = model.influence(k, y_te)

    def everything():
        two = model.influence(copies[1], np.ones(5)), inf
        parts = [getattr(i, name) for i in two for name in ("exact", "ihvp", "loo", "rescaled")]
        bounds = (
            certificate(model, 0.5),
            worst_case(model, 0.5),
            *(certified(i, 0.1, 0.5)[0] for i in two),
        )
        return [
            *parts,
            *bounds,
            upper_bound(inf, 9.0),
            model.predict(copies[1]),
            model.h,
            model.rho,
            model.diagonal.copy(),
        ]

    copies = K.copy(), k.copy()
    before = everything()
    for array in (K, k, Y, y_te):
        array[:] = 0.25
    for a, b in zip(before, everything(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_models_say_shapes_and_settings():
    assert str(MODEL) == repr(MODEL) == "Ridge: n = 2, lam = 0.25"
    assert str(HAND) == repr(HAND) == "Influence: n = 2, t = 1, lam = 0.25"


def test_labels_0_and_1_are_refused_everywhere():
    K = np.eye(3) / 2
    for call in (
        lambda y: Ridge(K, y, 1.0),
        lambda y: objective(K, y, 1.0, np.zeros(3)),
        lambda y: refit_without(K, K, y, 1.0, 0),
        lambda y: Ridge(K, [1, -1, 1], 1.0).influence(K, y),
    ):
        for y in ([0, 1, 1], [True, False, True], np.array([0.0, 1.0, 0.0])):
            with pytest.raises(ValueError, match=r"the two classes are -1 and \+1; pass 2.0 \* np"):
                call(y)


def test_bad_input_of_the_refit():
    K = np.eye(3) / 2
    with pytest.raises(ValueError, match="Y has 2 masked entries"):
        refit_without(K, K, np.ma.array([1.0, -1, 1], mask=[1, 1, 0]), 1.0, 0)
    with pytest.raises(IndexError, match="removed = -1 is out of range; use 0 to 2"):
        refit_without(K, K, [1, -1, 1], 1.0, -1)


def test_negative_strides_change_nothing():
    X, Y = unit_points(12, 4), np.sign(unit_points(12, 1)[:, 0])
    K, k = ntk(X), ntk(X, unit_points(3, 4, 1))
    expected = Ridge(K, Y, 0.1).influence(k, np.array([1, -1, 1])).exact[::-1, ::-1]
    back = Ridge(K[::-1, ::-1], Y[::-1], 0.1).influence(k[::-1, ::-1], np.array([1, -1, 1])[::-1])
    np.testing.assert_allclose(back.exact, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lam": -1}, ValueError, "lam must be a finite number >= 0"),
        ({"lam": "1"}, TypeError, "lam must be a number, not '1'; pass one"),
        ({"lam": np.nan}, ValueError, "lam must be a finite number"),
        ({"K": np.ones((2, 1))}, ValueError, "K must be square"),
        ({"k": [[0.5]]}, ValueError, "k has shape .1, 1., but there are 2 training points"),
    ],
)
def test_bad_input_of_a_refit(change, error, message):
    good = {"K": np.eye(2) / 2, "k": [[0.5], [0.25]], "Y": [1.0, -1.0], "lam": 0.5, "removed": 0}
    with pytest.raises(error, match=message):
        refit_without(**(good | change))
