"""Products in 8-bit integers, several times as fast as float32 on processors that have them.

Integers up to 127 multiply exactly, and their sums stay exact in 32 bits. So 0/1 patterns are
counted without error (`overlap`), and real matrices multiply as numbers of two digits to the base
254, to 5 decimals (`Digits`). Where 8-bit products are slower, or wrong, as on processors that
saturate them, and on a GPU, whose 8-bit products want special shapes, both use float32.
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
    """A matrix G (n, k) with entries in [-1, 1], ready to be multiplied from the left.

    Its entries and, relative to the largest of its row, those of A are rounded to 2⁻¹⁶, and the
    product of the two low digits is left out: the error of A @ G, over the largest entry of the row
    of A, is about 10⁻⁵ √n, and below 5·10⁻⁵ n for any entries. In float64, and where integers do
    not pay, it is the ordinary product.

    >>> G, A = torch.linspace(-1, 1, 400).reshape(20, 20), torch.eye(20) * 3
    >>> bool((Digits(G).rmatmul(A) - 3 * G).abs().max() < 3e-4)
    True
    """

    def __init__(self, G: torch.Tensor):
        self.G = G
        self.integers = (
            G.dtype == torch.float32 and min(G.shape) >= NARROW
            and _integers_win(G.device, _threads())
        )  # fmt: skip
        if self.integers:
            high, low = _digits(G * 127)
            self.high, self.mixed = high, torch.cat([low, high])

    def rmatmul(self, A: torch.Tensor) -> torch.Tensor:
        """Return A @ G for A (m, n)."""
        if not self.integers:
            return A @ self.G
        scale = A.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30).div_(127)
        A = torch.cat(_digits(A / scale), dim=1)
        product = torch._int_mm(A[:, : len(self.G)], self.high).float()
        product.add_(torch._int_mm(A, self.mixed), alpha=1 / 254)
        return product.mul_(scale.div_(127))


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
    F, times = A.float(), []
    try:
        exact = torch.equal(torch._int_mm(A, A.T), (F @ F.T).int())
        exact &= torch.equal(torch._int_mm(A.T, A), (F.T @ F).int())
    except (AttributeError, RuntimeError):  # not in this build of torch
        return False
    for product in (lambda: torch._int_mm(A, A.T), lambda: F @ F.T):
        tries = []
        for _ in range(5):
            start = time.perf_counter()
            product()[0, 0].item()
            tries.append(time.perf_counter() - start)
        times.append(min(tries))
    return exact and 2.5 * times[0] < times[1]
