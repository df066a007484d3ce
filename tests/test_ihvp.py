"""IHVP of a finite network (Eq 12): by hand, against dense autodiff Hessians, then its limit."""

import numpy as np
import pytest
import torch
from torch.func import grad, hessian, vmap

from lib.ihvp import covariance, ihvp, plateau
from lib.kernel import ntk
from lib.network import forward, initialise
from lib.ridge import Ridge
from lib.train import Problem, gradient_descent, newton

Y_TE = np.array([1.0, -1.0, 0.5])


def sample(n=8, t=3, d=4, seed=0):
    A = np.random.default_rng(seed).standard_normal((n + t, d))
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    return A[:n], np.sign(A[:n, 0] + 0.3 * A[:n, 1]), A[n:]


def problem(seed=1, lam=0.5, m=64, kappa=0.5, antisymmetric=False, d=4, dtype="float64"):
    settings = {"m": m, "kappa": kappa, "seed": seed, "antisymmetric": antisymmetric}
    return Problem(*sample(d=d), lam=lam, dtype=dtype, **settings)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def weights(done, seed=1, antisymmetric=False, d=4):
    """The weights W (d, m) of a trained network, and the fixed a and W(0), in torch."""
    p = done.problem
    drawn = initialise(d, p.m, p.kappa, seed, antisymmetric)
    W0, a = (torch.as_tensor(v) for v in drawn)
    return W0 + torch.as_tensor(sample(d=d)[0]).T @ done.C.T * p.a, W0, a


def dense(W, W0, a, lam, d=4, hessian_lam=None, penalised=False):
    """Eq 12 as it is written: gradients and the dense Hessian of Eq 2 over W, by autodiff.

    `lam` is the ridge of the training, `hessian_lam` the one to build the Hessian with, `penalised`
    puts the penalty into the losses ℓ too.
    """
    X, Y, X_te = (torch.as_tensor(v) for v in sample(d=d))
    ridge = lam if hessian_lam is None else hessian_lam

    def one(W, x, y):
        penalty = 0.5 * lam * ((W - W0) ** 2).sum() if penalised else 0.0
        return 0.5 * (forward(x[None], W, a)[0] - y) ** 2 + penalty

    def loss(W):
        squares = 0.5 * ((forward(X, W, a) - Y) ** 2).sum()
        return squares + 0.5 * ridge * ((W - W0) ** 2).sum()

    g, g_te = (
        vmap(grad(one), (None, 0, 0))(W, x, y).flatten(1)
        for x, y in ((X, Y), (X_te, torch.as_tensor(Y_TE)))
    )
    H = hessian(loss)(W).reshape(W.numel(), W.numel())
    return (g @ torch.linalg.pinv(H, hermitian=True) @ g_te.T).numpy()


# --- by hand ------------------------------------------------------------------------------------


def by_hand():
    """n = m = 2, orthogonal points, λ = ½: each neuron sees one point, at 0.1, and K_m = ½ I."""
    p = Problem(np.eye(2), [1.0, -1.0], np.eye(2), lam=0.5, m=2, kappa=0.1, seed=0, dtype="float64")
    p.Z0[:] = p.Z0_te[:] = torch.tensor([[0.1, -0.1], [-0.1, 0.1]], dtype=torch.float64)
    p.a[:] = torch.tensor([1.0, -1.0], dtype=torch.float64) / 2**0.5
    return newton(p, settle=90)


def test_eq_12_by_hand():
    f0 = 0.1 / 2**0.5  # f = f₀ + ½b with λb = 1 − f: f = (f₀ + 1)/2
    r = (f0 + 1) / 2 - 1
    estimate = ihvp(by_hand(), [1.0, 0.0])
    # r_te r_i K/(K + λ), and nothing between orthogonal points
    np.testing.assert_allclose(estimate, [[r**2 / 2, 0], [0, r * (1 + r) / 2]], atol=1e-8)


def test_eq_12_is_the_slope_of_the_test_loss_as_a_point_loses_weight():
    # with weight 1 − w on point 1: f = f₀ + (1 − w)(1 − f), so f = (f₀ + 1 − w)/(2 − w)
    w, f0 = 1e-6, 0.1 / 2**0.5
    loss = [0.5 * ((f0 + 1 - v) / (2 - v) - 1) ** 2 for v in (-w, w)]
    slope = (loss[1] - loss[0]) / (2 * w)
    assert slope > 0.1  # losing weight hurts: positive, as Eq 7
    np.testing.assert_allclose(ihvp(by_hand(), [1.0, 0.0])[0, 0], slope, rtol=1e-6)


# --- against the dense Hessian ------------------------------------------------------------------


@pytest.mark.parametrize("antisymmetric", [False, True])
@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_eq_12_is_the_dense_autodiff_estimate(seed, lam, antisymmetric):
    done = gradient_descent(problem(seed, lam, antisymmetric=antisymmetric), steps=15)
    assert done.Z.abs().min() > 1e-9  # no kink, so there is a Hessian
    at = weights(done, seed, antisymmetric)
    exact = ihvp(done, Y_TE)
    np.testing.assert_allclose(exact, dense(*at, lam), atol=1e-10, rtol=0)
    wrong = {
        "λ twice": dense(*at, lam, hessian_lam=2 * lam),
        "λ zero": dense(*at, lam, hessian_lam=0.0),
        "penalised ℓ": dense(*at, lam, penalised=True),
        "minus sign": -dense(*at, lam),
    }
    for name, estimate in wrong.items():
        assert np.abs(exact - estimate).max() > 1e-4, name


