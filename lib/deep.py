"""Fully connected ReLU networks of any depth, and their neural tangent kernel at infinite width."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from lib import check
from lib.kernel import angular


def deep_ntk(
    X, X2=None, *, depth: int, frozen: bool = False, dtype: str = "float64", block: int = 256
):
    """Return the neural tangent kernel of an infinitely wide ReLU network with `depth` layers.

    K = ½ Θᴸ,  Θˡ = Θˡ⁻¹ κ₀(Σˡ⁻¹) + Σˡ,  Σˡ = κ₁(Σˡ⁻¹),  Σ⁰ = Θ⁰ = u = x·x',
    κ₀(u) = (π − arccos u)/π,  κ₁(u) = (u (π − arccos u) + √(1 − u²))/π,

    for the network `Deep` with L = `depth` hidden layers, all of whose weights are trained. With
    `frozen` the read-out is not trained and the last Σᴸ falls away: depth 1 is then Eq 4,
    `lib.kernel.ntk`. Arguments, result and errors are otherwise those of `ntk`, so that
    `functools.partial(deep_ntk, depth=3)` stands wherever `ntk` does. The diagonal is (L + 1)/2
    exactly, L/2 with `frozen`. Angles go from layer to layer without the arccosine, which would
    lose half of the digits where u → 1: 1 − cos θˡ⁺¹ = 2 sin²(θˡ/2) − (sin θˡ − θˡ cos θˡ)/π.

    Raises `ValueError` for a depth below 1 and as `ntk` does.
    Source: Jacot, Gabriel and Hongler (2018); Cho and Saul (2009) for κ₀ and κ₁.

    >>> import numpy as np
    >>> X = np.array([[1.0, 0.0], [0.5, 0.75**0.5]])  # 60 degrees apart
    >>> deep_ntk(X, depth=1, frozen=True).round(6).tolist()  # Eq 4
    [[0.5, 0.166667], [0.166667, 0.5]]
    >>> deep_ntk(X, depth=3).round(6).tolist()
    [[2.0, 0.868922], [0.868922, 2.0]]
    """
    depth = check.integer("depth", depth)
    if not isinstance(frozen, bool):
        raise TypeError(f"frozen must be True or False, not {frozen!r}; pass one of them")
    layers = partial(_layers, depth=depth, frozen=frozen)
    return angular(X, X2, layers, (depth + (not frozen)) / 2, dtype, block)


def _layers(u: torch.Tensor, phi: torch.Tensor, depth: int, frozen: bool) -> torch.Tensor:
    """Return ½ Θᴸ from u and φ = π − θ. Near u = −1, φ keeps the digits that θ would lose."""
    theta = u
    for layer in range(1, depth + 1):
        theta = theta * phi / math.pi
        if not (frozen and layer == depth):
            theta += (torch.sin(phi) - phi * torch.cos(phi)) / math.pi  # Σˡ
        if layer < depth:
            phi = math.pi - _next(math.pi - phi)
    return theta / 2


def _next(angle: torch.Tensor) -> torch.Tensor:
    """Return the angle behind a layer of two inputs at that angle: arccos κ₁(cos angle)."""
    bent = (torch.sin(angle) - angle * torch.cos(angle)) / math.pi
    half = torch.sin(angle / 2) ** 2 - bent / 2  # half of 1 − κ₁
    return 2 * torch.asin(half.clamp_(min=0).sqrt())


class Deep(nn.Module):
    """A fully connected network with L = `depth` hidden layers of `width` m, and c outputs.

    f(x) = m^{-1/2} A h_L,  h_l = relu(√(2/m) W_l h_{l−1}),  h_1 = relu(W_1 x),  in the NTK
    parametrisation: all weights are N(0, 1). For m → ∞ and inputs of unit norm its kernel is
    `deep_ntk`, times the identity between outputs; Eq 1 is depth 1 with κ = 1, but for the signs a.

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
