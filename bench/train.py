"""Time and memory of training to the minimiser: Newton against gradient descent.

n = 1000, λ = 1, κ = 0.1. Times are measured here, in one run. How many steps descent takes until it
is as near to its own end as Newton's end is to that of plain descent, rms over the test points, is
counted in book/records/settling.csv, since to find the ends takes hours; its step is the textbook's
1/(λ_max + λ), twice that of `gradient_descent`. Descent is timed as it is usually written, on the
weights in float32, and as `lib` has it, on pre-activations. Meant for an idle machine.

    python -m bench.train                  m = 10,000 and 80,000, digits (even against odd)
    python -m bench.train mnist:4/9        the same on other images that were recorded
    python -m bench.train SPEC --record    and its figures go to book/records/train.csv
    python -m bench.train --wide 1000000   one training of that width: its seconds and peak memory
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from bench.common import seconds, table
from book.chapters import provenance, store
from lib import data
from lib.descent import gradient_descent
from lib.kernel import ntk
from lib.network import active, initialise
from lib.newton import newton
from lib.problem import Problem

N, T, LAM, KAPPA = 1000, 100, 1.0, 0.1
SPEC = "digits:0+2+4+6+8/1+3+5+7+9"
RECORDS = Path(__file__).parents[1] / "book" / "records"
COUNTS = RECORDS / "settling.csv"


def problem(spec: str, m: int) -> Problem:
    d = data.load(spec, n_train=N, n_test=T, seed=0)
    return Problem(d.X, d.Y, d.X_te, lam=LAM, m=m, kappa=KAPPA, seed=0)


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
    """Print: seconds of a cold training, a retraining (medians), a product; peak memory in GB."""
    p = problem(spec, m)
    cold = np.median([newton(p).seconds for _ in range(5 if m <= 10_000 else 1)])
    begin = newton(p, settle_steps=0)
    runs = [newton(p, start=begin, remove=i).seconds for i in range(4)]
    print(cold, np.median(runs), min(product(p) for _ in range(5)), peak())


def apart(spec: str, m: int) -> list[float]:
    """`retraining` in a process of its own, so that its peak memory is its own."""
    call = [sys.executable, "-m", "bench.train", "--retraining", spec, str(m)]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    return [float(x) for x in done.stdout.split()]


def on_weights(d, m: int) -> tuple[float, float]:
    """Return the seconds of a step of plain descent on W in float32, and of one with momentum."""
    X, Y = torch.as_tensor(d.X).float(), torch.as_tensor(d.Y).float()
    W0, a = (torch.as_tensor(v).float() for v in initialise(d.X.shape[1], m, kappa=KAPPA, seed=0))
    a, rate = a / m**0.5, 1e-3
    W, before = W0.clone(), W0.clone()

    def descend(W):
        Z = X @ W
        r = Z.relu() @ a - Y
        gradient = ((X * r[:, None]).T @ active(Z)).mul_(a)
        return W.sub_(gradient.add_(W, alpha=LAM).sub_(W0, alpha=LAM), alpha=rate)

    def nesterov():
        ahead = torch.lerp(before, W, 1.9)
        before.copy_(W)
        W.copy_(descend(ahead))

    return tuple(seconds(lambda: descend(W), nesterov, repeat=5))


def on_activations(p: Problem, step: float, momentum: bool) -> float:
    """Return the seconds of a step of `gradient_descent`."""
    none, some = (
        gradient_descent(p, steps=k, step=step, momentum=momentum).seconds for k in (0, 20)
    )
    return (some - none) / 20


def figures(spec: str):
    """Yield the rows of the table, each when it is known."""
    d = data.load(spec, n_train=N, n_test=T, seed=0)
    counts = pd.read_csv(COUNTS).set_index("data")
    if d.label not in counts.index:
        sys.exit(f"{COUNTS} has no steps of {d.label}, but of {', '.join(counts.index)}")
    steps = counts.loc[d.label]
    assert (steps.n, steps.m, steps.lam, steps.kappa) == (N, 10_000, LAM, KAPPA)
    cold, warm, unit, _ = apart(spec, 10_000)
    cold_wide, warm_wide, unit_wide, memory = apart(spec, 80_000)
    step = 1 / (float(np.linalg.eigvalsh(ntk(d.X))[-1]) + LAM)
    usual = on_weights(d, 10_000)
    p = problem(spec, 10_000)
    ours = [on_activations(p, step, momentum) for momentum in (False, True)]
    print(f"{spec}, n = {N}, λ = {LAM:g}, κ = {KAPPA}, {torch.get_num_threads()} threads")
    print(f"cold Newton {cold:.2f} s and {cold_wide:.1f} s")
    print(f"product n×n×m {unit:.3f} s and {unit_wide:.2f} s")
    print("a step of plain descent and with momentum: {:.3f} and {:.3f} s on weights, "
          "{:.3f} and {:.3f} s on pre-activations".format(*usual, *ours))  # fmt: skip
    print(f"recorded rms distance to plain descent: Newton {steps.newton:.1e}, "
          f"momentum {steps.momentum:.1e}\n")  # fmt: skip

    yield "one retraining, m = 10,000 (s)", warm, "<=", 0.8
    yield "one retraining, m = 80,000 (s)", warm_wide, "<=", 5
    yield "the same in float32 products n×n×m", warm_wide / unit_wide, "<=", 8
    yield "peak memory, m = 80,000 (GB)", memory, "<=", 2.5
    yield "distance to plain descent, Newton / momentum", steps.newton / steps.momentum, "<=", 1.5
    for where, times in (("weights", usual), ("pre-activations", ours)):
        for how, count, one, goal in (
            ("plain descent", steps.to_plain, times[0], 100),
            ("momentum", steps.to_momentum, times[1], 20),
        ):
            yield f"{how} on {where}, {count} steps / Newton", count * one / cold, ">=", goal


def record(spec: str, rows: list[tuple]) -> None:
    """Put the figures of one data set into the record, in place of those that it had."""
    file = RECORDS / "train.csv"
    d = data.load(spec, n_train=N, n_test=T, seed=0)
    setting = {"data": d.label, "n": N, "lam": LAM, "kappa": KAPPA}
    new = pd.DataFrame(rows, columns=["figure", "measured", "sign", "goal"])
    new = new.assign(**setting, threads=torch.get_num_threads(), **provenance())
    old = pd.read_csv(file) if file.is_file() else new[:0]
    store(pd.concat([old[old.data != d.label], new]), file, float_format="%.4g")


if __name__ == "__main__":
    if "--retraining" in sys.argv:
        retraining(sys.argv[2], int(sys.argv[3]))
    elif "--wide" in sys.argv:
        done = newton(problem(SPEC, int(sys.argv[2])))
        print(f"m = {done.problem.m:,}: {done.seconds:.0f} s, {peak():.1f} GB, {done.change:.1e}")
    else:
        spec = next((word for word in sys.argv[1:] if not word.startswith("--")), SPEC)
        rows = []
        failed = table(rows.append(row) or row for row in figures(spec))
        if "--record" in sys.argv:
            record(spec, rows)
        sys.exit(failed)
