"""Neural tangent kernels of wide ReLU networks: of two layers (Eq 4), and of any depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from lib import check

DIAGONAL = 0.5
"""K∞(x, x), for every x of unit norm."""

NEAR = 1e-3  # where x·x' is closer to ±1 than this, the angle comes from chords


def ntk(X, X2=None, *, dtype: str = "float64", block: int = 128):
    """Return the neural tangent kernel K∞ of the two-layer ReLU network.

    Eq 4:  K∞(x, x') = u (π − arccos u) / 2π,  u = x·x',  for inputs of unit norm.

    X (n, d) and X2 (t, d) have rows of unit norm; without X2 it is X itself. The result is (n, n)
    or (n, t), dimensionless, in [-0.09, ½]: a NumPy array, or for a tensor a tensor on the same
    device. It is computed in `dtype`, "float64" or "float32", `block` rows at a time, so that no
    temporary is larger than the result; of ntk(X) only one triangle is computed. The arccosine
    loses half of the digits where u → ±1. There the angle comes from the chords, θ =
    2 atan2(‖x − x'‖, ‖x + x'‖), which loses none. The diagonal is ½ exactly.

    Raises `ValueError` for rows that are not of unit norm, values that are not finite and shapes
    that do not match. Source: Zhang and Zhang (2022), Eq 4; Jacot, Gabriel and Hongler (2018).

    >>> ntk(np.array([[1.0, 0.0], [0.5, 0.75**0.5]])).round(6).tolist()  # 60 degrees apart
    [[0.5, 0.166667], [0.166667, 0.5]]
    """
    return angular(X, X2, _eq_4, DIAGONAL, dtype, block)


def _eq_4(u: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
    """Return Eq 4 for u and π − arccos u, in the memory of the second."""
    return phi.mul_(u).mul_(0.5 / math.pi)


def deep_ntk(
    X, X2=None, *, depth: int, frozen: bool = False, dtype: str = "float64", block: int = 256
):
    """Return the neural tangent kernel of an infinitely wide ReLU network with `depth` layers.

    K = ½ Θᴸ,  Θˡ = Θˡ⁻¹ κ₀(Σˡ⁻¹) + Σˡ,  Σˡ = κ₁(Σˡ⁻¹),  Σ⁰ = Θ⁰ = u = x·x',
    κ₀(u) = (π − arccos u)/π,  κ₁(u) = (u (π − arccos u) + √(1 − u²))/π,

    for f(x) = m^{-1/2} A h_L, h_l = relu(√(2/m) W_l h_{l−1}), h_1 = relu(W_1 x) with L = `depth`
    hidden layers of width m → ∞, all of whose weights begin as N(0, 1) and are trained. With
    `frozen` the read-out A is not trained and the last Σᴸ falls away: depth 1 is then Eq 4, `ntk`.
    Arguments, result and errors are otherwise those of `ntk`, so that
    `functools.partial(deep_ntk, depth=3)` stands wherever `ntk` does. The diagonal is (L + 1)/2
    exactly, L/2 with `frozen`. Angles go from layer to layer without the arccosine, which would
    lose half of the digits where u → 1: 1 − cos θˡ⁺¹ = 2 sin²(θˡ/2) − (sin θˡ − θˡ cos θˡ)/π.

    Raises `ValueError` for a depth below 1 and as `ntk` does.
    Source: Jacot, Gabriel and Hongler (2018); Cho and Saul (2009) for κ₀ and κ₁.

    >>> X = np.array([[1.0, 0.0], [0.5, 0.75**0.5]])  # 60 degrees apart
    >>> deep_ntk(X, depth=1, frozen=True).round(6).tolist()  # Eq 4
    [[0.5, 0.166667], [0.166667, 0.5]]
    >>> deep_ntk(X, depth=3).round(6).tolist()
    [[2.0, 0.868922], [0.868922, 2.0]]
    """
    depth, frozen = check.integer("depth", depth), check.flag("frozen", frozen)
    layers = partial(_layers, depth=depth, frozen=frozen)
    return angular(X, X2, layers, (depth + (not frozen)) / 2, dtype, block)


def _layers(u: torch.Tensor, phi: torch.Tensor, depth: int, frozen: bool) -> torch.Tensor:
    """Return ½ Θᴸ from u and φ = π − θ. Near u = −1, φ keeps the digits that θ would lose."""
    theta = u
    for layer in range(1, depth + 1):
        theta = theta * phi / math.pi
        if not (frozen and layer == depth):
            theta += (torch.sin(phi) - phi * torch.cos(phi)) / math.pi  # Σˡ
        if layer < depth:  # half of 1 − κ₁, see `deep_ntk`
            angle = math.pi - phi
            half = torch.sin(angle / 2) ** 2
            half -= (torch.sin(angle) - angle * torch.cos(angle)) / (2 * math.pi)
            phi = math.pi - 2 * torch.asin(half.clamp_(min=0).sqrt())
    return theta / 2


def angular(X, X2, function: Callable, diagonal: float, dtype: str, block: int):
    """Return the kernel function(u, φ) of the angle between unit rows, as `ntk` describes it.

    u = x·x' and φ = π − arccos u, both without loss of digits near u = ±1, are tensors that the
    function may overwrite; `diagonal` is its value for a point with itself.
    """
    A = _points("X", X, dtype)
    B = A if X2 is None else _points("X2", X2, dtype, beside=A)
    if A.shape[1] != B.shape[1]:
        raise ValueError(
            f"X2 has {B.shape[1]} columns, but X has {A.shape[1]}; both need the same inputs"
        )
    block = check.integer("block", block)
    K = products(A, B)
    for start in range(0, len(A), block):
        rows = slice(start, min(start + block, len(A)))
        columns = slice(start if X2 is None else 0, len(B))
        u = K[rows, columns].clone() if K.requires_grad else K[rows, columns]
        K[rows, columns] = function(*_angles(u, A[rows], B[columns], K.numel(), own=X2 is None))
        if X2 is None:
            K[rows.stop :, rows] = K[rows, rows.stop :].T
            square = K[rows, rows]
            square.copy_(torch.tril(square, -1) + torch.tril(square, -1).T)
            square.fill_diagonal_(diagonal)
    return K if isinstance(X, torch.Tensor) else K.numpy()


def _points(name: str, X, dtype: str, beside: torch.Tensor | None = None) -> torch.Tensor:
    """Return the rows of X as a tensor of the dtype asked for, checked in the dtype they have."""
    precision = check.precision(dtype)
    if not isinstance(X, torch.Tensor):
        kind = np.float32 if getattr(X, "dtype", None) == np.float32 else np.float64
        X = check.tensor(name, X, kind)
    elif X.dtype not in (torch.float32, torch.float64):
        X = X.double()
    if beside is not None and X.device != beside.device:
        raise ValueError(f"{name} is on {X.device}, but X is on {beside.device}; move one of them")
    return check.unit(name, X).to(precision)


def products(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Return A Bᵀ. Of A Aᵀ NumPy computes one triangle only, and so takes half of the time."""
    return torch.from_numpy(A.numpy() @ B.numpy().T) if _plain(A, B) else A @ B.T


def _arccos(u: torch.Tensor) -> torch.Tensor:
    """Return arccos u, and overwrite u. NumPy's takes a third of the time, but one core only."""
    if _plain(u) and torch.get_num_threads() <= 2:
        np.arccos(u.numpy(), out=u.numpy())
        return u
    return u.acos()


def _plain(*tensors: torch.Tensor) -> bool:
    """Whether NumPy may compute with them: it knows neither gradients nor a GPU."""
    return not any(T.requires_grad or T.device.type != "cpu" for T in tensors)


def _angles(u: torch.Tensor, A: torch.Tensor, B: torch.Tensor, budget: int, own: bool) -> tuple:
    """Return u and φ = π − arccos u for the rows of A against those of B, of products u = A Bᵀ.

    `budget` numbers bound a temporary. With `own`, B begins with A itself, and the pairs of a point
    with itself are left to the caller.
    """
    if own:
        u.fill_diagonal_(0)
    close = {}
    for i in (u.abs().amax(dim=1) > 1 - NEAR).nonzero().flatten().tolist():
        close[i] = (u[i].abs() > 1 - NEAR).nonzero().flatten()
        u[i, close[i]] = 0  # where arccos loses digits and its slope is infinite, until the chords
    phi = _arccos(u.neg())  # φ = arccos(−u)
    for i, near in close.items():
        for j in near.split(max(1, budget // (2 * A.shape[1]))):
            u[i, j], phi[i, j] = _from_chords(A[i], B[j])
    return u, phi


def _from_chords(x: torch.Tensor, Y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return u and φ for x (d,) and each row y of Y, from the chords ‖x − y‖ and ‖x + y‖."""
    minus = torch.linalg.vector_norm(Y - x, dim=1)
    plus = torch.linalg.vector_norm(Y + x, dim=1)
    return torch.cos(2 * torch.atan2(minus, plus)), 2 * torch.atan2(plus, minus)
