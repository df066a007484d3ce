"""Gradient descent (Eq 3): by hand, against autodiff on the weights, and where it finds no end."""

import re

import numpy as np
import pytest
import torch
from torch.func import grad

from lib.descent import _Pace, _Swings, _trouble, gradient_descent
from lib.network import forward
from lib.state import State
from tests.cases import loss_of_weights, problem, sample, two_neurons, weights


def test_eq_3_one_step_by_hand():
    done = gradient_descent(two_neurons(), step=0.2, steps=1)
    f = 0.1 / 2**0.5  # the gradient of f_i is 1/2 in its own direction
    np.testing.assert_allclose(done.f, [f + 0.1 * (1 - f), -f - 0.1 * (1 - f)], atol=1e-15)


@pytest.mark.parametrize("momentum", [False, True])
def test_eq_3_descent_is_autodiff_descent(momentum):
    p, step, steps = problem(), 0.05, 12
    (W, a), (X, _, X_te) = weights(p), (torch.as_tensor(v) for v in sample())
    slope = grad(loss_of_weights(p, W, a))
    q = step * p.lam
    mu, last = (1 - q**0.5) / (1 + q**0.5) if momentum else 0.0, W
    for k in range(steps):
        look = W + mu * (W - last) * (k > 0)
        last, W = W, look - step * slope(look)
    done = gradient_descent(p, momentum=momentum, step=step, steps=steps, keep=[0, steps])
    np.testing.assert_allclose(done.f, forward(X, W, a), atol=1e-13)
    np.testing.assert_allclose(done.f_te, forward(X_te, W, a), atol=1e-13)
    assert sorted(done.trajectory) == [0, steps]
    np.testing.assert_array_equal(done.trajectory[steps][1], done.f_te)
    np.testing.assert_allclose(done.trajectory[0][0], p.a @ p.Z0.relu())


def test_eq_2_it_ends_where_beta_is_the_residual_that_pulls():
    p = problem(m=256, kappa=2.0)
    done = gradient_descent(p)
    np.testing.assert_allclose(done.beta, (p.Y.numpy() - done.f) / p.lam, rtol=0, atol=1e-12)
    coefficients = (done.Z > 0).double() * done.beta  # C of a minimum without a pair on a kink
    assert (done.C - coefficients).abs().median() < 1e-3 < (done.C + coefficients).abs().median()
    assert done.change <= 1e-4
    np.testing.assert_allclose(done.K, done.kernel()[0], atol=1e-15)


def test_eq_3_default_step_is_a_quarter_of_the_largest_stable_one():
    p = problem()
    K = gradient_descent(p, steps=0).kernel()[0]
    quarter = 0.5 / (np.linalg.eigvalsh(K)[-1] + p.lam)
    default, same, other = (
        gradient_descent(p, steps=2, **how).f
        for how in ({}, {"step": quarter}, {"step": 0.9 * quarter})
    )
    np.testing.assert_allclose(default, same, rtol=0, atol=1e-6)
    assert np.abs(default - other).max() > 1e-3


def test_progress_is_shown_if_asked_for(capsys):
    gradient_descent(problem(), steps=2)
    assert not capsys.readouterr().err
    gradient_descent(problem(), steps=2, progress=True)
    assert "gradient descent" in capsys.readouterr().err


# --- the pace -------------------------------------------------------------------------------------


def test_a_period_is_that_of_the_slowest_direction():
    f = torch.zeros(2)
    plain, fast = (_Pace(0.02, 0.5, momentum, f) for momentum in (False, True))
    assert (plain.shrink, plain.mu, plain.due) == (0.01, 0.0, 100)
    assert fast.shrink == 0.01 and fast.mu == pytest.approx(0.9 / 1.1) and fast.due == 30
    plain.begin(7, f)
    assert plain.due == 107
    assert _Pace(20.0, 0.5, True, f).mu == 0  # and never less


def test_change_is_that_of_a_period_or_of_its_last_step_if_that_is_more():
    pace = _Pace(0.1, 0.5, False, torch.zeros(2))
    assert pace.change == np.inf
    pace.look(torch.tensor([3.0, -3.0]), torch.tensor([1.0, 1.0]))
    assert pace.change == 3
    pace.look(torch.tensor([1.0, 1.0]), torch.tensor([2.0, -2.0]))
    assert pace.change == 2


