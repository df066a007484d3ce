"""Whole computations, this library beside others in one run: equal work, accuracy, seconds.

Times are those of the processor, on one thread, the fastest of three after one to warm up.
"""

from __future__ import annotations

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
from bench.peers.side import fastest
from book.labels import flip
from book.oracles import refit_without
from lib import data
from lib.dynamics import Flow
from lib.kernel import ntk
from lib.labels import scores
from lib.network import initialise
from lib.newton import newton
from lib.problem import Problem
from lib.ridge import Ridge

SIZE, D, T, LAM, REFITS = 1000, 784, 200, 1.0, 20


def tasks(work: Path, python: str, jax: str | None) -> list[dict]:
    """All rows: task, who, version, seconds, error against the reference named, and what it is."""
    torch.set_num_threads(1)
    return [*kernels(work, jax), *loo(work, python), *ihvps(work), *retraining(),
            *along_time(), *labels(work, python)]  # fmt: skip


def row(task: str, who: str, seconds, error, reference: str, version="", outcome="ok") -> dict:
    return {"task": task, "who": who, "version": version, "seconds": seconds, "error": error,
            "reference": reference, "outcome": outcome}  # fmt: skip


def other(work: Path, python: str, task: str, inputs: dict):
    """The result and answer of a library of others in its own environment."""
    from bench.peers.__main__ import ask

    files = work / f"{task}.npz", work / f"{task}.npy"
    np.savez(files[0], **inputs)
    line = {"task": task, "inputs": str(files[0]), "output": str(files[1])}
    (answer,) = ask(python, [line], "side.py")
    return (np.load(files[1]) if answer["outcome"] == "ok" else None), answer


def gap(a, b) -> float:
    return float(np.abs(a - b).max())


def kernels(work: Path, jax: str | None):
    X, *_ = images(SIZE, D, T)
    task, reference = f"kernel, n = {SIZE}", "this library, largest gap"

    def plain():
        u = np.clip(X @ X.T, -1, 1)
        return u * (np.pi - np.arccos(u)) / (2 * np.pi)

    ours, seconds = fastest(lambda: ntk(X))
    yield row(task, "this library", seconds, 0.0, reference)
    found, seconds = fastest(plain)
    yield row(task, "NumPy, as written", seconds, gap(found, ours), reference, np.__version__)
    if jax:
        found, answer = other(work, jax, "neural_tangents", {"X": X})
        error = np.nan if found is None else gap(found, ours)
        yield row(task, "neural-tangents", answer.get("seconds"), error, reference,
                  answer["version"], answer["outcome"])  # fmt: skip


def loo(work: Path, python: str):
    X, Y, X_te, Y_te = images(SIZE, D, T)
    K, k = ntk(X), ntk(X, X_te)
    task, reference = f"leave-one-out residuals, n = {SIZE}", "this library, largest gap"
    ours, seconds = fastest(lambda: Ridge(K, Y, LAM).rho)
    yield row(task, "this library", seconds, 0.0, reference)
    features = cholesky(K, lower=True)

    def ridge_cv():
        model = RidgeCV(alphas=[LAM], fit_intercept=False, store_cv_results=True)
        return model.fit(features, Y).cv_results_.squeeze()

    found, seconds = fastest(ridge_cv)
    yield row(task, "scikit-learn, RidgeCV", seconds, gap(found, ours**2), reference)
    found, answer = other(work, python, "gpytorch", {"K": K, "Y": Y, "lam": LAM})
    error = np.nan if found is None else gap(found, ours)
    yield row(task, "GPyTorch", answer.get("seconds"), error, reference, answer["version"],
              answer["outcome"])  # fmt: skip
    task = f"influence of all pairs, n = {SIZE}, {T} test points"
    ours, seconds = fastest(lambda: Ridge(K, Y, LAM).influence(k, Y_te).exact)
    yield row(task, "this library", seconds, 0.0, reference)
    found, seconds = fastest(
        lambda: np.array([refit_without(K, k, Y, LAM, i) for i in range(REFITS)]), repeat=1
    )
    f = Ridge(K, Y, LAM).predict(k)
    actual = 0.5 * (found - Y_te) ** 2 - 0.5 * (f - Y_te) ** 2
    yield row(task, f"refits (from {REFITS})", seconds * SIZE / REFITS, gap(actual, ours[:REFITS]),
              reference)  # fmt: skip


def ihvps(work: Path):
    """From the rows of `solvers`: the fastest setting of each library with an error below 1 %."""
    from bench.peers.__main__ import HEADER
    from lib.journal import Journal

    with Journal(work / "solvers.jsonl", HEADER) as journal:
        frame = pd.DataFrame(journal.results)
    for network in plan.NETWORKS:
        part = frame[(frame.network == network.name) & (frame.error < 0.01) & frame.unit]
        part = part[(part.outcome == "ok") & (network.width >= 1000)]
        task, reference = (
            f"IHVP, m = {network.width}, λ = {network.lam:g}",
            "dual in float64, relative rms",
        )
        for _, best in part.sort_values("seconds").groupby("library", sort=False):
            one = best.iloc[0]
            version = "" if one.solver.startswith("lib") else one.version
            yield row(task, f"{one.library}, {one.method}" + ", Eq 1" * (one.solver == "lib.ihvp"),
                      one.seconds, one.error, reference, version)  # fmt: skip


