"""Train and retrain at the paper's scale: the numbers behind Theorem 1, Figure 1 and Table 1.

python -m book.paper WORK RECORDS [--cifar10 NAME]

For MNIST and CIFAR-10, widths 1, 2, 4, 8 × 10⁴: the network trained on n = 1000 images, and again
without each of the 40 most influential ones of two test images; at 10⁴ without every one. On 200
images, Newton is held to gradient descent. All retrainings are kept in WORK as they come, so that a
run that was cut short goes on; tables go to RECORDS.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from joblib import cpu_count, parallel_config
from scipy.linalg import eigvalsh
from tqdm import tqdm

from book.chapters import provenance, recorder, store
from book.measures import first_of_each_class, rms
from lib import data
from lib.descent import gradient_descent
from lib.ihvp import ihvp
from lib.influence import Influence
from lib.journal import Journal
from lib.kernel import ntk
from lib.newton import SETTLE, newton
from lib.problem import Problem
from lib.retrain import code_version, retrain
from lib.ridge import Ridge

WIDTHS = [10_000, 20_000, 40_000, 80_000]
N, T, LAM, KAPPA, SEED = 1000, 100, 1.0, 0.1, 0  # our choices: the paper's are not public
TOP = 40
SETTINGS = {"lam": LAM, "kappa": KAPPA, "seed": SEED}
FLOWS, SETTLING = [12, 24, 48, 96], [2, 3, 4, 8, 16, 32]
FINE = {"flow_steps": 400}  # Newton in steps of 1/(λ_max + λ), chosen after 200 gave R = .9988
TOL = 3e-4  # rms change of f in one period at which descent has come to its end at n = 1000
GROUPS = "digits:0+2+4+6+8/1+3+5+7+9"  # two groups of classes: many images hard to tell apart


def draw(name: str):
    """Return the images of a data set, the kernel's influences and the two test images.

    The test images are the first of each class in the draw, whatever comes out.
    """
    d = data.load(name, n_train=N, n_test=T, seed=SEED)
    influence = Ridge(ntk(d.X), d.Y, LAM).influence(ntk(d.X, d.X_te), d.Y_te)
    return d, influence, first_of_each_class(d)


def source(d, m: int, **change) -> dict:
    """What a row of a record was measured with: data, sizes and settings."""
    return {"data": d.label, "n": len(d.Y), "m": m, **SETTINGS, **change}


def top(influence, j: int) -> np.ndarray:
    """The 40 training points of largest |I| on test image j, by the kernel."""
    return np.argsort(-np.abs(influence.exact[:, j]), kind="stable")[:TOP]


def again(d, m: int, groups, work: Path, kind: str = "top", **how):
    """Retrain without each of `groups`, or go on with it; results stay in `work`."""
    name = f"{d.name}-{len(d.Y)}-{m}-{kind}"
    print(name, flush=True)
    return retrain(d.X, d.Y, d.X_te, groups, m=m, file=work / f"{name}.jsonl", **SETTINGS, **how)


def table_1(d, influence, tests, m: int, work: Path) -> pd.DataFrame:
    """Predicted, retrained and estimated influence of the 40 points, for both test images."""
    points = sorted({int(i) for j in tests for i in top(influence, j)})
    actual = again(d, m, points, work)
    I = actual.influence(d.Y_te).exact
    problem = Problem(d.X, d.Y, d.X_te, m=m, **SETTINGS)
    full = newton(problem, start=newton(problem, settle_steps=0))
    estimate = ihvp(full, d.Y_te)
    rows = []
    for j in tests:
        chosen = top(influence, j)
        where = np.searchsorted(points, chosen)
        rows.append({
            **source(d, m), "test": d.index_te[j], "column": j, "row": chosen,
            "ntk": influence.exact[chosen, j], "retrained": I[where, j],
            "ihvp": estimate[chosen, j],
            "ihvp_ntk": influence.ihvp[chosen, j], "f": actual.f[j], "f_ntk": influence.f[j],
            "f_without": actual.f_without[where, j], "f_ntk_without": influence.loo[chosen, j],
            "seconds": actual.seconds[where], "workers": cpu_count(),
        })  # fmt: skip
    return pd.concat(map(pd.DataFrame, rows), ignore_index=True)


def every_point(d, influence, work: Path) -> pd.DataFrame:
    """At the smallest width, each test image: agreement for its 40 points, and for all."""
    run = again(d, WIDTHS[0], range(N), work, "every")
    I = run.influence(d.Y_te).exact
    rows = []
    for j in range(T):
        for points, name in ((top(influence, j), str(TOP)), (np.arange(N), "all")):
            x, y = influence.exact[points, j], I[points, j]
            slope, intercept = np.polyfit(x, y, 1)
            rows.append({
                **source(d, WIDTHS[0]), "column": j, "points": name,
                "R": np.corrcoef(x, y)[0, 1], "rho": pd.Series(x).corr(pd.Series(y), "spearman"),
                "slope": slope, "intercept": intercept, "residual": abs(influence.r_te[j]),
            })  # fmt: skip
    return pd.DataFrame(rows)


def cold(d, influence, tests, m: int, work: Path) -> pd.DataFrame:
    """The 40 points from W(0), beside the warm start."""
    points = sorted({int(i) for j in tests for i in top(influence, j)})
    runs = {
        "cold": again(d, m, points, work, "cold", warm=False),
        "warm": again(d, m, points, work),
    }
    I = {how: run.influence(d.Y_te).exact[:, tests] for how, run in runs.items()}
    return pd.DataFrame({
        **source(d, m), "column": np.tile(tests, len(points)),
        "row": np.repeat(points, len(tests)), "cold": I["cold"].ravel(), "warm": I["warm"].ravel(),
        "seconds_cold": np.repeat(runs["cold"].seconds, len(tests)),
        "seconds_warm": np.repeat(runs["warm"].seconds, len(tests)),
    })  # fmt: skip


HOWS = {  # what must not matter, and a start that differs by a small part of W(0)
    "as recorded": {},
    "two threads": {"threads": 2},
    "float64, no 8-bit products": {"dtype": "float64", "integers": False},
    "points in another order": {"shuffle": True},
    "start moved by 10⁻⁴": {"move": 1e-4},
    "start moved by 10⁻²": {"move": 1e-2},
}


def spread(d, influence, tests, work: Path) -> pd.DataFrame:
    """Influence of the 40 points of the first test image, the arithmetic or the start changed."""
    points = top(influence, tests[0])

    def measure(how, **setting):
        settings = {k: setting[k] for k in ("m", "lam", "kappa", "seed")}
        return {"influence": influences(d, points, **HOWS[how], **settings)[:, tests].tolist()}

    rows = [source(d, WIDTHS[0]) | {"how": how} for how in HOWS]
    found = each(f"spread-{d.name}", rows, measure, work).set_index("how")
    reference = np.array(found.influence["as recorded"])
    return pd.concat([
        pd.DataFrame({
            **source(d, WIDTHS[0]), "how": how, "column": np.tile(tests, len(points)),
            "row": np.repeat(points, len(tests)), "influence": np.ravel(found.influence[how]),
            "reference": reference.ravel(),
        })
        for how in HOWS if how != "as recorded"
    ])  # fmt: skip


def influences(
    d, points, *, threads=1, dtype="float32", integers=True, shuffle=False, move=0.0, **settings
):
    """Actual influence of points on all test images (Eq 7), with these changes."""
    order = np.random.default_rng(1).permutation(len(d.Y)) if shuffle else np.arange(len(d.Y))
    problem = Problem(d.X[order], d.Y[order], d.X_te, dtype=dtype, **settings)
    W = torch.randn(problem.m, d.X.shape[1], generator=torch.Generator().manual_seed(1)).double()
    for Z, X in ((problem.Z0, d.X[order]), (problem.Z0_te, d.X_te)):  # float32 in any dtype
        Z.copy_((Z.float() + move * problem.kappa * (W @ torch.as_tensor(X).T)).float())
    before, where = torch.get_num_threads(), np.argsort(order)[points]
    torch.set_num_threads(threads)
    off = nullcontext() if integers else patch("lib.product._integers_win", return_value=False)
    with off:
        begin = newton(problem, settle_steps=0)
        f = newton(problem, start=begin).f_te
        shift = np.array([newton(problem, start=begin, remove=i).f_te - f for i in where])
    torch.set_num_threads(before)
    return Influence(f, d.Y_te, shift).exact


def each(name: str, settings: list[dict], measure: Callable, work: Path) -> pd.DataFrame:
    """A row for each setting: it and what was measured, kept in `work` as it comes."""
    rows, header = [], {"format": "book.paper 1", "name": name, "code": code_version()}
    with Journal(work / f"{name}.jsonl", header) as journal:
        kept = {json.dumps(one["setting"]): one["found"] for one in journal.results}
        for setting in tqdm(settings, desc=name):
            key = json.dumps(setting)
            if key not in kept:
                kept[key] = measure(**setting)
                journal.append({"setting": json.loads(key), "found": kept[key]})
            rows.append(setting | kept[key])
    return pd.DataFrame(rows)


def theorem_1(d, influence, work: Path) -> pd.DataFrame:
    """Distance of the trained network from the kernel's prediction, both initialisations."""

    def measure(antisymmetric, **setting):
        how = {k: setting[k] for k in ("m", "lam", "kappa", "seed")}
        done = newton(Problem(d.X, d.Y, d.X_te, antisymmetric=antisymmetric, **how))
        found = {"kinks": done.kinks, "change": done.change, "seconds": done.seconds}
        return {"rms": rms(done.f_te - influence.f)} | found

    settings = [
        source(d, m, seed=seed) | {"antisymmetric": antisymmetric}
        for m, antisymmetric, seed in itertools.product(WIDTHS, (True, False), range(3))
    ]
    return each(f"theorem-1-{d.name}", settings, measure, work)


