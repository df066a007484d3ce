"""Influence of n training points on t test points, where n × t numbers are too many to keep."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lib import check, packed
from lib.ridge import Ridge


@dataclass(frozen=True)
class Streamed:
    """What is kept of the influence of n training points on t test points.

    - helpful, harmful: (t, top) training points, the most influential first
    - helps, harms: (t, top) their influence
    - helps_ihvp, harms_ihvp: (t, top) the usual estimate of it
    - mean: (n,) mean influence of each training point over the test points
    - f: (t,) or (t, c) predictions on the test points
    """

    helpful: np.ndarray
    harmful: np.ndarray
    helps: np.ndarray
    harms: np.ndarray
    helps_ihvp: np.ndarray
    harms_ihvp: np.ndarray
    mean: np.ndarray
    f: np.ndarray


def stream(
    model: Ridge, kernel: Callable, X, X_te, y_te, *, top: int = 10, block: int = packed.BLOCK,
    file: str | Path | None = None, progress: bool = True,
) -> Streamed:  # fmt: skip
    """Return the `top` most helpful and harmful points of each test point, and the mean of each.

    Test points go through in blocks, so that memory is of the order of n · block. With `file`, a
    name ending in .npy, all (n, t) influences go there in float32, once they are complete: until
    then its name ends in .npy.part. X (n, d), X_te (t, d) and `kernel(X, X_te)` are those of the
    `model`. Raises `ValueError` for another name, and `MemoryError` or `OSError` before it starts
    where memory or disk will not do.

    >>> from lib.kernel import ntk
    >>> X, model = np.eye(2), Ridge(ntk(np.eye(2)), [1.0, -1.0], lam=0.5)
    >>> stream(model, ntk, X, X[:1], [1.0], top=1, progress=False).helpful.tolist()
    [[0]]
    """
    check.made("model", model, Ridge, "pass Ridge(K, Y, lam)")
    n, t = len(model.Y), len(check.array("X_te", X_te, 2))
    y_te = check.targets("y_te", y_te, t)
    top, block = min(check.integer("top", top), n), check.integer("block", block)
    width = min(block, t)
    what = f"the influence on {width} test points at a time"
    packed.room(what, 8 * packed.ARRAYS * n * width, "choose a smaller block")
    kept = _file(Path(file), n, t) if file is not None else None
    total, found = np.zeros(n), []
    for start in tqdm(range(0, t, block), desc="influence", disable=not progress):
        part = slice(start, start + block)
        influence = model.influence(kernel(X, X_te[part]), y_te[part])
        I, ihvp = influence.exact, influence.ihvp
        total += I.sum(axis=1)
        if kept is not None:
            kept[:, part] = I
        both = (torch.topk(torch.from_numpy(I), top, dim=0, largest=x)[1] for x in (True, False))
        ends = [rows.numpy() for rows in both]
        values = [np.take_along_axis(x, rows, axis=0) for x in (I, ihvp) for rows in ends]
        found.append([*(x.T for x in (*ends, *values)), influence.f])
    if kept is not None:
        kept.flush()
        Path(kept.filename).replace(file)
    *parts, f = (np.concatenate(part) for part in zip(*found, strict=True))
    return Streamed(*parts, total / t, f)


def _file(file: Path, n: int, t: int) -> np.ndarray:
    """Return an array (n, t) of float32 in a new file, whose name has .part at its end."""
    if file.suffix != ".npy":
        raise ValueError(f"file = {str(file)!r} must end in .npy, the format that it gets")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"file = {str(file)!r}: there is no such folder; make it")
    part = file.with_suffix(".npy.part")
    part.unlink(missing_ok=True)
    need, free = 4 * n * t, shutil.disk_usage(file.parent).free
    if need > free:
        raise OSError(
            f"all influences need {need / 1e9:.1f} GB, but {free / 1e9:.1f} are free in "
            f"{file.parent}; choose a file on another disk, or leave it out"
        )
    return np.lib.format.open_memmap(part, "w+", np.float32, (n, t))
