"""The kernel of any torch module: by hand, against explicit Jacobians, in pieces, bad input."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from book.oracles import Deep
from lib.losses import SQUARED
from lib.module import (
    Function,
    Labelled,
    directions,
    empirical_ntk,
    kernels,
    kinks,
    on_kink,
    outputs,
    parameters,
    relu_inputs,
)
from lib.packed import PackedInverse
from lib.ridge import Ridge
from tests.cases import sample


def convolutional(c=3, seed=0, dtype=torch.float64):
    """Eight by eight images to c outputs, with batch normalisation, dropout."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, c),
    )  # fmt: skip
    net(torch.randn(20, 64))  # running statistics that are not 0 and 1
    return net.to(dtype).eval()


def points(n=7, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 64))


def explicit(net, X, names=None):
    """J (n, c, p), one gradient by backward() after another."""
    rows = []
    for x in torch.as_tensor(X):
        f, row = net(x[None]).reshape(-1), []
        for o in range(len(f)):
            net.zero_grad()
            f[o].backward(retain_graph=True)
            chosen = [(k, p) for k, p in net.named_parameters() if names is None or k in names]
            row.append(torch.cat([p.grad.flatten() for _, p in chosen]).clone())
        rows.append(torch.stack(row))
    return torch.stack(rows).numpy()


def test_empirical_kernel_by_hand():
    # f = a relu(w x), a = 3, w = 2: at x > 0 ∂f/∂w = 3x and ∂f/∂a = 2x, else both are 0
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).eval()
    net[0].weight.data.fill_(2.0)
    net[2].weight.data.fill_(3.0)
    K = empirical_ntk(net, [[1.0], [-1.0], [2.0]])
    assert K.tolist() == [[13.0, 0.0, 26.0], [0.0, 0.0, 0.0], [26.0, 0.0, 52.0]]


@pytest.mark.parametrize("memory", [1e9, 5e4, 1])
@pytest.mark.parametrize("c", [1, 3])
def test_empirical_kernel_is_that_of_explicit_jacobians(c, memory):
    net, X, X2 = convolutional(c), points(), points(4, 1)
    J, J2 = explicit(net, X), explicit(net, X2)
    expected = np.einsum("iap,jbp->iajb", J, J)
    K = empirical_ntk(net, X, memory=memory)
    tolerance = {"rtol": 1e-12, "atol": 1e-12 * K.max()}
    np.testing.assert_allclose(K, expected.reshape(7 * c, 7 * c), **tolerance)
    np.testing.assert_array_equal(K, K.T)
    k = np.einsum("iap,jbp->iajb", J, J2)
    np.testing.assert_allclose(
        empirical_ntk(net, X, X2, memory=memory), k.reshape(7 * c, -1), **tolerance
    )
    f = Function(net)
    both = kernels(f, f.points("X", X), f.points("X2", X2), memory=memory)
    np.testing.assert_allclose(both, np.hstack([K, k.reshape(7 * c, -1)]), **tolerance)
    trace = empirical_ntk(net, X, X2, trace=True, memory=memory)
    np.testing.assert_allclose(trace, np.trace(k, axis1=1, axis2=3), **tolerance)
    if c > 1:  # control: outputs before points
        assert np.abs(expected.transpose(1, 0, 3, 2).reshape(K.shape) - K).max() > 0.01 * K.max()


def test_kernels_of_both_sets_take_each_jacobian_once(monkeypatch):
    sizes, call = [], Function.jacobians
    monkeypatch.setattr(
        Function, "jacobians", lambda self, X: sizes.append(len(X)) or call(self, X)
    )
    f = Function(convolutional())
    kernels(f, f.points("X", points()), f.points("X2", points(4, 1)))
    assert sizes == [7, 4]


