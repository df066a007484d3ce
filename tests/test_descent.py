"""Gradient descent (Eq 3): by hand, against autodiff on the weights, and where it finds no end."""

import re

import numpy as np
import pytest
import torch
from torch.func import grad

from lib.descent import gradient_descent
from lib.network import forward
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
    with pytest.raises(ValueError, match="tol must be a finite number"):
        gradient_descent(p, tol=np.nan)