def descent(d, widths: list[int], work: Path) -> pd.DataFrame:
    """Distance from plain gradient descent of Newton, and of momentum, along m, λ and seeds."""

    def measure(**setting):
        how = {k: setting[k] for k in ("m", "lam", "kappa", "seed")}
        problem = Problem(d.X, d.Y, d.X_te, **how)
        plain, fast = gradient_descent(problem), gradient_descent(problem, momentum=True)
        done = newton(problem)
        return {
            "newton": rms(done.f_te - plain.f_te), "momentum": rms(fast.f_te - plain.f_te),
            "steps_plain": plain.iterations, "steps_momentum": fast.iterations,
            "steps_newton": done.iterations,
        }  # fmt: skip

    grid = itertools.product(widths, (0.125, 1.0, 16.0), range(3))
    settings = [source(d, m, lam=lam, seed=seed) for m, lam, seed in grid]
    return each(f"descent-{d.name}", settings, measure, work)


def textbook(d) -> float:
    """The step 1/(λ_max + λ) of descent, twice the default, with λ_max of K∞."""
    return 1 / (float(eigvalsh(ntk(d.X))[-1]) + LAM)


def steps_to(distance: float, path: dict, end: np.ndarray) -> int:
    """Return after how many steps descent is first within `distance` of its end."""
    return next(k for k, (_, f_te) in path.items() if rms(f_te - end) <= distance)