@pytest.mark.parametrize("lam", [0.3, 3.0])
def test_eq_12_at_a_kink_is_the_dense_estimate_on_one_side_of_it(lam):
    d, step = 10, 1e-6
    done = newton(problem(lam=lam, kappa=0.3, d=d), settle=400)
    K0, K1 = (done.kernel(side)[0] for side in (0, 1))
    assert done.kinks * done.Z.numel() > 5
    np.testing.assert_allclose(np.mean(np.diag(K1 - K0)), done.kinks, atol=1e-12)
    held = done.Z.abs() < 1e-9
    assert held.sum() == round(done.kinks * done.Z.numel())
    assert done.Z[~held].abs().min() > 1e-4
    X = torch.as_tensor(sample(d=d)[0])
    W, W0, a = weights(done, d=d)
    estimates = {}
    for side, sign in ((0, -1), (1, 1)):
        moved = W.clone()
        for r in held.any(1).nonzero()[:, 0]:  # the shortest move that takes them off the kink
            on = X[held[r]]
            moved[:, r] += sign * step * torch.linalg.pinv(on).sum(1)
        assert ((X @ moved).T[held] * sign > 0).all()
        estimates[side] = dense(moved, W0, a, lam, d=d)
        np.testing.assert_allclose(ihvp(done, Y_TE, at_kink=side), estimates[side], atol=1e-6)
    assert np.abs(estimates[1] - estimates[0]).max() > 1e-4
    left = ihvp(done, Y_TE)  # what training left is a mixture
    assert np.isfinite(left).all()


def test_eq_12_single_precision_is_close():
    single, double = (newton(problem(m=4000, kappa=1.0, dtype=t)) for t in ("float32", "float64"))
    gap = ihvp(single, Y_TE, at_kink=0) - ihvp(double, Y_TE, at_kink=0)
    assert rms(gap) < 1e-3 * rms(ihvp(double, Y_TE))


# --- the limit ----------------------------------------------------------------------------------


def limit(kappa=1.0):
    X, Y, X_te = sample()
    inf = Ridge(ntk(X), Y, 0.5).influence(ntk(X, X_te), Y_TE)
    return inf, plateau(inf, X, X_te, kappa)


def test_prop_1_antisymmetric_networks_approach_the_limit_as_the_root_of_the_width():
    inf, _ = limit()
    errors, off = [], []
    for m in (1000, 64_000):
        how = {"m": m, "kappa": 1.0, "antisymmetric": True, "dtype": "float32"}
        runs = [ihvp(newton(problem(s, **how)), Y_TE) for s in range(6)]
        errors.append(rms(runs - inf.ihvp))
        off.append(rms(runs - inf.T1))  # without the leverage, Eq 13 is wrong
    assert 4 < errors[0] / errors[1] < 16  # m^{-1/2}: 8
    assert errors[1] < 0.02 * rms(inf.ihvp) and off[1] > 0.5 * rms(inf.ihvp)


def test_prop_1_plain_networks_stop_at_the_plateau():
    inf, expected = limit()
    how = {"m": 32_000, "kappa": 1.0, "dtype": "float32"}
    runs = [ihvp(newton(problem(s, **how)), Y_TE) for s in range(40)]
    assert 0.75 < rms(runs - inf.ihvp) / rms(expected) < 1.33  # a standard error is some 0.1


def test_prop_1_plateau_is_that_of_sampled_initial_outputs():
    X, _, X_te = sample()
    kappa, draws = 0.8, 100_000
    inf, expected = limit(kappa)
    u = np.clip(np.vstack([X, X_te]) @ np.vstack([X, X_te]).T, -1, 1)
    S = kappa**2 / (2 * np.pi) * (np.sqrt(1 - u**2) + u * (np.pi - np.arccos(u)))
    f0 = np.random.default_rng(0).multivariate_normal(np.zeros(len(u)), S, draws)
    model, n = inf.model, len(X)
    r = -model.lam * (model.Y - f0[:, :n]) @ model.Q  # residuals of kernel regression on Y − f₀
    r_te = inf.r_te + f0[:, n:] - f0[:, :n] @ inf.alpha
    squares = (inf.alpha * r[:, :, None] * r_te[:, None] - inf.ihvp) ** 2
    error = squares.std(axis=0) / draws**0.5
    assert np.abs((squares.mean(axis=0) - expected**2) / error).max() < 5


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


# --- bad input ----------------------------------------------------------------------------------


def test_eq_12_bad_input():
    p = problem()
    done = newton(p)
    for y_te, message in (
        ([1.0], "y_te has 1 entries, but there are 3 points"),
        ([1.0, 2.0, 0.0], r"y_te must lie in \[-1, 1\], but y_te\[1\] = 2"),
        ([1.0, np.nan, 0.0], "y_te has 1 value that is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            ihvp(done, y_te)
    for at_kink in (2, 0.5, "0"):
        with pytest.raises(ValueError, match=f"at_kink must be 0, 1 or None, not {at_kink!r}"):
            ihvp(done, Y_TE, at_kink=at_kink)
    with pytest.raises(ValueError, match=r"trained lacks the training points \[2, 5\]; pass"):
        ihvp(newton(p, remove=[2, 5]), Y_TE)


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
