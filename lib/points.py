"""Points to audit: folders of images, arrays and tables. Nothing in them is executed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from lib import check, data, packed

LABELS = ("label", "target", "class", "y")  # label columns that need not be named
FEW = 20  # values of a column of text, at most, that become indicators
NUMBER = r"^\s*([-+]?\d+)\.0\s*$|^\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*$"  # no spaces, no .0
GROUPED = re.compile(  # numbers that only people read: $5, 12 %, 51,886.20, 1 234
    r"[-+−(]*\s*[$€£¥]?\s*[-+−]?(\d{1,3}([\s.,'’]\d{3})+|\d+)([.,]\d*)?\s*[$€£¥%‰]?\s*\)?"
)
CLEAR = 0.9  # share of numbers among the values of a column that is meant to be numbers
FILES = {
    ".npz": lambda path, label: dict(np.load(path, allow_pickle=False)),
    ".csv": lambda path, label: _csv(path, label),
    ".parquet": lambda path, label: pd.read_parquet(path),
}


@dataclass
class Points:
    """Features (n, d), names of classes and sources (n,), and pictures, files or rows to show.

    `counts` are the columns of a table that number its rows.
    """

    X: np.ndarray | pd.DataFrame
    label: np.ndarray
    source: np.ndarray
    show: np.ndarray | pd.DataFrame | None = None
    counts: tuple[str, ...] = ()

    def take(self, index) -> Points:
        parts = (self.X, self.label, self.source, self.show)
        taken = (x if x is None else getattr(x, "iloc", x)[index] for x in parts)
        return Points(*taken, counts=self.counts)

    @cached_property
    def look(self) -> tuple[float, float] | np.ndarray:
        """What is black and what is white in the pictures, or the first columns of the rows."""
        if isinstance(self.show, pd.DataFrame):
            return self.show.iloc[:, :8].to_numpy(object)
        return min(0.0, float(self.show.min())), max(float(self.show.max()), 1e-9)


def room(what: str, numbers: int, remedy: str) -> None:
    """Raise `MemoryError` if memory does not hold three arrays of so many numbers."""
    packed.room(what, 24 * numbers, remedy)


def read(
    source, label=None, classes=None, size=None, seed=0, progress=False, n_train=None, n_test=None,
    name="source",
) -> tuple[Points, Points | None]:  # fmt: skip
    """Return training points, and test points or None, of what `lib.audit.audit` takes.

    The features of a table are its columns; `encode` makes numbers of them. `name` is that of the
    argument; only a "source" needs points of all `classes`.
    """
    pools = []
    if not isinstance(label, str | int | None):
        raise TypeError(f"label must be the name of a column or an array, not {label!r}; pass one")
    if isinstance(classes, str):
        raise TypeError(f"classes must be a list of names, not {classes!r}; pass [{classes!r}]")
    if classes is not None and not (classes := list(check.several("classes", classes, "names"))):
        raise ValueError("classes is empty; name two, or leave it out")
    label = str(label) if isinstance(label, int) else label
    if isinstance(source, str | int | Path):
        source = data.text(name, str(source) if isinstance(source, Path) else source)
        file = Path(source).expanduser()
        if file.is_file() or (file.suffix.lower() in FILES and not data._folder(source)):
            source = _file(name, file, label)
    if size is not None and name == "source" and not isinstance(source, str):
        raise ValueError(f"size = {size!r} is for images of folders and data sets; leave it out")
    if isinstance(source, pd.DataFrame):
        parts = [_table(source, label, name)]
    elif isinstance(source, Mapping):
        parts = [part for end in ("", "_test") if (part := _arrays(source, end, label))]
    elif not isinstance(source, str):
        what = f"{name} = {check.short(source)}"
        raise TypeError(f"{what}; pass a path, a DataFrame or a dict of arrays X and y")
    elif label is not None:
        raise ValueError(f"label = {label!r} is for tables and arrays; leave it out: folders do")
    else:
        names, wanted, pools = data.pools(source, size)
        sides = [(np.arange(len(p.files)), np.array(names)[p.targets], p.files) for p in pools]
        parts, classes = [Points(*side) for side in sides], classes or wanted
    if classes is not None:
        classes, there = {word(one) for one in classes}, set(parts[0].label)
        if name == "source" and (unknown := classes - there):
            if pools and min(unknown) in names:
                raise data.unread(min(unknown))
            few = ", ".join(sorted(there)[:20])
            raise ValueError(f"class {min(unknown)!r} has no points; choose from {few}")
        parts = [part.take(np.isin(part.label, list(classes))) for part in parts]
    rng = np.random.default_rng(check.integer("seed", seed, at_least=0))
    order = [rng.permutation(len(part.label)) for part in parts]
    if len(parts) == 1 and n_test:  # set aside
        parts, pools, order = parts * 2, pools * 2, [order[0][n_test:], order[0][:n_test]]
    if not len(order[0]):
        if not n_test:
            raise ValueError(f"{name} has no points; add some")
        raise ValueError(
            f"{name} has {len(parts[0].label)} points to choose from, and n_test = {n_test} leaves "
            "no point; add some, or choose a smaller one"
        )
    most = zip(parts, order, (n_train, n_test), strict=False)
    aside = len(parts) > 1 and parts[0] is parts[1]
    parts = [part.take(np.sort(index[:limit])) for part, index, limit in most]
    if aside and (gone := set(parts[1].label) - set(parts[0].label)):
        raise ValueError(
            f"class {str(min(gone))!r} has no training point left: n_test = {n_test} sets its "
            "points aside; choose a smaller n_test, another seed, or a larger n_train"
        )
    for part, pool in zip(parts, pools, strict=False):
        files, index = part.source, part.X
        images, part.X = data.read(pool, index, size, progress)
        part.show = files if files.any() else images
        names = map(data.printable, files) if files.any() else (f"image {i}" for i in index)
        part.source = np.array(list(names))
    return parts[0], parts[1] if len(parts) > 1 and len(parts[1].label) else None


def _file(name: str, path: Path, label: str | None) -> pd.DataFrame | dict:
    suffix = path.suffix.lower()
    if suffix not in FILES:
        raise ValueError(f"{name} = {str(path)!r} is no {' or '.join(FILES)} file; save it as one")
    if not path.is_file():
        raise FileNotFoundError(f"{name} = {str(path)!r} is not there; check the path")
    try:
        return FILES[suffix](path, label)
    except Exception as error:  # what a damaged file raises depends on the damage
        how = (
            "with np.savez(file, X=X, y=y)" if suffix == ".npz" else "as .csv in UTF-8 with commas"
        )
        why = f"cannot be read ({error}); save it anew, {how}"
        if "pickle" in str(error):
            why = "is refused: it holds pickled Python objects, which can run code, or is damaged; "
            why += "save arrays of numbers and of text, such as np.array(names, dtype=str)"
        raise ValueError(f"{path} {why}") from error


def _csv(path: Path, label: str | None) -> pd.DataFrame:
    """Return a table with the names of its columns and its labels as they are written.

    So 00123 and 123 are two classes, as 1.1 and 1.10 are. But 1.0 is 1, which pandas may write so,
    and numbers have no spaces around them.
    """
    head = pd.read_csv(path, header=None, nrows=1, dtype=str).loc[0]
    labels = [c for c in head.dropna() if (c.lower() in LABELS if label is None else c == label)]
    frame = pd.read_csv(path, low_memory=False, dtype=dict.fromkeys(labels, str))
    lines = list(_lines(path))
    if len(lines) == len(frame):
        frame.index = pd.Index(lines, name="line")
    as_written = pd.read_csv(  # a class may be called NA or None
        path, usecols=lambda name: name in labels, dtype=str, keep_default_na=False, na_values=[""]
    )
    for column in set(labels) & set(frame):
        written = as_written[column].str.replace(NUMBER, r"\1\2", regex=True)
        frame[column] = written.to_numpy()
    names = zip(head, frame, strict=True)  # pandas calls a second y y.1, and one without a name
    return frame.set_axis([new if pd.isna(old) else old for old, new in names], axis=1)


def _lines(path: Path) -> Iterator[int]:
    """The line of a .csv on which each row begins, as an editor counts; the header is before."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows, before = csv.reader(file), None
        with suppress(csv.Error):
            for row in rows:
                if before is not None and row and (len(row) > 1 or row[0].strip()):  # as pandas
                    yield before + 1
                before = rows.line_num


