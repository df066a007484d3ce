"""The inverse: each question it answers against NumPy's, and what is said where there is none."""

import inspect
import re
import warnings

import numpy as np
import pytest
from scipy.stats import ortho_group

from lib.inverse import TILE, Inverse, KernelInverse, lanczos, times
from lib.kernel import ntk
from tests.cases import EPS, near, relative, unit_points

SIZES = [1, 2, TILE - 1, TILE, TILE + 1, 2 * TILE + 1]  # about the ends of its squares
LAYOUTS = [
    np.ascontiguousarray, np.asfortranarray, lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    lambda x: x[::-1].copy()[::-1],
]  # fmt: skip


@pytest.fixture(scope="module", params=SIZES)
def case(request):
    """K, λ, the inverse and that of NumPy, and how near they have to be."""
    K, lam = ntk(unit_points(request.param, 9)), 0.5
    there = np.linalg.inv(K + lam * np.eye(len(K)))
    return K, lam, Inverse(K, lam), there, relative(K, lam) * np.linalg.norm(there, 2)


def test_it_is_the_inverse_and_symmetric_to_the_last_bit(case):
    K, lam, Q, there, close = case
    found = np.array(Q)
    near(found, there, close)
    near(found @ (K + lam * np.eye(len(K))), np.eye(len(K)), relative(K, lam))
    np.testing.assert_array_equal(found, found.T)


def test_products_with_vectors_and_matrices(case):
    K, _, Q, there, close = case
    B = np.random.default_rng(0).standard_normal((len(K), 7))
    norm = np.linalg.norm(B)
    for b in (B[:, 0], B, B[:, :1]):
        assert (Q @ b).shape == b.shape
        near(Q @ b, there @ b, close * norm)
        for layout in LAYOUTS:
            near(Q @ layout(b), there @ b, close * norm)


