"""Losses: by hand, against autodiff in float64, and against 50 digits; what labels they take."""

from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, hessian

from lib.influence import Influence
from lib.losses import Binary, Logistic, Softmax, Squared, loss_of
from tests.cases import near

LOSSES = {"squared": Squared(), "logistic": Logistic(), "softmax": Softmax()}


def in_torch(name, f, y):
    """ℓ(f, y) of one point as it is written, c outputs."""
    return {
        "squared": lambda: 0.5 * ((f - y) ** 2).sum(),
        "logistic": lambda: torch.nn.functional.softplus(-y * f, threshold=1000).sum(),
        "softmax": lambda: torch.logsumexp(f, 0) - (y * f).sum(),
    }[name]()


def points(name, size=1.0, n=20, c=4, seed=0):
    """f (n, c) and labels."""
    rng = np.random.default_rng(seed)
    f = size * rng.standard_normal((n, c))
    signs = np.sign(rng.standard_normal((n, c)))
    y = {"squared": f + signs, "logistic": signs, "softmax": np.eye(c)[rng.integers(0, c, n)]}
    return f, y[name]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_value_gradient_and_hessian_are_those_of_autodiff(name, size):
    f, y = points(name, size)
    loss = LOSSES[name]
    d, v = loss.curvature(f)
    full = d[:, :, None] * np.eye(4) - v[:, :, None] * v[:, None, :]
    for i in range(len(f)):
        at, of = torch.tensor(f[i]), torch.tensor(y[i])
        one = partial(in_torch, name, y=of)
        near(loss.value(f[i], y[i]), one(at).numpy(), 1e-14 * (1 + size**2))
        near(loss.gradient(f[i], y[i]), grad(one)(at).numpy(), 1e-14)
        near(full[i], hessian(one)(at).numpy(), 1e-14)
    if name == "softmax":  # control: without the rank-one part
        near_enough = np.abs(d[:, :, None] * np.eye(4) - full).max()
        assert near_enough > 0.01


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0, 1000.0])
def test_the_form_in_torch_is_the_same_with_its_derivatives(name, size):
    f, y = points(name, size)
    loss, F, Y = LOSSES[name], torch.tensor(f), torch.tensor(y)
    near(loss.in_torch(F, Y).numpy(), loss.value(f, y), 1e-14 * (1 + size**2))
    slope = grad(lambda F: loss.in_torch(F, Y).sum())(F).numpy()
    near(slope, loss.gradient(f, y), 1e-14 * (1 + size * (name == "squared")))
    d, v = loss.curvature(f)
    for i in range(3):
        bend = hessian(lambda f, i=i: loss.in_torch(f, Y[i]))(F[i]).numpy()
        near(bend, np.diag(d[i]) - np.outer(v[i], v[i]), 1e-14)


def test_logistic_and_softmax_by_hand():
    f, y = np.array([np.log(3.0)]), np.array([1.0])  # p = ¾
    assert Logistic().value(f, y) == pytest.approx(np.log(4 / 3), abs=1e-15)
    assert Logistic().gradient(f, y) == pytest.approx(-0.25, abs=1e-15)
    assert Logistic().curvature(f)[0] == pytest.approx(3 / 16, abs=1e-15)
    f, y = np.log([1.0, 2.0, 5.0]), np.array([0.0, 1.0, 0.0])  # p = ⅛, ¼, ⅝
    assert Softmax().value(f, y) == pytest.approx(np.log(4.0), abs=1e-15)
    near(Softmax().gradient(f, y), [1 / 8, -3 / 4, 5 / 8], 1e-15)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 50.0])