def _arrays(file: Mapping, end: str, label: str | None) -> Points | None:
    """Return the points of the arrays whose names have this ending; None if no test points."""

    def only(*names):
        found = [n + e for n in names for e in dict.fromkeys((end, end[:3])) if n + e in file]
        if len(found) > 1:
            hint = f", or pass label={names[0]!r}" if len({n.lower() for n in found}) == 1 else ""
            raise ValueError(f"both {found[0]} and {found[1]} are there; leave out one{hint}")
        if not found:
            return None
        one = check.plain(found[0], file[found[0]])
        if not one.ndim:
            kind = type(file[found[0]]).__name__
            raise TypeError(
                f"{found[0]} must be an array with a row for each point, not a single {kind}; "
                "pass a dense array"
            )
        return found[0], one

    names, images = only("names"), only("images")
    X, y = only("embeddings", "X") or images, only(label) if label else only("y", "Y")
    label = label or "y"
    if end and X is None and y is None:
        return None
    if X is None or y is None or len({len(x) for _, x in filter(None, (X, y, names, images))}) > 1:
        there = ", ".join(map(str, file)) or "(none)"
        raise ValueError(
            f"the arrays {there} need X{end} (or embeddings, or images), {label}{end}, "
            "and names and images, if any, of one length; save them with np.savez(file, X=X, y=y)"
        )
    if images is not None:  # numbers alone: text would name files, of the reader's disk
        images = check.array(*images, ndim=(3, 4), dtype=images[1].dtype)
        if images.shape[3:] not in ((), (3,)):
            one = "(n, height, width) for grey images, or (n, height, width, 3) for colours"
            raise ValueError(f"images{end} has shape {images.shape}; pass {one}")
    source = np.array([f"row {i}" for i in range(len(y[1]))]) if names is None else _text(*names)
    room(X[0], X[1].size, "pass fewer points or features")
    return Points(data.unit_rows(check.array(*X, ndim=(2, 3, 4))), _text(*y), source, images)