@pytest.mark.parametrize("memory", [6e5, 2e5, 1])
def test_empirical_kernel_takes_no_more_jacobians_than_fit(memory, monkeypatch):
    sizes, call = [], Function.jacobians

    def record(self, X):
        found = call(self, X)
        sizes.append((len(X), sum(J.numel() * J.element_size() for J in found)))
        return found

    monkeypatch.setattr(Function, "jacobians", record)
    empirical_ntk(convolutional(), points(40 if memory > 1 else 8), memory=memory)
    assert all(points == 1 or 2 * size <= memory for points, size in sizes)  # two blocks at a time
    assert len(sizes) > 1


def test_empirical_kernel_of_chosen_parameters():
    net, X = convolutional(), points()
    head = empirical_ntk(net, X, parameters=["7.*"])
    J = explicit(net, X, {"7.weight", "7.bias"}).reshape(21, -1)
    np.testing.assert_allclose(head, J @ J.T, rtol=1e-12)
    rest = empirical_ntk(net, X, parameters=["1.*", "2.*"])
    np.testing.assert_allclose(head + rest, empirical_ntk(net, X), rtol=1e-10)
    for name, p in net.named_parameters():
        p.requires_grad = name.startswith("7")
    np.testing.assert_array_equal(empirical_ntk(net, X), head)


def test_empirical_kernel_knows_tied_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2, bias=False)
            self.b = self.a

        def forward(self, x):
            return self.b(torch.tanh(self.a(x)))[:, 0]

    net, X = Tied().double().eval(), points(5)[:, :2]
    J = explicit(net, X).reshape(5, -1)
    np.testing.assert_allclose(empirical_ntk(net, X), J @ J.T, rtol=1e-12)


def test_empirical_kernel_leaves_the_module_as_it_is():
    net, X = convolutional(), points()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    empirical_ntk(net, X)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_empirical_kernel_of_single_precision_sums_in_double():
    X = points(30)
    exact = empirical_ntk(convolutional(), X)
    single = empirical_ntk(convolutional(dtype=torch.float32), X)
    assert 1e-9 < np.abs(single / exact.max() - exact / exact.max()).max() < 1e-5
    assert single.dtype == np.float64
    assert empirical_ntk(convolutional(), X, dtype="float32").dtype == np.float32


def test_empirical_kernel_stands_where_a_kernel_does():
    net, X = convolutional(1), points(12)
    kernel, Y = partial(empirical_ntk, net), np.sign(points(12, 1)[:, 0])
    lam = 0.1 * np.trace(kernel(X))
    Q = PackedInverse(kernel, X, lam, dtype="float64", tile=5, progress=False)
    np.testing.assert_allclose(Ridge.packed(Q, Y).h, Ridge(kernel(X), Y, lam).h, rtol=1e-10)


def test_outputs_in_blocks():
    net, X = convolutional(), points()
    np.testing.assert_allclose(
        outputs(net, X, block=2), net(torch.as_tensor(X)).detach(), rtol=1e-12
    )


def test_points_that_are_not_numbers_with_a_point():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 1)).eval()
    K = empirical_ntk(net, np.array([[0, 1], [2, 3]]))
    assert K.shape == (2, 2) and (K.diagonal() > K[0, 1]).all()