def test_bend_to_50_digits(name, size):
    f, y = points(name)
    shift = size * np.random.default_rng(1).standard_normal(f.shape)
    mp = mpmath.mp.clone()
    mp.dps = 50

    def value(f, y):
        if name == "squared":
            return sum((a - b) ** 2 for a, b in zip(f, y, strict=True)) / 2
        if name == "logistic":
            return sum(mp.log(1 + mp.exp(-b * a)) for a, b in zip(f, y, strict=True))
        inside = sum(a * b for a, b in zip(f, y, strict=True))
        return mp.log(sum(mp.exp(a) for a in f)) - inside

    def gradient(f, y):
        if name == "squared":
            return [a - b for a, b in zip(f, y, strict=True)]
        if name == "logistic":
            return [-b / (1 + mp.exp(b * a)) for a, b in zip(f, y, strict=True)]
        total = sum(mp.exp(a) for a in f)
        return [mp.exp(a) / total - b for a, b in zip(f, y, strict=True)]

    found = LOSSES[name].bend(f, y, shift)
    for i in range(len(f)):
        a, b, s = (list(map(mp.mpf, x[i].tolist())) for x in (f, y, shift))
        moved = [p + q for p, q in zip(a, s, strict=True)]
        slope = sum(g * q for g, q in zip(gradient(a, b), s, strict=True))
        expected = float(value(moved, b) - value(a, b) - slope)
        assert found[i] == pytest.approx(expected, abs=3e-15 * (1 + size), rel=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_where_a_model_is_sure_nothing_is_lost(name):
    f = np.array([[-600.0, 800.0, 0.0], [0.0, 40.0, -3.0]])
    y = {"softmax": np.eye(3)[[1, 1]]}.get(name, np.sign(f) + (f == 0))
    loss = LOSSES[name]
    with np.errstate(all="raise", under="ignore"):
        found = [loss.value(f, y), loss.gradient(f, y), *loss.curvature(f), loss.bend(f, y, f)]
    assert all(np.isfinite(x).all() for x in found)
    if name == "softmax":
        others = np.exp(-40) + np.exp(-43)  # p_y − 1 would be 0
        assert found[1][1, 1] == pytest.approx(-others, rel=1e-12)
    if name == "logistic":
        assert found[1][1, 1] == pytest.approx(-np.exp(-40), rel=1e-12)


def test_softmax_of_two_classes_is_logistic():
    f, y = points("logistic", c=1)
    both = np.hstack([f / 2, -f / 2])
    hot = np.hstack([y > 0, y < 0]).astype(float)
    near(Softmax().value(both, hot), Logistic().value(f, y), 1e-14)
    near(Softmax().gradient(both, hot)[:, :1], Logistic().gradient(f, y), 1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_influence_is_the_change_of_the_loss(name):
    f, y = points(name)
    shift = np.random.default_rng(2).standard_normal((5, *f.shape))
    inf, loss = Influence(f, y, shift, LOSSES[name]), LOSSES[name]
    near(inf.exact, loss.value(f + shift, y) - loss.value(f, y), 1e-13)
    near(inf.T1, np.sum(shift * loss.gradient(f, y), axis=2), 1e-13)
    assert (inf.T2 >= 0).all()
    if name == "logistic":
        one = Influence(f[:, 0], y[:, 0], shift[:, :, 0], loss)
        rest = Influence(f[:, 1:], y[:, 1:], shift[:, :, 1:], loss)
        near(one.exact + rest.exact, inf.exact, 1e-13)


def test_squared_loss_is_the_default_to_the_last_bit():
    f, y = points("squared")
    shift = np.random.default_rng(3).standard_normal((5, *f.shape))
    inf = Influence(f, y, shift)
    assert np.array_equal(inf.r_te, f - y)
    assert np.array_equal(inf.T2, 0.5 * (shift**2).sum(axis=2))
    assert np.array_equal(inf.exact, (shift * (f - y)).sum(axis=2) + inf.T2)
    one = Influence(f[:, 0], y[:, 0], shift[:, :, 0])
    assert np.array_equal(one.T2, 0.5 * shift[:, :, 0] ** 2)
    assert np.array_equal(one.exact, shift[:, :, 0] * (f - y)[:, 0] + one.T2)


@pytest.mark.parametrize(
    ("loss", "y", "match"),
    [
        (Logistic(), [1.0, 0.5], r"y must be -1 or 1 for logistic loss, not 0.5; recode"),
        (Logistic(), [1.0, 0.0], r"the two classes are -1 and \+1"),
        (Logistic(), [1.0, np.nan], "not finite"),
        (Softmax(), [1.0, -1.0], "one-hot rows"),
        (Softmax(), [[1.0], [1.0]], "one-hot rows"),
        (Softmax(), [[1.0, 0.0], [0.5, 0.5]], "one-hot rows"),
        (Softmax(), [[1.0, 0.0], [2.0, 0.0]], "one-hot rows"),
        (Softmax(), [[1.0, 0.0]], "y has 1 entries, but there are 2 points"),
        (Squared(), [1.0], "y has 1 entries"),
    ],
)
def test_labels_of_another_loss_are_refused(loss, y, match):
    with pytest.raises(ValueError, match=match):
        loss.labels("y", y, 2)


def test_one_hot_labels_may_be_less_a_constant():
    hot = np.eye(3)[[2, 0, 1]]
    assert np.array_equal(Softmax().labels("y", hot - 1 / 3, 3), hot)
    assert Logistic().labels("y", [[1, -1], [1, 1]], 2).tolist() == [[1, -1], [1, 1]]


# --- losses of torch ------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_of_torch_are_these_but_for_a_factor(reduction):
    # the factors by which weight decay becomes λ, over n for a mean
    f, classes = points("softmax")[0], np.arange(20) % 4
    binary = np.random.default_rng(1).integers(0, 2, (20, 4))
    for theirs, ours, y, kind, factors in (
        (nn.CrossEntropyLoss, Softmax, classes, torch.long, (1, 1)),
        (nn.CrossEntropyLoss, Softmax, np.eye(4)[classes], torch.double, (1, 1)),
        (nn.BCEWithLogitsLoss, Binary, binary, torch.double, (4, 1)),
        (nn.MSELoss, Squared, f - 2, torch.double, (0.5 * 4, 0.5)),
    ):
        loss, own = theirs(reduction=reduction), loss_of(theirs(reduction=reduction))
        assert type(own) is ours and loss_of(own) is own
        expected = loss(torch.tensor(f), torch.tensor(y, dtype=kind)).item()
        factor = 20 * factors[0] if reduction == "mean" else factors[1]
        total = own.value(f, own.beside("y", y, f)).sum()
        assert total == pytest.approx(factor * expected, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (nn.CrossEntropyLoss(weight=torch.ones(3)), "weight"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "label_smoothing"),
        (nn.CrossEntropyLoss(ignore_index=0), "ignore_index"),
        (nn.CrossEntropyLoss(reduction="none"), "reduction='none'"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), "pos_weight"),
        (nn.BCEWithLogitsLoss(weight=torch.ones(3)), "weight"),
        (nn.MSELoss(reduction="none"), "reduction='none'"),
        (nn.NLLLoss(), "weights"),
        ("squared", "weights"),
    ],
)
def test_losses_by_which_points_do_not_count_alike_are_refused(loss, why):
    with pytest.raises(TypeError, match=f"loss must be .* without {why}, not .*; pass one of them"):
        loss_of(loss)


