"""Time of what the leverage says of all pairs, and whether it stays within two Cholesky inverses.

Predictions, leverage, IHVP, its repair, the exact influence and the certificate, from K and k; the
Cholesky factorisation and inverse that they start from are counted in.

    python bench/bounds.py
"""

from __future__ import annotations

import sys
import time

import numpy as np
from scipy.linalg import lapack

from lib.bounds import certificate
from lib.data import unit_rows
from lib.kernel import ntk
from lib.ridge import Ridge

N, T, D, LAM = 2000, 1000, 784, 1.0


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


def cholesky_and_inverse(K):
    """The two LAPACK calls without which there is no Q."""
    A = K + LAM * np.eye(N)
    factor, _ = lapack.dpotrf(A.T, lower=True, clean=False, overwrite_a=True)
    return lapack.dpotri(factor, lower=True, overwrite_c=True)


def everything(K, k, Y, y_te):
    """Leverage, IHVP, its repair, the exact influence and the certificate, all pairs."""
    model = Ridge(K, Y, LAM)
    influence = model.influence(k, y_te)
    return model.h, influence.ihvp, influence.rescaled, influence.exact, certificate(model)


def main() -> int:
    rng = np.random.default_rng(0)
    X = unit_rows(rng.random((N + T, D)) ** 4)
    Y = np.sign(rng.standard_normal(N + T))
    K, k = ntk(X[:N]), ntk(X[:N], X[N:])
    every, inverse = seconds(
        lambda: everything(K, k, Y[:N], Y[N:]), lambda: cholesky_and_inverse(K)
    )
    h, ihvp, _, exact, tau = everything(K, k, Y[:N], Y[N:])
    error = np.abs(exact - ihvp)
    certified = (h / (1 - h))[:, None] * np.abs(ihvp) + tau[:, None]

    rows = [
        ("leverage and all pairs, time / Cholesky + inverse", every / inverse, "<=", 2),
        ("pairs whose error is above the certificate", (error > certified).sum(), "<=", 0),
    ]
    print(f"n = {N}, d = {D}, {T} test points, lambda = {LAM:g}")
    print(f"everything {every:.3f} s, Cholesky + inverse {inverse:.3f} s\n")
    print(f"{'figure':<50} {'measured':>9}   {'goal':<8} holds")
    failed = 0
    for figure, measured, sign, goal in rows:
        holds = measured <= goal
        failed += not holds
        print(f"{figure:<50} {measured:>9.3g}   {sign} {goal:<5g} {'yes' if holds else 'NO'}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