class Mixing(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_other_devices():
    net, X = convolutional(), points()
    K = empirical_ntk(net, X)
    np.testing.assert_allclose(empirical_ntk(net.cuda(), X, memory=5e4), K, rtol=1e-10)


@pytest.mark.parametrize(
    ("model", "X", "settings", "error", "message"),
    [
        (nn.Linear(2, 1), [[1.0, 2.0]], {}, ValueError, r"training mode.*call model\.eval\(\)"),
        (nn.Linear(2, 1).eval(), np.zeros((0, 2)), {}, ValueError, r"X is empty: .*\(0, 2\)"),
        (nn.Linear(2, 1).eval(), [[1.0, np.nan]], {}, ValueError, "X has 1 value that is not fin"),
        (nn.Flatten(0).eval(), [[1.0]], {}, ValueError, "no parameter that requires a gradient"),
        (nn.Linear(2, 1).eval(), [[1.0, 2.0]], {"parameters": ["bais"]}, ValueError, "'bais', whi"),
        (nn.Linear(2, 1).eval(), [[1.0, 2.0]], {"parameters": []}, ValueError, "parameters has"),
        (nn.Linear(2, 1).eval(), [[1.0, 2.0]], {"memory": 0}, ValueError, "memory must be"),
        (nn.Linear(2, 1).eval(), [[[1.0, 2.0]]], {}, ValueError, r"1 points to shape \(1, 1, 1\)"),
        (Mixing(2, 1).eval(), [[1.0, 2.0], [5.0, 0.0]], {}, ValueError, "beside another point"),
        (lambda x: x, [[1.0]], {}, TypeError, r"model must be a torch\.nn\.Module, not function"),
    ],
)  # fmt: skip
def test_bad_input(model, X, settings, error, message):
    with pytest.raises(error, match=message):
        empirical_ntk(model, X, **settings)


class Forward(nn.Linear):
    """A linear layer of 2 inputs and 1 output, and what a function makes of it."""

    def __init__(self, then, c=1):
        super().__init__(2, c)
        self.then = then
        self.double().eval()

    def forward(self, x):
        return self.then(super().forward(x))


def without_gradients(f):
    with torch.no_grad():
        return f + 1


@pytest.mark.parametrize("then", [torch.sign, torch.Tensor.detach, without_gradients])
def test_outputs_that_do_not_depend_on_the_parameters_are_refused(then):
    X = [[1.0, 2.0], [0.5, -1.0]]
    for other in (None, [[3.0, 1.0]]):
        with pytest.raises(
            ValueError, match="do not depend on the chosen .* no_grad, detach or si"
        ):
            empirical_ntk(Forward(then), X, other)
    half = nn.Sequential(Forward(then), nn.Linear(1, 1).double()).eval()
    with pytest.raises(ValueError, match="or choose other parameters"):
        empirical_ntk(half, X, parameters=["0.*"])
    assert (empirical_ntk(half, X).diagonal() > 0).all()  # the last layer counts
    orthogonal = empirical_ntk(nn.Linear(2, 1, bias=False).eval(), [[1.0, 0.0]], [[0.0, 1.0]])
    assert orthogonal.tolist() == [[0.0]]


FORWARDS = [
    (
        lambda f: (f, f),
        TypeError,
        "model returns a tuple; wrap it in a module that returns one ten",
    ),
    (lambda f: f[:1], ValueError, r"model maps 2 points to shape \(1, 1\); let it return one row"),
    (
        lambda f: f if f.sum() > 0 else -f,
        ValueError,
        "vmap cannot do .*data-dependent.*torch.where",
    ),
    (lambda f: f * f[0].item(), ValueError, r"vmap cannot do .*item.* no \.item"),
    (lambda f: (0 * f).sqrt() + f, ValueError, "derivatives that are not finite, as a root"),
]


@pytest.mark.parametrize(("then", "error", "message"), FORWARDS)
def test_what_a_module_must_not_do(then, error, message):
    with pytest.raises(error, match=message):
        empirical_ntk(Forward(then), [[1.0, 2.0], [1.0, 2.0]])


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (
            [[1.0, 2.0, 3.0]],
            ValueError,
            r"X2, 1 points in shape \(1, 3\): .* pass points of the sh",
        ),
        ([[1.0, np.nan]], ValueError, "X2 has 1 value that is not finite"),
        ([[1.0, 2.0], [1.0]], TypeError, "X2 must be a real numeric array, not list"),
        ([["a", "b"]], TypeError, "X2 must be a real numeric array, not ndarray of <U1"),
        (np.ma.masked_equal([[1.0, 2.0]], 1.0), ValueError, "X2 has 1 masked entry"),
        (np.zeros((0, 2)), ValueError, r"X2 is empty: its shape is \(0, 2\)"),
        (torch.zeros(0, 2), ValueError, r"X2 has no points: its shape is \(0, 2\)"),
    ],
)
def test_bad_points_are_named(X, error, message):
    net = nn.Linear(2, 1).eval()
    with pytest.raises(error, match=message):
        empirical_ntk(net, [[1.0, 2.0]], X)
    for call in (outputs, empirical_ntk):
        with pytest.raises(error, match=message.replace("X2", "X")):
            call(net, X)


