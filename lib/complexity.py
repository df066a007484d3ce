"""How much complexity a training point or a group adds to the model (Eq 19)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lib import check
from lib.ridge import Ridge, squares


def complexity(K, Y, groups: Iterable | None = None) -> np.ndarray:
    """Return the complexity that each training point, or each group of them, adds to the model.

    Eq 19:  C(X_I) = √(Yᵀ K⁻¹ Y) − √(Y_{∖I}ᵀ K_{∖I}⁻¹ Y_{∖I}) ≥ 0,  no ridge.

    √(Yᵀ K⁻¹ Y) is the norm of the interpolant, the quantity in bounds on its test error. With
    Q = K⁻¹ and β = QY, the squares under the roots differ by d = β_Iᵀ(Q_II)⁻¹β_I. So one inverse
    serves all groups, and C = d / (√a + √(a − d)), a = Yᵀβ, subtracts no close roots. With c
    outputs, squares are summed over them.

    K is (n, n), Y (n,) or (n, c). A group is an index or a list of indices, by default every point.
    The result is (n,) or (groups,), in units of a label over √K.
    Raises `ValueError` for bad shapes or labels, and for duplicate points, naming them: then K has
    no inverse; `IndexError` for an index out of range or named twice in a group.
    Source: Zhang and Zhang (2022), Eq 19 and Fig 5; Arora et al. (2019) for the norm.

    >>> K, Y = [[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0]
    >>> complexity(K, Y).round(6).tolist(), complexity(K, Y, [[0, 1]]).round(12).tolist()
    ([0.585786, 0.585786], [2.0])
    """
    model = Ridge(K, Y, 0)
    n, whole = len(model.Y), np.sum(model.Y * model.beta)
    if groups is None:
        drop = squares(model.beta) / model.Q.diagonal()
        left = whole - drop
    else:
        drop, left = np.array([_parts(model, I) for I in check.groups(groups, n)]).T
    total = np.sqrt(whole) + np.sqrt(left.clip(0))  # rounding, where nothing is left
    return np.divide(drop, total, out=np.zeros_like(drop), where=total > 0)


def _parts(model: Ridge, I: np.ndarray) -> tuple[float, float]:
    """Return d and a − d, the smaller block solved and the other by difference."""
    Y, beta = model.Y, model.beta
    whole = np.sum(Y * beta)
    if 2 * len(I) <= len(Y):
        drop = np.sum(beta[I] * np.linalg.solve(model.Q.block(I), beta[I]))
        return drop, whole - drop
    keep = np.delete(np.arange(len(Y)), I)
    left = np.sum(Y[keep] * np.linalg.solve(model.K[np.ix_(keep, keep)], Y[keep]))
    return whole - left, left