ONE, THREE = np.zeros(3), np.zeros((3, 2))


@pytest.mark.parametrize(
    ("loss", "y", "f", "match"),
    [
        (Softmax(), [[0], [1], [1]], THREE, r"y has shape \(3, 1\); pass y.flatten\(\)"),
        (Softmax(), [0, 1, 1], ONE[:, None], r"outputs have shape \(3, 1\).*nn.BCEWithLogitsLoss"),
        (Softmax(), [0, 1, 1], ONE, r"outputs have shape \(3,\).*nn.BCEWithLogitsLoss"),
        (Softmax(), [0, 1, 2], THREE, "y has the class 2, .* 2 outputs; number .* 0 to 1"),
        (Softmax(), [0, 1, -100], THREE, "y has the class -100, .* leave out points that have"),
        (Softmax(), [0, 0.5, 1], THREE, "y has the class 0.5, "),
        (
            Squared(),
            [0, 1, 2],
            ONE[:, None],
            r"\(3,\), but the outputs have \(3, 1\); pass y\[:, N",
        ),
        (
            Binary(),
            [0, 1, 1],
            ONE[:, None],
            r"\(3,\), but the outputs have \(3, 1\); pass y\[:, No",
        ),
        (Squared(), [[0], [1], [2]], ONE, r"\(3, 1\), but the outputs have \(3,\); pass y\[:, 0\]"),
        (
            Squared(),
            [[5], [1], [2]],
            THREE,
            r"have \(3, 2\); pass as many labels a point as outputs",
        ),
        (Binary(), [0, 1, -1], ONE, "y must be 0 or 1 for BCEWithLogitsLoss, not -1; recode"),
        (Logistic(), [0, 1, 1], ONE, r"classes are -1 and \+1"),
    ],
)
def test_labels_beside_outputs_of_another_shape_say_what_to_pass(loss, y, f, match):
    for given in (np.array(y), torch.tensor(y)):
        with pytest.raises(ValueError, match=match):
            loss.beside("y", given, f)


def test_labels_beside_outputs():
    assert Softmax().beside("y", np.eye(2) - 0.5, np.zeros((2, 2))).tolist() == [[1, 0], [0, 1]]
    assert Binary().beside("y", [[True], [False]], np.zeros((2, 1))).tolist() == [[1], [-1]]
    assert Binary().labels("y", [1, -1], 2).tolist() == [1, -1]  # it is logistic loss