def settling(d, work: Path) -> pd.DataFrame:
    """The same distances at the paper's n, for more and fewer steps of Newton's.

    Descent takes the textbook's step. `to_plain` and `to_momentum` are the numbers of steps after
    which either is as near to its end as Newton's end is to that of plain descent.
    """

    def measure(**setting):
        how = {k: setting[k] for k in ("m", "lam", "kappa", "seed")}
        problem = Problem(d.X, d.Y, d.X_te, **how)
        step = {"step": textbook(d), "tol": TOL}
        plain = gradient_descent(problem, keep=range(0, 100_000, 20), **step)
        fast = gradient_descent(problem, momentum=True, keep=range(0, 100_000, 2), **step)
        begin = newton(problem, settle_steps=0)
        ends = {f"settle_{k}": newton(problem, start=begin, settle_steps=k) for k in SETTLING}
        ends |= {f"flow_{k}": newton(problem, flow_steps=k) for k in FLOWS}
        apart = {k: rms(done.f_te - plain.f_te) for k, done in ends.items()}
        near = apart[f"settle_{SETTLE}"]
        return {
            "momentum": rms(fast.f_te - plain.f_te), "newton": near,
            "steps_plain": plain.iterations, "steps_momentum": fast.iterations,
            "to_plain": steps_to(near, plain.trajectory, plain.f_te),
            "to_momentum": steps_to(near, fast.trajectory, fast.f_te),
        } | apart  # fmt: skip

    return each(f"settling-{d.name}", [source(d, WIDTHS[0])], measure, work)


