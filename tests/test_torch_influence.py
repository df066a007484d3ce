"""Influence of a trained module: by hand, against dense Hessians, against ridge regression."""

import copy
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn.utils import parameters_to_vector
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from book.oracles import Deep
from lib import torch_influence
from lib.losses import Logistic, Softmax, Squared
from lib.module import kinks, on_kink, parameters
from lib.ridge import Ridge
from lib.torch_influence import Trust, full_influence, influence, trust
from tests.cases import sample

LAM = 0.7
pytestmark = pytest.mark.filterwarnings("ignore:model is not at rest")


def case(loss, c, n=9, t=4, single=False):
    """Points and labels that the loss takes."""
    rng = np.random.default_rng(c)
    X, X_te = rng.standard_normal((n, 5)), rng.standard_normal((t, 5))
    if isinstance(loss, Softmax):
        Y, y_te = (np.eye(c)[rng.integers(c, size=k)] for k in (n, t))
    elif isinstance(loss, Logistic):
        Y, y_te = (rng.choice([-1.0, 1.0], size=(k, c)) for k in (n, t))
    else:
        Y, y_te = rng.standard_normal((n, c)), rng.standard_normal((t, c))
    return (X, Y[:, 0], X_te, y_te[:, 0]) if single else (X, Y, X_te, y_te)


def network(c, seed=0, single=False):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, c))
    return nn.Sequential(*net, *[nn.Flatten(0)] * single).double().eval()


def dense(net, loss, X, Y, X_te, y_te, lam, order="Gauss-Newton", drop=None):
    """Eq 12 as it is written over all parameters; with `drop`, without the points in the Hessian.

    `order` may be "full", which has ∇²f too, or "identity", with Λ = 1.
    """
    theta = {k: v.detach() for k, v in net.named_parameters()}
    X, Y, X_te, y_te = (torch.as_tensor(v).reshape(len(v), -1) for v in (X, Y, X_te, y_te))

    def one(theta, x, y):
        return loss.in_torch(functional_call(net, theta, (x[None],)).reshape(1, -1), y[None])[0]

    def output(theta, x):
        return functional_call(net, theta, (x[None],)).reshape(-1)

    def flat(tree, rows):
        return torch.cat([v.reshape(rows, -1) for v in tree.values()], dim=1)

    keep = [i for i in range(len(X)) if i != drop]
    g = flat(vmap(grad(one), (None, 0, 0))(theta, X, Y), len(X))
    g_te = flat(vmap(grad(one), (None, 0, 0))(theta, X_te, y_te), len(X_te))
    H = 0
    for x, y in zip(X[keep], Y[keep], strict=True):
        if order == "full":
            blocks = hessian(one)(theta, x, y)
            H = H + torch.cat([
                torch.cat([b.reshape(theta[k].numel(), -1) for b in row.values()], 1)
                for k, row in blocks.items()
            ])  # fmt: skip
        else:
            f = output(theta, x)
            J = flat(jacrev(output)(theta, x), len(f))
            inner = hessian(lambda f, y=y: loss.in_torch(f[None], y[None])[0])(f)
            H = H + J.T @ (inner if order != "identity" else torch.eye(len(f)).double()) @ J
    H = H + lam * torch.eye(len(H)).double()
    return (g @ torch.linalg.solve(H, g_te.T)).detach().numpy()


CASES = [(Squared(), 1, True), (Squared(), 1, False), (Squared(), 3, False), (Logistic(), 1, True),
         (Logistic(), 2, False), (Softmax(), 3, False)]  # fmt: skip


@pytest.mark.parametrize(("loss", "c", "single"), CASES)
def test_eq_12_of_a_module_is_the_dense_estimate(loss, c, single):
    net, (X, Y, X_te, y_te) = network(c, single=single), case(loss, c, single=single)
    found = influence(net, loss, (X, Y), (X_te, y_te), LAM).ihvp
    given = net, loss, X, Y, X_te, y_te
    np.testing.assert_allclose(found, dense(*given, LAM), rtol=1e-9, atol=1e-12)
    wrong = {"λ twice": dense(*given, 2 * LAM), "∇²f": dense(*given, LAM, "full")}
    before = network(c, seed=1, single=single)
    wrong["other θ"] = influence(before, loss, (X, Y), (X_te, y_te), LAM).ihvp
    if not isinstance(loss, Squared):
        wrong["Λ = 1"] = dense(*given, LAM, "identity")
    for name, estimate in wrong.items():  # controls
        assert np.abs(found - estimate).max() > 1e-3 * np.abs(found).max(), name


