"""Time of the influence of every point at one moment of training, and of n eigendecompositions.

Also the gap of a few points to training without them, and of the rational function to e^z.

    python bench/dynamics.py
"""

from __future__ import annotations

import sys
import time

import numpy as np

from lib.data import unit_rows
from lib.dynamics import Flow, exponential
from lib.kernel import ntk

N, T, D, TIMES, REFITS = 1000, 1000, 784, (0.1, 10.0, 1000.0), 3


def seconds(call, repeat: int = 3) -> float:
    """Return the fastest of `repeat` runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    rng = np.random.default_rng(0)
    X = unit_rows(rng.random((N + T, D)) ** 4)
    Y = np.sign(rng.standard_normal(N + T))
    K, k = ntk(X[:N]), ntk(X[:N], X[N:])
    once = seconds(lambda: Flow(K, Y[:N], 0.0))
    flow = Flow(K, Y[:N], 0.0)
    moments = [flow.influence(k, Y[N:], t) for t in TIMES]
    each = max(seconds(lambda t=t: flow.influence(k, Y[N:], t).exact) for t in TIMES)
    unrolled = seconds(lambda: moments[0].unrolled)

    worst = 0.0
    for i in range(REFITS):
        keep = np.delete(np.arange(N), i)
        without = Flow(K[np.ix_(keep, keep)], Y[keep], 0.0)
        for t, moment in zip(TIMES, moments, strict=True):
            worst = max(worst, np.abs(without.predict(k[keep], t) - moment.loo[i]).max())
    zeta, c = exponential()
    z = -np.concatenate([[0], np.logspace(-8, 8, 20001)])
    fraction = np.abs(2 * (c / (zeta - z[:, None])).sum(axis=1).real - np.exp(z)).max()

    rows = [
        ("influence of all pairs at one time, seconds", each, "<=", 2),
        ("n eigendecompositions / that", N * once / each, ">=", 100),
        ("leave-one-out, gap to training without", worst, "<=", 1e-10),
        ("rational function, gap to the exponential", fraction, "<=", 1e-11),
    ]
    print(f"n = {N}, {T} test points, lambda = 0, times {', '.join(f'{t:g}' for t in TIMES)}")
    print(f"one eigendecomposition {once:.2f} s, {N} of them {N * once:.0f} s")
    print(f"a time point {each:.2f} s, and its first order {unrolled:.2f} s\n")
    print(f"{'figure':<48} {'measured':>9}   {'goal':<8} holds")
    failed = 0
    for figure, measured, sign, goal in rows:
        holds = measured <= goal if sign == "<=" else measured >= goal
        failed += not holds
        print(f"{figure:<48} {measured:>9.3g}   {sign} {goal:<5g} {'yes' if holds else 'NO'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
