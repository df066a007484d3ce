"""Time and memory of the kernel and of exact influence: figure, goal, and whether it holds.

Ratios come from runs of both sides in turn, the fastest of each. Where other programs compete for
the cores, OMP_NUM_THREADS=1 keeps the threads of one side from waiting for each other.

All pairs against the two LAPACK calls alone: α = Qk adds a fifth of their operations. On two idle
cores of an AMD EPYC (2026-11-26) the ratio is 1.42, not 1.2. Of that α is .17, the Lanczos steps
that refuse an indefinite K are .12, the check of the input is .03, and copying K, mirroring Q and
two passes over the pairs are the rest. Without the Lanczos steps a K that is no kernel would give
leverages outside of [0, 1] in silence, so we keep them.

    python -m bench.core
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
from scipy.linalg import cholesky
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeCV

from bench.common import cholesky_and_inverse, images, seconds, table
from book.measures import high_water
from book.oracles import refit_without
from lib.kernel import ntk
from lib.ridge import Ridge

N, T, D, LAM, REFITS = 2000, 200, 784, 1.0, 20


def plain_kernel(X):
    """Eq 4 as written, which loses half of the digits where |u| is near 1."""
    u = np.clip(X @ X.T, -1, 1)
    return u * (np.pi - np.arccos(u)) / (2 * np.pi)


def everything(X, Y, X_te, Y_te):
    """Eq 4, 6, 8 and 9 from images to the influence of all pairs."""
    return Ridge(ntk(X), Y, LAM).influence(ntk(X, X_te), Y_te).exact


def peak() -> float:
    """Return the peak memory of kernel and influence in n×n float64 matrices, in a fresh process.

    The high-water mark of resident memory less what the libraries and the images take.
    """
    X, Y, X_te, Y_te = images(N, D, T)
    everything(X[:300], Y[:300], X_te, Y_te)  # libraries allocate work space on the first call
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # reset the mark to what is resident now
    before = high_water()
    everything(X, Y, X_te, Y_te)
    return (high_water() - before) / (8 * N * N)


def main() -> int:
    X, Y, X_te, Y_te = images(N, D, T)
    K, k = ntk(X), ntk(X, X_te)
    model = Ridge(K, Y, LAM)
    influence = model.influence(k, Y_te)

    kernel, plain = seconds(lambda: ntk(X), lambda: plain_kernel(X))
    pairs, inverse = seconds(
        lambda: Ridge(K, Y, LAM).influence(k, Y_te).exact, lambda: cholesky_and_inverse(K, LAM)
    )
    (one,) = seconds(lambda: refit_without(K, k, Y, LAM, 0), repeat=REFITS)
    memory = subprocess.run(
        [sys.executable, "-m", "bench.core", "--peak"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )

    exact = np.array([refit_without(K, k, Y, LAM, i) for i in range(REFITS)])
    features = cholesky(K, lower=True)
    peer = KernelRidge(alpha=LAM, kernel="precomputed").fit(K, Y)
    peer_cv = RidgeCV(alphas=[LAM], fit_intercept=False, store_cv_results=True).fit(features, Y)
    squares = peer_cv.cv_results_.squeeze()

    rows = [
        ("kernel, time / plain NumPy arccos", kernel / plain, "<=", 1.1),
        ("all-pairs influence, time / Cholesky + inverse", pairs / inverse, "<=", 1.2),
        (f"{N} refits, time / all-pairs influence", N * one / pairs, ">=", 500),
        ("peak memory, kernel and influence / n×n float64", float(memory.stdout), "<=", 3.5),
        ("leave-one-out, gap to refits", gap(influence.loo[:REFITS], exact), "<=", 1e-9),
        ("predictions, gap to KernelRidge", gap(influence.f, peer.predict(k.T)), "<=", 1e-9),
        ("leave-one-out, gap to RidgeCV", gap(model.rho**2, squares), "<=", 1e-9),
    ]
    print(f"n = {N}, d = {D}, {T} test points, lambda = {LAM:g}")
    print(f"kernel {kernel:.3f} s, influence {pairs:.3f} s, one refit {one:.3f} s\n")
    return table(rows)


def gap(a, b) -> float:
    return float(np.abs(a - b).max())


if __name__ == "__main__":
    if "--peak" in sys.argv:
        print(peak())
    else:
        sys.exit(main())
