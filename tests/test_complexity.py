"""Eq 19: by hand, against brute force in float64, and what is said of duplicates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.complexity import complexity
from lib.data import load
from lib.kernel import ntk
from lib.ridge import Ridge


def norm(K, Y):
    """√(Yᵀ K⁻¹ Y), from a factorisation of K."""
    return np.linalg.norm(np.linalg.solve(np.linalg.cholesky(K), Y)) if len(Y) else 0.0


def brute_force(K, Y, group):
    keep = np.setdiff1d(np.arange(len(Y)), group)
    return norm(K, Y) - norm(K[np.ix_(keep, keep)], Y[keep])


# K = [[½, ¼], [¼, ½]], Y = (1, −1): K⁻¹ = [[8/3, −4/3], [−4/3, 8/3]], YᵀK⁻¹Y = 8, and 2 for one
# point alone: C = √8 − √2 = √2 for each, √8 for both. Y = (1, 1): 8/3 and 2.
def test_eq19_by_hand():
    K = [[0.5, 0.25], [0.25, 0.5]]
    close = {"rtol": 1e-14}
    np.testing.assert_allclose(complexity(K, [1, -1]), [2**0.5, 2**0.5], **close)
    np.testing.assert_allclose(complexity(K, [1, -1], [0, [0, 1]]), [2**0.5, 8**0.5], **close)
    np.testing.assert_allclose(complexity(K, [1, 1]), 2 * [(8 / 3) ** 0.5 - 2**0.5], **close)
    np.testing.assert_array_equal(complexity(K, [0, 0]), [0, 0])


@pytest.mark.parametrize("name", ["digits:3/8", "digits:4/9"])
def test_eq19_points_and_groups_against_brute_force(name):
    data = load(name, n_train=200, n_test=2)
    K, rng = ntk(data.X), np.random.default_rng(0)
    points = complexity(K, data.Y)
    expected = [brute_force(K, data.Y, [i]) for i in range(200)]
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-10)
    groups = [rng.choice(200, size, replace=False) for size in (1, 2, 20, 100, 199, 200)]
    expected = [brute_force(K, data.Y, group) for group in groups]
    np.testing.assert_allclose(complexity(K, data.Y, groups), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(complexity(K, data.Y, range(200)), points, rtol=1e-12)
    assert abs(complexity(K, data.Y, [groups[2]])[0] - points[groups[2]].sum()) > 1e-3  # control


@given(st.integers(2, 15), st.integers(0, 10**6), st.data())
def test_eq19_for_any_data(n, seed, data):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 5))
    K = ntk(X / np.linalg.norm(X, axis=1, keepdims=True))
    Y = rng.uniform(-1, 1, n)
    group = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    (found,) = complexity(K, Y, [group])
    tolerance = 100 * n * np.finfo(float).eps * np.linalg.cond(K)
    # a root loses half of the digits of what is nearly nothing
    assert abs(found - brute_force(K, Y, group)) <= norm(K, Y) * max(tolerance, tolerance**0.5)
    assert found >= 0
    wider = complexity(K, Y, [np.union1d(group, [0])])[0]
    assert wider >= found - norm(K, Y) * tolerance**0.5  # more points, more complexity


def test_eq19_where_nothing_is_left_is_the_whole_norm():
    # one point, or two of which the other has the label 0: what is left is 0, up to rounding
    rng = np.random.default_rng(0)
    for y, k in zip(rng.uniform(0.1, 1, 50), rng.uniform(0.1, 2, 50), strict=True):
        np.testing.assert_allclose(complexity([[k]], [y]), y / k**0.5, rtol=1e-7)
        K = [[k, k / 3], [k / 3, k]]  # K⁻¹ has the diagonal 9/8k
        np.testing.assert_allclose(complexity(K, [y, 0])[0], y * (9 / 8 / k) ** 0.5, rtol=1e-7)


def test_fig5_extreme_groups_lead_unless_the_ridge_is_strong():
    data = load("digits:3/8", n_train=200, n_test=60)
    K, k = ntk(data.X), ntk(data.X, data.X_te)

    def share(lam):
        I = Ridge(K, data.Y, lam).influence(k, data.Y_te).exact
        groups = [part for order in np.argsort(-I, axis=0).T for part in np.array_split(order, 10)]
        lead = np.argsort(-complexity(K, data.Y, groups).reshape(-1, 10), axis=1)[:, :2]
        return (np.sort(lead, axis=1) == [0, 9]).all(axis=1).mean()

    assert share(1.0) > 0.5 > share(256.0)  # 1/45 by chance


def test_duplicates_have_no_complexity(points):
    X = points(30, 5)
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
