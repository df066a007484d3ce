"""Deep networks as written: of one layer they are Eq 1, and less what they were they are 0."""

import numpy as np
import pytest
import torch
from torch import nn

from book.oracles import Centred, Deep
from lib.module import Function, empirical_ntk, relu_inputs
from tests.cases import unit_points


def test_deep_network_of_one_layer_is_eq_1():
    net = Deep(3, width=50, depth=1, frozen=True, seed=0)
    X = torch.as_tensor(unit_points(4, 3))
    f = (X @ net.W[0].T).clip(min=0) @ net.A[0] / 50**0.5
    torch.testing.assert_close(net(X), f)
    assert [k for k, p in net.named_parameters() if p.requires_grad] == ["W.0"]
    assert Deep(3, width=50, depth=2, outputs=4, seed=0)(X).shape == (4, 4)
    with pytest.raises(ValueError, match="width must be at least 1"):
        Deep(2, width=0, depth=1, seed=0)


def test_outputs_less_those_at_the_start_are_0_until_it_is_trained():
    X = torch.as_tensor(unit_points(4, 3))
    for net in (
        nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Dropout()),
        Deep(3, width=5, depth=2, activation=nn.ReLU(), seed=0),
    ):
        net.train()
        less = Centred(net).eval()  # made in training mode
        for dtype in (torch.float64, torch.float32, torch.float64):  # and back
            less.to(dtype)
            f = less(X.to(dtype))
            assert f.dtype == dtype and not f.any()
        before = less.model(X)
        with torch.no_grad():
            for p in less.parameters():
                p += 0.1
        torch.testing.assert_close(less(X), less.model(X) - before, atol=1e-6, rtol=1e-6)
        assert less(X).abs().max() > 0.01
        names = [f"model.{name}" for name, _ in net.named_parameters()]
        assert list(Function(less).theta) == names
        np.testing.assert_allclose(empirical_ntk(less, X), empirical_ntk(net, X), atol=1e-12)
        theta = Function(less).theta  # its ReLUs at the start are no ReLUs of the module
        assert relu_inputs(less, theta, X).shape[1] == (5 if len(list(net.children())) == 4 else 10)
