"""Influence in a trained torch module with its full Hessian, and the kinks that it does not see.

`lib.torch_influence` takes the Gauss-Newton part of the Hessian. Here is all of it, by products
with vectors and conjugate gradients, for a few training points at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import nn
from torch.func import functional_call, grad, jvp, vjp, vmap

from lib import check
from lib.many import LOSSES
from lib.module import labels_like, outputs


@dataclass(frozen=True)
class FullInfluence:
    """Estimates for k training points on t test points, see `full_influence`.

    - points, h: (k,) the points, and their leverages 1 − ⟨g_i, s_i⟩/⟨g_i, d_i⟩
    - ihvp: ⟨g_te, s_i⟩, (k, t); rescaled: ⟨g_te, d_i⟩, (k, t)
    - newton: ℓ_te(θ + d_i) − ℓ_te(θ), the network evaluated after the Newton step, (k, t)
    """

    points: np.ndarray
    h: np.ndarray
    ihvp: np.ndarray
    rescaled: np.ndarray
    newton: np.ndarray


def full_influence(
    model: nn.Module, loss, train: tuple, test: tuple, lam: float, points: Iterable[int], *,
    hold=None, tol: float = 1e-6, steps: int = 2000,
) -> FullInfluence:  # fmt: skip
    """Return influence estimates of training points with the full Hessian of a trained module.

    s_i = H⁻¹ g_i,  d_i = (H − ∇²ℓ_i)⁻¹ g_i,  H = Σ_j ∇²ℓ_j + λI,  g_i = ∇ℓ_i, all in θ.

    Arguments are those of `lib.torch_influence.influence`, and `points` the indices of the training
    points. d_i is one exact Newton step of the objective without the point: for a network that is
    linear in θ it is the whole way, and the leverage is h_i. All parameters that require a gradient
    are θ. Conjugate gradients take products of H with vectors until the residual is `tol` of g_i;
    each costs a few gradients on all n points. `hold` (q, p) are directions in θ along which
    nothing moves, such as `kinks`.

    Raises `ValueError` for labels that do not match the outputs, λ ≤ 0 and `hold` of another shape,
    `IndexError` for a point out of range, and `RuntimeError` where H is not positive, so that θ is
    no minimum, or `steps` steps are too few.
    Source: Koh and Liang (2017) for s_i; Zhang and Zhang (2022), Eq 12, is its Gauss-Newton part.

    >>> from lib.losses import Squared
    >>> line = nn.Linear(2, 1, bias=False).double().eval()
    >>> with torch.no_grad():  # the minimum for λ = ½: (1 + ½) w = ±1
    ...     _ = line.weight.copy_(torch.tensor([[2 / 3, -2 / 3]]))
    >>> train, test = (np.eye(2), [[1.0], [-1.0]]), ([[0.6, 0.8]], [[1.0]])
    >>> one = full_influence(line, Squared(), train, test, lam=0.5, points=[0, 1])
    >>> one.h.round(6).tolist(), one.ihvp.round(6).tolist(), one.newton.round(6).tolist()
    ([0.666667, 0.666667], [[0.151111], [-0.201481]], [[0.533333], [-0.462222]])
    """
    lam, at = check.number("lam", lam, above=0), _At(model, loss, train, test)
    points, n = np.array([int(i) for i in points]), len(at.Y)
    if len(bad := points[(points < 0) | (points >= n)]):
        raise IndexError(f"points has {bad[0]}, which is no training point; choose 0 to {n - 1}")
    free = _Free(hold, len(at.theta))
    whole, rows = at.product(np.ones(n), lam, free), []
    for i in points:
        g = free(at.slope(at.theta, at.one(i)))
        s = _solve(whole, g, g / lam, tol, steps)
        d = _solve(at.product(1.0 - np.eye(n)[i], lam, free), g, s, tol, steps)
        rows.append((float(1 - (g @ s) / (g @ d)), at.along(s), at.along(d), at.moved(d)))
    h, *estimates = map(np.array, zip(*rows, strict=True))
    return FullInfluence(points, h, *estimates)


class _At:
    """The losses of a module as functions of its parameters in one vector, at a minimum θ."""

    def __init__(self, model, loss, train, test):
        if (name := type(loss).__name__) not in LOSSES:
            raise TypeError(f"loss must be one of lib.losses, not {name}; pass Squared()")
        self.model, self.value = model, LOSSES[name]
        self.split, self.theta = parameters(model)
        (X, Y), (X_te, y_te) = train, test
        Y = labels_like(loss, "Y", Y, outputs(model, X))
        y_te = labels_like(loss, "y_te", y_te, outputs(model, X_te))
        self.X, self.Y, self.X_te, self.y_te = (
            torch.as_tensor(x).to(self.theta) for x in (X, Y, X_te, y_te)
        )
        self.slope = grad(lambda v, keep: keep @ self.losses(v, self.X, self.Y))

    def losses(self, v, X, Y):
        return self.value(functional_call(self.model, self.split(v), (X,)).reshape(Y.shape), Y)

    def one(self, i):
        return torch.eye(len(self.Y)).to(self.theta)[i]

    def product(self, keep, lam, free):
        """The Hessian without the points that are not kept, times a vector."""
        keep = torch.as_tensor(keep).to(self.theta)

        def times(v):
            v = free(torch.as_tensor(v).to(self.theta).flatten())
            Hv = jvp(lambda u: self.slope(u, keep), (self.theta,), (v,))[1] + lam * v
            if v @ Hv < 0:
                raise RuntimeError(
                    "the Hessian is not positive: the module is not at a minimum of this loss and "
                    "λ; train it longer, or take the Gauss-Newton part, lib.torch_influence"
                )
            return free(Hv).cpu().numpy()

        return times

    def along(self, v):
        """What a small step changes each test loss by, to first order, (t,)."""
        test = partial(self.losses, X=self.X_te, Y=self.y_te)
        return jvp(test, (self.theta,), (v,))[1].cpu().numpy()

    def moved(self, v):
        """What the whole step changes each test loss by, (t,)."""
        with torch.no_grad():
            before, after = (
                self.losses(u, self.X_te, self.y_te) for u in (self.theta, self.theta + v)
            )
        return (after - before).cpu().numpy()


def parameters(model: nn.Module) -> tuple:
    """Return the function from one vector to named parameters, and those of the module, (p,)."""
    theta = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    sizes = [v.numel() for v in theta.values()]

    def split(v):
        parts = zip(theta.items(), v.split(sizes), strict=True)
        return {name: part.view_as(like) for (name, like), part in parts}

    return split, torch.cat([v.flatten() for v in theta.values()])


class _Free:
    """Takes the part along the rows of `hold` out of vectors of size p."""

    def __init__(self, hold, p: int):
        self.Q = None
        if hold is not None and len(hold):
            hold = torch.as_tensor(hold)
            if hold.ndim != 2 or hold.shape[1] != p:
                raise ValueError(
                    f"hold has shape {tuple(hold.shape)}, but θ has {p} numbers; pass (q, {p})"
                )
            U, S, V = torch.linalg.svd(hold.double(), full_matrices=False)
            self.Q = V[S > 1e-9 * S[0]]

    def __call__(self, v):
        return v if self.Q is None else v - (self.Q.to(v).T @ (self.Q.to(v) @ v))


def _solve(times, g, start, tol: float, steps: int):
    A = LinearOperator((len(g),) * 2, matvec=times, dtype=g.cpu().numpy().dtype)
    x, left = cg(A, g.cpu().numpy(), x0=start.cpu().numpy(), rtol=tol, maxiter=steps)
    if left:
        raise RuntimeError(f"conjugate gradients took {steps} steps in vain; allow more `steps`")
    return torch.as_tensor(x).to(g)


def kinks(model: nn.Module, X, *, tol: float = 1e-3) -> np.ndarray:
    """Return how parameters move the inputs of ReLUs that lie on their kink, (q, p): ∇_θ z.

    Training with ReLU comes to rest where the inputs z of some ReLUs are 0 at some points: on one
    side of the kink the objective falls towards it, on the other it rises. A derivative sees one
    side only, but such a minimum stays on its kinks when the objective changes a little. So
    `full_influence(..., hold=kinks(model, X))` moves along directions that keep these z.

    A pair of an input and a point of X is on the kink if abs(z) ≤ `tol` times the rms of the inputs
    of this ReLU. ReLUs are the `torch.nn.ReLU` in the module.

    Raises `ValueError` for a module without one.
    Source: the kinks are the active manifold of a partly smooth function, Lewis (2002).

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).eval()
    >>> with torch.no_grad():
    ...     _ = net[0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    >>> kinks(net, [[2.0, 2.0], [3.0, 0.0]]).tolist()  # the first ReLU at the first point
    [[2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    return directions(model, X, on_kink(model, X, tol))


def directions(model: nn.Module, X, chosen) -> np.ndarray:
    """Return ∇_θ z of chosen inputs of ReLUs, (q, p); `chosen` is (n, number of inputs)."""
    split, theta = parameters(model)
    rows = []
    for x, one in zip(torch.as_tensor(X).to(theta), chosen, strict=True):
        if len(where := one.nonzero()[:, 0]):
            back = vjp(lambda v, x=x: relu_inputs(model, split(v), x[None])[0], theta)[1]
            hot = torch.zeros(len(where), one.numel()).to(theta)
            hot[torch.arange(len(where)), where] = 1
            rows.append(vmap(lambda e, back=back: back(e)[0])(hot))
    return torch.cat(rows).cpu().numpy() if rows else np.empty((0, len(theta)))


def on_kink(model: nn.Module, X, tol: float = 1e-3) -> torch.Tensor:
    """Return which inputs of ReLUs lie on their kink, (n, number of inputs), see `kinks`."""
    split, theta = parameters(model)
    with torch.no_grad():
        z = relu_inputs(model, split(theta), torch.as_tensor(X).to(theta), each=True)
        return torch.cat([one.abs() <= tol * (one**2).mean().sqrt() for one in z], 1)


def relu_inputs(model: nn.Module, theta: dict, X, each: bool = False, kinds=(nn.ReLU,)):
    """Return the inputs of all ReLUs at parameters θ, (n, number), or of `each`, a list."""
    found = [module for module in model.modules() if isinstance(module, kinds)]
    if not found:
        raise ValueError("model has no torch.nn.ReLU; write its activation as that module")
    seen = []
    hooks = [m.register_forward_pre_hook(lambda _, z: seen.append(z[0].flatten(1))) for m in found]
    try:
        functional_call(model, theta, (X,))
    finally:
        for hook in hooks:
            hook.remove()
    return seen if each else torch.cat(seen, 1)
