"""What the benchmarks share: timing two sides in turn, random images, and the table of goals."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
from scipy.linalg import lapack

from lib.data import unit_rows


def images(n: int, d: int, t: int):
    """Return X (n, d), Y (n,), X_te (t, d), Y_te (t,): random unit images with labels ±1."""
    rng = np.random.default_rng(0)
    X = unit_rows(rng.random((n + t, d)) ** 4)
    Y = np.sign(rng.standard_normal(n + t))
    return X[:n], Y[:n], X[n:], Y[n:]


def seconds(*calls, repeat: int = 15) -> list[float]:
    """Return the fastest of `repeat` runs of each call, taken in turn after one to warm up."""
    times = []
    for _ in range(repeat + 1):
        times.append([])
        for call in calls:
            start = time.perf_counter()
            call()
            times[-1].append(time.perf_counter() - start)
    return np.min(times[1:], axis=0).tolist()


def cholesky_and_inverse(K, lam: float):
    """The two LAPACK calls without which there is no (K + lam I)⁻¹."""
    A = K + lam * np.eye(len(K))
    factor, _ = lapack.dpotrf(A.T, lower=True, clean=False, overwrite_a=True)
    return lapack.dpotri(factor, lower=True, overwrite_c=True)


def table(rows: Iterable[tuple[str, float, str, float]]) -> int:
    """Print figure, measured value, goal and whether it holds; return 1 if any goal is missed."""
    failed, head = 0, f"{'figure':<50} {'measured':>9}   {'goal':<8} holds\n"
    for figure, measured, sign, goal in rows:
        holds = measured <= goal if sign == "<=" else measured >= goal
        failed += not holds
        row = f"{figure:<50} {measured:>9.3g}   {sign} {goal:<5g} {'yes' if holds else 'NO'}"
        print(head + row, flush=True)
        head = ""
    return int(failed > 0)