def test_outputs_of_a_frozen_module():
    net, X = convolutional(), points()
    expected = outputs(net, X)
    np.testing.assert_array_equal(outputs(net.requires_grad_(False), X), expected)
    with pytest.raises(ValueError, match="model has no parameter that requires a gradient; name s"):
        empirical_ntk(net, X)
    assert empirical_ntk(net, X, parameters=(name for name in ["7.bias"])).shape == (21, 21)


def test_batch_normalisation_without_running_statistics_is_refused():
    net = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 1)).eval()
    with pytest.raises(ValueError, match="batch normalisation without running statistics"):
        empirical_ntk(net, [[1.0, 2.0], [5.0, 0.0]])


@pytest.mark.parametrize("c", [1, 3])
def test_jacobians_are_those_of_backward_for_each_parameter(c):
    net, X = convolutional(c), points()
    found = Function(net).jacobians(torch.as_tensor(X))
    assert [J.shape for J in found] == [(7, c, p.numel()) for p in net.parameters()]
    np.testing.assert_allclose(torch.cat(found, 2), explicit(net, X), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("block", [2, 1000])
def test_a_change_of_the_parameters_moves_the_outputs_along_their_jacobians(block):
    net, X = convolutional(), points()
    start = convolutional(seed=1)
    f = Function(net)
    v = f.since(start)
    pairs = zip(net.named_parameters(), start.named_parameters(), strict=True)
    for (name, p), (_, q) in pairs:
        assert torch.equal(v[name], (p - q).detach())
    flat = torch.cat([part.flatten() for part in v.values()]).numpy()
    Jv = f.along(v, torch.as_tensor(X), block)
    np.testing.assert_allclose(Jv, explicit(net, X) @ flat, rtol=1e-10)


def test_a_start_is_the_same_module_at_another_time():
    f = Function(nn.Linear(2, 3).eval())
    for start in (nn.Linear(2, 4), nn.Sequential(nn.Linear(2, 3)), "start", None):
        words = r"start has no parameter 'weight' of shape \(3, 2\); pass the model as it was"
        with pytest.raises(ValueError, match=words):
            f.since(start)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_of_labelled_points_at_any_parameters(dtype):
    net, X, Y = convolutional(dtype=dtype), points(), points(7, 1)[:, :3]
    data = Labelled(Function(net), SQUARED, "train", (X, Y))
    np.testing.assert_allclose(data.f, outputs(net, X))
    np.testing.assert_array_equal(data.y, Y)
    other = convolutional(seed=1, dtype=dtype)
    net.load_state_dict(net.state_dict() | dict(other.named_parameters()))
    theta = dict(other.named_parameters())
    hand = 0.5 * ((outputs(net, X) - Y) ** 2).sum(axis=1)
    for given in (theta, torch.cat([p.flatten() for p in theta.values()])):
        found = data.losses(given).detach()
        assert found.dtype == dtype
        np.testing.assert_allclose(found, hand, rtol=1e-4 if dtype == torch.float32 else 1e-12)


# --- kinks ----------------------------------------------------------------------------------------


def test_kinks_are_the_gradients_of_inputs_near_zero():
    net = Deep(4, width=6, depth=2, activation=nn.ReLU(), seed=1).eval()
    split, theta = parameters(net)
    X = sample(n=7, t=3, d=4)[0]
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
    for wrong in (near[:6], torch.cat([near, near])):
        with pytest.raises(
            ValueError, match=f"chosen has {len(wrong)} rows, but there are 7 points"
        ):
            directions(net, X, wrong)
    last = kinks(net, X, tol=tol, parameters=["W.1"])  # A, W.0 and W.1
    np.testing.assert_array_equal(last, kinks(net, X, tol=tol)[:, -36:])
    with pytest.raises(ValueError, match=r"model has no torch.nn.ReLU; write its activation"):
        kinks(nn.Linear(4, 1).double().eval(), X)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_relu_in_place_has_the_kinks_of_one_that_is_not(layers):
    X, found = sample(n=9, d=4)[0], []
    for inplace in (False, True):
        torch.manual_seed(0)
        sizes = [4] + [6] * layers
        hidden = [
            (nn.Linear(a, b), nn.ReLU(inplace=inplace))
            for a, b in zip(sizes, sizes[1:], strict=False)
        ]
        net = nn.Sequential(*sum(hidden, ()), nn.Linear(6, 1)).double().eval()
        z = relu_inputs(net, Function(net).theta, torch.as_tensor(X))
        found.append((z.detach(), on_kink(net, X, 0.3), kinks(net, X, tol=0.3)))
    (z, near, rows), (z_, near_, rows_) = found
    assert (z < 0).any() and (near & (z < 0)).any()
    assert torch.equal(z, z_) and torch.equal(near, near_)
    np.testing.assert_allclose(rows, rows_, atol=1e-15)


def test_kinks_of_points_that_are_not_numbers_with_a_point():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.ReLU(), nn.Linear(6, 1)).eval()
    X = np.array([[0, 1], [2, 3]])
    assert kinks(net, X, tol=1e9).shape == (12, 22) and on_kink(net, X, 1e9).all()