@pytest.mark.parametrize(("loss", "c", "single"), CASES)
def test_rescaled_estimate_has_the_hessian_without_the_point(loss, c, single):
    net, (X, Y, X_te, y_te) = network(c, single=single), case(loss, c, single=single)
    one = influence(net, loss, (X, Y), (X_te, y_te), LAM)
    for i in range(len(X)):
        expected = dense(net, loss, X, Y, X_te, y_te, LAM, drop=i)[i]
        np.testing.assert_allclose(one.rescaled[i], expected, rtol=1e-9, atol=1e-12)
    assert np.abs(one.rescaled - one.ihvp).max() > 1e-3 * np.abs(one.ihvp).max()
    f = one.f + one.step
    rise = loss.value(f, one.y_te) - loss.value(one.f, one.y_te)
    np.testing.assert_allclose(one.newton, rise, rtol=1e-9, atol=1e-12)
    if c == 1:
        np.testing.assert_allclose(one.ihvp, (1 - one.h)[:, None] * one.rescaled, rtol=1e-9)
        np.testing.assert_allclose(one.h, one.blocks[:, 0, 0], rtol=1e-9)
    assert (one.h > 0).all() and (one.h < 1).all()


@pytest.mark.parametrize("c", [1, 3])
def test_a_trained_linear_module_gives_ridge_regression(c):
    X, Y, X_te, y_te = case(Squared(), c)
    W = np.linalg.solve(X.T @ X + LAM * np.eye(5), X.T @ Y)
    net = nn.Linear(5, c, bias=False).double().eval()
    net.weight.data = torch.as_tensor(W.T.copy())
    one = influence(net, Squared(), (X, Y), (X_te, y_te), LAM)
    exact = Ridge(X @ X.T, Y, LAM).influence(X @ X_te.T, y_te)
    np.testing.assert_allclose(one.h, exact.model.h, rtol=1e-9)
    for name, other in (("newton", "exact"), ("rescaled", "T1"), ("ihvp", "ihvp")):
        np.testing.assert_allclose(getattr(one, name), getattr(exact, other), rtol=1e-8, atol=1e-12)


def test_weight_decay_on_a_mean_loss_is_lam_over_n():
    # torch's own weight decay adds w θ to the gradient of ½ mean r² (MSELoss has no half)
    X, Y, X_te, y_te = (torch.as_tensor(v) for v in case(Squared(), 1))
    net, w = nn.Linear(5, 1, bias=False).double(), 0.05
    descent = torch.optim.SGD(net.parameters(), lr=0.2, weight_decay=w)
    for _ in range(3000):
        descent.zero_grad()
        (0.5 * nn.functional.mse_loss(net(X), Y)).backward()
        descent.step()
    right, wrong = (
        influence(net.eval(), Squared(), (X, Y), (X_te, y_te), lam).newton
        for lam in (len(X) * w, w)
    )
    exact = Ridge(X @ X.T, Y, len(X) * w).influence(X @ X_te.T, y_te).exact
    np.testing.assert_allclose(right, exact, rtol=1e-6, atol=1e-9)
    assert np.abs(wrong - exact).max() > 0.1 * np.abs(exact).max()  # control


def test_adamw_comes_to_rest_at_another_minimum():
    X, Y, X_te, y_te = (torch.as_tensor(v) for v in case(Softmax(), 3))
    w, rest = 0.1, {}
    for way in (torch.optim.Adam, torch.optim.AdamW):
        net = network(3)
        descent = way(net.parameters(), lr=0.02, weight_decay=w)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(descent, 400)
        for _ in range(400):
            descent.zero_grad()
            nn.functional.cross_entropy(net(X), Y).backward()
            descent.step()
            rate.step()
        one = influence(net.eval(), nn.CrossEntropyLoss(), (X, Y), (X_te, y_te), 9 * w)
        rest[way.__name__] = one.rest
    assert rest["Adam"] < 0.02 < 10 < rest["AdamW"]


def test_chosen_parameters_are_a_smaller_problem():
    net, (X, Y, X_te, y_te) = network(3), case(Squared(), 3)
    last = influence(net, Squared(), (X, Y), (X_te, y_te), LAM, parameters=["2.*"])
    with torch.no_grad():
        A, A_te = (np.c_[net[1](net[0](torch.as_tensor(x))), np.ones(len(x))] for x in (X, X_te))
    head = nn.Linear(7, 3, bias=False).double().eval()
    head.weight.data = torch.cat([net[2].weight.data, net[2].bias.data[:, None]], dim=1)
    same = influence(head, Squared(), (A, Y), (A_te, y_te), LAM)
    np.testing.assert_allclose(last.newton, same.newton, rtol=1e-9, atol=1e-12)


# --- what users of torch pass in ------------------------------------------------------------------

TORCH = [
    (nn.CrossEntropyLoss(), Softmax(), 3, lambda Y: Y.argmax(1), 1.0),
    (nn.CrossEntropyLoss(), Softmax(), 2, lambda Y: Y, 1.0),  # one-hot
    (nn.BCEWithLogitsLoss(), Logistic(), 2, lambda Y: (Y + 1) / 2, 2.0),
    (nn.MSELoss(), Squared(), 3, lambda Y: Y, 1.5),
]  # loss of torch, of lib, outputs c, labels as torch has them, λ over n·w