def test_diagonal_rows_and_blocks(case):
    K, _, Q, there, close = case
    n = len(K)
    near(Q.diagonal(), there.diagonal(), close)
    near(Q.rows(slice(None)), there, close)
    rng = np.random.default_rng(1)
    for group in ([0], [n - 1, 0][: min(n, 2)], rng.permutation(n)[: n // 2 + 1], np.arange(n)):
        near(Q.rows(group), there[group], close)
        near(Q.block(group), there[np.ix_(group, group)], close)
    assert Q.rows([0]).shape == (1, n) and Q.block([0]).shape == (1, 1)


def test_squares_off_the_diagonal(case):
    _, _, Q, there, close = case
    expected = np.sum(there**2, axis=1) - there.diagonal() ** 2
    near(Q.off_diagonal(), expected, 4 * close * np.linalg.norm(there, 2))


@pytest.mark.parametrize("n", SIZES)
def test_squares_off_the_diagonal_keep_their_digits(n):
    K = ntk(unit_points(n, 9))
    Q = Inverse(K, 1e9)  # Q_ii is near to 1e-9, the others to 1e-19
    off = np.array(Q)
    np.fill_diagonal(off, 0)
    np.testing.assert_allclose(Q.off_diagonal(), np.sum(off**2, axis=1), rtol=1e-12)
    if n > 2:  # control: nothing is left of a difference of squares
        lost = np.sum(np.array(Q) ** 2, axis=1) - Q.diagonal() ** 2
        assert np.abs(lost / Q.off_diagonal() - 1).max() > 0.1


def test_largest_eigenvalue_from_below(case):
    _, _, Q, there, close = case
    largest = np.linalg.eigvalsh(there)[-1]
    found = Q.largest()
    assert 0.98 * largest < found <= largest + close
    once, often = (lanczos(lambda v: Q @ v, len(there), steps) for steps in (1, 60))
    assert once < found or len(there) == 1
    assert often >= found - close


def test_largest_eigenvalue_of_few_or_equal_ones():
    for spectrum in ([3.0], [1.0, 4.0], [2.0, 2.0, 2.0], [1.0, 1.0, 5.0, 5.0]):
        V = ortho_group.rvs(len(spectrum), random_state=0) if len(spectrum) > 1 else np.eye(1)
        K = V * (1 / np.array(spectrum)) @ V.T
        assert Inverse((K + K.T) / 2, 0).largest() == pytest.approx(max(spectrum), rel=1e-12)


def test_largest_eigenvalue_where_the_first_step_says_all():
    with warnings.catch_warnings(action="error"):  # no 0/0 where nothing is left
        for n in range(1, 40):
            assert Inverse(np.eye(n) / 2, 0).largest() == pytest.approx(2, rel=1e-15)


def test_steps_are_as_few_as_the_chance_that_ridge_promises_allows():
    # K has an eigenvalue −λ/10 and passes for one above −λ/1000: the largest of Q is 1/(0.9 λ), and
    # would have to be found below 1/(0.999 λ)
    steps, share = inspect.signature(lanczos).parameters["steps"].default, 1 - 0.9 / 0.999
    chance, with_fewer = (
        1.65 * 10_000**0.5 * np.exp(-(share**0.5) * (2 * k - 1)) for k in (steps, steps - 1)
    )
    assert chance < 1e-3 < with_fewer


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("across", [False, True])
def test_products_of_arrays_in_any_layout(layout, across):
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((5, 8)), rng.standard_normal((8, 3))
    left = layout(A.T).T if across else layout(A)
    for b in (B, B[:, 1], layout(B), layout(B[:, 1].copy())):
        np.testing.assert_allclose(times(left, b), A @ b, rtol=0, atol=1e-14)


def test_it_says_its_size_and_lambda():
    assert repr(Inverse(np.eye(2) / 2, 0.5)) == "Inverse: n = 2, lam = 0.5"
    assert repr(KernelInverse(ntk, np.eye(2), 0.5)) == "KernelInverse: n = 2, lam = 0.5"


def test_points_of_a_kernel_inverse_are_a_copy():
    X = unit_points(3, 4)
    Q, before = KernelInverse(ntk, X, 0.5), np.diagonal(ntk(X)).copy()
    X[:] = 7
    np.testing.assert_array_equal(Q.kernel_diagonal(), before)


def test_it_becomes_an_array():
    Q = Inverse(np.eye(2) / 2, 0.5)
    assert np.array(Q).tolist() == np.asarray(Q).tolist() == [[1, 0], [0, 1]]
    assert np.array(Q, dtype=np.float32).dtype == Q.__array__(np.float32).dtype == np.float32
    assert np.shares_memory(np.asarray(Q), np.asarray(Q))  # without a copy
    copy = np.array(Q)
    copy[:] = 7
    assert np.array(Q).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("n", [3, TILE + 1])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_kernel_stays_as_it_was(n, layout):
    K = layout(ntk(unit_points(n, 9)))
    before = K.copy()
    Q = Inverse(K, 0.5)
    np.testing.assert_array_equal(K, before)
    K[:] = 7
    near(np.array(Q) @ (before + 0.5 * np.eye(n)), np.eye(n), relative(before, 0.5))


def test_single_precision_is_inverted_in_double():
    K = ntk(unit_points(30, 9)).astype(np.float32)
    near(np.array(Inverse(K.astype(float), 0.5)), np.array(Inverse(K, 0.5)), 1e-5)


# --- where there is none --------------------------------------------------------------------------


def test_lambda_zero_with_duplicates_names_the_pair():
    X = unit_points(50, 5)
    X[41] = X[13]
    with pytest.raises(
        ValueError, match="lam = 0 is singular .* points 13 and 41 are duplicates .* choose lam > 0"
    ):
        Inverse(ntk(X), 0)
    with pytest.raises(ValueError, match="points 0 and 1 are duplicates"):
        Inverse(np.full((2, 2), 0.5), 0)
    assert np.isfinite(Inverse(ntk(X), 1e-6)).all()


def test_lambda_zero_with_more_than_d_antipodal_pairs_names_one():
    X = unit_points(3, 2)
    K = ntk(np.r_[X, -X, unit_points(4, 2, 1)])
    # Σ_p c_p (k(x_p, ·) − k(−x_p, ·)) = ½ (Σ_p c_p x_p)·x = 0: the largest c_p is that of a pair
    c = np.abs(np.linalg.svd(X.T)[2][-1])
    i = int(c.argmax())
    with pytest.raises(ValueError, match=rf"points {i} and {i + 3} depend .* antipodal.*lam > 0"):
        Inverse(K, 0)
    assert np.isfinite(Inverse(K, 1e-6)).all()


def test_singular_to_working_precision_is_a_condition_of_one_over_n_eps():
    # tr A tr Q = (1 + e)(1 + 1/e), which is 1/e for small e, and n eps = 2 eps
    assert np.isfinite(Inverse(np.diag([1.0, 2.1 * EPS]), 0)).all()
    with pytest.raises(ValueError, match=r"reciprocal condition 4.2e-16"):
        Inverse(np.diag([1.0, 1.9 * EPS]), 0)


def test_two_points_of_many_that_depend_are_named_in_order():
    for seed in range(6):
        X = unit_points(5, 3, seed)
        with pytest.raises(ValueError, match=r"points (\d) and (\d) depend on the others") as error:
            Inverse(ntk(np.r_[X, -X]), 0)
        i, j = re.search(r"points (\d) and (\d)", str(error.value)).groups()
        assert i < j


def test_a_matrix_that_is_no_kernel():
    with pytest.raises(ValueError, match="K is not positive semidefinite .* -0.5.*pass K = ntk"):
        Inverse(np.array([[0.5, 1.0], [1.0, 0.5]]), 0)
    with warnings.catch_warnings(action="error"):
        with pytest.raises(ValueError, match="lam = 0 is singular"):
            Inverse(np.zeros((3, 3)), 0)
    with pytest.raises(ValueError, match="lam = 1e-20 is singular .* choose lam > 1e-20"):
        Inverse(np.full((2, 2), 0.5), 1e-20)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rounding_of_a_kernel_is_told_from_a_matrix_that_is_none(scale):
    # points 1 and 2 are duplicates but for digits of K that make an eigenvalue negative, −gap
    for gap, message in (
        (1e-8, "singular .* points 1 and 2 depend"),
        (1e-4, "not positive"),
    ):
        near_zero = np.array([[1.0, 0, 0], [0, 1e-3, 1e-3 + gap], [0, 1e-3 + gap, 1e-3]])
        with pytest.raises(ValueError, match=message):
            Inverse(scale * near_zero, 0)


def test_opposite_features_are_as_dependent_as_equal_ones():
    K = np.array([[2.0, 0, 0], [0, 1, -1], [0, -1, 1]])
    with pytest.raises(ValueError, match="points 1 and 2 are duplicates .or nearly so"):
        Inverse(K, 0)


def test_near_duplicates_are_not_blamed_for_what_they_did_not_do():
    X = np.array([[1.0, 0.0], [np.cos(0.0141), np.sin(0.0141)], [0.0, 1.0]])  # three in a plane
    assert 1 - 1e-6 > X[0] @ X[1] > 1 - 1e-3
    with pytest.raises(ValueError, match="points 0 and 1 depend on the others"):
        Inverse(X @ X.T, 0)
