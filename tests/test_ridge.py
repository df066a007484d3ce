"""Eq 5-15: by hand, by refitting, by identities under hypothesis, against scikit-learn."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV

from lib.bounds import certificate, certified, upper_bound, worst_case
from lib.data import load
from lib.kernel import ntk
from lib.ridge import Ridge, objective, refit_without

EPS = np.finfo(float).eps


def refit(K, Y, lam, k, without):
    """Predictions of the model trained without some points, from scratch (Eq 6)."""
    keep = np.setdiff1d(np.arange(len(Y)), without)
    A = K[np.ix_(keep, keep)] + lam * np.eye(len(keep))
    return k[keep].T @ np.linalg.solve(A, Y[keep])


@st.composite
def problems(draw):
    """Random unit data with near-duplicates, labels in [-1, 1], λ over ten decades."""
    n, d, t = draw(st.integers(2, 12)), draw(st.integers(2, 8)), 3
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    X = rng.standard_normal((n + t, d))
    for i in range(draw(st.integers(0, 3))):
        distance = 10.0 ** draw(st.integers(-12, -1))
        X[i + 1] = X[i] + distance * rng.standard_normal(d)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    Y = np.clip(rng.standard_normal(n + t), -1, 1)
    lam = 10.0 ** draw(st.floats(-6, 4))
    return ntk(X[:n]), Y[:n], lam, ntk(X[:n], X[n:]), Y[n:]


def relative(K, lam):
    """Gap of two solutions of a system with K + λI, relative to their size, to first order.

    Each errs by (3n + 1) eps/2 times the condition number (Higham, Accuracy and Stability of
    Numerical Algorithms, Theorem 10.4) and its product with k or K by another n eps/2.
    """
    return (4 * len(K) + 1) * EPS * np.linalg.cond(K + lam * np.eye(len(K)))


def near(a, b, tolerance):
    ratio = np.abs(np.asarray(a) - b) / tolerance
    worst = np.unravel_index(np.argmax(ratio), ratio.shape)
    assert ratio[worst] <= 1, f"at {worst}: {ratio[worst]:.3g} of the tolerance"


# K = [[½, ¼], [¼, ½]], λ = ¼, Y = (1, −1), k = (½, ¼), y_te = 1.
#   A = [[¾, ¼], [¼, ¾]], det A = ½, so Q = [[3/2, −½], [−½, 3/2]], β = QY = (2, −2)
#   f = k·β = ½, r_te = −½, α = Qk = (5/8, 1/8), h_i = 1 − ¼·3/2 = 5/8, r = −¼β = (−½, ½)
#   without x_1: c = −1/¾ = −4/3, f = ¼c = −1/3, and at x_1 itself ¼c − 1 = −4/3 = ρ_1
#   without x_2: c = 4/3, f = ½c = 2/3, and ρ_2 = ¼c + 1 = 4/3
#   I = ½(−4/3)² − ½(−½)² = 55/72 and ½(−1/3)² − 1/8 = −5/72
#   T₁ = α r_te ρ = (5/12, −1/12), T₂ = ½(αρ)² = (25/72, 1/72), Î = α r_te r = (5/32, −1/32)
HAND = Ridge([[0.5, 0.25], [0.25, 0.5]], [1.0, -1.0], lam=0.25)


def test_n2_by_hand():
    close = {"rtol": 0, "atol": 4 * EPS}
    np.testing.assert_allclose(HAND.Q, [[1.5, -0.5], [-0.5, 1.5]], **close)
    np.testing.assert_allclose(HAND.beta, [2, -2], **close)
    np.testing.assert_allclose(HAND.h, [5 / 8, 5 / 8], **close)
    np.testing.assert_allclose(HAND.r, [-0.5, 0.5], **close)
    np.testing.assert_allclose(HAND.rho, [-4 / 3, 4 / 3], **close)
    np.testing.assert_allclose(HAND.predict([0.5, 0.25]), [0.5], **close)
    assert HAND.dof == pytest.approx(5 / 4)
    np.testing.assert_allclose(
        HAND.remove([0, 1, [0, 1]], [0.5, 0.25]), [[-1 / 3], [2 / 3], [0]], **close
    )
    # ½ (½ − 1)² + ½ (−½ + 1)² + ½ ¼ βᵀKβ with Kβ = (½, −½)
    assert objective(HAND.K, HAND.Y, 0.25, HAND.beta) == pytest.approx(0.25 + 0.25)


def test_eq8_eq9_eq13_eq14_eq15_by_hand():
    close = {"rtol": 0, "atol": 4 * EPS}
    inf = HAND.influence([[0.5], [0.25]], [1.0])
    np.testing.assert_allclose(inf.alpha[:, 0], [5 / 8, 1 / 8], **close)
    np.testing.assert_allclose(inf.loo[:, 0], [-1 / 3, 2 / 3], **close)
    np.testing.assert_allclose(inf.exact[:, 0], [55 / 72, -5 / 72], **close)
    np.testing.assert_allclose(inf.T1[:, 0], [5 / 12, -1 / 12], **close)
    np.testing.assert_allclose(inf.T2[:, 0], [25 / 72, 1 / 72], **close)
    np.testing.assert_allclose(inf.ihvp[:, 0], [5 / 32, -1 / 32], **close)
    np.testing.assert_allclose(inf.rescaled, inf.T1, **close)


@given(problems())
def test_eq5_eq6_minimise_the_sum_not_the_mean(problem):
    K, Y, lam, k, _ = problem
    model, n = Ridge(K, Y, lam), len(Y)
    near(model.predict(k), refit(K, Y, lam, k, []), relative(K, lam) * scale(K, Y, lam, k))
    # gradient of Eq 5 in c: K(Kc − Y + λc)
    residual = K @ model.beta - Y
    near(residual, model.r, relative(K, lam) * np.linalg.norm(Y))
    # Eq 5 is quadratic: J(β + δ) − J(β) = ½ δᵀK(K + λI)δ, whatever the direction δ
    delta = np.random.default_rng(0).standard_normal(n)
    rise = objective(K, Y, lam, model.beta + delta) - objective(K, Y, lam, model.beta)
    expected = 0.5 * delta @ K @ (K @ delta + lam * delta)
    near(rise, expected, relative(K, lam) * (1 + lam) * (n + model.beta @ model.beta) * n)


def scale(K, Y, lam, k):
    """√(kᵀQk) √(YᵀQY), which bounds f, and each shift α_i β_i / Q_ii, by Cauchy-Schwarz."""
    Q = np.linalg.inv(K + lam * np.eye(len(K)))
    return np.sqrt(np.einsum("it,ij,jt->t", k, Q, k) * (Y @ Q @ Y)) + EPS


@given(problems())
def test_eq9_all_pairs_against_refitting(problem):
    K, Y, lam, k, y_te = problem
    inf = Ridge(K, Y, lam).influence(k, y_te)
    exact = np.array([refit(K, Y, lam, k, [i]) for i in range(len(Y))])
    near(inf.loo, exact, relative(K, lam) * scale(K, Y, lam, k))


@given(problems())
def test_eq8_influence_against_refitting(problem):
    K, Y, lam, k, y_te = problem
    inf = Ridge(K, Y, lam).influence(k, y_te)
    loss = [0.5 * (refit(K, Y, lam, k, [i]) - y_te) ** 2 for i in range(len(Y))]
    size = scale(K, Y, lam, k)
    expected = np.array(loss) - 0.5 * (inf.f - y_te) ** 2
    near(inf.exact, expected, relative(K, lam) * (1 + size) ** 2)  # losses ≤ ½ (1 + size)²


@given(problems(), st.data())
def test_eq9_groups_against_refitting(problem, data):
    K, Y, lam, k, _ = problem
    n = len(Y)
    group = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    model = Ridge(K, Y, lam)
    expected = [refit(K, Y, lam, k, group), refit(K, Y, lam, k, [0]), np.zeros(k.shape[1])]
    got = model.remove([group, 0, range(n)], k)
    near(got, expected, relative(K, lam) * scale(K, Y, lam, k))


@given(problems())
def test_prop2_eq13_eq14_eq15_identities(problem):
    K, Y, lam, k, y_te = problem
    model = Ridge(K, Y, lam)
    inf, h = model.influence(k, y_te), model.h[:, None]
    terms = np.abs(inf.T1) + inf.T2 + np.finfo(float).tiny
    near(inf.exact, inf.T1 + inf.T2, 4 * EPS * terms)
    near(inf.rescaled, inf.T1, terms * EPS)
    assert (inf.T2 >= 0).all()
    # h comes from λQ_ii or from KQ; the two agree to the accuracy of Q
    tolerance = relative(K, lam) * terms
    near(inf.ihvp, (1 - h) * inf.T1, tolerance)
    near(inf.exact - inf.ihvp, h * inf.exact + (1 - h) * inf.T2, tolerance)
    near(model.r, lam * model.Q.diagonal() * model.rho, 4 * EPS * np.abs(model.r) + 1e-300)


@given(problems())
def test_leverages_lie_between_their_bounds(problem):
    K, Y, lam, _, _ = problem
    model, spectrum = Ridge(K, Y, lam), np.linalg.eigvalsh(K)
    shares = spectrum / (spectrum + lam)
    slack = relative(K, lam)
    assert (model.h >= shares.min() - slack).all() and (model.h <= shares.max() + slack).all()
    near(model.dof, shares.sum(), len(K) * slack)


@pytest.mark.parametrize("lam", [1e-2, 1.0, 1e3, 1e8, 1e14])
def test_leverages_keep_their_digits_for_large_lambda(points, lam):
    K = ntk(points(30, 6))
    spectrum, V = np.linalg.eigh(K)
    expected = V**2 @ (spectrum / (spectrum + lam))  # a sum of positive terms
    h = Ridge(K, np.ones(30), lam).h
    np.testing.assert_allclose(h, expected, rtol=relative(K, lam))
    q = Ridge(K, np.ones(30), lam).Q.diagonal()
    if lam > 1e3:  # control: 1 − λQ_ii has lost them
        assert np.abs((1 - lam * q) / expected - 1).max() > 100 * relative(K, lam)


def test_influence_keeps_its_digits_where_it_is_small(points):
    # a strong ridge: f^{∖i} − f is tiny beside r_te, so a difference of two squares is lost
    X, Y = points(40, 5), np.sign(points(40, 1, 1)[:, 0])
    inf = Ridge(ntk(X[:30]), Y[:30], 1e8).influence(ntk(X[:30], X[30:]), Y[30:])
    rounded = 0.5 * (inf.loo - inf.y_te) ** 2 - 0.5 * (inf.f - inf.y_te) ** 2
    exact = inf.shift * (inf.r_te + 0.5 * inf.shift)
    np.testing.assert_allclose(inf.exact, exact, rtol=4 * EPS)
    assert np.median(np.abs(rounded / exact - 1)) > 1e6 * EPS  # control


def test_eq6_library_refit_against_the_refit_here(points):
    X = points(12, 5)
    K, k, Y = ntk(X[:9]), ntk(X[:9], X[9:]), np.linspace(-1, 1, 9)
    for without in ([], 3, [0, 8, 2]):
        expected = refit(K, Y, 0.3, k, np.atleast_1d(np.asarray(without, dtype=int)))
        assert np.abs(refit_without(K, k, Y, 0.3, without) - expected).max() < 1e-13


def test_groups_that_are_no_list(points):
    X = points(4, 3)
    with pytest.raises(TypeError, match=r"groups must be a list of groups, not 0; pass \[0\]"):
        Ridge(ntk(X), np.ones(4), 1.0).remove(0, ntk(X, X))


def test_lambda_zero_interpolates_and_still_has_influence(points):
    X = points(30, 10)
    K, k, Y = ntk(X[:20]), ntk(X[:20], X[20:]), np.sign(points(30, 1)[:, 0])
    model = Ridge(K, Y[:20], 0)
    inf = model.influence(k, Y[20:])
    np.testing.assert_allclose(K @ model.beta, Y[:20], atol=relative(K, 0) * 20**0.5)
    np.testing.assert_allclose(model.h, 1, atol=relative(K, 0))
    assert (inf.ihvp == 0).all() and (inf.exact != 0).all()
    assert np.isfinite(inf.rescaled).all()
    exact = [refit(K, Y[:20], 0, k, [i]) for i in range(20)]
    near(inf.loo, exact, relative(K, 0) * scale(K, Y[:20], 0, k))


@pytest.mark.parametrize("lam", [1e-3, 1.0, 100.0])
def test_eq6_eq9_agree_with_scikit_learn(lam):
    data = load("digits:3/8", n_train=150, n_test=40)
    K, k = ntk(data.X), ntk(data.X, data.X_te)
    model = Ridge(K, data.Y, lam)
    peer = KernelRidge(kernel="precomputed", alpha=lam).fit(K, data.Y)
    np.testing.assert_allclose(model.predict(k), peer.predict(k.T), rtol=0, atol=1e-9)
    features = np.linalg.cholesky(K)
    peer = RidgeCV(alphas=[lam], fit_intercept=False, store_cv_results=True).fit(features, data.Y)
    np.testing.assert_allclose(model.rho**2, peer.cv_results_.squeeze(), rtol=0, atol=1e-9)
    wrong = Ridge(K, data.Y, lam * len(K)).predict(k)  # control: a mean in the loss, not a sum
    assert np.abs(wrong - model.predict(k)).max() > 1e-3


def test_tensors_lists_and_single_precision_are_welcome(points):
    X, Y = points(12, 4), np.sign(points(12, 1)[:, 0])
    K, k = ntk(X), ntk(X, points(3, 4, 1))
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
def test_kernels_in_any_layout(points, layout):
    X, y_te = points(12, 4), np.linspace(-1, 1, 5)
    K, k = ntk(X), ntk(X, points(5, 4, 1))
    model, other = Ridge(K, X[:, 0], 0.1), Ridge(layout(K), X[:, 0], 0.1)
    np.testing.assert_allclose(other.predict(layout(k)), k.T @ model.beta, atol=1e-13)
    np.testing.assert_allclose(other.predict(layout(k)[:, 1]), k[:, 1] @ model.beta, atol=1e-13)
    found = other.influence(layout(k), y_te)
    np.testing.assert_allclose(found.exact, model.influence(k, y_te).exact, atol=1e-13)


def test_arguments_stay_as_they_were(points):
    K, Y = ntk(points(300, 9)), np.ones(300)
    before = K.copy()
    model = Ridge(K, Y, 0.5)
    model.influence(K, Y).exact.sort()
    np.testing.assert_array_equal(K, before)
    np.testing.assert_array_equal(model.Q, model.Q.T)


@pytest.mark.parametrize("n", [255, 256, 257, 513])
def test_the_inverse_is_whole_where_the_squares_it_is_mirrored_by_end(points, n):
    K = ntk(points(n, 9))
    Q = Ridge(K, np.ones(n), 0.5).Q
    np.testing.assert_array_equal(Q, Q.T)
    np.testing.assert_allclose(Q @ (K + 0.5 * np.eye(n)), np.eye(n), atol=1e-11)


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
        (I2, [1.0, -2.0], 1, r"Y must lie in \[-1, 1\], but Y\[1\] = -2; use -1 and \+1"),
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
        HAND.predict(np.ones((3, 1)))
    with pytest.raises(ValueError, match="y_te has 2 entries, but there are 1 points"):
        HAND.influence([0.5, 0.25], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"y_te must lie in \[-1, 1\], but y_te\[0\] = 3"):
        HAND.influence([0.5, 0.25], [3.0])
    with pytest.raises(ValueError, match="coefficients has 1 entries, but Y has 2"):
        objective(HAND.K, HAND.Y, 1, [1.0])
    with pytest.raises(IndexError, match=r"groups\[0\] = 2 is out of range; use 0 to 1"):
        HAND.remove([[0, 2]], [0.5, 0.25])
    with pytest.raises(IndexError, match=r"groups\[0\] names 1 more than once"):
        HAND.remove([[1, 1]], [0.5, 0.25])


def test_lambda_zero_with_duplicates_names_the_pair(points):
    X = points(50, 5)
    X[41] = X[13]
    with pytest.raises(
        ValueError, match="lam = 0 is singular .* points 13 and 41 are duplicates .* choose lam > 0"
    ):
        Ridge(ntk(X), np.ones(50), 0)
    with pytest.raises(ValueError, match="points 0 and 1 are duplicates"):
        Ridge(np.full((2, 2), 0.5), [1, 1], 0)
    assert np.isfinite(Ridge(ntk(X), np.ones(50), 1e-6).beta).all()


def test_lambda_zero_with_more_than_d_antipodal_pairs_names_one(points):
    X = points(3, 2)
    K = ntk(np.r_[X, -X, points(4, 2, 1)])
    # Σ_p c_p (k(x_p, ·) − k(−x_p, ·)) = ½ (Σ_p c_p x_p)·x = 0: the largest c_p is that of a pair
    c = np.abs(np.linalg.svd(X.T)[2][-1])
    i = int(c.argmax())
    with pytest.raises(ValueError, match=rf"points {i} and {i + 3} depend .* antipodal.*lam > 0"):
        Ridge(K, np.ones(10), 0)
    assert np.isfinite(Ridge(K, np.ones(10), 1e-6).beta).all()


def test_singular_to_working_precision_is_a_condition_of_one_over_n_eps():
    # tr A tr Q = (1 + e)(1 + 1/e), which is 1/e for small e, and n eps = 2 eps
    assert np.isfinite(Ridge(np.diag([1.0, 2.1 * EPS]), [1, 1], 0).beta).all()
    with pytest.raises(ValueError, match=r"reciprocal condition 4.2e-16"):
        Ridge(np.diag([1.0, 1.9 * EPS]), [1, 1], 0)


def test_two_points_of_many_that_depend_are_named_in_order(points):
    for seed in range(6):
        X = points(5, 3, seed)
        with pytest.raises(ValueError, match=r"points (\d) and (\d) depend on the others") as error:
            Ridge(ntk(np.r_[X, -X]), np.ones(10), 0)
        i, j = re.search(r"points (\d) and (\d)", str(error.value)).groups()
        assert i < j


def test_a_matrix_that_is_no_kernel():
    with pytest.raises(ValueError, match="K is not positive semidefinite .* -0.5.*pass K = ntk"):
        Ridge([[0.5, 1.0], [1.0, 0.5]], [1, 1], 0)
    with pytest.raises(ValueError, match="lam = 0 is singular"):
        Ridge(np.zeros((3, 3)), np.ones(3), 0)
    with pytest.raises(ValueError, match="lam = 1e-20 is singular .* choose lam > 1e-20"):
        Ridge(np.full((2, 2), 0.5), np.ones(2), 1e-20)


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
    for lam in (1e-4, 0.1, 1.0, 30.0):
        for share in (0.9, 0.5, 0.1, 0.02):
            K = kernel_with(-share * lam, n, V)
            with pytest.raises(
                ValueError, match="not positive semidefinite .* eigenvalue <= -.*ntk"
            ):
                Ridge(K, np.ones(n), lam)
        for lowest in (0.0, 1e-12, 1e-3 * lam):
            h = Ridge(kernel_with(lowest, n, V), np.ones(n), lam).h
            assert (h > -1e-9).all() and (h <= 1).all()


def test_a_matrix_with_many_negative_eigenvalues_is_refused(points):
    X = points(200, 10)
    for K in (np.tanh(X @ X.T - 1), 0.5 - np.linalg.norm(X[:, None] - X, axis=2) ** 3):
        lowest = np.linalg.eigvalsh(K)[0]
        for lam in (0.5 * -lowest, -1.1 * lowest, -8 * lowest):
            with pytest.raises(ValueError, match="not positive semidefinite"):
                Ridge(K, np.ones(200), lam)


@pytest.mark.parametrize("lam", [1e-6, 1e-3, 1.0, 1e8])
def test_kernels_with_duplicates_are_not_indefinite(points, lam):
    X = points(400, 20)[np.arange(600) % 400]
    assert np.isfinite(Ridge(ntk(X), np.ones(600), lam).beta).all()
    if lam >= 1e-3:  # single precision moves eigenvalues by some 1e-6
        X = X.astype(np.float32)
        assert np.isfinite(Ridge(ntk(X, dtype="float32"), np.ones(600), lam).beta).all()


def test_a_model_stays_as_it_was_fitted(points):
    X, Y = points(20, 5), np.linspace(-1, 1, 15)
    K, k, y_te = ntk(X[:15]), ntk(X[:15], X[15:]), np.ones(5)
    model = Ridge(K, Y, 0.5)
    inf = model.influence(k, y_te)

    def everything():
        two = model.influence(copies[1], np.ones(5)), inf
        parts = [getattr(i, name) for i in two for name in ("exact", "ihvp", "loo", "rescaled")]
        bounds = certificate(model), worst_case(model), *(certified(i, 0.1)[0] for i in two)
        return [
            *parts,
            *bounds,
            upper_bound(inf, 9.0),
            model.predict(copies[1]),
            model.h,
            model.rho,
        ]

    copies = K.copy(), k.copy()
    before = everything()
    for array in (K, k, Y, y_te):
        array[:] = 0.25
    for a, b in zip(before, everything(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_models_say_shapes_and_settings():
    inf = HAND.influence([0.5, 0.25], [1.0])
    assert str(HAND) == repr(HAND) == "Ridge: n = 2, lam = 0.25"
    assert str(inf) == repr(inf) == "Influence: n = 2, t = 1, lam = 0.25"


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


def test_negative_strides_change_nothing(points):
    X, Y = points(12, 4), np.sign(points(12, 1)[:, 0])
    K, k = ntk(X), ntk(X, points(3, 4, 1))
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
