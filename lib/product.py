"""Products in 8-bit integers, several times as fast as float32 on processors that have them.

Integers up to 127 multiply exactly, and their sums stay exact in 32 bits. So 0/1 patterns are
counted without error (`overlap`), and real matrices multiply as numbers of two digits to the base
254, to 5 decimals, or of one where the rounding can be mended later (`Digits`). Where 8-bit
products are slower, or wrong, as on processors that saturate them, and on a GPU, whose 8-bit
products want special shapes, both use float32.
"""

from __future__ import annotations

import time
from functools import cache

import torch

NARROW = 16  # below so many columns there is nothing to gain, and torch 2.13 miscounts a single one


def overlap(S: torch.Tensor, S2: torch.Tensor) -> torch.Tensor:
    """Count SᵀS2 for 0/1 patterns S (m, n) and S2 (m, n2), float32 in and out, exactly.

    Entry (i, j) is #{r : S_ri = S2_rj = 1}, for m < 2²⁴.

    >>> S = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> overlap(S, S).tolist()
    [[2.0, 1.0], [1.0, 1.0]]
    """
    if min(S.shape[1], S2.shape[1]) < NARROW or not _integers_win(S.device, _threads()):
        return S.float().T @ S2.float()
    S8 = S.to(torch.int8)
    return torch._int_mm(S8.T, S8 if S2 is S else S2.to(torch.int8)).float()


class Digits:
    """A matrix G (n, k), ready to be multiplied from the left.

    Its entries, relative to the largest of their column, are rounded to 2⁻¹⁶, or to 2⁻⁸ if `rough`.
    In float64, and where integers do not pay, every product is the ordinary one.

    >>> G, A = torch.linspace(-1, 1, 400).reshape(20, 20), torch.eye(20) * 3
    >>> bool((Digits(G).rmatmul(A) - 3 * G).abs().max() < 3e-4)
    True
    """

    def __init__(self, G: torch.Tensor, rough: bool = False):
        self.G = G
        self.integers = (
            G.dtype == torch.float32 and min(G.shape) >= NARROW
            and _integers_win(G.device, _threads())
        )  # fmt: skip
        if self.integers:
            self.unit = _unit(G, dim=0)
            self.high, self.low = _digits(G / self.unit)
            self.rough = rough

    def rmatmul(self, A: torch.Tensor) -> torch.Tensor:
        """Return A @ G for A (m, n), whose entries are rounded as those of G, within their row.

        The product of the two low digits is left out: the error, over the largest entries of the
        row of A and the column of G, is about 10⁻⁵ √n, and below 5·10⁻⁵ n for any entries.
        """
        if not self.integers:
            return A @ self.G
        unit = _unit(A, dim=1)
        high, low = _digits(A / unit)
        product = self._times(high).add_(torch._int_mm(low, self.high), alpha=1 / 254)
        return product.mul_(self.unit).mul_(unit)

    def select(self, S: torch.Tensor) -> torch.Tensor:
        """Return S @ G for a 0/1 pattern S (m, n), exact in one digit.

        >>> G, S = torch.linspace(-1, 1, 400).reshape(20, 20), torch.ones(20, 20).tril()
        >>> bool((Digits(G).select(S) - S @ G).abs().max() < 3e-4)
        True
        """
        if not self.integers:
            return S @ self.G
        return self._times(S.to(torch.int8)).mul_(self.unit)

    def round(self, A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Round A (m, n), to one digit within its row where that pays; return it and A @ G.

        >>> A, product = Digits(torch.eye(20)).round(torch.full((20, 20), 0.3))
        >>> torch.allclose(A, torch.tensor(0.3)), torch.allclose(A, product)
        (True, True)
        """
        if not self.integers:
            return A, A @ self.G
        unit = _unit(A, dim=1)
        high = (A / unit).round_()
        product = self._times(high.to(torch.int8)).mul_(self.unit).mul_(unit)
        return high.mul_(unit), product

    def _times(self, A: torch.Tensor) -> torch.Tensor:
        """Return A @ (high + low / 254), or A @ high, for integers A."""
        product = torch._int_mm(A, self.high).float()
        return product if self.rough else product.add_(torch._int_mm(A, self.low), alpha=1 / 254)


def _unit(A: torch.Tensor, dim: int) -> torch.Tensor:
    """What 1 of 127 stands for in each row (dim 1) or column (dim 0)."""
    return A.abs().amax(dim=dim, keepdim=True).clamp_(min=1e-30).div_(127)


def _digits(A: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Write A, in [-127, 127], as high + low / 254 with both in 8 bits."""
    high = A.round()
    low = (A - high).mul_(254).round_()
    return high.to(torch.int8), low.to(torch.int8)


def _threads() -> int:
    return torch.get_num_threads()


@cache
def _integers_win(device: torch.device, threads: int) -> bool:
    """Whether 8-bit products are right on this processor, and 2.5 times as fast as float32.

    Where they are not saturated, they are some 5 times as fast: timing noise decides nothing.
    """
    if device.type != "cpu":
        return False
    A = torch.full((256, 512), 127, dtype=torch.int8)
    A[::2, ::3] = -127
    F = A.float()
    try:
        exact = torch.equal(torch._int_mm(A, A.T), (F @ F.T).int())
        exact &= torch.equal(torch._int_mm(A.T, A), (F.T @ F).int())
    except (AttributeError, RuntimeError):  # not in this build of torch
        return False
    products, times = (lambda: torch._int_mm(A, A.T), lambda: F @ F.T), [[], []]
    for k in range(40):  # in turns, so that what slows the machine down slows both
        start = time.perf_counter()
        products[k % 2]()[0, 0].item()
        times[k % 2].append(time.perf_counter() - start)
    return exact and 2.5 * min(times[0]) < min(times[1])
