"""Time and memory of training to the minimiser: Newton against gradient descent.

n = 1000 of the embedded digits (even against odd), λ = 1, κ = 0.1. Descent is timed to where it is
as near to its own end point as Newton's is to that of plain descent (rms over the test points).
Plain descent takes minutes here. Meant for an idle machine: figures are wall-clock times.

    python bench/train.py                  m = 10,000 with descent, 80,000 without
    python bench/train.py mnist:4/9        the same on other images
    python bench/train.py --wide 1000000   one training of that width: its seconds and peak memory
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import torch
from common import table

from lib import data
from lib.train import Problem, gradient_descent, newton

N, T, LAM, KAPPA = 1000, 200, 1.0, 0.1
SPEC = "digits:0+2+4+6+8/1+3+5+7+9"


def problem(spec: str, m: int) -> Problem:
    d = data.load(spec, n_train=N, n_test=T, seed=0)
    return Problem(d.X, d.Y, d.X_te, lam=LAM, m=m, kappa=KAPPA, seed=0)


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def product(p: Problem) -> float:
    """Return the seconds of one n×n×m product in float32, the unit of every method here."""
    start = time.perf_counter()
    for b in p.blocks():
        p.Z0[b] @ p.G
    return time.perf_counter() - start


def peak() -> float:
    """Return the peak memory of this process in GB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024e-9 for line in file if line.startswith("VmHWM"))


def retraining(spec: str, m: int) -> None:
    """Print: seconds of a cold training, of a retraining, of a product; peak GB."""
    p = problem(spec, m)
    begin = newton(p, settle=0)
    cold = begin.seconds + newton(p, start=begin).seconds
    runs = [newton(p, start=begin, remove=i).seconds for i in range(4)]
    print(cold, min(runs), min(product(p) for _ in range(5)), peak())


def apart(spec: str, m: int) -> list[float]:
    """`retraining` in a process of its own, so that its peak memory is its own."""
    call = [sys.executable, __file__, "--retraining", spec, str(m)]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    return [float(x) for x in done.stdout.split()]


def until(run, distance: float, every: int) -> tuple[float, int, object]:
    """Return seconds and steps of descent to `distance` from its end point, and its end."""
    end = run(record=range(0, 100_000, every))
    near = [k for k, (_, f_te) in end.trajectory.items() if rms(f_te - end.f_te) <= distance]
    steps = min(near, default=end.iterations)
    few = run(steps=20)  # a step without records
    return (few.seconds - run(steps=0).seconds) / 20 * steps, steps, end


def main(spec: str) -> int:
    cold, warm, unit, _ = apart(spec, 10_000)
    cold_wide, warm_wide, unit_wide, memory = apart(spec, 80_000)
    p = problem(spec, 10_000)
    f = newton(p).f_te
    end = gradient_descent(p)
    distance = rms(f - end.f_te)
    plain, plain_steps, _ = until(lambda **how: gradient_descent(p, **how), distance, 20)
    fast, fast_steps, other = until(
        lambda **how: gradient_descent(p, momentum=True, **how), distance, 5
    )
    between = rms(other.f_te - end.f_te)
    rows = [
        ("one retraining, m = 10,000 (s)", warm, "<=", 0.8),
        ("one retraining, m = 80,000 (s)", warm_wide, "<=", 5),
        ("the same in float32 products n×n×m, m = 80,000", warm_wide / unit_wide, "<=", 8),
        ("peak memory, m = 80,000 (GB)", memory, "<=", 2.5),
        ("plain descent, time / Newton", plain / cold, ">=", 100),
        ("descent with momentum, time / Newton", fast / cold, ">=", 20),
        ("distance to descent, Newton / momentum", distance / between, "<=", 1.5),
    ]
    print(f"{spec}, n = {N}, λ = {LAM:g}, κ = {KAPPA}, {torch.get_num_threads()} threads")
    print(
        f"cold Newton {cold:.2f} s and {cold_wide:.1f} s; product {unit:.3f} s, {unit_wide:.2f} s"
    )
    print(f"to rms {distance:.1e}: plain {plain_steps} steps, momentum {fast_steps} steps\n")
    return table(rows)


if __name__ == "__main__":
    if "--retraining" in sys.argv:
        retraining(sys.argv[2], int(sys.argv[3]))
    elif "--wide" in sys.argv:
        done = newton(problem(SPEC, int(sys.argv[2])))
        print(f"m = {done.problem.m:,}: {done.seconds:.0f} s, {peak():.1f} GB, {done.change:.1e}")
    else:
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else SPEC))
