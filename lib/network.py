"""The two-layer ReLU network (Eq 1) and its kernel, streamed over blocks of neurons.

Block b of 2048 neurons is drawn from the generator of (seed, b), so no weight has to be stored.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lib import check
from lib.product import overlap

DRAWN = 2048  # neurons drawn at a time; part of the definition of the random weights


def neurons(
    d: int, m: int, kappa: float, seed: int, antisymmetric: bool = False
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Draw the network of Eq 1 in blocks: (which neurons, weights (b, d), signs (b,)), float32.

    Arguments and errors are those of `initialise`.
    """
    d, m = check.integer("d", d), check.integer("m", m)
    antisymmetric = check.flag("antisymmetric", antisymmetric)
    seed = check.integer("seed", seed, at_least=0)
    kappa = check.number("kappa", kappa, above=0)
    if not 1e-30 < kappa < 1e30:
        raise ValueError(f"kappa = {kappa:g} is beyond single precision; choose one near 0.1")
    if antisymmetric and m % 2:
        raise ValueError(f"m must be even for antisymmetric pairs, not {m}; use {m + 1}")
    for block, start in enumerate(range(0, m, DRAWN)):
        size = min(DRAWN, m - start)
        drawn = size // 2 if antisymmetric else size
        rng = np.random.default_rng([seed, block])
        a = (1 - 2 * rng.integers(2, size=drawn)).astype(np.float32)
        W = np.float32(kappa) * rng.standard_normal((drawn, d), dtype=np.float32)
        if antisymmetric:
            a, W = np.concatenate([a, -a]), np.concatenate([W, W])
        yield slice(start, start + size), W, a


def initialise(
    d: int, m: int, kappa: float, seed: int, antisymmetric: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draw W(0) (d, m) and a (m,) of Eq 1: w_r(0) ~ N(0, kappa² I_d), a_r = ±1.

    `antisymmetric` draws pairs (w, a), (w, -a), so that f = 0 at initialisation; m must be even.

    Raises `ValueError` for kappa <= 0, m < 1, an odd m with antisymmetric pairs, a negative seed.

    Source: arXiv 2112.08297, section 2.

    >>> W, a = initialise(d=3, m=4, kappa=0.1, seed=0, antisymmetric=True)
    >>> W.shape, int(a.sum()), bool((W[:, :2] == W[:, 2:]).all())
    ((3, 4), 0, True)
    """
    blocks = list(neurons(d, m, kappa, seed, antisymmetric))
    W = np.concatenate([W for _, W, _ in blocks]).T.astype(np.float64)
    return W, np.concatenate([a for _, _, a in blocks]).astype(np.float64)


def forward(X, W, a):
    """Evaluate Eq 1, f(x; W) = m^{-1/2} Σ_r a_r relu(w_r·x), for X (n, d), W (d, m), a (m,).

    Takes NumPy arrays or torch tensors (so it can be differentiated) and returns f (n,).

    >>> X, W, a = np.eye(2), np.array([[3.0, -1.0], [2.0, 4.0]]), np.array([1.0, -1.0])
    >>> (forward(X, W, a) * 2**0.5).round(12).tolist()
    [3.0, -2.0]
    """
    return (X @ W).clip(min=0) @ a / len(a) ** 0.5


def active(Z: torch.Tensor) -> torch.Tensor:
    """Return the activation pattern relu'(Z), 1 where Z > 0 and else 0, in the dtype of Z.

    >>> active(torch.tensor([-2.0, 0.0, 0.5])).tolist()
    [0.0, 0.0, 1.0]
    """
    return Z.sign().clamp_(min=0)  # on the CPU many times as fast as a comparison and `where`


def finite_kernel(
    X, X2=None, *, m: int, seed: int, antisymmetric: bool = False, dtype: str = "float32",
    device: str = "cpu",
) -> np.ndarray:  # fmt: skip
    """Kernel of the network of width m at initialisation, for X (n, d), X2 (n2, d), unit rows.

    K_m(x, x') = ∇f(x)·∇f(x') = x·x' · (1/m) #{r : w_r·x > 0 and w_r·x' > 0}, whose mean is K∞
    (Eq 4). It does not depend on kappa or on a, and relu'(0) = 0. Returns (n, n2) float64;
    `dtype` is the precision in which w_r·x is compared with 0 and the counts are exact for
    m < 2²⁴. Time n·n2·m + n·d·m products; memory 2048·(n + n2 + d) + n·n2 numbers.

    Raises `ValueError` for rows that are not of unit norm and as `initialise` does.

    >>> finite_kernel(np.eye(2), m=1000, seed=0).tolist()  # for m → ∞ it is ½ on the diagonal
    [[0.484, 0.0], [0.0, 0.523]]
    """
    dtype, m, device = check.precision(dtype), check.integer("m", m), check.device(device)
    X = check.unit("X", check.tensor("X", X).to(device))
    X2 = X if X2 is None else check.tensor("X2", X2).to(device)
    if X2 is not X and check.unit("X2", X2).shape[1] != X.shape[1]:
        raise ValueError(f"X2 must have {X.shape[1]} columns as X has, not {X2.shape[1]}")
    A, A2 = X.to(dtype), X2.to(dtype)
    counts = torch.zeros(len(X), len(X2), dtype=torch.float32, device=device)
    for _, W, _ in neurons(X.shape[1], m, 1.0, seed, antisymmetric):
        W = torch.as_tensor(W, dtype=dtype, device=device)
        S = active(W @ A.T)
        counts += overlap(S, S if X2 is X else active(W @ A2.T))
    return ((X @ X2.T) * counts.double() / m).cpu().numpy()
