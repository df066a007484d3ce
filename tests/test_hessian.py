"""Influence with the full Hessian: by hand, against dense Hessians, and where kinks are held."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian

from lib.deep import Deep
from lib.hessian import directions, full_influence, kinks, on_kink, parameters, relu_inputs
from lib.losses import Logistic, Softmax, Squared
from lib.many import LOSSES
from lib.torch_influence import influence
from tests.cases import sample

X, Y, X_TE = sample(n=7, t=3, d=4)
LAM, POINTS = 2.0, [0, 3, 6]


def labels(loss):
    if isinstance(loss, Softmax):
        return np.eye(3)[np.arange(7) % 3], np.eye(3)
    y = np.sign(Y)[:, None]
    return (y if isinstance(loss, Logistic) else Y[:, None]), np.ones((3, 1))


def network(loss, activation=nn.GELU):
    c = 3 if isinstance(loss, Softmax) else 1
    return Deep(4, width=5, depth=2, outputs=c, activation=activation(), seed=0).eval()


def dense(net, loss, points):
    """The same estimates with Hessians that are written out, and their Gauss-Newton part."""
    split, theta = parameters(net)
    (Y_, y_te), value = labels(loss), LOSSES[type(loss).__name__]

    def losses(v, x, y):
        f = functional_call(net, split(v), (torch.as_tensor(x),))
        return value(f.reshape(y.shape), torch.as_tensor(y))

    def one(i):
        return lambda v: losses(v, X[i : i + 1], Y_[i : i + 1])[0]

    every = [hessian(one(i))(theta) for i in range(len(X))]
    H = sum(every) + LAM * torch.eye(len(theta))
    J = torch.func.jacrev(lambda v: losses(v, X_TE, y_te))(theta)
    rows = []
    for i in points:
        g = grad(one(i))(theta)
        s, d = torch.linalg.solve(H, g), torch.linalg.solve(H - every[i], g)
        new = losses(theta + d, X_TE, y_te) - losses(theta, X_TE, y_te)
        rows.append((1 - (g @ s) / (g @ d), J @ s, J @ d, new))
    return [torch.stack(x).detach().numpy() for x in zip(*rows, strict=True)]


@pytest.mark.parametrize("loss", [Squared(), Logistic(), Softmax()], ids=lambda x: type(x).__name__)
def test_eq_12_with_the_full_hessian_is_that_of_dense_hessians(loss):
    net, (Y_, y_te) = network(loss), labels(loss)
    one = full_influence(net, loss, (X, Y_), (X_TE, y_te), LAM, POINTS, tol=1e-12)
    found = one.h, one.ihvp, one.rescaled, one.newton
    for a, b in zip(found, dense(net, loss, POINTS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    half = influence(net, loss, (X, Y_), (X_TE, y_te), LAM).ihvp[POINTS]  # control: Gauss-Newton
    assert np.abs(half - one.ihvp).max() > 1e-3 * np.abs(half).max()


def test_of_a_network_that_is_linear_in_its_parameters_it_is_the_dual_route():
    net = Deep(4, width=9, depth=1, outputs=1, seed=0, activation=nn.ReLU()).eval()
    net.A.requires_grad_(False)
    pair = (X, Y[:, None]), (X_TE, np.ones((3, 1)))
    one = full_influence(net, Squared(), *pair, 0.3, POINTS, tol=1e-12)
    other = influence(net, Squared(), *pair, 0.3)
    np.testing.assert_allclose(one.h, other.h[POINTS], rtol=1e-9)
    np.testing.assert_allclose(one.ihvp, other.ihvp[POINTS], rtol=1e-9)
    np.testing.assert_allclose(one.rescaled, other.rescaled[POINTS], rtol=1e-9)
    assert np.abs(one.h - influence(net, Squared(), *pair, 0.6).h[POINTS]).min() > 0.01  # control


def test_held_directions_are_parameters_that_are_not_there():
    line, less = (nn.Linear(d, 1, bias=False).double().eval() for d in (4, 3))
    less.weight.data = line.weight.data[:, [0, 1, 3]]
    hold = np.array([[0, 0, 1.0, 0], [0, 0, -2.0, 0]])  # the same one twice
    y = np.ones((3, 1))
    T = torch.as_tensor
    shift = T(X[:, 2:3]) @ line.weight.data[:, 2:3].T  # what the parameter adds, in the labels
    shift_te = T(X_TE[:, 2:3]) @ line.weight.data[:, 2:3].T
    pair, exact = ((X, Y[:, None]), (X_TE, y)), {"tol": 1e-12}
    one = full_influence(line, Squared(), *pair, 0.3, [2], hold=hold, **exact)
    cut = [0, 1, 3]
    train, test = (X[:, cut], Y[:, None] - shift.numpy()), (X_TE[:, cut], y - shift_te.numpy())
    other = full_influence(less, Squared(), train, test, 0.3, [2], **exact)
    np.testing.assert_allclose(one.h, other.h, rtol=1e-9)
    np.testing.assert_allclose(one.newton, other.newton, rtol=1e-9)


class Bent(nn.Module):
    """f = u x₁ + relu(v + x₂)."""

    def __init__(self, u, v):
        super().__init__()
        self.u, self.v = (nn.Parameter(torch.tensor(x, dtype=torch.float64)) for x in (u, v))
        self.relu = nn.ReLU()

    def forward(self, x):
        return (self.u * x[:, :1] + self.relu(self.v + x[:, 1:]))[:, 0]


def test_a_minimum_on_a_kink_by_hand():
    # Σ ½ r² + ½ λ(u² + v²), λ = 1. At v = 0 the slope in v is r₁ = u + 1 − 2 < 0 from below and
    # r₁ + r₀ = r₁ + 1 > 0 from above, for 0 < u < 1, so v stays 0 and u is ridge regression
    X, Y = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, -5.0]]), np.array([-1.0, 2.0, 0.5])
    test = np.array([[2.0, -9.0]]), np.array([3.0])
    u, without = (1 + 2 * 0.5) / (1 + 1 + 4), 1 / 2
    actual = 0.5 * (2 * without - 3) ** 2 - 0.5 * (2 * u - 3) ** 2
    net = Bent(u, 1e-9).eval()
    hold = kinks(net, X)
    assert hold.tolist() == [[0.0, 1.0]] and on_kink(net, X).sum() == 1
    held = full_influence(net, Squared(), (X, Y), test, 1.0, [2], hold=hold, tol=1e-12)
    assert held.newton[0, 0] == pytest.approx(actual, rel=1e-7)
    free = full_influence(net, Squared(), (X, Y), test, 1.0, [2], tol=1e-12)  # control
    assert abs(free.newton[0, 0] - actual) > 0.05 * abs(actual)


def test_kinks_are_the_gradients_of_inputs_near_zero():
    net = Deep(4, width=6, depth=2, activation=nn.ReLU(), seed=1).eval()
    split, theta = parameters(net)
    T = torch.as_tensor(X)
    tol = 0.3
    z = relu_inputs(net, split(theta), T)
    assert z.shape == (7, 12)
    near = on_kink(net, X, tol)
    for part, chosen in zip(z.split(6, 1), near.split(6, 1), strict=True):
        assert torch.equal(chosen, part.abs() <= tol * (part**2).mean().sqrt())
    every = torch.func.jacrev(lambda v: relu_inputs(net, split(v), T))(theta)
    np.testing.assert_allclose(kinks(net, X, tol=tol), every[near].detach(), atol=1e-12)
    assert 0 < near.sum() < near.numel() and kinks(net, X, tol=1e-12).shape == (0, len(theta))
    assert directions(net, X, ~near).shape == (int((~near).sum()), len(theta))


def test_bad_input():
    net, pair = network(Squared()), ((X, Y[:, None]), (X_TE, np.ones((3, 1))))
    with pytest.raises(IndexError, match="points has 7, which is no training point; choose 0 to 6"):
        full_influence(net, Squared(), *pair, LAM, [7])
    with pytest.raises(ValueError, match=r"hold has shape \(1, 2\), but θ has 50 numbers"):
        full_influence(net, Squared(), *pair, LAM, [0], hold=[[1.0, 2.0]])
    with pytest.raises(RuntimeError, match="conjugate gradients took 2 steps in vain"):
        full_influence(net, Squared(), *pair, LAM, [0], tol=1e-12, steps=2)
    far = (X, 1e3 * Y[:, None])
    with pytest.raises(RuntimeError, match="the Hessian is not positive: the module is not at a"):
        full_influence(net, Squared(), far, pair[1], 1e-6, POINTS)
    with pytest.raises(TypeError, match="loss must be one of lib.losses, not str"):
        full_influence(net, "squared", *pair, LAM, [0])
    with pytest.raises(ValueError, match=r"model has no torch.nn.ReLU; write its activation"):
        kinks(net, X)
