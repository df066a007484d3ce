"""Newton on the activation pattern (Eq 2, 3): against autodiff, then against descent."""

import numpy as np
import pytest
import torch
from torch.func import grad

from lib import data
from lib.descent import gradient_descent
from lib.network import forward
from lib.newton import FLOW, RESTLESS, SETTLE, newton
from lib.problem import Problem
from tests.cases import loss_of_weights, problem, rms, sample, trained_weights, weights


@pytest.mark.parametrize(
    ("flow", "lam", "last", "removed"),
    [
        (3, 0.5, 0.5, []),  # s λ of the last step: three cannot add up to 3
        (3, 0.5, 0.5, [1, 4]),
        (24, 0.02, None, []),  # 24 can
        (24, 40.0, "first", []),  # the first is large enough
    ],
)
def test_eq_3_flow_takes_linearly_implicit_euler_steps(flow, lam, last, removed, monkeypatch):
    monkeypatch.setattr("lib.newton.REFRESH", 1)  # a new kernel in each step
    p = problem(m=32, lam=lam)
    (W0, a), (X, _, X_te) = weights(p), (torch.as_tensor(v) for v in sample())
    keep = np.setdiff1d(np.arange(p.n), removed)
    X, Y, W = X[keep], p.Y[keep], W0
    one = torch.vmap(grad(lambda W, x: forward(x, W, a)), (None, 0))

    def J(W):
        return one(W, X).flatten(1)

    q = p.lam / (float(torch.linalg.eigvalsh(J(W) @ J(W).T)[-1]) + p.lam)
    last = {None: 2 * 3 / flow - q, "first": q}.get(last, last)
    for share in np.linspace(q, last, flow):  # s λ
        tau = share / p.lam / (1 - share)
        # (JᵀJ + λ + 1/τ)(W' − W) = −∇L(W) where the pattern stays as it is
        A = J(W).T @ J(W) + (p.lam + 1 / tau) * torch.eye(W.numel(), dtype=W.dtype)
        downhill = J(W).T @ (Y - forward(X, W, a)) - p.lam * (W - W0).flatten()
        W = W + torch.linalg.solve(A, downhill).reshape(W.shape)
    done = newton(p, flow_steps=flow, settle_steps=0, remove=removed)
    np.testing.assert_allclose(done.f[keep], forward(X, W, a), atol=1e-6)  # q by power iteration
    np.testing.assert_allclose(done.f_te, forward(X_te, W, a), atol=1e-6)


@pytest.mark.parametrize("flow", [1, 3, 4, 5])
def test_the_flow_ends_with_a_fresh_count_of_the_kernel(flow):
    done = newton(problem(), flow_steps=flow, settle_steps=0)
    np.testing.assert_allclose(done.K, done.kernel()[0], atol=1e-15)


def test_eq_2_newton_ends_where_the_autodiff_gradient_vanishes():
    p = problem(m=256, kappa=2.0)  # a large kappa: hardly a kink
    done = newton(p, settle_steps=300)
    (W0, a), (X, _, X_te) = weights(p), (torch.as_tensor(v) for v in sample())
    W, slope = trained_weights(done, W0), grad(loss_of_weights(p, W0, a))
    np.testing.assert_allclose(forward(X, W, a), done.f, atol=1e-12)
    np.testing.assert_allclose(forward(X_te, W, a), done.f_te, atol=1e-12)
    np.testing.assert_allclose(done.beta, (p.Y - forward(X, W, a)) / p.lam, atol=1e-8)
    free = (done.Z.abs() > 1e-6).all(1)  # neurons without a point on a kink
    gradient = slope(W).abs().amax(0)
    assert free.double().mean() > 0.9
    assert gradient[free].max() < 1e-7 < slope(W0).abs().max()


def test_eq_2_kinks_that_attract_hold_a_subgradient_of_zero():
    p = problem(m=256, kappa=0.05)
    done = newton(p, settle_steps=300)
    W0, a = weights(p)
    W, slope = trained_weights(done, W0), grad(loss_of_weights(p, W0, a))
    on = done.Z.abs() < 1e-9
    share = done.C / done.beta  # the subgradient of relu that each pair takes
    assert done.kinks == pytest.approx(float(on.double().mean())) and 0.01 < done.kinks < 0.2
    assert share.min() > -1e-6 and share.max() < 1 + 1e-6
    off = ~on
    np.testing.assert_allclose(share[off], (done.Z > 0).double()[off], atol=1e-6)
    assert slope(W).abs().max() > 1e-3  # autodiff with relu'(0) = 0 or 1 sees no minimum


