"""What a plain initialisation leaves (Prop 1): the covariance and the plateau."""

import numpy as np
import pytest

from book.plateau import covariance, plateau
from lib.ihvp import ihvp
from lib.kernel import ntk
from lib.network import forward, initialise
from lib.newton import newton
from lib.ridge import Ridge
from tests.cases import problem, rms, sample, unit_points
from tests.test_ihvp import Y_TE, limit


def test_prop_1_plain_networks_stop_at_the_plateau():
    inf, expected = limit()
    how = {"m": 32_000, "kappa": 1.0, "dtype": "float32"}
    runs = [ihvp(newton(problem(seed=s, **how)), Y_TE) for s in range(40)]
    assert 0.75 < rms(runs - inf.ihvp) / rms(expected) < 1.33  # a standard error is some 0.1


def test_prop_1_covariance_is_that_of_untrained_networks():
    X, _, X_te = sample()
    A = np.vstack([X, X_te])
    f0 = np.array([forward(A, *initialise(4, 256, 0.8, s)) for s in range(4000)])
    products = f0[:, :, None] * f0[:, None]
    error = products.std(axis=0) / len(f0) ** 0.5
    assert np.abs((products.mean(axis=0) - covariance(A @ A.T, 0.8)) / error).max() < 5


def test_prop_1_plateau_by_hand_and_of_order_kappa():
    # n = 1, x_te = x, λ = ½: α = h = ½, δ = ε = f₀/2, of variance κ²/8
    inf = Ridge([[0.5]], [1.0], 0.5).influence([[0.5]], [0.0])
    r, r_te, v = -0.5, 0.5, 0.3**2 / 8
    square = 0.25 * ((r**2 + r_te**2 + 2 * r * r_te) * v + 3 * v**2)
    np.testing.assert_allclose(plateau(inf, [[1.0]], [[1.0]], 0.3) ** 2, [[square]])
    np.testing.assert_allclose(limit(2e-5)[1], 2 * limit(1e-5)[1], rtol=1e-8)
    assert rms(limit(4.0)[1]) > 2.5 * rms(limit(2.0)[1])  # and then more than that
    assert (limit()[0].alpha < 0).any() and (limit()[1] > 0).all()


@pytest.mark.parametrize("lam", [0.0, 1e-12, 1e-9, 1e-6])
def test_prop_1_plateau_is_a_number_where_training_leaves_nothing_of_the_start(lam):
    X, Y, _ = sample()  # tested at the training points: δ vanishes with λ, up to rounding
    found = plateau(Ridge(ntk(X), Y, lam).influence(ntk(X, X), Y), X, X, 1.0)
    assert (found >= 0).all() and found.max() < 1e-5


def test_prop_1_bad_input():
    X, _, X_te = sample()
    inf, _ = limit()
    for change, message in (
        ({"X": X[:3]}, "X and X_te have 3 and 3 rows, but limit is of 8 training and 3 test"),
        ({"X": 2 * X}, "X must have rows of unit norm"),
        ({"X_te": np.full((3, 4), np.nan)}, "X_te has 12 values that are not finite"),
        ({"kappa": 0.0}, "kappa must be a finite number > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            plateau(**({"limit": inf, "X": X, "X_te": X_te, "kappa": 1.0} | change))
    several = Ridge(ntk(X), np.eye(8), 0.5).influence(ntk(X, X_te), np.eye(8)[:3])
    with pytest.raises(ValueError, match=r"limit has several outputs, .* Y of shape \(n,\)"):
        plateau(several, X, X_te, kappa=1.0)


def test_prop_1_covariance_bad_input():
    assert covariance(1.0, 2.0) == 2 and covariance([[0.0]], 1.0) == [[1 / (2 * np.pi)]]
    assert covariance([1 + 1e-12, -1 - 1e-12], 1.0).tolist() == [0.5, 0.0]  # rounding is clipped
    for u, kappa, message in (
        ([[0.5, -1.5]], 1.0, r"u must lie in \[-1, 1\], but holds -1.5; pass products of unit vec"),
        ([np.nan], 1.0, "u has 1 value that is not finite"),
        (0.5, 0.0, "kappa must be a finite number > 0"),
        (1 + 2e-9, 1.0, "u must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            covariance(u, kappa)


def test_plateau_of_arrays_of_any_strides():
    X, X_te = unit_points(8, 5), unit_points(3, 5, 1)
    limit = Ridge(ntk(X), np.linspace(-1, 1, 8), 0.5).influence(ntk(X, X_te), [1, -1, 1])
    expected = plateau(limit, X, X_te, kappa=0.1)
    found = plateau(limit, X[::-1].copy()[::-1], np.broadcast_to(X_te, X_te.shape), kappa=0.1)
    np.testing.assert_array_equal(found, expected)
