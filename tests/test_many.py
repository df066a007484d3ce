"""Retraining of modules side by side: against ridge regression, one by one, on a journal."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from lib import many
from lib.deep import Deep
from lib.losses import Softmax, Squared
from lib.many import retrain_modules
from lib.module import Centred
from tests.cases import refit, sample

X, Y, X_TE = sample(n=8, t=3, d=4)
QUIET = {"lam": 0.3, "steps": 300, "progress": False}


def line(bias=False):
    net = nn.Sequential(nn.Linear(4, 1, bias=bias), nn.Flatten(0)).double().eval()
    nn.init.zeros_(net[0].weight)
    return net


@pytest.mark.parametrize("warm", [True, False])
def test_linear_modules_are_ridge_regression(warm):
    groups = [0, 3, [1, 2]]
    trained, result = retrain_modules(line(), Squared(), (X, Y), X_TE, groups, warm=warm, **QUIET)
    K, k = X @ X.T, X @ X_TE.T
    np.testing.assert_allclose(result.f, refit(K, Y, 0.3, k), atol=1e-9)
    for group, f in zip(groups, result.f_without, strict=True):
        np.testing.assert_allclose(f, refit(K, Y, 0.3, k, group), atol=1e-9)
    assert np.abs(result.f_without[0] - refit(K, Y, 0.3, k, [1])).max() > 1e-3  # control
    np.testing.assert_allclose(trained(torch.as_tensor(X_TE)).detach(), result.f, atol=1e-12)
    assert result.change.max() < 1e-9


def test_pull_to_the_start_and_decay_are_two_problems():
    net = line()
    nn.init.ones_(net[0].weight)
    pulled, decayed = (
        retrain_modules(net, Squared(), (X, Y), X_TE, [0], decay=d, **QUIET)[1].f for d in (0, 1)
    )
    K, k, f0, f0_te = X @ X.T, X @ X_TE.T, X.sum(1), X_TE.sum(1)
    np.testing.assert_allclose(decayed, refit(K, Y, 0.3, k), atol=1e-9)
    np.testing.assert_allclose(pulled, f0_te + refit(K, Y - f0, 0.3, k), atol=1e-9)


@pytest.mark.parametrize("activation", [torch.relu, torch.nn.functional.gelu])
def test_side_by_side_is_one_by_one(activation):
    net = Centred(Deep(4, width=32, depth=2, activation=activation, seed=0).eval())
    five = [0, 1, 2, 3, 4]
    one, all_ = (
        retrain_modules(net, Squared(), (X, Y), X_TE, five, together=b, **QUIET)[1] for b in (1, 16)
    )
    np.testing.assert_allclose(one.f_without, all_.f_without, atol=1e-9)


def test_the_end_is_a_minimum():
    net = Centred(Deep(4, width=32, depth=3, activation=nn.functional.gelu, seed=0).eval())
    trained, result = retrain_modules(net, Squared(), (X, Y), X_TE, [0], **QUIET)
    f = trained(torch.as_tensor(X))
    start = dict(net.named_parameters())
    loss = 0.5 * ((f - torch.as_tensor(Y)) ** 2).sum()
    loss = loss + 0.15 * sum(
        ((p - start[k].detach()) ** 2).sum() for k, p in trained.named_parameters()
    )
    loss.backward()
    assert max(p.grad.abs().max() for p in trained.parameters()) < 1e-6
    assert torch.equal(net.model.W[0], start["model.W.0"])
    assert result.influence(np.sign(X_TE[:, 0])).exact.shape == (1, 3)


def test_softmax_and_convolutions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.GELU(),
                        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)).double().eval()  # fmt: skip
    hot = np.eye(3)[np.arange(8) % 3]
    trained, result = retrain_modules(net, Softmax(), (X, hot), X_TE, [0, 1], decay=True, **QUIET)
    assert result.f.shape == (3, 3) and result.f_without.shape == (2, 3, 3)
    f = trained(torch.as_tensor(X))
    loss = nn.functional.cross_entropy(f, torch.arange(8) % 3, reduction="sum")
    (loss + 0.15 * sum((p**2).sum() for p in trained.parameters())).backward()
    assert max(p.grad.abs().max() for p in trained.parameters()) < 1e-4


# --- the journal ----------------------------------------------------------------------------------


def test_a_file_is_gone_on_with_and_nothing_is_trained_twice(tmp_path, monkeypatch):
    file = tmp_path / "many.jsonl"
    first = retrain_modules(line(), Squared(), (X, Y), X_TE, [0, 1], file=file, **QUIET)[1]
    asked, call = [], many.Fit.__call__
    monkeypatch.setattr(many.Fit, "__call__", lambda s, g, b: (asked.extend(g), call(s, g, b))[1])
    again = retrain_modules(line(), Squared(), (X, Y), X_TE, [1, 2, 0], file=file, **QUIET)[1]
    assert asked == [(), (2,)]
    np.testing.assert_array_equal(again.f_without[[2, 0]], first.f_without)
    assert len(file.read_text().splitlines()) == 4
    assert json.loads(file.read_text().splitlines()[0])["format"] == "lib.many 1"
    with pytest.raises(ValueError, match="is of another setting: lam is 0.3 in the file and 0.4"):
        retrain_modules(line(), Squared(), (X, Y), X_TE, [0], file=file, **(QUIET | {"lam": 0.4}))
    with pytest.raises(ValueError, match="is of another setting: data is"):
        retrain_modules(line(), Squared(), (X, -Y), X_TE, [0], file=file, **QUIET)


def test_a_file_knows_the_activation(tmp_path):
    def run(activation):
        net = Centred(Deep(4, width=8, depth=2, activation=activation, seed=0).eval())
        settings = {**QUIET, "step": 0.02, "steps": 100}
        retrain_modules(net, Squared(), (X, Y), X_TE, [0], file=tmp_path / "f.jsonl", **settings)

    run(torch.relu)
    run(torch.relu)
    with pytest.raises(ValueError, match="is of another setting"):
        run(nn.functional.gelu)


def test_bad_input():
    with pytest.raises(ValueError, match=r"Y has shape \(8, 1\), but the outputs have \(8,\)"):
        retrain_modules(line(), Squared(), (X, Y[:, None]), X_TE, [0], **QUIET)
    with pytest.raises(ValueError, match="training mode"):
        retrain_modules(line().train(), Squared(), (X, Y), X_TE, [0], step=0.1, **QUIET)
    with pytest.raises(IndexError, match=r"groups\[0\] = 8 is out of range"):
        retrain_modules(line(), Squared(), (X, Y), X_TE, [8], **QUIET)
    with pytest.raises(
        RuntimeError, match="came to no rest in 300 steps of 1e.* choose a smaller step"
    ):
        retrain_modules(line(), Squared(), (X, Y), X_TE, [0], step=1e3, **QUIET)
    with pytest.raises(RuntimeError, match=r"no rest in 3 steps .* is \d.* of the pull"):
        retrain_modules(line(), Squared(), (X, Y), X_TE, [0], **(QUIET | {"steps": 3}))
    with pytest.raises(TypeError, match="loss must be one of lib.losses, not str"):
        retrain_modules(line(), "squared", (X, Y), X_TE, [0], **QUIET)
