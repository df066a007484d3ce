"""Train the networks of the comparison, and compute what their estimates are judged by.

Everything goes to one file a network, NAME.npz: data, parameters, checkpoints, the exact IHVP and
the actual influence by retraining. So what reads it needs NumPy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import torch

# torch.func loads these at its first call, and our time should not have that in it either
import torch._decomp.decompositions_for_jvp
import torch._dynamo
from torch import nn
from torch.func import functional_call, grad, hessian, vmap

from bench.peers.plan import HIDDEN, MEMORY, N, Network, T
from bench.peers.side import measured
from lib import data
from lib.ihvp import ihvp
from lib.influence import Influence
from lib.losses import Softmax, Squared
from lib.module import empirical_ntk
from lib.network import initialise
from lib.newton import newton
from lib.problem import Problem
from lib.torch_influence import influence

AWAY = 1e-4  # distance to which pre-activations are moved off their kinks
CHECKPOINTS = (1, 3, 10, 30, 100, 300)  # steps of descent after which TracIn looks


class TwoLayer(nn.Module):
    """Eq 1 as a module: W is trained, and a/√m is a buffer."""

    def __init__(self, W: torch.Tensor, a: torch.Tensor):
        super().__init__()
        self.hidden = nn.Linear(W.shape[1], len(W), bias=False, dtype=W.dtype)
        self.hidden.weight.data = W.clone()
        self.register_buffer("a", a.to(W.dtype)[:, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.hidden(x).relu() @ self.a


class Softmax10(nn.Module):
    """The small network for classes: a smooth activation, and a fixed read-out as in Eq 1."""

    def __init__(self, W: torch.Tensor, a: torch.Tensor):
        super().__init__()
        self.hidden = nn.Linear(W.shape[1], len(W), bias=False, dtype=W.dtype)
        self.hidden.weight.data = W.clone()
        self.register_buffer("a", a.to(W.dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(self.hidden(x)) @ self.a


def small(inputs: int, classes: int, seed: int) -> nn.Module:
    """The softmax network at its start, float64."""
    rng = np.random.default_rng(seed)
    W, a = rng.standard_normal((HIDDEN, inputs)), rng.standard_normal((HIDDEN, classes))
    return Softmax10(torch.as_tensor(W), torch.as_tensor(a / HIDDEN**0.5))


def prepare(network: Network, folder: Path) -> Path:
    """Train a network, compute its oracle, and write NAME.npz; what is there stays."""
    file = folder / f"{network.name}.npz"
    if not file.is_file():
        torch.set_num_threads(1)
        make = two_layer if network.width else softmax
        found = make(network)
        temporary = file.with_suffix(".part.npz")
        np.savez(temporary, **found)
        temporary.replace(file)
    return file


def two_layer(network: Network) -> dict:
    """Eq 1 with Eq 2, trained by Newton's method, and retrained without each point."""
    d = data.load(network.source, n_train=N, n_test=T, seed=network.seed)
    p = Problem(
        d.X, d.Y, d.X_te, lam=network.lam, m=network.width, kappa=network.kappa, seed=network.seed
    )
    began = process_time()
    begin = newton(p, settle_steps=0)
    trained = newton(p, start=begin)
    training = process_time() - began
    began = process_time()
    without = np.array([newton(p, start=begin, remove=i).f_te for i in range(N)])
    retraining = process_time() - began
    actual = Influence(trained.f_te, d.Y_te, without - trained.f_te).exact

    runs = [measured(lambda: ihvp(trained, d.Y_te)) for _ in range(3)]
    (counted, _, memory), seconds = runs[0], min(one[1] for one in runs)

    W0, a = (torch.as_tensor(v) for v in initialise(d.X.shape[1], p.m, p.kappa, network.seed))
    a, X = a / p.m**0.5, torch.as_tensor(d.X)
    W = off_kinks((W0 + X.T @ (trained.C.double() * p.a[:, None]).T).T, X)
    model = TwoLayer(W.float(), a.float())
    points = (d.X, d.Y[:, None]), (d.X_te, d.Y_te[:, None])
    begun, y = TwoLayer(W0.T, a).eval(), torch.as_tensor(points[0][1])

    def loss():
        pull = ((begun.hidden.weight - W0.T) ** 2).sum()
        return 0.5 * ((begun(X) - y) ** 2).sum() + 0.5 * network.lam * pull

    steps = descend(begun, loss, X, network.lam)
    return steps | {"values": np.linalg.eigvalsh(empirical_ntk(model.double().eval(), X))[::-1]} | {
        **oracle(model, Squared(), *points, network.lam), "actual": actual, "a": a.float().numpy(),
        "hidden.weight": W.float().numpy(), "X": d.X, "Y": d.Y, "X_te": d.X_te, "Y_te": d.Y_te,
        "training": training, "retraining": retraining, "lam": network.lam, "counted": counted,
        "counted seconds": seconds, "counted memory": memory,
    }  # fmt: skip


