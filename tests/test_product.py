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
def test_patterns_select_rows_to_32_bits(integers, m, n, k):
    S = random(m, n) > 0
    G = random(n, k, seed=1, dtype=torch.float64) ** 3 * torch.logspace(-6, 6, k)
    G[:, 0] = 0
    error = (Digits(G).select(S) - S.double() @ G).abs() / G.abs().amax(dim=0).clamp(min=1e-300)
    assert error.max() <= n * 2**-31
    if integers and min(n, k) >= 16:
        assert len(Digits(G).digits) == 4 and error.max() > 2**-50
        single = (S.float() @ G.float()).double() - S.double() @ G
        assert (single.abs() / G.abs().amax(dim=0).clamp(min=1e-300)).max() > 10 * error.max()


def test_digits_of_equal_entries_do_not_overflow(integers):
    S, G = torch.ones(20, 5000), -torch.ones(5000, 20, dtype=torch.float64)
    assert torch.allclose(Digits(G).select(S), torch.tensor(-5000.0, dtype=torch.float64))


def test_a_processor_that_saturates_is_found_out(monkeypatch):
    exact = torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda A, B: exact(A, B).clamp(-32768, 32767))
    assert not product._integers_win.__wrapped__(torch.device("cpu"), 1)
    monkeypatch.delattr(torch, "_int_mm")
    assert not product._integers_win.__wrapped__(torch.device("cpu"), 1)


@pytest.mark.parametrize(("ratio", "pay"), [(2.4, False), (2.6, True), (4.0, True)])
def test_integers_win_if_they_are_exact_and_two_and_a_half_times_as_fast(ratio, pay, monkeypatch):
    exact, calls, now = torch._int_mm, [], iter(np.cumsum([0, *([1.0, 5, ratio, 7] * 20)]))

    def counted(A, B):
        calls.append((A.dtype, B.dtype))
        return exact(A, B)

    monkeypatch.setattr(torch, "_int_mm", counted)
    monkeypatch.setattr(product.time, "perf_counter", lambda: next(now))
    assert product._integers_win.__wrapped__(torch.device("cpu"), 1) == pay
    assert calls == [(torch.int8, torch.int8)] * (2 + 20)  # both layouts, then every other turn
    assert not product._integers_win.__wrapped__(torch.device("meta"), 1)


@pytest.mark.parametrize("wrong", [0, 1])
def test_integers_that_are_wrong_in_one_layout_do_not_win(wrong, monkeypatch):
    exact, calls, now = torch._int_mm, [], iter(np.cumsum([0, *([1.0, 5, 9, 7] * 20)]))

    def saturated(A, B):
        calls.append(1)
        return exact(A, B) - int(len(calls) == wrong + 1)

    monkeypatch.setattr(torch, "_int_mm", saturated)
    monkeypatch.setattr(product.time, "perf_counter", lambda: next(now))
    assert not product._integers_win.__wrapped__(torch.device("cpu"), 1)
