"""Time and memory of training to the minimiser: Newton against gradient descent.

n = 1000 of the embedded digits (even against odd), λ = 1, κ = 0.1. A step of descent is timed, and
its steps are counted until it is as near to its own end point as Newton's is to that of plain
descent (rms over the test points). Finding the end points takes half an hour. Meant for an idle
machine: figures are wall-clock times.

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
from scipy.linalg import eigvalsh

from lib import data
from lib.kernel import ntk
from lib.train import Problem, gradient_descent, newton

N, T, LAM, KAPPA = 1000, 200, 1.0, 0.1
TOL = 3e-4  # rms change of f in one period at which descent has come to its end
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


def seconds_per_step(p: Problem, **how) -> float:
    """Return the seconds of a step of descent without records."""
    none, some = (gradient_descent(p, steps=k, **how).seconds for k in (0, 20))
    return (some - none) / 20


def descent(p: Problem, every: int, **how):
    """Return the predictions of descent on the test points along the way, and at its end."""
    end = gradient_descent(p, tol=TOL, record=range(0, 100_000, every), progress=True, **how)
    return {k: f_te for k, (_, f_te) in end.trajectory.items()}, end.f_te


def steps_to(distance: float, path: dict, end) -> int:
    """Return after how many steps descent is first within `distance` of its end."""
    return next(k for k, f_te in path.items() if rms(f_te - end) <= distance)


def figures(spec: str):
    """Yield the rows of the table, each when it is known."""
    cold, warm, unit, _ = apart(spec, 10_000)
    cold_wide, warm_wide, unit_wide, memory = apart(spec, 80_000)
    p = problem(spec, 10_000)
    d = data.load(spec, n_train=N, n_test=T, seed=0)
    step = {"step": 1 / (eigvalsh(ntk(d.X))[-1] + LAM)}  # the textbook's, twice the default
    plain, fast = seconds_per_step(p, **step), seconds_per_step(p, momentum=True, **step)
    print(f"{spec}, n = {N}, λ = {LAM:g}, κ = {KAPPA}, {torch.get_num_threads()} threads")
    print(f"cold Newton {cold:.2f} s and {cold_wide:.1f} s")
    print(f"product n×n×m {unit:.3f} s and {unit_wide:.2f} s")
    print(f"a step of descent {plain:.3f} s, with momentum {fast:.3f} s\n")

    yield "one retraining, m = 10,000 (s)", warm, "<=", 0.8
    yield "one retraining, m = 80,000 (s)", warm_wide, "<=", 5
    yield "the same in float32 products n×n×m", warm_wide / unit_wide, "<=", 8
    yield "peak memory, m = 80,000 (GB)", memory, "<=", 2.5

    # nothing is timed from here on: the steps are counted
    f = newton(p).f_te
    fast_path, other = descent(p, 2, momentum=True, **step)
    plain_path, end = descent(p, 20, **step)
    distance, between = rms(f - end), rms(other - end)
    print(f"\nrms distance to plain descent: Newton {distance:.1e}, momentum {between:.1e}\n")
    yield "distance to plain descent, Newton / momentum", distance / between, "<=", 1.5
    k = steps_to(distance, plain_path, end)
    yield f"plain descent, {k} steps to there, time / Newton", k * plain / cold, ">=", 100
    k = steps_to(distance, fast_path, other)
    yield f"with momentum, {k} steps to there, time / Newton", k * fast / cold, ">=", 20


if __name__ == "__main__":
    if "--retraining" in sys.argv:
        retraining(sys.argv[2], int(sys.argv[3]))
    elif "--wide" in sys.argv:
        done = newton(problem(SPEC, int(sys.argv[2])))
        print(f"m = {done.problem.m:,}: {done.seconds:.0f} s, {peak():.1f} GB, {done.change:.1e}")
    else:
        sys.exit(table(figures(sys.argv[1] if len(sys.argv) > 1 else SPEC)))
