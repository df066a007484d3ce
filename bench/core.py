"""Time and memory of the kernel and of exact influence: figure, goal, and whether it holds.

Ratios come from runs of both sides in turn, the fastest of each. Where other programs compete for
the cores, OMP_NUM_THREADS=1 keeps the threads of one side from waiting for each other.

    python bench/core.py
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
from scipy.linalg import cho_factor, cho_solve, cholesky, lapack
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV

from lib.data import unit_rows
from lib.kernel import ntk
from lib.ridge import Ridge

N, T, D, LAM, REFITS = 2000, 200, 784, 1.0, 20


def problem():
    """Return X (N, D), Y (N,), X_te (T, D), Y_te (T,): random images with labels ±1."""
    rng = np.random.default_rng(0)
    X = unit_rows(rng.random((N + T, D)) ** 4)
    Y = np.sign(rng.standard_normal(N + T))
    return X[:N], Y[:N], X[N:], Y[N:]


def seconds(*calls, repeat: int = 15) -> list[float]:
    """Return the fastest of `repeat` runs of each call, taken in turn after one to warm up."""
    times = []
    for _ in range(repeat + 1):
        times.append([])
        for call in calls:
            start = time.perf_counter()
            call()
            times[-1].append(time.perf_counter() - start)
    return np.min(times[1:], axis=0).tolist()


def plain_kernel(X):
    """Eq 4 as written, which loses half of the digits where |u| is near 1."""
    u = np.clip(X @ X.T, -1, 1)
    return u * (np.pi - np.arccos(u)) / (2 * np.pi)


def cholesky_and_inverse(K):
    """The two LAPACK calls without which there is no Q."""
    A = K + LAM * np.eye(N)
    factor, _ = lapack.dpotrf(A.T, lower=True, clean=False, overwrite_a=True)
    return lapack.dpotri(factor, lower=True, overwrite_c=True)


def refit(K, Y, k, i):
    """Return the predictions of the model trained without point i."""
    keep = np.delete(np.arange(N), i)
    A = K[np.ix_(keep, keep)]
    A[np.diag_indices(N - 1)] += LAM
    factor = cho_factor(A.T, lower=True, overwrite_a=True, check_finite=False)
    return k[keep].T @ cho_solve(factor, Y[keep], check_finite=False)


def everything(X, Y, X_te, Y_te):
    """Eq 4, 6, 8 and 9 from images to the influence of all pairs."""
    return Ridge(ntk(X), Y, LAM).influence(ntk(X, X_te), Y_te).exact


def peak() -> float:
    """Return the peak memory of kernel and influence in n×n float64 matrices, in a fresh process.

    The high-water mark of resident memory less what the libraries and the images take.
    """
    X, Y, X_te, Y_te = problem()
    everything(X[:300], Y[:300], X_te, Y_te)  # libraries allocate work space on the first call
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # reset the mark to what is resident now
    before = high_water()
    everything(X, Y, X_te, Y_te)
    return (high_water() - before) / (8 * N * N)


def high_water() -> int:
    """Return the high-water mark of this process's resident memory in bytes (Linux)."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def main() -> int:
    X, Y, X_te, Y_te = problem()
    K, k = ntk(X), ntk(X, X_te)
    model = Ridge(K, Y, LAM)
    influence = model.influence(k, Y_te)

    kernel, plain = seconds(lambda: ntk(X), lambda: plain_kernel(X))
    pairs, inverse = seconds(
        lambda: Ridge(K, Y, LAM).influence(k, Y_te).exact, lambda: cholesky_and_inverse(K)
    )
    (one,) = seconds(lambda: refit(K, Y, k, 0), repeat=REFITS)
    memory = subprocess.run(
        [sys.executable, __file__, "--peak"], stdout=subprocess.PIPE, text=True, check=True
    )

    exact = np.array([refit(K, Y, k, i) for i in range(REFITS)])
    features = cholesky(K, lower=True)
    peer = KernelRidge(alpha=LAM, kernel="precomputed").fit(K, Y)
    peer_cv = RidgeCV(alphas=[LAM], fit_intercept=False, store_cv_results=True).fit(features, Y)
    squares = peer_cv.cv_results_.squeeze()

    rows = [
        ("kernel, time / plain NumPy arccos", kernel / plain, "<=", 1.1),
        ("all-pairs influence, time / Cholesky + inverse", pairs / inverse, "<=", 1.5),
        (f"{N} refits, time / all-pairs influence", N * one / pairs, ">=", 500),
        ("peak memory, kernel and influence / n×n float64", float(memory.stdout), "<=", 3.5),
        ("leave-one-out, gap to refits", gap(influence.loo[:REFITS], exact), "<=", 1e-9),
        ("predictions, gap to KernelRidge", gap(influence.f, peer.predict(k.T)), "<=", 1e-9),
        ("leave-one-out, gap to RidgeCV", gap(model.rho**2, squares), "<=", 1e-9),
    ]
    print(f"n = {N}, d = {D}, {T} test points, lambda = {LAM:g}")
    print(f"kernel {kernel:.3f} s, influence {pairs:.3f} s, one refit {one:.3f} s\n")
    print(f"{'figure':<48} {'measured':>9}   {'goal':<8} holds")
    failed = 0
    for figure, measured, sign, goal in rows:
        holds = measured <= goal if sign == "<=" else measured >= goal
        failed += not holds
        print(f"{figure:<48} {measured:>9.3g}   {sign} {goal:<5g} {'yes' if holds else 'NO'}")
    return int(failed > 0)


def gap(a, b) -> float:
    return float(np.abs(a - b).max())


if __name__ == "__main__":
    if "--peak" in sys.argv:
        print(peak())
    else:
        sys.exit(main())