def _table(frame: pd.DataFrame, label: str | None, name: str) -> Points:
    frame = frame.set_axis(frame.columns.map(str), axis=1)
    kind = "line" if frame.index.name == "line" else "row"  # of the file, or of the table
    source = np.array([f"{kind} {i}" for i in frame.index])
    if list(frame)[:1] == ["Unnamed: 0"]:  # as pandas writes the names of rows
        names = frame.pop("Unnamed: 0")
        source = np.array(
            [
                f"{s} ({i})" if kind == "line" else f"row {i}"
                for s, i in zip(source, names, strict=True)
            ]
        )
    if twice := list(frame.columns[frame.columns.duplicated()]):
        raise ValueError(f"{name} has the column {twice[0]!r} twice; rename one of them")
    found = [c for c in frame if c.lower() in LABELS] if label is None else [label]
    if len(found) > 1:
        raise ValueError(
            f"{name} has the columns {', '.join(found)}, and each can be the label; pass "
            f"label={found[0]!r}, or another of them"
        )
    if not found or found[0] not in frame:
        few = ", ".join(list(frame)[:20])
        for mark, marks in ((";", "semicolons"), ("\t", "tabs")):
            if any(mark in column for column in frame):
                few += f"; {name} seems to be separated by {marks}; save it with commas"
        raise ValueError(f"label = {label!r} names no column of {name}; choose one of {few}")
    rows = frame.drop(columns=found).reset_index(drop=True)
    counts = tuple(c for c, x in rows.items() if _counts(x))
    return Points(rows, _text(found[0], frame[found[0]].to_numpy()), source, rows, counts)


def _counts(x: pd.Series) -> bool:
    """Whether a column numbers the rows: whole numbers in steps of one, from row to row."""
    steps = np.diff(x.to_numpy(float, na_value=np.nan)) if pd.api.types.is_integer_dtype(x) else []
    return len(steps) > 0 and bool((steps == 1).all())


def _text(name: str, y: np.ndarray) -> np.ndarray:
    """Return labels or names as text."""
    if y.ndim != 1 or (missing := pd.isna(y)).any():
        what = f"shape {y.shape}" if y.ndim != 1 else f"no value in row {missing.argmax()}"
        raise ValueError(f"{name} has {what}; give each point one word or number")
    y = np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y
    return np.array([word(one) for one in y], dtype=str)


def word(value) -> str:
    """Return a value as text, the same for equal numbers, whole or not.

    >>> word(1.0), word(np.float32(1)), word(1), word(0.5), word("1.0")
    ('1', '1', '1', '0.5', '1.0')
    """
    whole = isinstance(value, float | np.floating) and value.is_integer()
    return str(int(value) if whole else value)