@pytest.mark.parametrize(
    ("theirs", "ours", "c", "labels", "factor"),
    TORCH,
    ids=["integers", "one-hot", "binary", "mean"],
)
def test_losses_of_torch_with_weight_decay(theirs, ours, c, labels, factor):
    X, Y, X_te, y_te = (torch.as_tensor(v) for v in case(ours, c))
    net, w = network(c), 0.05
    descent = torch.optim.LBFGS(
        net.parameters(), max_iter=3000, tolerance_grad=1e-11, tolerance_change=0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def value():
        descent.zero_grad()
        decay = w / 2 * sum((p**2).sum() for p in net.parameters())
        found = theirs(net(X), labels(Y)) + decay
        found.backward()
        return found

    descent.step(value)
    given = (X, labels(Y)), (X_te, labels(y_te))
    one = influence(net, theirs, *given, factor * len(X) * w)
    same = influence(net, ours, (X, Y), (X_te, y_te), factor * len(X) * w)
    np.testing.assert_array_equal(one.newton, same.newton)
    assert one.rest < 1e-6
    with pytest.warns(
        UserWarning, match="not at rest: .* n times the weight decay of SGD or Adam .AdamW"
    ):
        assert influence(net, theirs, *given, w).rest > 0.1  # control: λ of a sum


def test_rest_is_what_a_gauss_newton_step_on_all_points_moves():
    net, start, (X, Y, X_te, y_te) = network(3), network(3, seed=1), case(Softmax(), 3)
    J, J_te = (jacobian(net, x) for x in (X, X_te))
    f = net(torch.as_tensor(X)).detach().numpy()
    d, v = Softmax().curvature(f)
    bends = np.einsum("na,ab->nab", d, np.eye(3)) - np.einsum("na,nb->nab", v, v)
    H = np.einsum("nap,nab,nbq->pq", J, bends, J) + LAM * np.eye(J.shape[2])
    theta, anchor = (parameters_to_vector(m.parameters()).detach().numpy() for m in (net, start))
    for other, begin in ((None, 0.0), (start, anchor)):
        slope = np.einsum("nap,na->p", J, Softmax().gradient(f, Y)) + LAM * (theta - begin)
        one = influence(net, Softmax(), (X, Y), (X_te, y_te), LAM, start=other)
        moved = J_te @ np.linalg.solve(H, slope)
        share = np.mean(moved**2) / np.mean(one.first**2)
        assert one.rest == pytest.approx(share**0.5, rel=1e-9)


def jacobian(net, X):
    """∂f/∂θ, (n, c, p)."""
    theta = {k: v.detach() for k, v in net.named_parameters()}
    one = jacrev(lambda theta, x: functional_call(net, theta, (x[None],))[0])
    rows = vmap(one, (None, 0))(theta, torch.as_tensor(X))
    return torch.cat([J.flatten(2) for J in rows.values()], dim=2).numpy()


class Photos(Dataset):
    """Points with labels, or with another point each time that one is read."""

    def __init__(self, X, Y, noise=0.0):
        self.X, self.Y, self.noise = torch.as_tensor(X), Y.argmax(1), noise

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.X[i] + self.noise * torch.randn(5), self.Y[i]


def test_data_sets_and_loaders_are_read_in_their_own_order():
    net, (X, Y, X_te, y_te) = network(3), case(Softmax(), 3)
    expected = influence(net, Softmax(), (X, Y), (X_te, y_te), LAM)
    tests = TensorDataset(torch.as_tensor(X_te), torch.as_tensor(y_te))
    train = Photos(X, Y)
    for data in (train, DataLoader(train, batch_size=4, shuffle=True)):
        one = influence(net, nn.CrossEntropyLoss(), data, tests, LAM)
        np.testing.assert_array_equal(one.ihvp, expected.ihvp)
    with pytest.raises(ValueError, match="another point each time .* random augmentation"):
        influence(net, nn.CrossEntropyLoss(), Photos(X, Y, 0.1), tests, LAM)


def residual(dtype=torch.float64):
    """A network such as torchvision's: normalisation, activations in place; its start frozen."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 4, (1, 3)), nn.BatchNorm2d(4),
        nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip
    net(torch.randn(50, 5))
    net[1].requires_grad_(False)
    return net.to(dtype).eval()


def test_networks_with_normalisation_frozen_layers_and_single_precision():
    X, Y, X_te, y_te = case(Softmax(), 2)
    one, single = (
        influence(residual(dtype), nn.CrossEntropyLoss(), (X, Y), (X_te, y_te), LAM)
        for dtype in (torch.float64, torch.float32)
    )
    np.testing.assert_allclose(single.newton, one.newton, rtol=1e-4, atol=1e-6)
    names = ["2.*", "5.*"]
    same = influence(residual(), Softmax(), (X, Y), (X_te, y_te), LAM, parameters=names)
    np.testing.assert_array_equal(one.newton, same.newton)
    assert np.abs(single.newton - one.newton).max() > 0  # it was computed in float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_another_device():
    X, Y, X_te, y_te = (torch.as_tensor(v) for v in case(Softmax(), 2))
    one = influence(residual(), Softmax(), (X, Y), (X_te, y_te), LAM)
    given = (X.cuda(), Y.argmax(1).cuda()), (X_te.cuda(), y_te.argmax(1).cuda())
    same = influence(residual().cuda(), nn.CrossEntropyLoss(), *given, LAM)
    np.testing.assert_allclose(same.newton, one.newton, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sure", [40.0, 1e4])
def test_a_model_that_is_sure_has_no_curvature_and_no_influence(sure):
    X = np.eye(3)
    net = nn.Linear(3, 3, bias=False).double().eval()
    net.weight.data = sure * torch.eye(3).double()
    one = influence(net, Softmax(), (X, np.arange(3)), (X, np.arange(3)), LAM)
    assert np.isfinite(one.h).all() and (one.h >= 0).all() and (one.h < 1e-9).all()
    assert np.abs(one.newton).max() < 1e-9


def test_eq_12_in_ten_lines_of_the_readme(capsys):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (snippet,) = [block for block in blocks if "lib.torch_influence" in block]
    assert len([line for line in snippet.splitlines() if line]) <= 10
    X, Y, X_te, y_te = (torch.as_tensor(v) for v in case(Softmax(), 3, n=12))
    weight_decay = 0.05

    def train(without=()):
        net, keep = network(3), [i for i in range(12) if i not in without]
        descent = torch.optim.LBFGS(net.parameters(), max_iter=500, line_search_fn="strong_wolfe")

        def value():
            descent.zero_grad()
            decay = weight_decay / 2 * sum((p**2).sum() for p in net.parameters())
            loss = nn.functional.cross_entropy(net(X[keep]), Y[keep], reduction="sum") / 12 + decay
            loss.backward()
            return loss

        descent.step(value)
        return net

    names = {"train": train, "n": 12, "weight_decay": weight_decay, "nn": nn}
    sets = {"train_set": TensorDataset(X, Y), "test_set": TensorDataset(X_te, y_te)}
    exec(snippet, names | sets)
    assert capsys.readouterr().out.startswith("5 points retrained, leverage 0.")
    with pytest.raises(NameError):  # control: it uses what it is given
        exec(snippet, names)


# --- trust ----------------------------------------------------------------------------------------


def linear(X, Y, lam=LAM, noise=0.0):
    """A training function that is exact, but for a disturbance of its end."""
    draw = np.random.default_rng(0)

    def train(without):
        assert {type(i) for i in without} <= {int}
        keep = np.setdiff1d(np.arange(len(X)), without)
        A = X[keep].T @ X[keep] + lam * np.eye(5)
        net = nn.Linear(5, Y.shape[1], bias=False).double()
        W = np.linalg.solve(A, X[keep].T @ Y[keep]).T
        net.weight.data = torch.as_tensor(W + noise * draw.standard_normal(W.shape))
        return net

    return train


def test_trust_is_full_where_the_estimate_is_exact():
    X, Y, X_te, y_te = case(Squared(), 2, n=20)
    train = linear(X, Y)
    one = influence(train([]).eval(), Squared(), (X, Y), (X_te, y_te), LAM)
    seen = trust(one, train, k=5)
    assert seen.error("newton") < 1e-9 and seen.noise < 1e-9
    assert seen.correlation("newton") > 1 - 1e-9
    assert seen.error("ihvp") > 0.1  # control: its error is the leverage
    assert (np.diff(seen.h) >= 0).all() and seen.h[0] == one.h.min() and seen.h[-1] == one.h.max()
    assert str(seen).startswith("5 points retrained, leverage 0.") and "newton" in str(seen)


def test_trust_is_measured_from_a_training_on_all_points():
    X, Y, X_te, y_te = case(Squared(), 2, n=20)
    train = linear(X, Y)
    given = influence(linear(X, Y, 1.1 * LAM)([]).eval(), Squared(), (X, Y), (X_te, y_te), LAM)
    seen = trust(given, train, k=6)
    order = np.argsort(given.h)
    np.testing.assert_array_equal(seen.points, order[[0, 4, 8, 11, 15, 19]])
    np.testing.assert_array_equal(seen.h, given.h[seen.points])
    exact = Ridge(X @ X.T, Y, LAM).influence(X @ X_te.T, y_te).exact
    np.testing.assert_allclose(seen.actual, exact[seen.points], rtol=1e-9, atol=1e-12)
    again, before = (
        0.5 * ((net(torch.as_tensor(X_te)).detach().numpy() - y_te) ** 2).sum(1)
        for net in (train([]), linear(X, Y, 1.1 * LAM)([]))
    )
    np.testing.assert_allclose(seen.again, again - before, rtol=1e-9, atol=1e-12)
    share = abs(again - before).mean() / abs(exact[seen.points]).mean()
    assert seen.noise == pytest.approx(share, rel=1e-9) and seen.noise > 0.01


def test_trust_of_a_mean_over_the_points_that_are_kept_is_of_another_ridge():
    X, Y, X_te, y_te = case(Squared(), 2, n=20)
    w = LAM / 20

    def mean(without):  # its weight decay is λ = w · (n − 1) without a point
        return linear(X, Y, w * (20 - len(without)))(without)

    one = influence(mean([]).eval(), Squared(), (X, Y), (X_te, y_te), LAM)
    right, wrong = (trust(one, train, k=5) for train in (linear(X, Y), mean))
    assert right.error("newton") < 1e-9 and wrong.error("newton") > 1e-3
    for seen in (right, wrong):  # which cannot tell, so it says what it took for granted
        assert "train(without) divides by all n" in str(seen)


def test_trust_sees_another_ridge_and_noise():
    X, Y, X_te, y_te = case(Squared(), 2, n=20)
    one = influence(linear(X, Y)([]).eval(), Squared(), (X, Y), (X_te, y_te), LAM)
    assert trust(one, linear(X, Y, 10 * LAM), k=5).error("newton") > 0.1
    assert trust(one, linear(X, Y, noise=0.1), k=5).noise > 0.1


def test_trust_of_a_network_that_torch_trained():
    # weight decay w on a mean loss, the user's own loop, warm from the end of the training
    X, Y, X_te = (torch.as_tensor(v) for v in sample(20, 30))
    Y, y_te = Y[:, None], torch.sign(X_te[:, :1] + 0.3 * X_te[:, 1:2])
    w = 0.005
    torch.manual_seed(0)
    layers = nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)

    def fit(net, without):
        keep = [i for i in range(20) if i not in without]
        descent = torch.optim.SGD(
            net.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=w
        )
        for _ in range(1000):
            descent.zero_grad()
            (0.5 * ((net(X[keep]) - Y[keep]) ** 2).sum() / 20).backward()  # n stays that of λ = nw
            descent.step()
        return net

    full = fit(nn.Sequential(*layers).double(), []).eval()
    one = influence(full, Squared(), (X, Y), (X_te, y_te), 20 * w)
    seen = trust(one, lambda without: fit(copy.deepcopy(full), without), k=5)
    assert seen.noise < 0.02
    assert seen.correlation("newton") > 0.95 > 0.9 > seen.correlation("ihvp")
    other = influence(full, Squared(), (X, Y), (X_te, y_te), w)  # control: λ of a sum
    assert other.h.min() > 1.5 * one.h.min()


# --- the full Hessian -----------------------------------------------------------------------------

X, Y, X_TE = sample(n=7, t=3, d=4)
LAM_2, POINTS = 2.0, [0, 3, 6]


def deep_labels(loss):
    if isinstance(loss, Softmax):
        return np.eye(3)[np.arange(7) % 3], np.eye(3)
    y = np.sign(Y)[:, None]
    return (y if isinstance(loss, Logistic) else Y[:, None]), np.ones((3, 1))


def deep_network(loss, activation=nn.GELU):
    c = 3 if isinstance(loss, Softmax) else 1
    return Deep(4, width=5, depth=2, outputs=c, activation=activation(), seed=0).eval()


def dense_full(net, loss, points):
    """The same estimates with Hessians that are written out, and their Gauss-Newton part."""
    split, theta = parameters(net)
    (Y_, y_te), value = deep_labels(loss), loss.in_torch

    def losses(v, x, y):
        f = functional_call(net, split(v), (torch.as_tensor(x),))
        return value(f.reshape(y.shape), torch.as_tensor(y))

    def one(i):
        return lambda v: losses(v, X[i : i + 1], Y_[i : i + 1])[0]

    every = [hessian(one(i))(theta) for i in range(len(X))]
    H = sum(every) + LAM_2 * torch.eye(len(theta))
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
    net, (Y_, y_te) = deep_network(loss), deep_labels(loss)
    one = full_influence(net, loss, (X, Y_), (X_TE, y_te), LAM_2, POINTS, tol=1e-12)
    found = one.h, one.ihvp, one.rescaled, one.newton
    for a, b in zip(found, dense_full(net, loss, POINTS), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
    half = influence(net, loss, (X, Y_), (X_TE, y_te), LAM_2).ihvp[POINTS]  # control: Gauss-Newton
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


def test_the_full_hessian_takes_what_influence_takes():
    loss, c = nn.CrossEntropyLoss(), 3
    X, Y, X_te, y_te = case(Softmax(), c)
    net, classes = network(c), (Y.argmax(1), y_te.argmax(1))
    given = (X, classes[0]), (X_te, classes[1])
    one = full_influence(net, Softmax(), (X, Y), (X_te, y_te), 20.0, [4, 1], tol=1e-12)
    sets = [TensorDataset(*map(torch.as_tensor, pair)) for pair in given]
    loader = DataLoader(sets[0], batch_size=4, shuffle=True)
    for train, test in (given, sets, (loader, sets[1])):
        same = full_influence(net, loss, train, test, 20.0, [4, 1], tol=1e-12)
        np.testing.assert_array_equal(same.newton, one.newton)
    alone = full_influence(net, loss, *given, 20.0, 4, tol=1e-12)
    np.testing.assert_allclose(alone.ihvp, one.ihvp[:1], rtol=1e-9)
    head = ["2.*"]  # linear in these, so that Gauss-Newton is all there is
    last = full_influence(net, loss, *given, 20.0, [4, 1], parameters=head, tol=1e-12)
    dual = influence(net, loss, *given, 20.0, parameters=iter(head))
    np.testing.assert_allclose(last.ihvp, dual.ihvp[[4, 1]], rtol=1e-7)
    net.requires_grad_(False)
    frozen = full_influence(net, loss, *given, 20.0, [4, 1], parameters=head, tol=1e-12)
    np.testing.assert_array_equal(frozen.ihvp, last.ihvp)
    np.testing.assert_array_equal(
        influence(net, loss, *given, 20.0, parameters=head).ihvp, dual.ihvp
    )


def test_a_minimum_on_the_kink_of_a_relu_in_place():
    X = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, -5.0]])
    net = Bent(1 / 3, 1e-9).eval()
    net.relu.inplace = True
    assert kinks(net, X).tolist() == [[0.0, 1.0]]
    net.v.data.fill_(-0.1)  # whose ReLU gives 0, but which is no kink
    assert kinks(net, X).shape == (0, 2)


# --- bad input ------------------------------------------------------------------------------------


def test_too_many_outputs_say_what_to_do(monkeypatch):
    net, (X, Y, X_te, y_te) = network(3), case(Squared(), 3)
    need = 8 * 27 * (5 * 27 + 3 * 12)  # n c = 27 and t c = 12
    monkeypatch.setattr(torch_influence, "free_memory", lambda: need - 1)
    with pytest.raises(MemoryError, match="n·c = 27 outputs .* fewer points, for two classes give"):
        influence(net, Squared(), (X, Y), (X_te, y_te), LAM)
    monkeypatch.setattr(torch_influence, "free_memory", lambda: need)
    influence(net, Squared(), (X, Y), (X_te, y_te), LAM)


def test_points_without_any_gradient_are_no_answer():
    X = np.eye(3)
    net = nn.Linear(3, 1, bias=False).double().eval()
    net.weight.data.zero_()
    with pytest.raises(ValueError, match="gradients of all points are 0, and so is every influ"):
        influence(net, nn.MSELoss(), (X, np.zeros((3, 1))), (X, np.ones((3, 1))), LAM)
    net = nn.Sequential(nn.Linear(3, 1).double(), nn.Flatten(0)).eval()
    net.register_forward_hook(lambda *parts: torch.sign(parts[2]))
    for estimate in (influence, partial(full_influence, points=[0])):
        with pytest.raises(ValueError, match="do not depend on the chosen parameters"):
            estimate(net, nn.MSELoss(), (X, np.ones(3)), (X, np.ones(3)), LAM)


class Stream(IterableDataset):
    """Points that are read once."""

    def __iter__(self):
        return iter([])


SMALL, LABELS, TESTS = np.zeros((4, 5)), np.array([0, 1, 2, 0]), np.zeros((2, 5))
TEST = TESTS, LABELS[:2]


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"train": [1, 2, 3]}, TypeError, r"train must be \(X, Y\), .* not a list of 3; pass"),
        ({"train": iter([1])}, TypeError, "train must be .* not a list_iterator; pass"),
        ({"train": TensorDataset(torch.zeros(4, 5))}, TypeError, "train must .* not a tuple of 1;"),
        ({"train": Stream()}, TypeError, "train must be .* not a Stream; pass"),
        ({"test": SMALL}, TypeError, "test must be .* not a ndarray of 4; pass"),
        (
            {"train": (SMALL[:, :4], LABELS)},
            ValueError,
            r"cannot take X, 4 points in .*\(4, 4\).*pas",
        ),
        ({"test": (SMALL[:2, :4], LABELS[:2])}, ValueError, r"take X_te, 2 points in .*\(2, 4\)"),
        (
            {"test": (TESTS * np.nan, LABELS[:2])},
            ValueError,
            "X_te has 10 values that are not fini",
        ),
        ({"train": (SMALL, LABELS[:, None])}, ValueError, r"Y has shape \(4, 1\); pass Y.flatten"),
        ({"test": (TESTS, LABELS[:2, None])}, ValueError, r"y_te has .* pass y_te.flatten\(\)"),
        ({"train": (SMALL, LABELS[:3])}, ValueError, "Y has 3 entries, but there are 4 points"),
        ({"loss": nn.CrossEntropyLoss(ignore_index=1)}, TypeError, "without ignore_index, not Cro"),
        ({"lam": -1}, ValueError, "lam must be a finite number > 0, not -1"),
        ({"parameters": ["3.*"]}, ValueError, "parameters has '3.*', which no parameter is called"),
    ],
)
def test_both_estimates_name_what_is_wrong_and_what_to_pass(changed, error, match):
    given = {"loss": nn.CrossEntropyLoss(), "train": (SMALL, LABELS), "test": TEST, "lam": LAM}
    for estimate in (influence, partial(full_influence, points=[0])):
        with pytest.raises(error, match=match):
            estimate(network(3), **given | changed)


@pytest.mark.parametrize(
    ("start", "match"),
    [
        (
            nn.Linear(5, 3),
            r"start has no parameter '0.weight' of shape \(6, 5\); pass the model as",
        ),
        (network(2), r"start has no parameter '2.weight' of shape \(3, 6\)"),
        ("before", "start has no parameter '0.weight'"),
    ],
)
def test_a_start_of_another_architecture_is_refused(start, match):
    with pytest.raises(ValueError, match=match):
        influence(network(3), Softmax(), (SMALL, LABELS), TEST, LAM, start=start)


def test_a_training_function_that_returns_nothing_is_named():
    X, Y, X_te, y_te = case(Squared(), 3)
    one = influence(network(3), Squared(), (X, Y), (X_te, y_te), LAM)
    with pytest.raises(TypeError, match=r"train\(\[\]\) returned NoneType; let it return the trai"):
        trust(one, lambda without: None)
    frozen = network(3).requires_grad_(False)
    assert trust(one, lambda without: frozen, k=2).actual.tolist() == [[0.0] * 4] * 2


def test_bad_input():
    net, (X, Y, X_te, y_te) = network(3), case(Squared(), 3)
    with pytest.raises(ValueError, match=r"Y has shape \(9, 1\), but the outputs have \(9, 3\)"):
        influence(net, Squared(), (X, Y[:, :1]), (X_te, y_te), LAM)
    with pytest.raises(ValueError, match=r"y_te has shape \(4,\), but"):
        influence(net, Squared(), (X, Y), (X_te, y_te[:, 0]), LAM)
    with pytest.raises(ValueError, match="lam must be a finite number > 0"):
        influence(net, Squared(), (X, Y), (X_te, y_te), 0)
    with pytest.raises(ValueError, match="training mode"):
        influence(network(3).train(), Squared(), (X, Y), (X_te, y_te), LAM)
    one = influence(net, Squared(), (X, Y), (X_te, y_te), LAM)
    with pytest.raises(ValueError, match="k = 10 exceeds the 9 training points"):
        trust(one, lambda without: net, k=10)
    with pytest.raises(ValueError, match="k must be at least 2"):
        trust(one, lambda without: net, k=1)
    X, Y, X_te, y_te = case(Softmax(), 3)
    for labels in ([0, 1, 2, 3, 0, 1, 2, 0, 1], [0, 1, 2, -1, 0, 1, 2, 0, 1]):
        with pytest.raises(ValueError, match=r"Y has the class (3|-1), .* 3 outputs; number .* 2"):
            influence(net, Softmax(), (X, labels), (X_te, y_te), LAM)
    with pytest.raises(ValueError, match=r"Y must be 0 or 1 for BCEWithLogitsLoss, not -1"):
        influence(net, nn.BCEWithLogitsLoss(), (X, 2 * Y - 1), (X_te, y_te), LAM)
    for loss in (nn.CrossEntropyLoss(label_smoothing=0.1), nn.NLLLoss(), nn.functional.mse_loss):
        with pytest.raises(TypeError, match="loss must be an object of lib.losses, or nn.CrossEnt"):
            influence(net, loss, (X, Y), (X_te, y_te), LAM)
    with pytest.raises(TypeError, match="without weight, not CrossEntropyLoss"):
        weighted = nn.CrossEntropyLoss(weight=torch.ones(3))
        influence(net, weighted, (X, Y), (X_te, y_te), LAM)
    net[0].weight.data[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"model\(X\) has 27 values that are not finite"):
        influence(net, Softmax(), (X, Y), (X_te, y_te), LAM)


def test_bad_input_of_the_full_hessian():
    net, pair = deep_network(Squared()), ((X, Y[:, None]), (X_TE, np.ones((3, 1))))
    with pytest.raises(IndexError, match="points = 7 is out of range; use 0 to 6"):
        full_influence(net, Squared(), *pair, LAM_2, [7])
    with pytest.raises(IndexError, match=r"points must be one or several integers, not \[\]; pass"):
        full_influence(net, Squared(), *pair, LAM_2, [])
    with pytest.raises(ValueError, match=r"hold has shape \(1, 2\), but θ has 50 numbers"):
        full_influence(net, Squared(), *pair, LAM_2, [0], hold=[[1.0, 2.0]])
    with pytest.raises(RuntimeError, match="conjugate gradients took 2 steps in vain"):
        full_influence(net, Squared(), *pair, LAM_2, [0], tol=1e-12, steps=2)
    far = (X, 1e3 * Y[:, None])
    with pytest.raises(RuntimeError, match="the Hessian is not positive: the module is not at a"):
        full_influence(net, Squared(), far, pair[1], 1e-6, POINTS)
    with pytest.raises(TypeError, match="loss must be an object of lib.losses, .* not 'squared'"):
        full_influence(net, "squared", *pair, LAM_2, [0])


def test_measures_of_trust_by_hand():
    given = {"ihvp": np.array([[0.5, -2.0]]), "newton": np.array([[1.0, -4.0]])}
    seen = Trust(
        np.array([3]), np.array([0.5]), np.array([[1.0, -3.0]]), given, np.array([0.1, 0.3])
    )
    assert seen.error("ihvp") == 1.5 / 4 and seen.error("newton") == 1 / 4
    assert seen.correlation("ihvp") == pytest.approx(1) == seen.correlation("newton")
    assert seen.noise == pytest.approx(0.1)
    assert "noise      0.100 of an influence" in str(seen)
    assert "ihvp       correlation 1.000  relative error 0.375" in str(seen)


def test_a_loader_is_read_as_it_collates():
    X, Y, X_te, y_te = case(Squared(), 2, n=20)
    net = linear(X, Y)([]).eval()
    pairs = TensorDataset(torch.as_tensor(X / 2), torch.as_tensor(Y))

    def twice(batch):
        return tuple(
            torch.stack(part) * s for part, s in zip(zip(*batch, strict=True), (2, 1), strict=True)
        )

    one = influence(net, Squared(), (X, Y), (X_te, y_te), LAM)
    loader = DataLoader(pairs, batch_size=7, shuffle=True, collate_fn=twice)
    two = influence(net, Squared(), loader, (X_te, y_te), LAM)
    np.testing.assert_array_equal(one.newton, two.newton)


def test_a_loader_that_draws_other_points_is_refused():
    X, Y, X_te, y_te = case(Squared(), 2, n=20)
    net, pairs = linear(X, Y)([]).eval(), TensorDataset(torch.as_tensor(X), torch.as_tensor(Y))
    for sampler in (SubsetRandomSampler([0, 1]), WeightedRandomSampler([1.0] * 20, 20)):
        loader = DataLoader(pairs, batch_size=7, sampler=sampler)
        words = f"train has a {type(sampler).__name__}, which may leave points out or count them tw"
        with pytest.raises(ValueError, match=words):
            influence(net, Squared(), loader, (X_te, y_te), LAM)


def test_bad_input_of_trust_and_of_the_full_hessian():
    X, Y, X_te, y_te = case(Squared(), 2, n=20)
    train = linear(X, Y)
    net, data = train([]).eval(), ((X, Y), (X_te, y_te))
    one = influence(net, Squared(), *data, LAM)
    with pytest.raises(TypeError, match="estimate must be a lib.torch_influence.ModuleInf"):
        trust(3, train)
    with pytest.raises(TypeError, match="train must be a function of the points to leave out"):
        trust(one, 3)
    words = r"train\(\[\]\) returned a module with outputs .*, 3\), but the estimate has .*, 2\)"
    with pytest.raises(ValueError, match=words):
        trust(one, lambda without: nn.Linear(5, 3).double())
    for how, error, message in (
        ({"tol": 0}, ValueError, "tol must be a finite number > 0, not 0"),
        ({"tol": 1}, ValueError, "tol = 1 asks for no step; choose one below 1, such as 1e-6"),
        ({"steps": 0}, ValueError, "steps must be at least 1, not 0; choose a larger one"),
        ({"hold": "x"}, TypeError, "hold must be a real numeric array, not str"),
        ({"hold": np.full((1, 10), np.nan)}, ValueError, "hold has 10 values that are not finite"),
    ):
        with pytest.raises(error, match=message):
            full_influence(net, Squared(), *data, LAM, [0], **how)
