"""The network of Eq 1 and its finite-width kernel: by hand, against autodiff, against Eq 4."""

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

from lib.kernel import ntk
from lib.network import DRAWN, finite_kernel, forward, initialise, neurons
from tests.cases import rms, unit_points


def test_eq_1_by_hand():
    X = np.array([[1.0, 0.0], [0.6, 0.8]])
    W = np.array([[1.0, -1.0], [1.0, 0.5]])  # pre-activations [[1, -1], [1.4, -0.2]]
    a = np.array([-1.0, 1.0])
    np.testing.assert_allclose(forward(X, W, a), np.array([-1.0, -1.4]) / 2**0.5)
    W[1, 1] = 2.0  # now the second neuron is active on the second point: 1.0
    np.testing.assert_allclose(forward(X, W, a), np.array([-1.0, -0.4]) / 2**0.5)


@pytest.mark.parametrize("antisymmetric", [False, True])
def test_eq_1_finite_kernel_is_the_gram_matrix_of_autodiff_gradients(antisymmetric):
    X, X2, m = unit_points(7, 5), unit_points(4, 5, seed=1), 12
    W, a = (torch.as_tensor(v) for v in initialise(5, m, 0.3, 3, antisymmetric))
    jacobian = vmap(grad(lambda W, x: forward(x, W, a)), (None, 0))
    J, J2 = (jacobian(W, torch.as_tensor(v)).flatten(1) for v in (X, X2))
    settings = {"m": m, "seed": 3, "antisymmetric": antisymmetric, "dtype": "float64"}
    np.testing.assert_allclose(finite_kernel(X, **settings), J @ J.T, atol=1e-14)
    np.testing.assert_allclose(finite_kernel(X, X2, **settings), J @ J2.T, atol=1e-14)


@pytest.mark.parametrize("m", [1, DRAWN - 2, 3 * DRAWN + 10])
def test_eq_1_blocks_of_neurons_agree_with_the_whole(m):
    X = unit_points(9, 4)
    W, _ = initialise(4, m, 1.0, 0)
    S = (X @ W > 0).astype(float)
    K = finite_kernel(X, m=m, seed=0, dtype="float64")
    np.testing.assert_allclose(K, (X @ X.T) * (S @ S.T) / m, atol=1e-15)
    assert W.shape == (4, m)


def test_eq_4_is_the_mean_of_finite_kernels_within_four_standard_errors():
    X = unit_points(6, 8)
    draws = np.stack([finite_kernel(X, m=2000, seed=s) for s in range(40)])
    error = draws.mean(0) - ntk(X)
    z = error / (draws.std(0, ddof=1) / len(draws) ** 0.5)
    assert np.abs(z).max() < 4, z
    wrong = (draws.mean(0) - 1.1 * ntk(X)) / (draws.std(0, ddof=1) / len(draws) ** 0.5)
    assert np.abs(wrong).max() > 4  # the same check refuses a kernel that is 10 % too large


def test_eq_1_initialisation_has_the_stated_law():
    W, a = initialise(50, 20_000, 0.2, 5)
    standard_error = 0.2 / (2 * W.size) ** 0.5
    assert abs(W.std() - 0.2) < 4 * standard_error and abs(W.mean()) < 4 * 0.2 / W.size**0.5
    assert set(a) == {-1.0, 1.0} and abs(a.sum()) < 4 * len(a) ** 0.5


def test_eq_1_every_block_and_every_seed_draws_anew():
    draws = [initialise(3, 2 * DRAWN, 0.2, seed) for seed in (0, 1)]
    W = np.hstack([W for W, _ in draws])
    a = np.concatenate([a for _, a in draws]).reshape(4, DRAWN)
    assert len(np.unique(W, axis=1).T) == 4 * DRAWN, "two neurons with the same weights"
    assert np.abs(np.corrcoef(a) - np.eye(4)).max() < 5 / DRAWN**0.5  # five standard errors
    rng = np.random.default_rng([1, 1])  # the second block of seed 1 begins with neuron 2048
    np.testing.assert_array_equal(a[3], 1 - 2 * rng.integers(2, size=2048))
    np.testing.assert_allclose(W[:, 3 * 2048 :].T, 0.2 * rng.standard_normal((2048, 3), "f4"))