def encode(train: Points, *others: Points) -> tuple[str, str]:
    """Give tables features of unit norm, as other points have; return what was done and not used.

    Columns of numbers, and an indicator of each value of text columns with at most 20 values, are
    scaled to mean 0 and standard deviation 1 on the training points. A constant column √d beside
    these d keeps the length of a row, which its direction loses: (1, 1) and (3, 3) would be the
    same point. Dates, other text, constants, and columns that number the rows are left out. Raises
    `ValueError` for missing values, for columns of numbers and of text that is no number, and for
    points without the same features.
    """
    sets, frame, kind = (train, *others), train.X, pd.api.types
    columns = [set(getattr(x.X, "columns", range(x.X.shape[1]))) for x in sets]
    if odd := {name for names in columns for name in names ^ columns[0]}:
        raise ValueError(f"training, test and clean points differ in feature {min(odd, key=str)!r}")
    if not isinstance(frame, pd.DataFrame):
        note = "The features of each point were scaled to length 1: the model sees directions only."
        return note, ""
    numeric = frame[[c for c, x in frame.items() if kind.is_numeric_dtype(x)]]
    if twofold := [c for c, x in numeric.items() if kind.is_complex_dtype(x)]:
        raise ValueError(
            f"column {twofold[0]!r} has complex numbers; make two columns of its parts"
        )
    numbers = [c for c in numeric if c not in train.counts]
    texts = frame.drop(columns=list(numeric)).select_dtypes(exclude=["datetime", "datetimetz"])
    values = texts.astype(str).nunique()
    words, sizes = list(values.index[values <= FEW]), [len(x.X) for x in sets]
    for column in values.index[values > FEW]:
        _no_numbers(column, frame[column].set_axis(train.source).dropna().astype(str))
    width = len(numbers) + values[words].sum()
    room(f"the table of {width} features", sum(sizes) * width, "pass fewer rows or columns")
    used = pd.concat([x.X[numbers + words] for x in sets], ignore_index=True)
    used = used.assign(**{c: pd.to_numeric(used[c], errors="coerce") for c in numbers})
    bad = used.isna() | used.isin([np.inf, -np.inf])
    if bad.any(axis=None):
        column = bad.any().idxmax()
        i, what = bad[column].argmax(), "value" if column in words else "number"
        row = np.concatenate([x.source for x in sets])[i]
        row += " of the test or clean points" if i >= len(frame) else ""
        raise ValueError(
            f"column {column!r} has no {what} in {row} ({bad[column].sum()} such rows, "
            f"{bad.any().sum()} such columns); fill it, or remove such rows"
        )
    wide = pd.get_dummies(used.astype(dict.fromkeys(words, str)), columns=words) if width else used
    X = wide.to_numpy(float)
    X = np.ldexp(X, -np.frexp(np.abs(X).max(axis=0))[1])  # so that no square over- or underflows
    own = X[: len(frame)]
    varies = np.ptp(own, axis=0) > 16 * np.finfo(float).eps * np.abs(own).max(axis=0)
    fixed = [c for c, moves in zip(numbers, varies, strict=False) if not moves]  # they come first
    fixed += [c for c in words if values[c] == 1]
    X = X[:, varies]
    if not X.size:
        raise ValueError(
            f"no column can be a feature, of {', '.join(frame) or 'none'}: add numbers; constants, "
            f"dates, row numbers and texts of more than {FEW} values are none"
        )
    X = (X - X[: len(frame)].mean(axis=0)) / X[: len(frame)].std(axis=0)
    X = data.unit_rows(np.c_[X, np.full(len(X), X.shape[1] ** 0.5)])
    for x, part in zip(sets, np.split(X, np.cumsum(sizes)[:-1]), strict=True):
        x.X = part
    why = dict.fromkeys(frame.columns, "date") | {c: f"{values[c]:,} texts" for c in values.index}
    why |= dict.fromkeys(train.counts, "row number") | dict.fromkeys(fixed, "constant")
    numbers, words = ([c for c in some if c not in fixed] for some in (numbers, words))
    unused = [f"{c} ({why[c]})" for c in frame if c not in {*numbers, *words}]
    return (
        f"Our choice for tables: the numbers of {len(numbers)} columns, and indicators of the "
        f"texts of {len(words)}, were scaled to mean 0 and standard deviation 1; a constant column "
        "was added, and each row scaled to length 1."
    ), ", ".join(unused)


def _no_numbers(column: str, cells: pd.Series) -> None:
    """Raise `ValueError` if a column of text is meant to be numbers, by most of its values."""
    values = pd.Series(cells.unique())
    plain = pd.to_numeric(values.str.replace(",", "."), errors="coerce").notna()
    if (plain | values.map(lambda cell: bool(GROUPED.fullmatch(cell.strip())))).mean() > CLEAR:
        odd = cells[pd.to_numeric(cells, errors="coerce").isna()]
        odd = odd if len(odd) else cells  # all are numbers, but of the type text
        raise ValueError(
            f"column {column!r} seems to hold numbers, but {len(odd)} of its {len(cells)} cells "
            f"are text, such as {odd.iloc[0]!r} in {odd.index[0]}; write each as a number such as "
            "1234.5, without signs, spaces and separators of thousands, or remove the column"
        )
