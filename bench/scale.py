"""Time, memory and rate of ten classes and tens of thousands of points, on a packed inverse.

From images to the influence of all points on all test points, in a process of its own, whose peak
of memory is its high-water mark. The rate is that of the factorisation and inversion, kernel and
all, 2n³/3 operations, over that of one float32 matrix product of the same size.

On two idle cores of an AMD EPYC (2026-11-26): 38 to 42 s and 1.4 GB, at a rate of .76, where one
float32 product takes 49 s. So the 30 s need a processor that is a third faster. The inverse takes
21 s, and the product's rate allows 16; two rounds of refinement, each with a float64 kernel made
again, take 9 s; the influences take 5 s, and two passes to check K and to find the leverages 2 s.

    python -m bench.scale [--n 16000] [--t 1000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import numpy as np
import torch

from bench.common import images, table
from book.measures import high_water
from lib.kernel import ntk
from lib.packed import PackedInverse
from lib.ridge import Ridge
from lib.stream import stream

D, C, LAM = 784, 10, 1.0


def everything(n: int, t: int) -> dict:
    """Seconds from images to all influences, those of the inverse alone, and the peak in GB."""
    X, _, X_te, _ = images(n, D, t)
    Y, Y_te = (np.eye(C)[np.arange(len(x)) % C] - 1 / C for x in (X, X_te))
    start = time.perf_counter()
    Q = PackedInverse(ntk, X, LAM, progress=False)
    inverse = time.perf_counter() - start
    stream(Ridge.packed(Q, Y), ntk, X, X_te, Y_te, progress=False)
    total = time.perf_counter() - start
    return {"all": total, "inverse": inverse, "peak": high_water() / 1e9}


def product(n: int) -> float:
    """Seconds of one float32 matrix product, the faster of two."""
    A, found = torch.rand(n, n), []
    for _ in range(2):
        start = time.perf_counter()
        A @ A
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=16_000)
    parser.add_argument("--t", type=int, default=1000)
    parser.add_argument("--alone", action="store_true", help="measure in this process, print JSON")
    args = parser.parse_args()
    if args.alone:
        print(json.dumps(everything(args.n, args.t)))
        return 0
    command = [sys.executable, "-m", "bench.scale", "--alone", f"--n={args.n}", f"--t={args.t}"]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found, one = json.loads(run.stdout), product(args.n)
    print(f"n = {args.n}, d = {D}, {C} outputs, {args.t} test points, lambda = {LAM:g}")
    print(f"inverse {found['inverse']:.1f} s, float32 matrix product {one:.1f} s\n")
    return table([
        ("all influences, seconds", found["all"], "<=", 30),
        ("peak memory, GB", found["peak"], "<=", 2.5),
        ("rate over that of a float32 matrix product", one / 3 / found["inverse"], ">=", 0.75),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
