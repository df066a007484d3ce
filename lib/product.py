"""Exact products of 0/1 patterns, in 8-bit integers where a processor multiplies them faster.

Integers up to 127 multiply exactly, and their sums stay exact in 32 bits. So patterns are counted
without error (`overlap`), and a pattern times a real matrix is as exact as the matrix is written:
in four digits of 8 bits, 2⁻³¹ of the largest entry of a column (`Digits`). Ordinary
products take their place where 8-bit ones are slower, where they are wrong (some processors
saturate them), and on a GPU, where they need special shapes.
"""

from __future__ import annotations

import time
from functools import cache

import torch

NARROW = 16  # below so many columns there is nothing to gain, and torch 2.13 miscounts a single one
DIGITS, BASE = 4, 254


def overlap(S: torch.Tensor, S2: torch.Tensor) -> torch.Tensor:
    """Count SᵀS2 for 0/1 patterns S (m, n) and S2 (m, n2) of any dtype, exactly, in float32.

    Entry (i, j) is #{r : S_ri = S2_rj = 1}, for m < 2²⁴.

    >>> S = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> overlap(S, S).tolist()
    [[2.0, 1.0], [1.0, 1.0]]
    """
    if not _in_integers(min(S.shape[1], S2.shape[1]), S.device):
        return S.float().T @ S2.float()
    S8 = S.to(torch.int8)
    return torch._int_mm(S8.T, S8 if S2 is S else S2.to(torch.int8)).float()


class Digits:
    """A float64 matrix G (n, k), ready to be multiplied from the left by 0/1 patterns.

    >>> G, S = torch.linspace(-1, 1, 400).double().reshape(20, 20), torch.ones(20, 20).tril()
    >>> bool((Digits(G).select(S > 0) - S.double() @ G).abs().max() < 20 * 2**-31)
    True
    """

    def __init__(self, G: torch.Tensor):
        self.G, self.digits = G, []
        if not _in_integers(min(G.shape), G.device):
            return
        self.unit = G.abs().amax(dim=0, keepdim=True).clamp_(min=1e-300) / 127
        rest = G / self.unit
        for _ in range(DIGITS):
            digit = rest.round()
            self.digits.append(digit.to(torch.int8))
            rest = (rest - digit) * BASE

    def select(self, S: torch.Tensor) -> torch.Tensor:
        """Return S @ G, float64, for a 0/1 pattern S (m, n) of any dtype."""
        if not self.digits:
            return S.double() @ self.G
        S8 = S.to(torch.int8)
        product = torch._int_mm(S8, self.digits[0]).double()
        for k, digit in enumerate(self.digits[1:], 1):
            product.add_(torch._int_mm(S8, digit), alpha=BASE**-k)
        return product.mul_(self.unit)


def _in_integers(narrowest: int, device: torch.device) -> bool:
    return narrowest >= NARROW and _integers_win(device, torch.get_num_threads())


@cache
def _integers_win(device: torch.device, threads: int) -> bool:
    """Whether 8-bit products are right on this processor, and 2.5 times as fast as float32.

    Then four of them take no longer than one product in float64. Where they pay they are some 5
    times as fast, so timing noise decides nothing.
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
