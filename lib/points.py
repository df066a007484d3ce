"""Points to audit: folders of images, arrays and tables. Nothing in them is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from lib import check, data

LABELS = ("label", "target", "class", "y")  # label columns that need not be named
FEW = 20  # values of a column of text, at most, that become indicators


@dataclass
class Points:
    """Features (n, d), names of classes and sources (n,), and pictures, files or rows to show."""

    X: np.ndarray | pd.DataFrame
    label: np.ndarray
    source: np.ndarray
    show: np.ndarray | pd.DataFrame | None = None

    def take(self, index) -> Points:
        parts = (self.X, self.label, self.source, self.show)
        return Points(*(x if x is None else getattr(x, "iloc", x)[index] for x in parts))


def read(
    source, label=None, classes=None, size=None, seed=0, progress=False, n_train=None, n_test=None
) -> tuple[Points, Points | None]:
    """Return training points, and test points or None, of what `lib.audit.audit` takes.

    The features of a table are its columns; `encode` makes numbers of them.
    """
    pools = []
    if isinstance(source, str | int | Path):
        source = data.text("source", str(source) if isinstance(source, Path) else source)
        if Path(source).suffix.lower() in (".npz", ".csv", ".parquet"):
            source = _file(Path(source).expanduser())
        elif Path(source).is_file():
            raise ValueError(
                f"source = {source!r} is no .npz, .csv or .parquet file; save it as one"
            )
    if isinstance(source, pd.DataFrame):
        parts = [_table(source, label)]
    elif isinstance(source, Mapping):
        parts = [part for end in ("", "_test") if (part := _arrays(source, end))]
    elif isinstance(source, str):
        names, wanted, pools = data.pools(source, size)
        sides = [(np.arange(len(p.files)), np.array(names)[p.targets], p.files) for p in pools]
        parts, classes = [Points(*side) for side in sides], classes or wanted
    else:
        raise TypeError(f"source = {source!r}; pass a path, a DataFrame or a dict of arrays")
    if classes is not None:
        classes, there = {str(name) for name in classes}, set(parts[0].label)
        if unknown := classes - there:
            few = ", ".join(sorted(there)[:20])
            raise ValueError(f"class {min(unknown)!r} has no points; choose from {few}")
        parts = [part.take(np.isin(part.label, list(classes))) for part in parts]
    rng = np.random.default_rng(check.integer("seed", seed, at_least=0))
    order = [rng.permutation(len(part.label)) for part in parts]
    n_train = n_train if n_train is None else check.integer("n_train", n_train)
    n_test = n_test if n_test is None else check.integer("n_test", n_test, at_least=0)
    if len(parts) == 1 and n_test:  # set aside
        parts, pools, order = parts * 2, pools * 2, [order[0][n_test:], order[0][:n_test]]
    if not len(order[0]):
        raise ValueError(f"n_test = {n_test} leaves no point to train on; choose a smaller one")
    most = zip(parts, order, (n_train, n_test), strict=False)
    parts = [part.take(np.sort(index[:limit])) for part, index, limit in most]
    for part, pool in zip(parts, pools, strict=False):
        files, index = part.source, part.X
        images, part.X = data.read(pool, index, size, progress)
        part.show = files if files.any() else images
        part.source = files if files.any() else np.array([f"image {i}" for i in index])
    return parts[0], parts[1] if len(parts) > 1 and len(parts[1].label) else None


def _file(path: Path) -> pd.DataFrame | dict:
    if not path.is_file():
        raise FileNotFoundError(f"source = {str(path)!r} is not there; check the path")
    try:
        if path.suffix.lower() != ".npz":
            return (pd.read_csv if path.suffix.lower() == ".csv" else pd.read_parquet)(path)
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # what a damaged file raises depends on the damage
        if "pickle" in str(error):
            raise ValueError(
                f"{path} is refused: it holds pickled Python objects, which can run code, or is "
                "damaged; save arrays of numbers and of text, such as np.array(names, dtype=str)"
            ) from error
        raise ValueError(f"{path} cannot be read ({error}); save it anew") from error


def _arrays(file: Mapping, end: str) -> Points | None:
    """Return the points of the arrays whose names have this ending; None if no test points."""

    def first(*names):
        found = [n + e for n in names for e in (end, end[:3]) if n + e in file]  # _te as well
        return check.plain(found[0], file[found[0]]) if found else None

    X, y, names = first("embeddings", "X", "images"), first("y", "Y"), first("names")
    images = first("images")
    if end and X is None and y is None:
        return None
    lengths = [-1 if x is None else len(x) for x in (X, y)]
    lengths += [len(x) for x in (names, images) if x is not None]
    if len(set(lengths)) > 1 or X is None:
        raise ValueError(
            f"the arrays {', '.join(file)} need X{end} (or embeddings, or images), y{end}, "
            "and names and images, if any, of one length; save them with np.savez(file, X=X, y=y)"
        )
    if images is not None:  # numbers alone: text would name files, of the reader's disk
        images = check.array(f"images{end}", images, ndim=(3, 4))
        if images.ndim == 4 and images.shape[3] != 3:
            raise ValueError(
                f"images{end} has shape {images.shape}; pass grey images (n, height, width), or "
                "colour ones (n, height, width, 3)"
            )
    source = np.array([f"row {i}" for i in range(len(X))]) if names is None else names.astype(str)
    return Points(data.unit_rows(X), _text(f"y{end}", y), source, images)


def _table(frame: pd.DataFrame, label: str | None) -> Points:
    frame = frame.set_axis(frame.columns.map(str), axis=1)
    found = [c for c in frame if c.lower() in LABELS] if label is None else [label]
    if len(found) != 1 or list(frame).count(found[0]) != 1:
        few = ", ".join(list(frame)[:20])
        raise ValueError(f"label = {label!r} names no column of the table; choose one of {few}")
    rows, y = frame.drop(columns=found), frame[found[0]].to_numpy()
    return Points(rows, _text(found[0], y), np.array([f"row {i}" for i in range(len(y))]), rows)


def _text(name: str, y: np.ndarray) -> np.ndarray:
    """Return labels as text."""
    if y.ndim != 1 or (missing := pd.isna(y)).any():
        what = f"shape {y.shape}" if y.ndim != 1 else f"no label in row {missing.argmax()}"
        raise ValueError(f"{name} has {what}; give each point the name of its class")
    if y.dtype.kind == "f" and (y % 1 == 0).all():
        y = y.astype(int)
    return np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y.astype(str)


def encode(train: Points, *others: Points) -> str:
    """Give tables features of unit norm, as other points have; return a note on what was done.

    Columns of numbers, and an indicator of each value of text columns with at most 20 values, are
    scaled to mean 0 and standard deviation 1 on the training points. A constant column √d beside
    these d keeps the length of a row, which its direction loses: (1, 1) and (3, 3) would be the
    same point. Raises `ValueError` for missing values, and for points without the same features.
    """
    sets = (train, *others)
    columns = [set(getattr(x.X, "columns", range(x.X.shape[1]))) for x in sets]
    if odd := {name for names in columns for name in names ^ columns[0]}:
        raise ValueError(f"training, test and clean points differ in feature {min(odd, key=str)!r}")
    if not isinstance(train.X, pd.DataFrame):
        return "The features of each point were scaled to length 1: the model sees directions only."
    frame, kind = train.X, pd.api.types
    numbers = [c for c in frame if kind.is_numeric_dtype(frame[c])]
    dates = [c for c in frame if kind.is_datetime64_any_dtype(frame[c])]
    words = [
        c
        for c in frame.columns.difference([*numbers, *dates], sort=False)
        if frame[c].astype(str).nunique() <= FEW
    ]
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    encoder = make_column_transformer(
        (StandardScaler(), numbers), (make_pipeline(one_hot, StandardScaler()), words)
    )
    for x in sets:
        used = x.X[numbers + words]
        bad = used.isna() | used.isin([np.inf, -np.inf])
        if bad.any(axis=None):
            column = bad.any().idxmax()
            row = x.source[bad[column].argmax()]
            raise ValueError(
                f"column {column!r} has no value in {row}; fill it, or remove such rows"
            )
        used = used.astype(dict.fromkeys(words, str))
        X = encoder.fit_transform(used) if x is train else encoder.transform(used)
        x.X = data.unit_rows(np.c_[X, np.full(len(X), X.shape[1] ** 0.5)])
    unused = ", ".join(frame.columns.difference(numbers + words, sort=False))
    return (
        f"Our choice for tables: the numbers of {len(numbers)} columns, and indicators of the "
        f"texts of {len(words)}, were scaled to mean 0 and standard deviation 1; a constant column "
        "was added, and each row scaled to length 1."
        + (f" Not used are dates and columns of more than {FEW} texts: {unused}." if unused else "")
    )