def off_kinks(W: torch.Tensor, X: torch.Tensor, away: float = AWAY) -> torch.Tensor:
    """Return W (m, d) moved a little, so that no pre-activation is closer to 0 than `away`.

    A kink holds a share of the pairs of neuron and point at 0, and there rounding would choose the
    activation, differently in each library. Each such pair keeps its side, at a distance of `away`.

    >>> off_kinks(torch.tensor([[1.0, 1e-9]]), torch.eye(2), away=0.5).tolist()
    [[1.0, 0.5]]
    """
    W = W.clone()
    for _ in range(20):  # moving one pair may bring another closer
        Z = W @ X.T
        near = Z.abs() < away * (1 - 1e-6)
        if not near.any():
            return W
        for r in torch.nonzero(near.any(dim=1))[:, 0]:
            x, z = X[near[r]], Z[r, near[r]]
            goal = torch.where(z >= 0, away, -away) * 1.5
            W[r] += torch.linalg.lstsq(x, (goal - z)[:, None]).solution[:, 0]
    return W


def descend(model: nn.Module, loss: Callable, X, lam: float) -> dict[str, np.ndarray]:
    """Gradient descent from the start in steps of 1/(λ_max + λ); W after some, "checkpoint k"."""
    W, found = model.hidden.weight, {}
    rate = 1 / (float(np.linalg.eigvalsh(empirical_ntk(model, X))[-1]) + lam)
    for step in range(1, max(CHECKPOINTS) + 1):
        (gradient,) = torch.autograd.grad(loss(), W)
        with torch.no_grad():
            W -= rate * gradient
        if step in CHECKPOINTS:
            found[f"checkpoint {len(found)}"] = W.detach().float().numpy().copy()
    return found


def oracle(model: nn.Module, loss, train, test, lam: float) -> dict:
    """The exact IHVP by the dual solution, and what its formula misses: leverages."""
    model = model.double().eval()
    one, twice = (influence(model, loss, train, test, x, memory=MEMORY) for x in (lam, 2 * lam))
    return {"ihvp": one.ihvp, "h": one.h, "twice": twice.ihvp, "h twice": twice.h,
            "newton": one.newton, "rescaled": one.rescaled}  # fmt: skip