def test_eq_7_one_step_without_a_point_by_the_closed_form(monkeypatch):
    monkeypatch.setattr("lib.newton.RESTLESS", np.inf)  # one step, however much it changes
    p = problem(m=400, kappa=1e4, lam=0.5, antisymmetric=True)  # no activation flips
    begin = newton(p)
    J, keep = begin.kernel()[0], np.delete(np.arange(p.n), 2)
    ends = [newton(p, start=begin, remove=2, settle_steps=k).f[keep] for k in (1, 300)]
    K = J[np.ix_(keep, keep)]
    exact = K @ np.linalg.solve(K + p.lam * np.eye(len(K)), p.Y[keep].numpy())
    np.testing.assert_allclose(ends[1], exact, atol=1e-9)
    assert rms(ends[0] - exact) < 1e-9 < 1e-3 < rms(begin.f[keep] - exact)


def test_eq_2_newton_goes_on_where_crowded_points_are_slow_to_settle():
    d = data.load("digits:0+2+4+6+8/1+3+5+7+9", n_train=200, n_test=10, seed=0)
    p = Problem(d.X, d.Y, d.X_te, lam=1 / 8, m=500, kappa=0.1, seed=0)
    done = newton(p)
    assert done.change <= RESTLESS
    assert FLOW + SETTLE < done.iterations <= FLOW + 4 * SETTLE
    assert newton(p, start=newton(p, settle_steps=0), settle_steps=8).iterations == 8


def test_eq_1_single_precision_keeps_its_state_in_step():
    p = problem(m=2000, dtype="float32", n=40)
    for done in (newton(p, settle_steps=0), newton(p), newton(p, start=newton(p), remove=[3, 5])):
        exact = p.Z0.double() + p.a.double()[:, None] * (done.C.double() @ p.G64)
        assert (done.Z - exact).abs().max() < 1e-4 < (p.Z0 - exact).abs().max()


def test_eq_2_single_precision_is_close():
    single, double = (newton(problem(m=4000, kappa=1.0, dtype=t)) for t in ("float32", "float64"))
    assert rms(single.f_te - double.f_te) < 1e-5


# --- held to descent ------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["digits:3/8", "digits:0+2+4+6+8/1+3+5+7+9"])
def test_eq_2_newton_is_as_near_to_descent_on_images(spec):
    ratios = []
    for seed in range(2):
        d = data.load(spec, n_train=150, n_test=100, seed=seed)
        p = Problem(d.X, d.Y, d.X_te, lam=1, m=4000, kappa=0.1, seed=seed)
        plain, other = gradient_descent(p), gradient_descent(p, momentum=True)
        ratios.append(rms(newton(p).f_te - plain.f_te) / rms(other.f_te - plain.f_te))
        rough = rms(newton(p, flow_steps=2).f_te - plain.f_te) / rms(other.f_te - plain.f_te)
        assert rough > 1.5  # two steps of flow are too few
    assert max(ratios) < 1.5, ratios


@pytest.mark.parametrize("lam", [0.25, 4.0])
def test_eq_2_newton_is_as_near_to_descent_as_momentum_is(lam):
    ratios = []
    for seed in range(3):
        p = problem(m=2000, kappa=0.1, lam=lam, n=40, t=60, d=10, seed=seed)
        plain, fast = gradient_descent(p), newton(p)
        other = gradient_descent(p, momentum=True)
        ratios.append(rms(fast.f_te - plain.f_te) / rms(other.f_te - plain.f_te))
        assert fast.change < 1e-3
    assert np.median(ratios) < 1.5, ratios


# --- bad input ------------------------------------------------------------------------------------


def test_eq_2_newton_says_that_it_has_not_come_to_rest():
    with pytest.raises(RuntimeError, match=r"did not come to rest .* m = 4 is too narrow"):
        newton(problem(m=4, n=40, d=10, kappa=0.01, lam=0.01))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tol": np.nan}, "tol must be a finite number"),
        ({"tol": -1.0}, "tol must be a finite number >= 0"),
        ({"flow_steps": 0}, "flow_steps must be at least 1"),
        ({"settle_steps": -1}, "settle_steps must be at least 0"),
        ({"settle_steps": 1.5}, "settle_steps must be an integer"),
    ],
)
def test_eq_2_bad_numbers_of_newton(change, message):
    with pytest.raises(ValueError, match=message):
        newton(problem(), **change)
    p = problem()
    with pytest.raises(ValueError, match="settle_steps must be at least 1"):
        newton(p, start=newton(p, settle_steps=0), settle_steps=0)
