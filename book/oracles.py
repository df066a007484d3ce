"""The loss, the fit (Eq 5, 6) and deep networks as written, to hold the closed forms to."""

from __future__ import annotations

import copy

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve
from torch import nn
from torch.func import functional_call

from lib import check


def objective(K, Y, lam: float, coefficients) -> float:
    """Return the loss of kernel ridge regression at f = Σ_j c_j K∞(·, x_j).

    Eq 5:  ½ ‖Kc − Y‖² + ½ λ cᵀKc:  a sum over the training points, not a mean, and over outputs.

    K is (n, n), Y and `coefficients` are (n,) or (n, c); the result is in squared label units.
    Raises `ValueError` for bad shapes or values. Source: Zhang and Zhang (2022), Eq 5.

    >>> objective([[0.5]], [1.0], 0.5, [1.0])
    0.25
    """
    K, Y, lam = check.regression(K, Y, lam)
    c = check.array("coefficients", coefficients, ndim=(1, 2))
    if c.shape != Y.shape:
        raise ValueError(f"coefficients has shape {c.shape}, but Y has {Y.shape}; pass one a label")
    Kc = K @ c
    return float(0.5 * np.sum((Kc - Y) ** 2) + 0.5 * lam * np.sum(c * Kc))


def refit_without(K, k, Y, lam: float, removed) -> np.ndarray:
    """Return the predictions of a model fitted afresh to what `removed` leaves, (t,) or (t, c).

    Eq 6 on K_{∖I} and Y_{∖I}: brute force, one factorisation a call, to hold the closed forms to.

    K is (n, n), k (n, t) or (n,), Y (n,) or (n, c) and λ ≥ 0 as for `Ridge`; `removed` is an index
    or a list of them, and [] removes none. A single column `k` of shape (n,) gives a number, or
    (c,). Raises `LinAlgError` if what is left is singular, `ValueError` for bad values,
    `IndexError` for bad indices.

    >>> K, k = [[0.5, 0.0], [0.0, 0.5]], [[0.5], [0.25]]
    >>> refit_without(K, k, [1.0, -1.0], 0.5, 0).tolist()
    [-0.25]
    """
    K, Y, lam = check.regression(K, Y, lam)
    columns = check.columns(k, len(Y))
    k = columns[:, 0] if np.ndim(k) == 1 else columns
    if np.size(removed):
        removed = check.indices("removed", removed, len(Y))
    keep = np.delete(np.arange(len(Y)), removed)
    A = K[np.ix_(keep, keep)]
    A[np.diag_indices(len(keep))] += lam
    return k[keep].T @ cho_solve(cho_factor(A.T, lower=True, overwrite_a=True), Y[keep])


class Deep(nn.Module):
    """A fully connected network with L = `depth` hidden layers of `width` m, and c outputs.

    f(x) = m^{-1/2} A h_L,  h_l = relu(√(2/m) W_l h_{l−1}),  h_1 = relu(W_1 x),  in the NTK
    parametrisation: all weights are N(0, 1). For m → ∞ and inputs of unit norm its kernel is
    `lib.kernel.deep_ntk`, times the identity between outputs; Eq 1 is depth 1 with κ = 1, but for
    the signs a.

    x is (d,) or (n, d); f is (n,), or (n, c) if `outputs` is given. With `frozen` the read-out A is
    no parameter. `activation` takes the place of relu; `seed` draws float64 weights.

    Raises `ValueError` for sizes below 1. Source: Jacot, Gabriel and Hongler (2018).

    >>> net = Deep(2, width=1000, depth=2, seed=0)
    >>> net(torch.eye(2, dtype=torch.float64)).shape, [tuple(p.shape) for p in net.parameters()]
    (torch.Size([2]), [(1, 1000), (1000, 2), (1000, 1000)])
    """

    def __init__(
        self, d: int, *, width: int, depth: int, outputs: int | None = None, frozen: bool = False,
        activation=torch.relu, seed: int,
    ):  # fmt: skip
        super().__init__()
        d, m, depth = (
            check.integer(k, v) for k, v in (("d", d), ("width", width), ("depth", depth))
        )
        c = 1 if outputs is None else check.integer("outputs", outputs)
        draw = torch.Generator().manual_seed(check.integer("seed", seed, at_least=0))
        sizes = [(m, d), *[(m, m)] * (depth - 1), (c, m)]
        drawn = [torch.randn(size, generator=draw, dtype=torch.float64) for size in sizes]
        self.W = nn.ParameterList(drawn[:-1])
        self.A = nn.Parameter(drawn[-1], requires_grad=not frozen)
        self.single, self.activation = outputs is None, activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.activation(x @ self.W[0].T)
        for W in list(self.W)[1:]:
            h = self.activation((2 / len(W)) ** 0.5 * h @ W.T)
        f = h @ self.A.T / self.A.shape[1] ** 0.5
        return f[..., 0] if self.single else f


class Centred(nn.Module):
    """The outputs of a module in evaluation mode less those it has now, 0 until it is trained.

    f(x; θ) − f(x; θ₀). θ₀ are buffers, so that they go where the module goes, in its precision.

    >>> net = Centred(nn.Linear(2, 1).eval()).double()
    >>> x = torch.ones(1, 2, dtype=torch.float64)
    >>> net(x).tolist(), [name for name, _ in net.named_parameters()]
    ([[0.0]], ['model.weight', 'model.bias'])
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self._start = model, [copy.deepcopy(model).eval()]  # a list: none of its parts
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._names = {name: f"start_{name.replace('.', '_')}" for name in state}
        for name, x in state.items():
            self.register_buffer(self._names[name], x.detach().clone())
        self.train(model.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = {name: self.get_buffer(own) for name, own in self._names.items()}
        with torch.no_grad():
            before = functional_call(self._start[0], start, (x,))
        return self.model(x) - before