def test_outputs_that_are_not_finite_are_named():
    net = nn.Linear(2, 1).eval()
    net.weight.data[0, 0] = np.nan
    for call in (outputs, empirical_ntk):
        with pytest.raises(
            ValueError, match=r"model\(X\) has 2 values that are not finite, the fir"
        ):
            call(net, [[1.0, 2.0], [0.5, 1.0]])


def test_trace_is_true_or_false():
    with pytest.raises(TypeError, match="trace must be True or False, not 'sum'; pass one of them"):
        empirical_ntk(nn.Linear(2, 1).eval(), np.eye(2), trace="sum")


def test_weight_norm_moves_the_outputs_along_its_jacobians():
    torch.manual_seed(0)
    net = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).double().eval()
    f, X = Function(net), torch.as_tensor(points()[:, :3])
    v = {k: torch.randn_like(p) for k, p in f.theta.items()}
    step = {k: 1e-6 * d for k, d in v.items()}
    ahead, behind = (f({k: f.theta[k] + s * d for k, d in step.items()}, X) for s in (1, -1))
    np.testing.assert_allclose(f.along(v, X), (ahead - behind).detach() / 2e-6, rtol=1e-7)


@pytest.mark.parametrize(
    ("model", "names", "message"),
    [
        (
            nn.DataParallel(nn.Linear(2, 1)),
            None,
            "model is a DataParallel, .*; pass the module insi",
        ),
        (
            torch.jit.trace(nn.Linear(2, 1), torch.ones(1, 2)),
            None,
            "model is a TopLevelTraced.*jit",
        ),
        (nn.Linear(2, 1, dtype=torch.complex64), None, "parameter 'weight' is complex; choose par"),
        (nn.Linear(2, 1), 3, r"parameters must be a list of names, not 3; pass \[3\]"),
        (nn.Linear(2, 1), ["bias", 3], "parameters has 3, which is no text; pass names"),
    ],
)
def test_modules_and_names_that_are_none(model, names, message):
    with pytest.raises(TypeError, match=message):
        empirical_ntk(model.eval(), [[1.0, 2.0]], parameters=names)