def test_eq_1_antisymmetric_pairs_start_at_zero_and_plain_at_order_kappa():
    X = unit_points(20, 6)
    paired = forward(X, *initialise(6, 2 * DRAWN + 6, 0.5, 1, antisymmetric=True))
    assert np.abs(paired).max() < 1e-13
    plain = np.stack([forward(X, *initialise(6, 300, 0.5, s)) for s in range(200)])
    # E f² = kappa² E relu(N(0, 1))² = kappa²/2
    assert abs(rms(plain) / (0.5 / 2**0.5) - 1) < 0.1


def test_eq_1_single_precision_counts_differ_only_at_kinks():
    X = unit_points(30, 10)
    K32, K64 = (finite_kernel(X, m=5000, seed=0, dtype=d) for d in ("float32", "float64"))
    assert np.abs(K32 - K64).max() <= 2 / 5000
    assert isinstance(K32, np.ndarray) and K32.dtype == np.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kappa": 0.0}, "kappa must be a finite number > 0"),
        ({"kappa": float("nan")}, "kappa must be a finite number"),
        ({"m": 0}, "m must be at least 1"),
        ({"m": 7, "antisymmetric": True}, "m must be even.*use 8"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_eq_1_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        initialise(**({"d": 3, "m": 4, "kappa": 0.1, "seed": 0} | change))


def test_eq_1_weights_are_single_precision_and_kappa_must_fit_it():
    for _, W, a in neurons(3, 8, 0.1, 0, antisymmetric=True):
        assert W.dtype == a.dtype == np.float32 and W.shape == (8, 3)
    plain = list(neurons(3, DRAWN + 6, 0.1, 0))
    assert [which for which, *_ in plain] == [slice(0, DRAWN), slice(DRAWN, DRAWN + 6)]
    assert len(np.unique(np.concatenate([W for _, W, _ in plain]), axis=0)) == DRAWN + 6
    for kappa in (1e-30, 1e30):
        with pytest.raises(ValueError, match="is beyond single precision; choose one near 0.1"):
            initialise(1, 2, kappa, 0)
    for kappa in (1.1e-30, 0.9e30):
        W, _ = initialise(1, 2, kappa, 0)
        np.testing.assert_allclose(W / kappa, initialise(1, 2, 1.0, 0)[0], rtol=1e-6)


def test_eq_1_bad_points():
    X = unit_points(3, 4)
    with pytest.raises(ValueError, match="X must have rows of unit norm, but row 0"):
        finite_kernel(2 * X, m=4, seed=0)
    with pytest.raises(ValueError, match="X2 must have 4 columns"):
        finite_kernel(X, unit_points(3, 5), m=4, seed=0)
    X[1, 2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        finite_kernel(X, m=4, seed=0)


def test_kernel_of_arrays_of_any_strides_and_whole_floats(recwarn):
    X = unit_points(30, 10)
    K = finite_kernel(X, m=1000, seed=0)
    back = finite_kernel(X[::-1], m=1e3, seed=0.0)
    np.testing.assert_allclose(back, K[::-1, ::-1], atol=1e-14)
    locked = np.broadcast_to(X, X.shape)
    back = finite_kernel(X[::-1], locked, m=1000, seed=0)
    np.testing.assert_allclose(back, K[::-1], atol=1e-14)
    assert not recwarn.list
    for a, b in zip(initialise(10.0, 4e0, 0.1, 0.0), initialise(10, 4, 0.1, 0), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "draw", [initialise, lambda **how: finite_kernel(np.eye(2), m=4, seed=0, **how)]
)
def test_antisymmetric_is_true_or_false(draw):
    how = {"d": 2, "m": 4, "kappa": 0.1, "seed": 0} if draw is initialise else {}
    with pytest.raises(TypeError, match="antisymmetric must be True or False, not 'no'; pass one"):
        draw(antisymmetric="no", **how)
