"""Whole computations, this library beside others in one run: equal work, accuracy, seconds, memory.

Times are those of the processor, on one thread, the fastest run within a second, or of three;
memory is that of another run (see `side`). IHVP has the rows of `solvers`, of a first call.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.linalg import cholesky, expm
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from torch import nn

from bench.common import images
from bench.peers import plan, prepare
from bench.peers.side import descend, fastest
from book.labels import flip
from book.oracles import refit_without
from lib import data
from lib.descent import gradient_descent
from lib.dynamics import Flow
from lib.kernel import ntk
from lib.labels import scores
from lib.network import initialise
from lib.newton import newton
from lib.problem import Problem
from lib.ridge import Ridge

SIZE, D, T, LAM, REFITS = 1000, 784, 200, 1.0, 20
SEED = 0  # of every draw of data and start of a network here
OURS = "ntk-influence"


def tasks(work: Path, python: str, jax: str | None, solvers: pd.DataFrame) -> list[dict]:
    """All rows of `peers.csv`; `solvers` are those of `solvers.csv`, for IHVP."""
    torch.set_num_threads(1)
    both = [row for n in (SIZE, 4 * SIZE) for row in kernels(work, jax, n)]
    return [*both, *loo(work, python), *ihvps(solvers), *retraining(work, python),
            *along_time(work, jax), *labels(work, python)]  # fmt: skip


def row(task: str, who: str, of: str, knobs: str, cost: dict, error, reference: str, **rest):
    """A row: what, who with which version and knobs, its cost, and its error against a reference.

    `of` is the distribution; for a library in its own environment, `cost` has its version, and
    the `versions` of what it runs on.
    """
    return {
        "task": task, "who": who, "version": cost.get("version") or f"{of} {version(of)}",
        "knobs": knobs, "seed": SEED, "seconds": cost.get("seconds"), "memory": cost.get("memory"),
        "error": error, "reference": reference, "outcome": cost.get("outcome", "ok"),
    } | {k: v for k, v in cost.items() if k == "versions"} | rest  # fmt: skip


def other(work: Path, python: str, task: str, inputs: dict):
    """The result of a library of others in its own environment, and its cost with its version."""
    from bench.peers.__main__ import ask

    files = work / f"{task}.npz", work / f"{task}.npy"
    np.savez(files[0], **inputs)
    line = {"task": task, "inputs": str(files[0]), "output": str(files[1])}
    (answer,) = ask(python, [line], "side.py")
    return (np.load(files[1]) if answer["outcome"] == "ok" else None), answer


def gap(a, b) -> float:
    """The largest difference, or NaN where a library gave no result."""
    return np.nan if a is None else float(np.abs(a - b).max())


def rms(a, b) -> float:
    return np.nan if a is None else float(np.sqrt(np.mean(np.square(a - b))))


def scaled(cost: dict, factor: float) -> dict:
    """The cost of more of the same, one after the other: memory stays."""
    return cost if cost.get("seconds") is None else cost | {"seconds": cost["seconds"] * factor}


def extended(X: np.ndarray) -> np.ndarray:
    """K∞ of rows of unit norm in extended precision: Eq 4, with the angle of a row to itself 0."""
    X = X.astype(np.longdouble)
    X /= np.sqrt((X * X).sum(axis=1, keepdims=True))
    u = np.clip(X @ X.T, -1, 1)
    angle = np.arccos(u)
    np.fill_diagonal(angle, 0)
    return u * (np.arccos(np.longdouble(-1)) - angle) / (2 * np.arccos(np.longdouble(-1)))


def kernels(work: Path, jax: str | None, n: int):
    X, *_ = images(n, D, T)
    task, oracle = f"kernel, n = {n:,}", extended(X[:SIZE])
    reference = f"Eq 4 in extended precision for {SIZE:,} points, largest gap"
    square = lambda K: None if K is None else K[:SIZE, :SIZE]  # noqa: E731

    def plain():
        u = np.clip(X @ X.T, -1, 1)
        return u * (np.pi - np.arccos(u)) / (2 * np.pi)

    found, cost = fastest(lambda: ntk(X))
    yield row(task, "this library", OURS, "ntk(X)", cost, gap(square(found), oracle), reference)
    found, cost = fastest(plain)
    yield row(task, "NumPy, as written", "numpy", "arccos of X Xᵀ, float64", cost,
              gap(square(found), oracle), reference)  # fmt: skip
    if jax:
        found, cost = other(work, jax, "neural_tangents", {"X": X})
        yield row(task, "neural-tangents", "", "stax.Dense, Relu, Dense; ntk − nngp; jit, float64",
                  cost, gap(square(found), oracle), reference)  # fmt: skip


def loo(work: Path, python: str):
    X, Y, X_te, Y_te = images(SIZE, D, T)
    K, k = ntk(X), ntk(X, X_te)
    task, some = f"leave-one-out residuals, n = {SIZE}", range(REFITS)
    reference = f"refits without each of {REFITS} points, largest gap"
    oracle = np.array([refit_without(K, K[:, i], Y, LAM, i) - Y[i] for i in some])
    ours, cost = fastest(lambda: Ridge(K, Y, LAM).rho)
    knobs = f"Ridge(K, Y, {LAM:g}).rho"
    yield row(task, "this library", OURS, knobs, cost, gap(ours[:REFITS], oracle), reference)
    features = cholesky(K, lower=True)

    def ridge_cv():
        model = RidgeCV(alphas=[LAM], fit_intercept=False, store_cv_results=True)
        return model.fit(features, Y).cv_results_.squeeze()

    found, cost = fastest(ridge_cv)  # their squares
    knobs = f"alphas=[{LAM:g}], fit_intercept=False, store_cv_results=True, on a root of K"
    yield row(task, "scikit-learn, RidgeCV", "scikit-learn", knobs, cost,
              gap(found[:REFITS] ** 0.5, np.abs(oracle)), reference)  # fmt: skip
    found, cost = other(work, python, "gpytorch", {"K": K, "Y": Y, "lam": LAM})
    error = gap(found if found is None else found[:REFITS], oracle)
    knobs = "linear_operator: DenseLinearOperator, solve; fast_computations off, float64"
    yield row(task, "GPyTorch", "", knobs, cost, error, reference)

    task = f"influence of all pairs, n = {SIZE}, {T} test points"
    reference = f"refits without each of {REFITS} points, largest gap"
    ours, cost = fastest(lambda: Ridge(K, Y, LAM).influence(k, Y_te).exact)
    refits, slow = fastest(
        lambda: np.array([refit_without(K, k, Y, LAM, i) for i in some]), repeat=1
    )
    f = Ridge(K, Y, LAM).predict(k)
    actual = 0.5 * (refits - Y_te) ** 2 - 0.5 * (f - Y_te) ** 2
    knobs = f"Ridge(K, Y, {LAM:g}).influence(k, Y_te).exact"
    yield row(task, "this library", OURS, knobs, cost, gap(ours[:REFITS], actual), reference)
    yield row(task, f"refits (from {REFITS})", "scipy", "a factorisation for each point",
              scaled(slow, SIZE / REFITS), 0.0, reference)  # fmt: skip


def ihvps(solvers: pd.DataFrame):
    """Of the rows of `solvers.csv`: the fastest setting of each library with an error below 1 %.

    The others get a module, and so do we. What training left of the network of Eq 1 is less work.
    """
    good = solvers[(solvers.outcome == "ok") & (solvers.error < 0.01) & solvers.unit]
    own = {"lib.ihvp": ("Eq 1 as trained", "ihvp(trained, y_te)"),
           "lib": ("any module", "influence(model, loss, …, memory=6e9)")}  # fmt: skip
    for network in (plan.MAIN, plan.WIDE, plan.MNIST):
        part = good[good.network == network.name].sort_values("seconds")
        images = "" if network.source == plan.MAIN.source else f", {network.source}"
        task = f"IHVP, m = {network.width}, λ = {network.lam:g}{images}"
        for solver, best in part.groupby("solver", sort=False):
            one, cost = best.iloc[0], dict(best.iloc[0][["seconds", "memory"]])
            who, knobs = f"{one.library}, {one.method}", one.knobs or "default"
            if solver in own:
                who, knobs = f"{who}, {own[solver][0]}", own[solver][1]
                name = task if solver == "lib" else task.replace("IHVP", "IHVP of Eq 1 as trained")
            else:
                name = task
                cost["version"] = f"{one.library} {one.version}"
            rest = dict(one[["seed", "date", "machine", "versions"]])
            yield row(name, who, OURS, knobs, cost, one.error, "dual in float64, relative rms",
                      **rest)  # fmt: skip


def retraining(work: Path, python: str):
    """Retraining to rest without a point, from the trained network, which all are given.

    What counts is the change of the predictions, against that of descent in small steps. Minima
    differ a little where a kink holds a pair, so none of them agree to more digits.
    """
    network = plan.MAIN
    d = data.load(network.source, n_train=prepare.N, n_test=prepare.T, seed=SEED)
    p = Problem(d.X, d.Y, d.X_te, lam=network.lam, m=network.width, kappa=network.kappa, seed=SEED)
    begin, points = newton(p, settle_steps=0), np.arange(5)
    every = [(), *points.tolist()]  # with all points, and without each

    def change(f):
        return None if f is None else f[1:] - f[0]

    W0, a = initialise(d.X.shape[1], p.m, p.kappa, SEED)
    W = W0 + d.X.T @ (begin.C.double().numpy() * p.a.numpy()[:, None]).T
    L = float(np.linalg.eigvalsh(ntk(d.X))[-1]) + network.lam
    q = (network.lam / L) ** 0.5
    inputs = {"W0": W0.T, "W": W.T, "s": a / p.m**0.5, "X": d.X, "Y": d.Y, "X_te": d.X_te}
    how = {"lam": network.lam, "rate": 1 / L, "momentum": (1 - q) / (1 + q)}
    parts = {k: torch.as_tensor(v).float() for k, v in inputs.items()}

    def loop(removed) -> np.ndarray:
        kept = np.delete(np.arange(len(d.Y)), removed)
        layer = nn.Linear(d.X.shape[1], p.m, bias=False)
        layer.weight.data = parts["W"].clone()
        descend(layer, parts["W0"], parts["X"][kept], parts["Y"][kept], parts["s"], **how)
        with torch.no_grad():
            return (layer(parts["X_te"]).relu() @ parts["s"]).numpy()

    slow = [gradient_descent(p, start=begin, remove=i, momentum=True).f_te for i in every]
    oracle = change(np.array(slow))
    task, reference = f"one retraining, m = {network.width}", "descent, rms change of a prediction"
    ours = lambda these: np.array([newton(p, start=begin, remove=i).f_te for i in these])  # noqa: E731
    plain = lambda these: np.array([loop(i) for i in these])  # noqa: E731
    knobs = (
        f"lr={1 / L:.2g}, momentum={how['momentum']:.2g}, nesterov; until 10 steps change < 1e-3"
    )
    for who, of, call, words in (
        ("this library, Newton", OURS, ours, "newton(problem, start, remove)"),
        ("torch, SGD with momentum", "torch", plain, knobs),
    ):
        _, cost = fastest(lambda call=call: call(points))
        error = rms(change(call(every)), oracle)
        yield row(task, who, of, words, scaled(cost, 1 / len(points)), error, reference)
    found, cost = other(work, python, "dattri", inputs | how | {"points": points, "seed": SEED})
    found = None if found is None else found - loop(())
    yield row(task, "dattri, retrain_loo", "", f"one batch; train_func: {knobs}",
              scaled(cost, 1 / len(points)), rms(found, oracle), reference)  # fmt: skip


def along_time(work: Path, jax: str | None, n: int = 300, t: float = 1.0, lam: float = 0.1):
    """Leave-one-out residuals at a moment of training; others leave out a point at a time."""
    X, Y, *_ = images(n, D, T)
    K = ntk(X)
    ours, cost = fastest(lambda: Flow(K, Y, lam).rho(t))
    A = K + lam * np.eye(n)

    def without(i: int) -> float:
        kept = np.arange(n) != i
        B = A[np.ix_(kept, kept)]
        end = np.linalg.solve(B, Y[kept])
        return float(K[i, kept] @ (end - expm(-B * t) @ end) - Y[i])

    some = np.arange(0, n, n // 5)
    oracle, slow = fastest(lambda: [without(i) for i in some], repeat=1)
    task = f"leave-one-out at a moment of training, n = {n}"
    reference = f"matrix exponential without each of {len(some)} points, largest gap"
    knobs = f"Flow(K, Y, {lam:g}).rho({t:g})"
    yield row(task, "this library", OURS, knobs, cost, gap(ours[some], oracle), reference)
    every = f"a point at a time (from {len(some)})"
    knobs = f"linalg.expm; λ = {lam:g}, t = {t:g}"
    yield row(task, f"SciPy, {every}", "scipy", knobs, scaled(slow, n / len(some)), 0.0, reference)
    if jax:
        inputs = {"K": K, "Y": Y, "lam": lam, "t": t, "points": some}
        found, cost = other(work, jax, "gradient_flow", inputs)
        knobs = f"predict.gradient_descent_mse, diag_reg={lam:g} (absolute), t = {t:g} (n − 1)"
        yield row(task, f"neural-tangents, {every}", "", knobs, scaled(cost, n / len(some)),
                  gap(found, oracle), reference)  # fmt: skip


def labels(work: Path, python: str):
    """Wrong labels: AUROC of finding a fifth of the labels of 1,000 digits that are wrong."""
    d = data.load("digits:all", n_train=1000, n_test=10, seed=SEED)
    Y, wrong = flip(d.Y, "random", 0.2, SEED)
    task, reference = "wrong labels, 1,000 digits, 20 %", "AUROC missed, 1 − AUROC"

    def missed(found):
        return np.nan if found is None else 1 - roc_auc_score(wrong, found)

    found, cost = fastest(lambda: scores(Ridge(ntk(d.X), Y, 1.0))["margin"])
    knobs = "scores(Ridge(K, Y, 1))"
    yield row(task, "this library, margin", OURS, knobs, cost, missed(found), reference)
    for kind, folds in (("LogisticRegression(max_iter=1000)", 5), ("KNeighborsClassifier(10)", 5),
                        ("LinearDiscriminantAnalysis()", 5), ("KNeighborsClassifier(10)", 10),
                        ("LogisticRegression(max_iter=1000)", 10)):  # fmt: skip
        inputs = {"X": d.X, "labels": Y.argmax(axis=1), "folds": folds, "kind": kind}
        found, cost = other(work, python, "cleanlab", inputs)
        knobs = f"CleanLearning({kind}), cv_n_folds={folds}, seed=0, n_jobs=1"
        who = f"cleanlab, {kind.split('(')[0]}, {folds} folds"  # 5 is the default
        yield row(task, who, "", knobs, cost, missed(found), reference)
