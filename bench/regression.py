"""Time and memory of softmax regression: ten classes, every point removed and fitted again.

On MNIST, on two idle cores of an AMD EPYC (2026-11-26): fit and estimates 8 s, with every refit
18 s, 0.88 GB. On the digits beside other programs: 25 s, 47 s, 0.96 GB.

    python -m bench.regression [--data mnist:all] [--n 1000] [--t 100]
"""

from __future__ import annotations

import argparse
import sys
import time

from bench.common import table
from book.measures import high_water
from lib import data
from lib.kernel import ntk
from lib.losses import Softmax
from lib.regression import Regression


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits:all")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--t", type=int, default=100)
    args = parser.parse_args()
    d = data.load(args.data, n_train=args.n, n_test=args.t, seed=0)
    K, k = ntk(d.X), ntk(d.X, d.X_te)
    start = time.perf_counter()
    found = Regression(K, d.Y, 1.0, Softmax()).influence(k, d.Y_te)
    _ = found.ihvp, found.rescaled, found.newton
    estimates = time.perf_counter() - start
    _ = found.exact
    total = time.perf_counter() - start
    size = f"{args.data}, n = {args.n}, t = {args.t}"
    return table([
        (f"{size}: fit and estimates, seconds", estimates, "<=", 120),
        (f"{size}: and every refit, seconds", total, "<=", 120),
        (f"{size}: peak, GB", high_water() / 1e9, "<=", 3),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
