"""How much complexity a training point or a group adds to the model (Eq 19)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lib import check
from lib.ridge import Ridge


def complexity(K, Y, groups: Iterable | None = None) -> np.ndarray:
    """Return the complexity that each training point, or each group of them, adds to the model.

    Eq 19:  C(X_I) = √(Yᵀ K⁻¹ Y) − √(Y_{∖I}ᵀ K_{∖I}⁻¹ Y_{∖I}) ≥ 0,  no ridge.

    √(Yᵀ K⁻¹ Y) is the norm of the interpolant, the quantity in bounds on its test error. With
    Q = K⁻¹ and β = QY, the squares under the roots differ by d = β_Iᵀ(Q_II)⁻¹β_I, so that one
    inverse serves all groups and C = d / (√a + √(a − d)), a = Yᵀβ, subtracts no close roots.

    Source: Zhang and Zhang (2022), Eq 19 and Fig 5; Arora et al. (2019) for the norm.

    Parameters
    ----------
    K : (n, n) symmetric kernel of the training points, for instance `lib.kernel.ntk(X)`
    Y : (n,) labels in [-1, 1]
    groups : each an index or a list of distinct indices; without it, every single point

    Returns
    -------
    (n,) or (groups,) complexities, in units of a label over √K.

    Raises
    ------
    ValueError
        for bad shapes or labels, and for duplicate points, naming them: K has no inverse then
    IndexError
        for an index out of range or named twice in a group

    Examples
    --------
    >>> K, Y = [[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0]
    >>> complexity(K, Y).round(6).tolist(), complexity(K, Y, [[0, 1]]).round(12).tolist()
    ([0.585786, 0.585786], [2.0])
    """
    model = Ridge(K, Y, 0)
    n, whole = len(model.Y), model.Y @ model.beta
    if groups is None:
        drop = model.beta**2 / model.Q.diagonal()
        left = whole - drop
    else:
        drop, left = np.array([_parts(model, I) for I in check.groups(groups, n)]).T
    total = np.sqrt(whole) + np.sqrt(left.clip(0))  # rounding, where nothing is left
    return np.divide(drop, total, out=np.zeros_like(drop), where=total > 0)


def _parts(model: Ridge, I: np.ndarray) -> tuple[float, float]:  # noqa: E741 the paper's letter
    """Return d and a − d, the smaller block solved and the other by difference."""
    whole = model.Y @ model.beta
    if 2 * len(I) <= len(model.Y):
        drop = model.beta[I] @ np.linalg.solve(model.Q[np.ix_(I, I)], model.beta[I])
        return drop, whole - drop
    keep = np.delete(np.arange(len(model.Y)), I)
    left = model.Y[keep] @ np.linalg.solve(model.K[np.ix_(keep, keep)], model.Y[keep])
    return whole - left, left