def softmax(network: Network) -> dict:
    """The small network with softmax loss and weight decay λ, at its minimum and without each."""
    d = data.load(network.source, n_train=N, n_test=T, seed=network.seed)
    classes = d.Y.shape[1]
    X, X_te = (torch.as_tensor(x) for x in (d.X, d.X_te))
    own, own_te = (torch.as_tensor(y.argmax(axis=1)) for y in (d.Y, d.Y_te))
    begun, model = (small(d.X.shape[1], classes, network.seed) for _ in range(2))
    steps = descend(begun.eval(), lambda: objective(begun, X, own, network.lam), X, network.lam)
    began = process_time()
    minimise(model, X, own, network.lam)
    training = process_time() - began
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def losses() -> np.ndarray:
        with torch.no_grad():
            return nn.functional.cross_entropy(model(X_te), own_te, reduction="none").numpy()

    before, actual, began = losses(), [], process_time()
    factor = torch.linalg.cholesky(hessian_of(model, X, own, network.lam))
    for i in range(N):
        kept = torch.arange(N) != i
        model.load_state_dict(state)
        chords(model, X[kept], own[kept], network.lam, factor)
        actual.append(losses() - before)
    retraining = process_time() - began
    model.load_state_dict({k: v.float() for k, v in state.items()})  # what the peers are given
    full = full_hessian(model, X, own, X_te, own_te, network.lam)
    found = oracle(model, Softmax(), (d.X, d.Y), (d.X_te, d.Y_te), network.lam)
    found |= {"gauss-newton": found["ihvp"], "ihvp": full, "actual": np.array(actual)}
    found |= {k: v.float().numpy() for k, v in state.items()}
    return steps | found | {"X": d.X, "Y": own.numpy(), "X_te": d.X_te, "Y_te": own_te.numpy(),
                    "training": training, "retraining": retraining, "lam": network.lam}  # fmt: skip


def objective(model: nn.Module, X, own, lam: float) -> torch.Tensor:
    """Σ ℓ + ½ λ ‖θ‖²."""
    loss = nn.functional.cross_entropy(model(X), own, reduction="sum")
    return loss + 0.5 * lam * sum((p**2).sum() for p in model.parameters())


def minimise(model: nn.Module, X, own, lam: float) -> None:
    """Full-batch L-BFGS from where the model is, and Newton's method at the end."""
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=3000, tolerance_grad=1e-5, tolerance_change=0,
        history_size=30, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimiser.zero_grad()
        loss = objective(model, X, own, lam)
        loss.backward()
        return loss

    optimiser.step(closure)
    for _ in range(3):
        chords(model, X, own, lam, torch.linalg.cholesky(hessian_of(model, X, own, lam)))


def chords(model: nn.Module, X, own, lam: float, factor, steps: int = 300) -> None:
    """Newton steps with one factor of the Hessian, halved until the objective falls."""
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]
    for _ in range(steps):
        value = objective(model, X, own, lam)
        parts = torch.autograd.grad(value, parameters)
        gradient = torch.cat([g.reshape(-1) for g in parts])
        if gradient.norm() < 1e-7:
            return
        step = torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        size, moved = 1.0, 0.0
        with torch.no_grad():
            while size > 1e-3:
                for p, move in zip(parameters, step.split(sizes), strict=True):
                    p -= (size - moved) * move.reshape(p.shape)
                moved = size
                if objective(model, X, own, lam) <= value:
                    break
                size /= 2
    if gradient.norm() > 1e-4:
        raise RuntimeError(f"training did not come to rest: its gradient is {gradient.norm():.1e}")


def flat_loss(model: nn.Module):
    """The parameters as one vector, and the summed loss as a function of it, x and y."""
    names, shapes = zip(*((k, v.shape) for k, v in model.named_parameters()), strict=True)

    def loss(theta, x, y):
        parts = theta.split([s.numel() for s in shapes])
        state = {k: p.reshape(s) for k, p, s in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(functional_call(model, state, (x,)), y, reduction="sum")

    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]), loss


def hessian_of(model: nn.Module, X, own, lam: float) -> torch.Tensor:
    """∇² of Σ ℓ + ½ λ ‖θ‖² in full, (p, p)."""
    theta, loss = flat_loss(model)
    return hessian(loss)(theta, X, own) + lam * torch.eye(len(theta), dtype=theta.dtype)


def full_hessian(model, X, own, X_te, own_te, lam: float) -> np.ndarray:
    """Exact IHVP with ∇²ℓ in full, (n, t): dense, float64, for few parameters."""
    theta, loss = flat_loss(model)
    one = vmap(grad(lambda theta, x, y: loss(theta, x[None], y[None])), (None, 0, 0))
    H = hessian_of(model, X, own, lam)
    return (one(theta, X, own) @ torch.linalg.solve(H, one(theta, X_te, own_te).T)).numpy()
