"""Influence of n training points on t test points, where n × t numbers are too many to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lib import check
from lib.ridge import Ridge


@dataclass(frozen=True)
class Streamed:
    """What is kept of the influence of n training points on t test points.

    - helpful, harmful: (t, top) training points, the most influential first
    - helps, harms: (t, top) their influence
    - mean: (n,) mean influence of each training point over the test points
    - f: (t,) or (t, c) predictions on the test points
    """

    helpful: np.ndarray
    harmful: np.ndarray
    helps: np.ndarray
    harms: np.ndarray
    mean: np.ndarray
    f: np.ndarray


def stream(
    model: Ridge, kernel: Callable, X, X_te, y_te, *, top: int = 10, block: int = 500,
    file: str | Path | None = None, progress: bool = True,
) -> Streamed:  # fmt: skip
    """Return the `top` most helpful and harmful points of each test point, and the mean of each.

    Test points go through in blocks, so that memory is of the order of n · block. With `file`, a
    name ending in .npy, all (n, t) influences go there in float32. X (n, d), X_te (t, d) and
    `kernel(X, X_te)` are those of the `model`.

    >>> from lib.kernel import ntk
    >>> X, model = np.eye(2), Ridge(ntk(np.eye(2)), [1.0, -1.0], lam=0.5)
    >>> stream(model, ntk, X, X[:1], [1.0], top=1, progress=False).helpful.tolist()
    [[0]]
    """
    n, t = len(model.Y), len(check.array("X_te", X_te, 2))
    y_te = check.targets("y_te", y_te, t)
    top, block = min(check.integer("top", top), n), check.integer("block", block)
    kept = np.lib.format.open_memmap(file, "w+", np.float32, (n, t)) if file else None
    total, found = np.zeros(n), []
    for start in tqdm(range(0, t, block), desc="influence", disable=not progress):
        part = slice(start, start + block)
        influence = model.influence(kernel(X, X_te[part]), y_te[part])
        I = influence.exact
        total += I.sum(axis=1)
        if kept is not None:
            kept[:, part] = I
        found.append([*_ends(I, top), influence.f])
    parts = [np.concatenate(part) for part in zip(*found, strict=True)]
    helps, helpful, harms, harmful, f = parts
    return Streamed(helpful, harmful, helps, harms, total / t, f)


def _ends(I: np.ndarray, top: int) -> Iterator[np.ndarray]:
    """The largest entries of each column, (t, top), and their rows; then the smallest."""
    for largest in (True, False):
        ends = torch.topk(torch.from_numpy(I), top, dim=0, largest=largest)
        yield from (x.T.numpy() for x in ends)
