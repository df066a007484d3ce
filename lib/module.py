"""The neural tangent kernel of any `torch.nn.Module`, at the parameters that it has (empirical)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev, jvp, vmap

from lib import check
from lib.losses import Softmax


def empirical_ntk(
    model: nn.Module, X, X2=None, *, parameters: Iterable[str] | None = None, trace: bool = False,
    dtype: str = "float64", memory: float = 1e9,
) -> np.ndarray:  # fmt: skip
    """Return the kernel of a module at its present parameters: products of its Jacobians.

    K_θ(x, x') = J(x) J(x')ᵀ,  J(x) = ∂f(x)/∂θ, (c, p).

    The module maps X (n, ...) to (n,), or to (n, c) with c outputs; X2 (t, ...) is X itself if it
    is left out. The result is (n, t); with c outputs (nc, tc), output o of point i in row ic + o;
    with `trace` (n, t), the sum over equal outputs. `parameters` chooses those that θ is made of
    by names with wildcards, such as ["head.*", "blocks.3.*"]: without it, all that require a
    gradient. Arrays become tensors of the module's type, on its device. Jacobians have that type,
    their products are summed in float64, and the result is of `dtype`. They are taken for as many
    points at a time as fit in `memory` bytes, at least one; activations need room beside them.
    `functools.partial(empirical_ntk, model)` stands wherever `lib.kernel.ntk` does.

    The module must be in evaluation mode. There dropout is off, and batch normalisation uses its
    running statistics: an output depends on its own input only, and f is a function of θ. In
    training mode neither holds, and there is no kernel.

    Raises `ValueError` for a module in training mode, outputs that are not (n,) or (n, c), outputs
    that depend on the other points of the batch, and names that no parameter has.
    Source: Jacot, Gabriel and Hongler (2018).

    >>> line = nn.Linear(2, 1).eval()  # J = (x, 1)
    >>> empirical_ntk(line, [[1.0, 2.0], [3.0, 0.0]]).tolist()
    [[6.0, 4.0], [4.0, 10.0]]
    >>> empirical_ntk(line, [[1.0, 2.0]], parameters=["weight"]).tolist()
    [[5.0]]
    """
    f = _Module(model, parameters)
    A, own = f.points("X", X), X2 is None
    B = A if own else f.points("X2", X2)
    c = f.outputs(A)
    width = 1 if trace else c  # rows that a point has in K
    K = torch.empty(len(A) * width, len(B) * width, dtype=check.precision(dtype)).numpy()
    # a block of points has its Jacobians in the module's type, and one more in float64
    step = max(1, int(check.number("memory", memory, above=0) // (24 * c * f.size)))
    for i in range(0, len(A), step):
        left = f.jacobians(A[i : i + step])
        for j in range(i if own else 0, len(B), step):
            right = left if own and i == j else f.jacobians(B[j : j + step])
            block = sum(
                _rows(P, width) @ _rows(Q, width).T for P, Q in zip(left, right, strict=True)
            )
            block = (block if left is not right else (block + block.T) / 2).cpu().numpy()
            K[i * width : (i + step) * width, j * width : (j + step) * width] = block
            if own:
                K[j * width : (j + step) * width, i * width : (i + step) * width] = block.T
    return K


def _rows(J: torch.Tensor, width: int) -> torch.Tensor:
    """Return Jacobians (b, c, p) in float64 with `width` rows a point."""
    return J.double().reshape(len(J) * width, -1)


def outputs(model: nn.Module, X, block: int = 1000) -> np.ndarray:
    """Return the outputs of a module in evaluation mode as float64, (n,) or (n, c).

    Raises `ValueError` for outputs that are not finite, as parameters that are NaN give them.
    """
    f = _Module(model)
    with torch.no_grad():
        found = torch.cat([model(x) for x in f.points("X", X).split(block)]).double()
    check.finite("model(X)", found)
    return found.cpu().numpy()


def labels_like(loss, name: str, y, f: np.ndarray) -> np.ndarray:
    """Return the labels of points with outputs f as `loss` has them, (n, c); check their shape.

    For softmax loss they may be the numbers of the classes, 0 to c − 1.

    >>> labels_like(Softmax(), "Y", [2, 0], np.zeros((2, 3))).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """
    if isinstance(loss, Softmax) and f.ndim == 2 and np.ndim(y) == 1:
        y, c = check.array(name, y, 1), f.shape[1]
        if (bad := y[~np.isin(y, np.arange(c))]).size:
            raise ValueError(
                f"{name} has the class {bad[0]:g}, but the model has {c} outputs; "
                f"number the classes 0 to {c - 1}"
            )
        y = np.eye(c)[y.astype(int)]
    y = loss.labels(name, y, len(f))
    if y.shape != f.shape:
        raise ValueError(
            f"{name} has shape {y.shape}, but the outputs have {f.shape}; pass as many labels a "
            "point as the model has outputs"
        )
    return y.reshape(len(f), -1)


class Centred(nn.Module):
    """The outputs of a module less those it has now: f(x; θ) − f(x; θ₀), 0 until it is trained.

    >>> net = Centred(nn.Linear(2, 1).eval())
    >>> net(torch.ones(1, 2)).tolist(), [name for name, _ in net.named_parameters()]
    ([[0.0]], ['model.weight', 'model.bias'])
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self._start = model, [copy.deepcopy(model)]  # in a list: no part of this one
        self.train(model.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            before = self._start[0](x)
        return self.model(x) - before


class _Module:
    """A module in evaluation mode, as a function of those of its parameters that are chosen."""

    def __init__(self, model: nn.Module, chosen: Iterable[str] | None = None):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
        if any(module.training for module in model.modules()):
            raise ValueError(
                "model is in training mode, where dropout is random and batch normalisation mixes "
                "the points of a batch; call model.eval()"
            )
        self.model = model
        every = dict(model.named_parameters())
        self.theta = {k: every[k].detach() for k in _names(every, chosen)}
        state = {**every, **dict(model.named_buffers())}
        self.rest = {k: v.detach() for k, v in state.items() if k not in self.theta}
        self.size = sum(v.numel() for v in self.theta.values())

    def points(self, name: str, X) -> torch.Tensor:
        """Return X as a tensor on the module's device, numbers with a point in its type."""
        X = X.detach() if isinstance(X, torch.Tensor) else torch.as_tensor(np.array(X))
        if not X.ndim or not len(X):
            raise ValueError(f"{name} has no points: its shape is {tuple(X.shape)}; pass (n, ...)")
        check.finite(name, X)
        like = next(iter(self.theta.values()))
        return X.to(like.device, like.dtype if X.is_floating_point() else None)

    def outputs(self, X: torch.Tensor) -> int:
        """Return how many outputs a point has, once each is seen to depend on its own input."""
        with torch.no_grad():
            f, alone = self.model(X[:2]), self.model(X[[0, 0]])
        if f.ndim not in (1, 2) or len(f) != len(X[:2]):
            raise ValueError(
                f"model maps {len(X[:2])} points to shape {tuple(f.shape)}; let it return one row "
                "a point, (n,) or (n, c)"
            )
        if not torch.allclose(f[0], alone[0], rtol=1e-3, atol=1e-5):
            raise ValueError(
                "model gives a point another output beside another point; turn off what mixes "
                "points, such as batch normalisation without running statistics"
            )
        return f[0].numel()

    def jacobians(self, X: torch.Tensor) -> list[torch.Tensor]:
        """Return ∂f/∂θ at each point, (b, c, p) for each of the parameters."""

        def one(theta, x):
            return functional_call(self.model, (self.rest, theta), (x[None],)).reshape(-1)

        each = vmap(jacrev(one), (None, 0), randomness="error")
        return [J.flatten(2) for J in each(self.theta, X).values()]

    def along(self, v: dict[str, torch.Tensor], X: torch.Tensor, block: int = 1000) -> np.ndarray:
        """Return J v for a change v of θ, shaped like the outputs."""
        Jv = [
            jvp(lambda theta, x=x: functional_call(self.model, (self.rest, theta), (x,)),
                (self.theta,), (v,))[1]
            for x in X.split(block)
        ]  # fmt: skip
        return torch.cat(Jv).detach().double().cpu().numpy()


def _names(every: dict[str, nn.Parameter], chosen: Iterable[str] | None) -> list[str]:
    """Return the names of the parameters that a list of patterns chooses, in the module's order."""
    if chosen is None:
        found = [name for name, p in every.items() if p.requires_grad]
        if not found:
            raise ValueError("model has no parameter that requires a gradient; name some")
        return found
    chosen = [chosen] if isinstance(chosen, str) else list(chosen)
    for pattern in chosen or ["(none)"]:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise ValueError(
                f"parameters has {pattern!r}, which no parameter is called; "
                f"there are {', '.join(every)}"
            )
    return [name for name in every if any(fnmatchcase(name, p) for p in chosen)]