def retraining():
    """One retraining to rest, by Newton's method and by a plain loop with momentum."""
    network = plan.MAIN
    d = data.load(network.source, n_train=prepare.N, n_test=prepare.T, seed=0)
    p = Problem(d.X, d.Y, d.X_te, lam=network.lam, m=network.width, kappa=network.kappa, seed=0)
    begin = newton(p, settle_steps=0)
    points = range(5)
    ours, seconds = fastest(lambda: [newton(p, start=begin, remove=i).f_te for i in points])
    task, reference = f"one retraining, m = {network.width}", "each other, rms over test points"
    W0, a = initialise(d.X.shape[1], p.m, p.kappa, 0)
    L = float(np.linalg.eigvalsh(ntk(d.X))[-1]) + network.lam

    def loop(i: int) -> np.ndarray:
        kept = np.arange(len(d.Y)) != i
        X, Y = torch.as_tensor(d.X[kept]).float(), torch.as_tensor(d.Y[kept]).float()
        layer = nn.Linear(X.shape[1], p.m, bias=False)
        layer.weight.data = torch.as_tensor(W0.T).float()
        start, s = layer.weight.detach().clone(), torch.as_tensor(a / p.m**0.5).float()
        mu = (1 - (network.lam / L) ** 0.5) / (1 + (network.lam / L) ** 0.5)
        optimiser = torch.optim.SGD(layer.parameters(), lr=1 / L, momentum=mu, nesterov=True)
        before = None
        for step in range(5000):
            optimiser.zero_grad()
            f = layer(X).relu() @ s
            loss = 0.5 * ((f - Y) ** 2).sum()
            loss = loss + 0.5 * network.lam * ((layer.weight - start) ** 2).sum()
            loss.backward()
            optimiser.step()
            if step % 50 == 0:  # until 50 steps change the predictions by less than a thousandth
                now = f.detach()
                if before is not None and (now - before).square().mean().sqrt() < 1e-3:
                    break
                before = now
        with torch.no_grad():
            return (layer(torch.as_tensor(d.X_te).float()).relu() @ s).numpy()

    found, slow = fastest(lambda: [loop(i) for i in points], repeat=1)
    error = float(np.sqrt(np.mean((found - ours) ** 2)))
    yield row(task, "this library, Newton", seconds / len(points), error, reference)
    yield row(task, "torch, SGD with momentum", slow / len(points), error, reference,
              torch.__version__)  # fmt: skip


def along_time(n: int = 300, t: float = 1.0):
    """Leave-one-out residuals at a moment of training, beside a matrix exponential a point."""
    X, Y, *_ = images(n, D, T)
    K = ntk(X)
    ours, seconds = fastest(lambda: Flow(K, Y, 0.1).rho(t))
    A = K + 0.1 * np.eye(n)

    def without(i: int) -> float:
        kept = np.arange(n) != i
        B = A[np.ix_(kept, kept)]
        end = np.linalg.solve(B, Y[kept])
        return float(K[i, kept] @ (end - expm(-B * t) @ end) - Y[i])

    some = range(0, n, n // 5)
    found, slow = fastest(lambda: [without(i) for i in some], repeat=1)
    task, reference = f"leave-one-out at a moment of training, n = {n}", "each other, largest gap"
    error = gap(found, ours[list(some)])
    yield row(task, "this library", seconds, error, reference)
    yield row(task, f"SciPy, a point at a time (from {len(found)})", slow * n / len(found), error,
              reference)  # fmt: skip


def labels(work: Path, python: str):
    """Wrong labels: AUROC of finding a fifth of the labels of 1,000 digits that are wrong."""
    d = data.load("digits:all", n_train=1000, n_test=10, seed=0)
    Y, wrong = flip(d.Y, "random", 0.2, 0)
    task, reference = "wrong labels, 1,000 digits, 20 %", "AUROC missed, 1 − AUROC"

    def ours():
        return scores(Ridge(ntk(d.X), Y, 1.0))["margin"]

    found, seconds = fastest(ours)
    yield row(task, "this library, margin", seconds, 1 - roc_auc_score(wrong, found), reference)
    found, answer = other(work, python, "cleanlab", {"X": d.X, "labels": Y.argmax(axis=1)})
    error = np.nan if found is None else 1 - roc_auc_score(wrong, found)
    yield row(task, "cleanlab, CleanLearning", answer.get("seconds"), error, reference,
              answer["version"], answer["outcome"])  # fmt: skip
