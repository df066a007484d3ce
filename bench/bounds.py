"""Time of what the leverage says of all pairs, and whether it stays within two Cholesky inverses.

Predictions, leverage, IHVP, its repair, the exact influence and the certificate, from K and k; the
Cholesky factorisation and inverse that they start from are counted in. The other side is the two
LAPACK calls alone, n³ operations. For n = 2t the product α = Qk has 2n²t = n³ more, so the goal
leaves no operation to spare: all else (the check of K, mirroring the triangle that LAPACK fills,
leverages, certificate, three passes over the pairs) has to fit into what a matrix product is
faster than LAPACK's inverse. Both sides run in turn, and the fastest run of each counts. On two
idle cores of an AMD EPYC (2026-11-26) it is 2.01: .244 s against .122 s.

    python -m bench.bounds
"""

from __future__ import annotations

import sys

import numpy as np

from bench.common import cholesky_and_inverse, images, seconds, table
from lib.bounds import certificate, certified
from lib.kernel import DIAGONAL, ntk
from lib.ridge import Ridge

N, T, D, LAM = 2000, 1000, 784, 1.0


def everything(K, k, Y, y_te):
    """Leverage and certificate; IHVP, its repair and the exact influence, one after another."""
    model = Ridge(K, Y, LAM)
    influence = model.influence(k, y_te)
    for pairs in ("ihvp", "rescaled", "exact"):
        getattr(influence, pairs)  # made and dropped, as by a reader who looks at one at a time
    return influence, certificate(model, DIAGONAL)


def main() -> int:
    X, Y, X_te, Y_te = images(N, D, T)
    K, k = ntk(X), ntk(X, X_te)
    every, inverse = seconds(
        lambda: everything(K, k, Y, Y_te), lambda: cholesky_and_inverse(K, LAM), repeat=25
    )
    influence, _ = everything(K, k, Y, Y_te)
    bound, _ = certified(influence, tolerance=0.1, k_xx=DIAGONAL)
    above = (np.abs(influence.exact - influence.ihvp) > bound).sum()

    rows = [
        ("leverage and all pairs, time / Cholesky + inverse", every / inverse, "<=", 2),
        ("pairs whose error is above the certificate", above, "<=", 0),
    ]
    print(f"n = {N}, d = {D}, {T} test points, lambda = {LAM:g}")
    print(f"operations: {N**3 + 2 * N**2 * T:.2g} up to alpha, {N**3:.2g} for the inverse")
    print(f"everything {every:.3f} s, Cholesky + inverse {inverse:.3f} s\n")
    return table(rows)


if __name__ == "__main__":
    sys.exit(main())
