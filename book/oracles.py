"""The loss and the fit as written, by brute force, to hold the closed forms to (Eq 5, 6)."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from lib import check


def objective(K, Y, lam: float, coefficients) -> float:
    """Return the loss of kernel ridge regression at f = Σ_j c_j K∞(·, x_j).

    Eq 5:  ½ ‖Kc − Y‖² + ½ λ cᵀKc:  a sum over the training points, not a mean, and over outputs.

    K is (n, n), Y and `coefficients` are (n,) or (n, c); the result is in squared label units.
    Raises `ValueError` for bad shapes or values. Source: Zhang and Zhang (2022), Eq 5.

    >>> objective([[0.5]], [1.0], 0.5, [1.0])
    0.25
    """
    K, Y, lam = check.regression(K, Y, lam)
    c = check.array("coefficients", coefficients, ndim=(1, 2))
    if c.shape != Y.shape:
        raise ValueError(f"coefficients has shape {c.shape}, but Y has {Y.shape}; pass one a label")
    Kc = K @ c
    return float(0.5 * np.sum((Kc - Y) ** 2) + 0.5 * lam * np.sum(c * Kc))


def refit_without(K, k, Y, lam: float, removed) -> np.ndarray:
    """Return the predictions of a model fitted afresh to what `removed` leaves, (t,) or (t, c).

    Eq 6 on K_{∖I} and Y_{∖I}: brute force, one factorisation a call, to hold the closed forms to.

    K is (n, n), k (n, t) or (n,), Y (n,) or (n, c) and λ ≥ 0 as for `Ridge`; `removed` is an index
    or a list of them, and [] removes none. A single column `k` of shape (n,) gives a number, or
    (c,). Raises `LinAlgError` if what is left is singular, `ValueError` for bad values,
    `IndexError` for bad indices.

    >>> K, k = [[0.5, 0.0], [0.0, 0.5]], [[0.5], [0.25]]
    >>> refit_without(K, k, [1.0, -1.0], 0.5, 0).tolist()
    [-0.25]
    """
    K, Y, lam = check.regression(K, Y, lam)
    columns = check.columns(k, len(Y))
    k = columns[:, 0] if np.ndim(k) == 1 else columns
    if np.size(removed):
        removed = check.indices("removed", removed, len(Y))
    keep = np.delete(np.arange(len(Y)), removed)
    A = K[np.ix_(keep, keep)]
    A[np.diag_indices(len(keep))] += lam
    return k[keep].T @ cho_solve(cho_factor(A.T, lower=True, overwrite_a=True), Y[keep])