def test_the_step_is_halved_when_the_change_no_longer_falls():
    def steps(*changes):
        pace, found = _Pace(1.0, 0.5, False, torch.zeros(1)), []
        for change in changes:
            pace.look(torch.tensor([change]), torch.zeros(1))
            goes_on = pace.slow_down()
            found.append(pace.step if goes_on else None)
        return found

    assert steps(1.0, 0.69, 0.47, 0.32, 0.22) == [1] * 5
    assert steps(1.0, 0.9, 0.8, 0.8) == [1, 1, 0.5, 0.25]  # beside the larger of two before
    assert steps(1.0, 0.2, 0.6, 0.3) == [1, 1, 1, 1]
    assert steps(*[1.0] * 9)[-3:] == [1 / 32, 1 / 64, None]  # a hundredth is too small


def test_swings_are_large_steps_that_take_back_the_one_before():
    def count(*steps):
        swings = _Swings()
        for step in steps:
            swings.see(torch.tensor(step))
        return swings.count

    there, back = [3.0, 0.0], [-3.0, 0.0]
    assert count(there) == 0 and count(there, back) == 1 and count(there, back, there) == 2
    assert count(there, back, there, [0.0, 3.0]) == 0  # another direction
    assert count(there, [-3.0, 1.0]) == 1 and count(there, [-3.0, 3.0]) == 0  # within 26 degrees
    assert count([0.01, 0.0], [-0.01, 0.0]) == 0 and count([0.04, 0.0], [-0.04, 0.0]) == 1  # rms


def test_what_went_wrong_is_told_with_a_step_that_is_stable_now():
    p = problem()
    state = State(p, None, ())
    K = state.K.clone()
    pull = torch.full((8,), 2.0, dtype=torch.float64)
    state.descent_step(0.0, pull)  # far from where K was counted
    for stable, step in ((1e9, 1e9), (1e9, 0.02), (1e-3, 1.0)):
        error = _trouble("diverged", state, 3, step, stable)
        now = min(stable, 2 / (np.linalg.eigvalsh(state.K)[-1] + p.lam))
        advice = min(step / 2, now / 4)
        assert f"diverged after 3 steps of {step:.3g}; choose one well below" in str(error)
        assert f"= {now:.3g}, {advice:.3g} for instance" in str(error)
    assert (state.K - K).abs().max() > 0.01


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [False, True])
def test_eq_3_unstable_steps_are_refused_and_the_remedy_works(momentum):
    p = problem(m=200, kappa=0.1, n=40, d=10)
    limit = 2 / (np.linalg.eigvalsh(gradient_descent(p, steps=0).kernel()[0])[-1] + p.lam)
    for factor in (1.001, 10.0):
        with pytest.raises(ValueError, match=f"not stable; .* {limit:.3g}, {limit / 4:.3g} for"):
            gradient_descent(p, step=factor * limit, steps=5, momentum=momentum)
    with pytest.raises(RuntimeError, match="diverged|oscillates") as error:  # λ_max has grown
        gradient_descent(p, step=0.95 * limit, steps=500, momentum=momentum)
    advised = float(re.search(r"([\d.]+) for instance", str(error.value))[1])
    assert advised < 0.5 * limit
    assert np.abs(gradient_descent(p, step=advised, steps=500, momentum=momentum).f).max() < 1.2


def test_eq_3_bad_numbers_of_descent():
    p = problem()
    with pytest.raises(RuntimeError, match="did not come to rest"):
        gradient_descent(problem(m=2000, n=40, d=10), tol=0.0)
    with pytest.raises(ValueError, match="step must be a finite number > 0"):
        gradient_descent(p, step=0.0)
    with pytest.raises(ValueError, match="keep must be at least 0"):
        gradient_descent(p, steps=1, keep=[-1])
    with pytest.raises(TypeError, match=r"keep must be a list of steps, not 2; pass \[2\]"):
        gradient_descent(p, steps=1, keep=2)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        gradient_descent(p, steps=-1)
    with pytest.raises(ValueError, match="tol must be a finite number"):
        gradient_descent(p, tol=np.nan)


def test_momentum_is_true_or_false():
    with pytest.raises(TypeError, match="momentum must be True or False, not 0.9; pass"):
        gradient_descent(problem(), momentum=0.9)
