"""Time of the influence of every point at one moment of training, and of n eigendecompositions.

Also the time of the two matrix products that a moment cannot do without, the gap of a few points
to training without them, and that of the rational function to e^z.

    python -m bench.dynamics
"""

from __future__ import annotations

import sys

import numpy as np

from bench.common import images, seconds, table
from lib.dynamics import Flow, exponential
from lib.kernel import ntk

N, T, D, TIMES, REFITS = 1000, 1000, 784, (0.1, 10.0, 1000.0), 3


def main() -> int:
    X, Y, X_te, Y_te = images(N, D, T)
    K, k = ntk(X), ntk(X, X_te)
    (once,) = seconds(lambda: Flow(K, Y, 0.0), repeat=3)
    flow = Flow(K, Y, 0.0)
    moments = [flow.influence(k, Y_te, t) for t in TIMES]
    runs = [lambda t=t: flow.influence(k, Y_te, t).exact for t in TIMES]
    *times, product = seconds(*runs, lambda: flow.V @ k, repeat=5)
    each = max(times)
    (unrolled,) = seconds(lambda: moments[0].unrolled, repeat=3)

    worst = 0.0
    for i in range(REFITS):
        keep = np.delete(np.arange(N), i)
        without = Flow(K[np.ix_(keep, keep)], Y[keep], 0.0)
        for t, moment in zip(TIMES, moments, strict=True):
            worst = np.maximum(worst, np.abs(without.predict(k[keep], t) - moment.loo[i]).max())
    zeta, c = exponential()
    z = -np.concatenate([[0], np.logspace(-8, 8, 20001)])
    fraction = np.abs(2 * (c / (zeta - z[:, None])).sum(axis=1).real - np.exp(z)).max()

    rows = [
        ("influence of all pairs at one time, seconds", each, "<=", 2),
        ("that / two products (n, n) (n, t)", each / (2 * product), "<=", 2),
        ("n eigendecompositions / that", N * once / each, ">=", 100),
        ("leave-one-out, gap to training without", worst, "<=", 1e-10),
        ("rational function, gap to the exponential", fraction, "<=", 1e-11),
    ]
    print(f"n = {N}, {T} test points, lambda = 0, times {', '.join(f'{t:g}' for t in TIMES)}")
    print(f"one eigendecomposition {once:.2f} s, {N} of them {N * once:.0f} s")
    rate = 2e-9 * N * N * T / product
    print(f"a time point {each:.2f} s, and its first order {unrolled:.2f} s")
    print(f"two products {2 * product:.2f} s, at {rate:.0f} GFlop/s\n")
    return table(rows)


if __name__ == "__main__":
    sys.exit(main())
