"""Eq 19: by hand, against brute force in float64, and what is said of duplicates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.complexity import complexity
from lib.kernel import ntk
from lib.ridge import Ridge
from tests.cases import EPS, OUTPUTS, digits, labels, unit_points


def norm(K, Y):
    """√(Yᵀ K⁻¹ Y), from a factorisation of K; over all entries if Y has several columns."""
    return np.linalg.norm(np.linalg.solve(np.linalg.cholesky(K), Y)) if len(Y) else 0.0


def brute_force(K, Y, group):
    keep = np.setdiff1d(np.arange(len(Y)), group)
    return norm(K, Y) - norm(K[np.ix_(keep, keep)], Y[keep])


# K = [[½, ¼], [¼, ½]], Y = (1, −1): K⁻¹ = [[8/3, −4/3], [−4/3, 8/3]], YᵀK⁻¹Y = 8, and 2 for one
# point alone: C = √8 − √2 = √2 for each, √8 for both. Y = (1, 1): 8/3 and 2.
def test_eq_19_by_hand():
    K = [[0.5, 0.25], [0.25, 0.5]]
    close = {"rtol": 1e-14}
    np.testing.assert_allclose(complexity(K, [1, -1]), [2**0.5, 2**0.5], **close)
    np.testing.assert_allclose(complexity(K, [1, -1], [0, [0, 1]]), [2**0.5, 8**0.5], **close)
    np.testing.assert_allclose(complexity(K, [1, 1]), 2 * [(8 / 3) ** 0.5 - 2**0.5], **close)
    np.testing.assert_array_equal(complexity(K, [0, 0]), [0, 0])


@pytest.mark.parametrize("name", ["digits:3/8", "digits:4/9"])
def test_eq_19_points_and_groups_against_brute_force(name):
    (K, Y, *_), rng = digits(name, 200, 2), np.random.default_rng(0)
    points = complexity(K, Y)
    expected = [brute_force(K, Y, [i]) for i in range(200)]
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-10)
    groups = [rng.choice(200, size, replace=False) for size in (1, 2, 20, 100, 199, 200)]
    expected = [brute_force(K, Y, group) for group in groups]
    np.testing.assert_allclose(complexity(K, Y, groups), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(complexity(K, Y, range(200)), points, rtol=1e-12)
    assert abs(complexity(K, Y, [groups[2]])[0] - points[groups[2]].sum()) > 1e-3  # control


@given(st.integers(2, 15), st.integers(0, 10**6), st.sampled_from(OUTPUTS), st.data())
def test_eq_19_for_any_data(n, seed, c, data):
    rng = np.random.default_rng(seed)
    K, Y = ntk(unit_points(n, 5, rng)), labels(rng, n, c)
    group = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    (found,) = complexity(K, Y, [group])
    tolerance = 100 * n * EPS * np.linalg.cond(K)
    # a root loses half of the digits of what is nearly nothing
    assert abs(found - brute_force(K, Y, group)) <= norm(K, Y) * max(tolerance, tolerance**0.5)
    assert found >= 0
    wider = complexity(K, Y, [np.union1d(group, [0])])[0]
    assert wider >= found - norm(K, Y) * tolerance**0.5  # more points, more complexity


@pytest.mark.parametrize("c", [1, 2, 10])
def test_eq_19_of_several_outputs_adds_squares_and_not_norms(c):
    K, *_ = digits(n=100, t=2)
    Y, groups = labels(np.random.default_rng(c), 100, c), [3, [5, 7], range(10, 90), range(100)]
    expected = [brute_force(K, Y, group) for group in groups]
    np.testing.assert_allclose(complexity(K, Y, groups), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(complexity(K, Y)[[3, 9]], complexity(K, Y, [3, 9]), rtol=1e-9)
    # the whole is √a, a summed over the outputs, and what is left of it without a group √(a − d)
    whole = complexity(K, Y, [range(100)])[0]
    single = np.array([complexity(K, y, groups) for y in Y.T])
    np.testing.assert_allclose(whole**2, np.sum(single[:, 3] ** 2), rtol=1e-9)
    left = np.sqrt(np.sum((single[:, 3:] - single) ** 2, axis=0))
    np.testing.assert_allclose(complexity(K, Y, groups), whole - left, rtol=0, atol=1e-9)
    if c > 1:  # control: complexities themselves do not add up
        assert np.abs(single.sum(axis=0) / complexity(K, Y, groups) - 1).min() > 0.1


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_eq_19_scales_with_labels_and_kernel(scale):
    K, Y, *_ = digits(n=60, t=2)
    groups = [3, [5, 7], range(50)]
    one = complexity(K, Y, groups)
    np.testing.assert_allclose(complexity(K, scale * Y, groups), scale * one, rtol=1e-9)
    np.testing.assert_allclose(complexity(scale * K, Y, groups), one / scale**0.5, rtol=1e-9)
    np.testing.assert_allclose(complexity(scale * K, Y), complexity(K, Y) / scale**0.5, rtol=1e-9)


def test_eq_19_where_nothing_is_left_is_the_whole_norm():
    # one point, or two of which the other has the label 0: what is left is 0, up to rounding
    rng = np.random.default_rng(0)
    for y, k in zip(rng.uniform(0.1, 1, 50), rng.uniform(0.1, 2, 50), strict=True):
        np.testing.assert_allclose(complexity([[k]], [y]), y / k**0.5, rtol=1e-7)
        K = [[k, k / 3], [k / 3, k]]  # K⁻¹ has the diagonal 9/8k
        np.testing.assert_allclose(complexity(K, [y, 0])[0], y * (9 / 8 / k) ** 0.5, rtol=1e-7)


def test_fig_5_extreme_groups_lead_unless_the_ridge_is_strong():
    K, Y, k, y_te = digits(n=200, t=60)

    def share(lam):
        I = Ridge(K, Y, lam).influence(k, y_te).exact
        groups = [part for order in np.argsort(-I, axis=0).T for part in np.array_split(order, 10)]
        lead = np.argsort(-complexity(K, Y, groups).reshape(-1, 10), axis=1)[:, :2]
        return (np.sort(lead, axis=1) == [0, 9]).all(axis=1).mean()

    assert share(1.0) > 0.5 > share(256.0)  # 1/45 by chance


def test_duplicates_have_no_complexity():
    X = unit_points(30, 5)
    X[21] = X[4]
    with pytest.raises(
        ValueError, match="lam = 0 is singular .* points 4 and 21 are duplicates .*; remove one"
    ):
        complexity(ntk(X), np.ones(30))
    keep = np.delete(np.arange(30), 21)
    assert np.isfinite(complexity(ntk(X[keep]), np.ones(29))).all()


def test_bad_input():
    with pytest.raises(IndexError, match=r"groups\[0\] = 2 is out of range; use 0 to 1"):
        complexity(np.eye(2), [1, -1], [[0, 2]])
    with pytest.raises(IndexError, match=r"groups\[0\] names 1 more than once"):
        complexity(np.eye(2), [1, -1], [[1, 1]])
    with pytest.raises(TypeError, match=r"groups must be a list of groups, not 1; pass \[1\]"):
        complexity(np.eye(2), [1, -1], 1)
    with pytest.raises(IndexError, match="groups is empty"):
        complexity(np.eye(2), [1, -1], [])
    with pytest.raises(ValueError, match="Y has 1 entries, but there are 2 points"):
        complexity(np.eye(2), [1])
    with pytest.raises(ValueError, match="K must be symmetric"):
        complexity([[0.5, 0.1], [0.2, 0.5]], [1, -1])


def test_labels_0_and_1_are_refused():
    with pytest.raises(ValueError, match="Y has labels 0 and 1"):
        complexity(np.eye(2), [0, 1])
