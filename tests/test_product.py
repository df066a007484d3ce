"""Products of patterns are exact and those of digits near to it, on both kinds of processor."""

import numpy as np
import pytest
import torch

from lib import product
from lib.product import Digits, overlap

SHAPES = [(1, 1, 1), (3, 17, 16), (64, 16, 40), (300, 100, 33)]


@pytest.fixture(params=[True, False], ids=["integers", "float32"])
def integers(request, monkeypatch):
    """Both kinds of processor: with products in 8 bits that pay, and without."""
    monkeypatch.setattr(product, "_integers_win", lambda device, threads: request.param)
    return request.param


def random(*shape, seed=0, dtype=torch.float32):
    return torch.as_tensor(np.random.default_rng(seed).uniform(-1, 1, shape), dtype=dtype)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_overlap_counts_exactly(integers, m, n, k):
    S, S2 = (random(m, n) > 0).float(), (random(m, k, seed=1) > 0.5).float()
    for other in (S2, S):
        count = [[int((a * b).sum()) for b in other.T] for a in S.T]
        assert overlap(S, other).tolist() == count


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_digits_are_the_product_to_their_rounding(integers, m, n, k, scale):
    A, G = scale * random(m, n) ** 3, random(n, k, seed=1)
    A[0] = 0
    exact = A.double() @ G.double()
    error = (Digits(G).rmatmul(A).double() - exact).abs().amax(dim=1)
    limit = 5e-5 * n**0.5 * A.abs().amax(dim=1).double()
    assert (error <= limit + 1e-300).all()
    one = Digits(G).high if integers and n >= 16 and k >= 16 else None
    if one is not None:  # a single digit of G is not enough
        rough = (A.double() @ one.double() / 127 - exact).abs().amax(dim=1)
        assert (rough > limit).sum() > 0.5 * m


def test_digits_of_equal_entries_do_not_overflow(integers):
    A, G = torch.ones(20, 5000), -torch.ones(5000, 20)
    assert torch.allclose(Digits(G).rmatmul(A), torch.full((20, 20), -5000.0), rtol=1e-6)


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
@pytest.mark.parametrize("rough", [False, True])
def test_patterns_select_rows_to_their_rounding(integers, m, n, k, rough):
    S, G = (random(m, n) > 0).float(), random(n, k, seed=1) ** 3 * torch.logspace(-6, 6, k)
    exact = S.double() @ G.double()
    error = (Digits(G, rough).select(S).double() - exact).abs() / G.abs().amax(dim=0)
    rounded = rough and integers and min(n, k) >= 16
    assert error.max() <= n * (1 / 254 if rounded else 2**-15)
    assert not rounded or error.max() > 2**-12  # one digit is not two


@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_rounding_says_what_it_has_multiplied(integers, m, n, k):
    A, G = random(m, n) ** 3, random(n, k, seed=1)
    A[0] = 0
    rounded, product = Digits(G).round(A)
    largest = A.abs().amax(dim=1, keepdim=True)
    assert ((rounded - A).abs() <= largest / 253).all()
    assert ((product - rounded.double() @ G.double()).abs() <= 3e-5 * n**0.5 * largest).all()
    if integers and n >= 16 and k >= 16:
        assert ((product - A.double() @ G.double()).abs() > 3e-5 * n**0.5 * largest).any()


def test_digits_in_float64_are_the_ordinary_product(integers):
    A, G = random(30, 40, dtype=torch.float64), random(40, 20, seed=1, dtype=torch.float64)
    assert torch.equal(Digits(G).rmatmul(A), A @ G)


def test_a_processor_that_saturates_is_found_out(monkeypatch):
    exact = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda A, B: exact(A, B).clamp(-32768, 32767))
    assert not product._integers_win.__wrapped__(torch.device("cpu"), 1)
    monkeypatch.delattr(torch, "_int_mm")
    assert not product._integers_win.__wrapped__(torch.device("cpu"), 1)
