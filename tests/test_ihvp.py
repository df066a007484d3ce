"""IHVP of a finite network (Eq 12): by hand, against dense autodiff Hessians, then its limit."""

import numpy as np
import pytest
import torch
from torch.func import grad, hessian, vmap

from book.plateau import plateau
from lib.descent import gradient_descent
from lib.ihvp import ihvp
from lib.kernel import ntk
from lib.network import forward
from lib.newton import newton
from lib.problem import Problem
from lib.ridge import Ridge
from tests.cases import problem, rms, sample, trained_weights, two_neurons, weights

Y_TE = np.array([1.0, -1.0, 0.5])


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
    return newton(two_neurons(), settle_steps=90)


def test_eq_12_by_hand():
    f0 = 0.1 / 2**0.5  # f = f₀ + ½b with λb = 1 − f: f = (f₀ + 1)/2
    r = (f0 + 1) / 2 - 1
    estimate = ihvp(by_hand(), [1.0, 0.5])
    # r_te r_i K/(K + λ), and nothing between orthogonal points
    np.testing.assert_allclose(estimate, [[r**2 / 2, 0], [0, r * (1.5 + r) / 2]], atol=1e-8)


def test_eq_12_is_the_slope_of_the_test_loss_as_a_point_loses_weight():
    # with weight 1 − w on point 1: f = f₀ + (1 − w)(1 − f), so f = (f₀ + 1 − w)/(2 − w)
    w, f0 = 1e-6, 0.1 / 2**0.5
    loss = [0.5 * ((f0 + 1 - v) / (2 - v) - 1) ** 2 for v in (-w, w)]
    slope = (loss[1] - loss[0]) / (2 * w)
    assert slope > 0.1  # losing weight hurts: positive, as Eq 7
    np.testing.assert_allclose(ihvp(by_hand(), [1.0, 0.5])[0, 0], slope, rtol=1e-6)


# --- against the dense Hessian ------------------------------------------------------------------


@pytest.mark.parametrize("antisymmetric", [False, True])
@pytest.mark.parametrize("lam", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_eq_12_is_the_dense_autodiff_estimate(seed, lam, antisymmetric):
    p = problem(seed=seed, lam=lam, antisymmetric=antisymmetric)
    done, (W0, a) = gradient_descent(p, steps=15), weights(p, seed, antisymmetric)
    assert done.Z.abs().min() > 1e-9  # no kink, so there is a Hessian
    at = trained_weights(done, W0), W0, a
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
    done = newton(problem(lam=lam, kappa=0.3, d=d), settle_steps=400)
    K0, K1 = (done.kernel(side)[0] for side in (0, 1))
    assert done.kinks * done.Z.numel() > 5
    np.testing.assert_allclose(np.mean(np.diag(K1 - K0)), done.kinks, atol=1e-12)
    held = done.Z.abs() < 1e-9
    assert held.sum() == round(done.kinks * done.Z.numel())
    assert done.Z[~held].abs().min() > 1e-4
    X = torch.as_tensor(sample(d=d)[0])
    W0, a = weights(done.problem, d=d)
    W = trained_weights(done, W0)
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
        runs = [ihvp(newton(problem(seed=s, **how)), Y_TE) for s in range(6)]
        errors.append(rms(runs - inf.ihvp))
        off.append(rms(runs - inf.T1))  # without the leverage, Eq 13 is wrong
    assert 4 < errors[0] / errors[1] < 16  # m^{-1/2}: 8
    assert errors[1] < 0.02 * rms(inf.ihvp) and off[1] > 0.5 * rms(inf.ihvp)


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


# --- bad input ----------------------------------------------------------------------------------


def test_eq_12_bad_input():
    p = problem()
    done = newton(p)
    for y_te, message in (
        ([1.0], "y_te has 1 entries, but there are 3 points"),
        ([1.0, np.nan, 0.0], "y_te has 1 value that is not finite"),
        (np.ones((3, 1)), "y_te has 2 axes, but the network of Eq 1 has one output"),
    ):
        with pytest.raises(ValueError, match=message):
            ihvp(done, y_te)
    for at_kink in (2, 0.5, "0"):
        with pytest.raises(ValueError, match=f"at_kink must be 0, 1 or None, not {at_kink!r}"):
            ihvp(done, Y_TE, at_kink=at_kink)
    with pytest.raises(ValueError, match=r"trained lacks the training points \[2, 5\]; pass"):
        ihvp(newton(p, remove=[2, 5]), Y_TE)


def test_labels_0_and_1_are_refused():
    p = Problem(np.eye(2), [1.0, -1.0], np.eye(2), lam=0.5, m=20, kappa=1.0, seed=0)
    with pytest.raises(ValueError, match="y_te has labels 0 and 1"):
        ihvp(newton(p), [0, 1])


def test_what_is_no_trained_network_is_named():
    with pytest.raises(
        TypeError, match="trained must be a lib.problem.Trained, not 3; pass what new"
    ):
        ihvp(3, [1.0])