def descent_without(d, m: int, work: Path) -> pd.DataFrame:
    """Influence of 10 points (the 6 most influential, then 4) on all test images by each method."""
    influence = Ridge(ntk(d.X), d.Y, LAM).influence(ntk(d.X, d.X_te), d.Y_te)
    most = np.argsort(-np.abs(influence.exact).mean(axis=1), kind="stable")[:6].tolist()
    points = most + [i for i in range(10) if i not in most][:4]
    ways = {
        f"{method}, {start}": {"method": method, "warm": start == "warm"}
        for method in ("gradient descent", "newton") for start in ("cold", "warm")
    }  # fmt: skip
    fine = {"gradient descent": {"step": textbook(d) / 8}, "newton": FINE}
    ways |= {
        f"{method}, fine": {"method": method, "warm": False, "options": options}
        for method, options in fine.items()
    }
    runs = {
        name: again(d, m, points, work, name.replace(", ", "-").replace(" ", "-"), **how)
        for name, how in ways.items()
    }
    I = {name: run.influence(d.Y_te).exact.ravel() for name, run in runs.items()}
    return pd.DataFrame([
        source(d, m) | {
            "method": a, "other": b, "R": np.corrcoef(I[a], I[b])[0, 1],
            "slope": np.polyfit(I[b], I[a], 1)[0], "seconds": runs[a].seconds.mean(),
        }
        for a in I for b in I if a != b
    ])  # fmt: skip


def record(name: str, parts: list[pd.DataFrame], records: Path) -> None:
    """Write a record with its source."""
    frame = pd.concat(parts, ignore_index=True).assign(**provenance())
    store(frame, records / f"{name}.csv", float_format="%.6g")


def main() -> None:
    args = recorder(__doc__).parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    names = ["mnist:4/9", f"{args.cifar10}:airplane/automobile"]
    draws = [draw(name) for name in names]
    # threads share the problem and its warm start, so that memory does not grow with them
    with parallel_config(backend="threading", n_jobs=cpu_count()):
        rows = [table_1(*one, m, args.work) for m in WIDTHS for one in draws]
        record("table-1", rows, args.records)
        record("spread", [spread(*one, args.work) for one in draws], args.records)
        record(
            "every-point",
            [every_point(d, influence, args.work) for d, influence, _ in draws],
            args.records,
        )
        small = [data.load(name, n_train=200, n_test=T, seed=SEED) for name in names]
        rows = [descent_without(d, m, args.work) for d in small for m in (2000, WIDTHS[0])]
        record("descent-without", rows, args.records)
    record(
        "theorem-1", [theorem_1(d, influence, args.work) for d, influence, _ in draws], args.records
    )
    narrow = [[500, 2000, 10_000], [500, 2000]]  # on CIFAR-10 wide ones take descent too long
    rows = [descent(*one, args.work) for one in zip(small, narrow, strict=True)]
    record("descent", rows, args.records)
    three = [d for d, *_ in draws] + [data.load(GROUPS, n_train=N, n_test=T, seed=SEED)]
    record("settling", [settling(d, args.work) for d in three], args.records)
    with parallel_config(backend="threading", n_jobs=cpu_count()):
        done = []
        for m in WIDTHS:  # hours in all, so every width is recorded as it comes
            done += [cold(*one, m, args.work) for one in draws]
            record("cold", done, args.records)
    (args.work / "complete").touch()


if __name__ == "__main__":
    main()
