"""Any `torch.nn.Module` as a function of its parameters: outputs, losses, kernel, and kinks."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, jacrev, vjp, vmap
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from lib import check
from lib.kernel import products
from lib.losses import Loss


def empirical_ntk(
    model: nn.Module, X, X2=None, *, parameters: Iterable[str] | None = None, trace: bool = False,
    dtype: str = "float64", memory: float = 1e9,
) -> np.ndarray:  # fmt: skip
    """Return the neural tangent kernel of a module at its present parameters (empirical).

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
    that depend on the other points of the batch or on none of the chosen parameters, derivatives
    that are not finite, branches on values, and names that no parameter has.
    Source: Jacot, Gabriel and Hongler (2018).

    >>> line = nn.Linear(2, 1).eval()  # J = (x, 1)
    >>> empirical_ntk(line, [[1.0, 2.0], [3.0, 0.0]]).tolist()
    [[6.0, 4.0], [4.0, 10.0]]
    >>> empirical_ntk(line, [[1.0, 2.0]], parameters=["weight"]).tolist()
    [[5.0]]
    """
    f, own = Function(model, parameters), X2 is None
    A = f.points("X", X)
    B = A[:0] if own else f.points("X2", X2)
    return kernels(f, A, B, own, trace=trace, dtype=dtype, memory=memory)


def kernels(
    f: Function, A: torch.Tensor, B: torch.Tensor, own: bool = True, *, trace: bool = False,
    dtype: str = "float64", memory: float = 1e9,
) -> np.ndarray:  # fmt: skip
    """Return the rows of A in the kernel of `empirical_ntk`: with A itself, if `own`, then with B.

    Both in one, so that the Jacobians of A are taken once where they fit in memory.
    """
    c = f.outputs("X", A[:2])[0].size
    if len(B):
        f.outputs("X2", B[:2])
    width = 1 if check.flag("trace", trace) else c  # rows that a point has in K
    # a block of points has its Jacobians in the module's type, and one more in float64
    step = max(1, int(check.number("memory", memory, above=0) // (24 * c * f.size)))
    parts = [slice(i, i + step) for i in range(0, len(A), step)]
    columns = [(A, j, j.start) for j in parts if own]
    columns += [(B, slice(j, j + step), own * len(A) + j) for j in range(0, len(B), step)]
    K = torch.empty(len(A) * width, (own * len(A) + len(B)) * width, dtype=check.precision(dtype))

    def rows(J):
        return J.double().reshape(len(J) * width, -1)

    def fill(i, j, block):
        K[i * width :, j * width :][: block.shape[0], : block.shape[1]] = block

    moves = False
    for i in parts:
        left = f.jacobians(A[i])
        moves = moves or any(bool(point.any()) for J in left for point in J)
        for points, j, at in columns:
            if points is A and j.start < i.start:
                continue
            if points is A and j is i:
                block = sum(products(P, P) for P in map(rows, left))
                block = (block + block.T) / 2
            else:
                block = sum(map(products, map(rows, left), map(rows, f.jacobians(points[j]))))
            if not torch.isfinite(block).all():
                raise ValueError(
                    "model has derivatives that are not finite, as a root or a norm has at 0; add "
                    "a small number there"
                )
            fill(i.start, at, block)
            if points is A:
                fill(at, i.start, block.T)
    if not moves:
        raise ValueError(
            "outputs do not depend on the chosen parameters, so that every influence would be 0: "
            "no_grad, detach or sign in forward? Take it out, or choose other parameters"
        )
    return K.numpy()


def outputs(model: nn.Module, X, block: int = 1000) -> np.ndarray:
    """Return the outputs of a module in evaluation mode as float64, (n,) or (n, c).

    Raises `ValueError` for points that the module cannot take, and outputs that are of another
    shape, depend on other points or are not finite, as parameters that are NaN give them.
    """
    f = Function(model, ["*"])
    return f.outputs("X", f.points("X", X), block)


def parameters(model: nn.Module) -> tuple:
    """Return the function from one vector to named parameters, and those of the module, (p,)."""
    f = Function(model)
    return f.split, f.vector


class Function:
    """A module in evaluation mode, as a function of those of its parameters that are chosen.

    `theta` are these parameters, {name: tensor}, and `size` is the number p of their entries.
    """

    def __init__(self, model: nn.Module, chosen: Iterable[str] | None = None):
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module, not {type(model).__name__}; pass the module"
            )
        if any(module.training for module in model.modules()):
            raise ValueError(
                "model is in training mode, where dropout is random and batch normalisation mixes "
                "the points of a batch; call model.eval()"
            )
        if isinstance(model, nn.DataParallel | torch.jit.ScriptModule):
            raise TypeError(
                f"model is a {type(model).__name__}, whose parameters cannot be exchanged; pass "
                "the module inside, model.module, or the one before torch.jit"
            )
        self.model = model
        every = dict(model.named_parameters())
        self.theta = {k: every[k].detach() for k in _names(every, chosen)}
        if twofold := [k for k, v in self.theta.items() if v.is_complex()]:
            raise TypeError(f"parameter {twofold[0]!r} is complex; choose parameters that are real")
        state = {**every, **dict(model.named_buffers())}
        self.rest = {k: v.detach() for k, v in state.items() if k not in self.theta}
        self.size = sum(v.numel() for v in self.theta.values())

    def __call__(self, theta: dict, X: torch.Tensor) -> torch.Tensor:
        """Return the outputs at other values of the parameters."""
        return functional_call(self.model, (self.rest, theta), (X,))

    @property
    def vector(self) -> torch.Tensor:
        """The parameters in one vector, (p,)."""
        return torch.cat([v.flatten() for v in self.theta.values()])

    def split(self, v: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the parameters in a vector (p,) by their names."""
        parts = v.split([x.numel() for x in self.theta.values()])
        return {k: x.view_as(y) for x, (k, y) in zip(parts, self.theta.items(), strict=True)}

    def since(self, start: nn.Module) -> dict[str, torch.Tensor]:
        """Return θ less the parameters of the same module at another time."""
        there = dict(start.named_parameters()) if isinstance(start, nn.Module) else {}
        for k, p in self.theta.items():
            if k not in there or there[k].shape != p.shape:
                lacks = f"start has no parameter {k!r} of shape {tuple(p.shape)}"
                raise ValueError(f"{lacks}; pass the model as it was before its training")
        return {k: p - there[k].detach().to(p) for k, p in self.theta.items()}

    def points(self, name: str, X) -> torch.Tensor:
        """Return X as a tensor on the module's device, numbers with a point in its type."""
        if not isinstance(X, torch.Tensor):
            X = check.plain(name, X)
            X = torch.as_tensor(check.array(name, X, tuple(range(1, 9)), X.dtype).copy())
        if not X.ndim or not len(X):
            raise ValueError(f"{name} has no points: its shape is {tuple(X.shape)}; pass (n, ...)")
        check.finite(name, X)
        like = next(iter(self.theta.values()))
        return X.detach().to(like.device, like.dtype if X.is_floating_point() else None)

    def outputs(self, name: str, X: torch.Tensor, block: int = 1000) -> np.ndarray:
        """Return the outputs as float64, (n,) or (n, c), each seen to depend on its own input."""
        try:
            with torch.no_grad():
                *parts, two, twice = (self.model(x) for x in (*X.split(block), X[:2], X[[0, 0]]))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(
                f"model cannot take {name}, {len(X)} points in shape {tuple(X.shape)}: {error}; "
                "pass points of the shape that it was trained on"
            ) from error
        if not isinstance(two, torch.Tensor):
            raise TypeError(
                f"model returns a {type(two).__name__}; wrap it in a module that returns one "
                "tensor, (n,) or (n, c)"
            )
        if two.ndim not in (1, 2) or len(two) != len(X[:2]):
            raise ValueError(
                f"model maps {len(X[:2])} points to shape {tuple(two.shape)}; let it return one "
                "row a point, (n,) or (n, c)"
            )
        if not torch.allclose(two[0], twice[0], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ValueError(
                "model gives a point another output beside another point; turn off what mixes "
                "points, such as batch normalisation without running statistics"
            )
        found = torch.cat(parts).double()
        check.finite(f"model({name})", found)
        return found.cpu().numpy()

    def jacobians(self, X: torch.Tensor) -> list[torch.Tensor]:
        """Return ∂f/∂θ at each point, (b, c, p) for each of the parameters."""
        one = jacrev(lambda theta, x: self(theta, x[None]).reshape(-1))
        try:
            each = vmap(one, (None, 0), randomness="error")(self.theta, X).values()
        except RuntimeError as error:
            if not str(error).startswith("vmap:"):
                raise
            raise ValueError(
                f"model does what torch.func.vmap cannot do ({str(error).split('. ')[0]}); in "
                "forward write torch.where for branches on values, and no .item() or random numbers"
            ) from error
        return [J.flatten(2) for J in each]

    def along(self, v: dict[str, torch.Tensor], X: torch.Tensor, block: int = 1000) -> np.ndarray:
        """Return J v for a change v of θ, shaped like the outputs."""
        Jv = []
        for x in X.split(block):  # Jᵀu is linear in u: weight norm, for one, has no forward mode
            f, back = vjp(lambda theta, x=x: self(theta, x), self.theta)
            Jv.append(vjp(lambda u, back=back: back(u)[0], torch.zeros_like(f))[1](v)[0])
        return torch.cat(Jv).detach().double().cpu().numpy()


class Labelled:
    """Points X, a tensor, with outputs f and labels y of a `Function`, arrays (n, c).

    `data` are those of `lib.torch_influence.influence`; errors name them by their `role`, "train"
    or "test".
    """

    def __init__(self, at: Function, loss: Loss, role: str, data):
        names = ("X_te", "y_te") if role == "test" else ("X", "Y")
        X, Y = _read(role, data)
        self.at, self.loss, self.X = at, loss, at.points(names[0], X)
        f = at.outputs(names[0], self.X)
        self.y = loss.beside(names[1], Y, f).reshape(len(f), -1)
        self.f = f.reshape(self.y.shape)
        self._y = torch.as_tensor(self.y).to(next(iter(at.theta.values())))

    def losses(self, theta: dict | torch.Tensor) -> torch.Tensor:
        """Return the loss of each point at other values of the parameters, (n,)."""
        theta = theta if isinstance(theta, dict) else self.at.split(theta)
        return self.loss.in_torch(self.at(theta, self.X).reshape(self._y.shape), self._y)


def _read(role: str, data) -> tuple:
    """Return the points and labels of (X, Y), a data set or a loader."""
    collate = None
    if isinstance(data, DataLoader):
        if not isinstance(data.sampler, RandomSampler | SequentialSampler):
            raise ValueError(
                f"{role} has a {type(data.sampler).__name__}, which may leave points out or count "
                "them twice; pass the data set, or a Subset of the points that it draws"
            )
        data, collate = data.dataset, data.collate_fn
    kept = isinstance(data, Dataset) and hasattr(data, "__len__")  # one that can be read twice
    pair = data[0] if kept else data
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        size = f" of {len(pair)}" if hasattr(pair, "__len__") else ""
        raise TypeError(
            f"{role} must be (X, Y), a data set of torch with such pairs or a DataLoader, not a "
            f"{type(pair).__name__}{size}; pass (X, Y)"
        )
    if kept:
        if not torch.equal(*(torch.as_tensor(x) for x in (pair[0], data[0][0]))):
            raise ValueError(
                f"{role} gives another point each time that it is read; switch off random "
                "augmentation"
            )
        batches = DataLoader(data, 256, collate_fn=collate)
        pair = (torch.cat(parts) for parts in zip(*batches, strict=True))
    X, Y = pair
    return X, Y.detach().cpu() if isinstance(Y, torch.Tensor) else Y


def _names(every: dict[str, nn.Parameter], chosen: Iterable[str] | None) -> list[str]:
    """Return the names of the parameters that a list of patterns chooses, in the module's order."""
    if chosen is None:
        found = [name for name, p in every.items() if p.requires_grad]
        if not found:
            raise ValueError("model has no parameter that requires a gradient; name some")
        return found
    chosen = [chosen] if isinstance(chosen, str) else chosen
    chosen = list(check.several("parameters", chosen, "names"))
    if other := [one for one in chosen if not isinstance(one, str)]:
        raise TypeError(f"parameters has {other[0]!r}, which is no text; pass names")
    for pattern in chosen or ["(none)"]:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise ValueError(
                f"parameters has {pattern!r}, which no parameter is called; "
                f"there are {', '.join(every)}"
            )
    return [name for name in every if any(fnmatchcase(name, p) for p in chosen)]


def kinks(
    model: nn.Module, X, *, tol: float = 1e-3, parameters: Iterable[str] | None = None
) -> np.ndarray:
    """Return how parameters move the inputs of ReLUs that lie on their kink, (q, p): ∇_θ z.

    Training with ReLU comes to rest where the inputs z of some ReLUs are 0 at some points: on one
    side of the kink the objective falls towards it, on the other it rises. A derivative sees one
    side only, but such a minimum stays on its kinks when the objective changes a little. So
    `lib.torch_influence.full_influence(..., hold=kinks(model, X))` moves along directions that keep
    these z.

    A pair of an input and a point of X is on the kink if abs(z) ≤ `tol` times the rms of the inputs
    of this ReLU. ReLUs are the `torch.nn.ReLU` in the module. `parameters` chooses θ as in
    `empirical_ntk`.

    Raises `ValueError` for a module without one.
    Source: the kinks are the active manifold of a partly smooth function, Lewis (2002).

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).eval()
    >>> net[0].weight.data = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    >>> kinks(net, [[2.0, 2.0], [3.0, 0.0]]).tolist()  # the first ReLU at the first point
    [[2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    return directions(model, X, on_kink(model, X, tol), parameters=parameters)


def directions(
    model: nn.Module, X, chosen, *, parameters: Iterable[str] | None = None
) -> np.ndarray:
    """Return ∇_θ z of chosen inputs of ReLUs, (q, p); `chosen` is (n, number of inputs).

    Raises `ValueError` for a `chosen` of another number of points.
    """
    f, rows = Function(model, parameters), []
    X = f.points("X", X)
    if len(chosen) != len(X):
        raise ValueError(
            f"chosen has {len(chosen)} rows, but there are {len(X)} points; pass on_kink(model, X)"
        )
    for x, one in zip(X, chosen, strict=True):
        if one.any():

            def inputs(v, x=x, one=one):
                return relu_inputs(model, f.rest | f.split(v), x[None])[0][one]

            rows.append(jacrev(inputs)(f.vector))
    return torch.cat(rows).cpu().numpy() if rows else np.empty((0, f.size))


def on_kink(model: nn.Module, X, tol: float = 1e-3) -> torch.Tensor:
    """Return which inputs of ReLUs lie on their kink, (n, number of inputs), see `kinks`."""
    f = Function(model, ["*"])
    with torch.no_grad():
        z = relu_inputs(model, f.theta, f.points("X", X), each=True)
        return torch.cat([one.abs() <= tol * (one**2).mean().sqrt() for one in z], 1)


def relu_inputs(model: nn.Module, theta: dict, X, each: bool = False, kinds=(nn.ReLU,)):
    """Return the inputs of all ReLUs at parameters θ, (n, number), or of `each`, a list."""
    found = [module for module in model.modules() if isinstance(module, kinds)]
    if not found:
        raise ValueError("model has no torch.nn.ReLU; write its activation as that module")
    seen = []  # copies, since a ReLU may work in place
    hooks = [
        m.register_forward_pre_hook(lambda _, z: seen.append(z[0].flatten(1).clone()))
        for m in found
    ]
    try:
        functional_call(model, theta, (X,))
    finally:
        for hook in hooks:
            hook.remove()
    return seen if each else torch.cat(seen, 1)
