"""Audit training data: which labels look wrong, which points made a prediction, how sure is that.

    ntk-influence audit photos                # a folder of images, one sub-folder a class
    ntk-influence audit table.csv --label species --n-test 100
    result = audit("features.npz")            # from Python: result.table is a DataFrame

The model is ridge regression with the neural tangent kernel. All training points take part, and
every number is exact: leave-one-out residuals, influences, and what another label would do. Beyond
8,000 points influences have about five digits, since the inverse is in single precision. Nothing in
the data is executed: arrays with pickles are refused, and the report escapes every name.
"""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import check, labels, report
from lib.changes import relabelling
from lib.influence import Influence
from lib.kernel import ntk
from lib.packed import PackedInverse
from lib.points import Points, encode, read
from lib.ridge import Ridge, squares
from lib.stream import stream

DENSE = 8000  # points with a dense kernel and inverse, 1 GB of them; beyond, the packed inverse
CHOICE = 2000  # points on which λ is chosen
GRID = 10.0 ** np.arange(-4, 2.1, 0.5)  # the λ to choose from; K(x, x) = ½ is their unit
SHOWN, BLOCK = 5, 500  # helpful and harmful points of a test point; test points at a time
TILES = "inverse-tiles"  # folder of the packed inverse


@dataclass(repr=False)
class Audit:
    """What an audit found, with the points, the model, and how many seconds each step took.

    - table: a row a training point, the most suspicious first: source, label, suggested label, the
      scores of `lib.labels.scores`, mean influence on the test points, and leverage
    - suspects: what the suggested label of the first points would do. `others` is the change of the
      mean leave-one-out loss of the other points, `test` that of the mean test loss; `mended` and
      `spoilt` count test points whose predicted class becomes right or wrong
    - tests: a row a test point: source, label, predicted class, loss
    - pairs: the most helpful and harmful points of some test points: their influence (positive:
      helpful), the usual estimate of it (ihvp), and leverage
    - choice: the leave-one-out loss of each λ, see `choose`
    """

    name: str
    train: Points
    test: Points | None
    classes: list[str]
    note: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    model: Ridge | None = None
    table: pd.DataFrame | None = None
    suspects: pd.DataFrame | None = None
    tests: pd.DataFrame | None = None
    pairs: pd.DataFrame | None = None
    choice: pd.DataFrame | None = None

    def outputs(self, label: np.ndarray) -> np.ndarray:
        """Labels of two classes as ±1, (n,), of c > 2 as one-hot rows less 1/c, (n, c)."""
        c, number = len(self.classes), pd.Index(self.classes).get_indexer(label)
        if (number < 0).any():
            raise ValueError(
                f"no training point has the label {label[number.argmin()]!r}; remove it"
            )
        return (np.array([1.0, -1.0]) if c == 2 else np.eye(c) - 1 / c)[number]

    def named(self, f: np.ndarray) -> np.ndarray:
        """Names of the classes of the largest outputs, f (t,) or (t, c)."""
        return np.array(self.classes)[(f < 0).astype(int) if f.ndim == 1 else f.argmax(axis=1)]


def audit(
    source, *, label: str | None = None, lam: float | None = None, classes=None, test=None,
    clean=None, points=6, n_train: int | None = None, n_test: int | None = None,
    size: int | None = None, top: int = 24, seed: int = 0, out=None, progress: bool = True,
) -> Audit:  # fmt: skip
    """Audit the labels of a data set, and explain predictions for test points: see `Audit`.

    `source` is a folder of images or a data set, as for `lib.data.load` but with all its images; a
    .npz file or a dict, with arrays X (or embeddings, or images) and y, and if you like names,
    X_test and y_test; a .csv or .parquet file or a DataFrame, with the column `label`. `test` and
    `clean` are more of the same: test points, and points whose labels are known to be right
    (clean="test": the test points). With `clean`, points are ranked by their influence on it,
    otherwise by their leave-one-out margin. `classes` are names to keep, `n_train` and `n_test` the
    most points to take, at random; where there are no test points, `n_test` are set aside.

    `lam` is the ridge λ, by default chosen by the exact leave-one-out loss, see `choose`, on all
    points, or on 2,000 drawn at random. `points` are the test points to explain: so many with the
    largest loss, "all", or a list. The first `top` suspicious points get a closer look. The folder
    `out` gets points.csv, tests.csv and report.html, each as soon as it is known. Two classes have
    labels ±1, as in the paper: one-hot rows less ½ would halve influences and change nothing else.
    Up to 8,000 points have a dense inverse; more have a `lib.packed.PackedInverse`, in a folder of
    `out`, so that the same call goes on after an interruption.

    Raises `ValueError`, `TypeError`, `IndexError` or `OSError` for bad input, and `MemoryError` or
    `OSError` before it inverts where memory or disk will not do. Source: Eq 9, 14.

    >>> result = audit("digits:3/8", n_train=40, n_test=20, progress=False)
    >>> len(result.table), len(result.tests), len(result.pairs), len(result.suspects)
    (40, 20, 60, 24)
    """
    top, start = check.integer("top", top), time.perf_counter()
    lam, out = lam if lam is None else check.number("lam", lam, above=0), out and Path(out)
    own = isinstance(clean, str) and clean == "test"
    how = label, classes, size, seed, progress
    train, there = read(source, *how, n_train, n_test if test is None else None)
    test = there if test is None else read(test, *how, n_test)[0]
    if own and test is None:
        raise ValueError("clean = 'test', but there are no test points; pass test or n_test")
    known = None if clean is None or own else read(clean, *how)[0]
    name = Path(source).name if isinstance(source, str | Path) else type(source).__name__
    found = Audit(name, train, test, _classes(train.label))
    found.note = encode(train, *(x for x in (test, known) if x))
    Y, Y_te, Y_clean = (x and found.outputs(x.label) for x in (train, test, known))
    if np.ndim(points):
        points = check.indices("points", points, 0 if test is None else len(Y_te))
    elif points != "all":
        points = check.integer("points", points)

    def lap(step: str) -> None:
        nonlocal start
        found.seconds[step], start = time.perf_counter() - start, time.perf_counter()

    lap("reading")
    if lam is None:
        found.choice = choose(train.X, Y, seed, progress)
        lam = float(found.choice.lam[found.choice.chosen].iloc[0])
        lap("choice of λ")
    model = found.model = _fit(train.X, Y, lam, out and out / TILES, progress)
    lap("inverse")
    found.table = _ranked(found, labels.scores(model), "margin")
    _write(out, "points.csv", found.table)
    streams = [
        x and stream(model, ntk, train.X, x.X, y, top=1, progress=progress)
        for x, y in ((test, Y_te), (known, Y_clean))
    ]
    means = [x and x.mean for x in streams]
    scores = labels.scores(model, clean=means[0] if own else means[1])
    if test is not None:
        scores["test influence"], f = means[0], streams[0].f
        found.tests = pd.DataFrame({
            "source": test.source, "label": test.label, "predicted": found.named(f),
            "loss": 0.5 * squares(f - Y_te),
        }).rename_axis("index")  # fmt: skip
        _write(out, "tests.csv", found.tests)
        found.pairs = _pairs(found, points)
    found.table = _ranked(found, scores, "margin" if clean is None else "clean influence")
    _write(out, "points.csv", found.table)
    lap("influence")
    found.suspects = _relabelled(found, found.table.index[:top].to_numpy())
    lap("other labels")
    _write(out, "report.html", out and report.render(found))
    return found


def _classes(label: np.ndarray) -> list[str]:
    """Return the names of the classes, whole numbers in their order."""

    def order(name: str):
        return (0, int(name), name) if re.fullmatch(r"-?[0-9]{1,18}", name) else (1, 0, name)

    names = sorted(set(label.tolist()), key=order)
    if not 2 <= len(names) <= max(2, len(label) / 2):
        raise ValueError(
            f"{len(label)} points have {len(names)} different labels, such as {names[0]!r}; an "
            "audit needs two classes or more, with two points each on average"
        )
    return names


def choose(X: np.ndarray, Y: np.ndarray, seed: int = 0, progress: bool = False) -> pd.DataFrame:
    """Return the mean of the leave-one-out loss ½ ‖ρ_i‖² for each λ of `GRID`, and its error.

    The λ that is `chosen` is the largest whose loss is within one standard error of the smallest: a
    weaker ridge does no better on these data, and is worse to invert. It is computed on `CHOICE`
    points at most, drawn at random. Source: Eq 9; the rule of one error is that of Breiman et al.
    (1984).
    """
    some = np.sort(np.random.default_rng(seed).permutation(len(X))[:CHOICE])
    K, rows = ntk(X[some]), []
    for lam in tqdm(GRID, desc="choice of λ", disable=not progress):
        loss = 0.5 * squares(Ridge(K, Y[some], lam).rho)
        rows.append({"lam": lam, "loss": loss.mean(), "error": loss.std() / len(some) ** 0.5})
    table = pd.DataFrame(rows)
    best = table.loc[table.loss.idxmin()]
    within = table.index[table.loss <= best.loss + best.error]
    return table.assign(n=len(some), chosen=table.index == within[-1])


def _fit(X: np.ndarray, Y: np.ndarray, lam: float, tiles: Path | None, progress: bool) -> Ridge:
    if len(X) <= DENSE:
        return Ridge(ntk(X), Y, lam)
    dtype = "float32" if lam > 1e-7 * len(X) else "float64"  # κ ≈ n/10λ has to leave it digits
    Q = PackedInverse(ntk, X, lam, dtype=dtype, folder=tiles, progress=progress)
    return Ridge.packed(Q, Y)


def _ranked(found: Audit, scores: dict, by: str) -> pd.DataFrame:
    suggested = np.array(found.classes)[labels.suggested(found.model)]
    first = {"source": found.train.source, "label": found.train.label, "suggested": suggested}
    table = pd.DataFrame({**first, **scores, "leverage": found.model.h})
    table = table.rename_axis("index").sort_values(by, ascending=False, kind="stable")
    return table.rename(columns=lambda name: re.sub(r"\W", "_", name))


def _pairs(found: Audit, points) -> pd.DataFrame:
    """Return the ends of the influences on some test points, all, or so many of largest loss."""
    loss, frames = found.tests.loss, []
    if not np.ndim(points):
        points = loss.nlargest(len(loss) if points == "all" else points).index.to_numpy()
    for some in np.split(points, range(BLOCK, len(points), BLOCK)):
        y = found.outputs(found.test.label[some])
        influence = found.model.influence(ntk(found.train.X, found.test.X[some]), y)
        I, order = influence.exact, np.argsort(-influence.exact, axis=0, kind="stable")
        ends = min(SHOWN, len(order) // 2)
        index = np.vstack([order[:ends], order[: -ends - 1 : -1]])
        columns = {"test": np.tile(some, (len(index), 1)), "train": index}
        columns["influence"] = np.take_along_axis(I, index, axis=0)
        columns["ihvp"] = np.take_along_axis(influence.ihvp, index, axis=0)
        columns["leverage"] = found.model.h[index]
        frames.append(pd.DataFrame({name: x.T.ravel() for name, x in columns.items()}))
    return pd.concat(frames, ignore_index=True)


def _relabelled(found: Audit, index: np.ndarray) -> pd.DataFrame:
    """Return what the suggested labels of some points would do, one at a time.

    A change Δ of y_i moves the leave-one-out residuals of the others by −Q_ji/Q_jj Δ, and the test
    points as `lib.changes.relabelling` says.
    """
    model, test, X, rho = found.model, found.test, found.train.X, found.model.rho
    new = found.outputs(found.table.suggested[index].to_numpy())
    weight = -model.Q.rows(index) / model.Q.diagonal()
    weight[np.arange(len(index)), index] = 0  # the others
    shift = np.einsum("ij,i...->ij...", weight, new - model.Y[index])
    others = Influence(rho, np.zeros_like(rho), shift).exact.sum(axis=1) / (len(X) - 1)
    result = pd.DataFrame({"others": others}, index=pd.Index(index, name="index"))
    if test is not None:
        result[["test", "mended", "spoilt"]] = 0
        before, Y_te = found.tests.predicted.to_numpy() == test.label, found.outputs(test.label)
        for some in np.split(np.arange(len(before)), range(BLOCK, len(before), BLOCK)):
            moved = relabelling(model, index, new, ntk(X, test.X[some]), Y_te[some])
            after = np.array([found.named(f) for f in moved.loo]) == test.label[some]
            result["test"] += moved.exact.sum(axis=1) / len(before)
            result["mended"] += (after & ~before[some]).sum(axis=1)
            result["spoilt"] += (before[some] & ~after).sum(axis=1)
    return result


def safe(cell):
    """Return a cell that no spreadsheet takes for a formula: text like =1+1 gets a quote before it.

    So does text that begins with + - @, a tab or a new line, but for numbers. Source: OWASP.

    >>> safe("=1+1"), safe("-1"), safe("cat")
    ("'=1+1", '-1', 'cat')
    """
    risky = isinstance(cell, str) and re.match(r"\s*[=+\-@＝＋－＠]|[\t\r\n]", cell)
    return f"'{cell}" if risky and not re.fullmatch(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", cell) else cell


def _write(folder: Path | None, name: str, what: str | pd.DataFrame) -> None:
    """Write a file in one step."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        text = what if isinstance(what, str) else what.map(safe).to_csv()
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        part.replace(folder / name)


def main(arguments: list[str] | None = None) -> int:
    """The command `ntk-influence`; returns its exit status."""
    parser = argparse.ArgumentParser("ntk-influence", description=__doc__.split("\n")[0])
    lines = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    about = audit.__doc__[: audit.__doc__.index("    >>>")]
    command = parser.add_subparsers(required=True).add_parser("audit", description=about, **lines)
    command.add_argument("source")
    command.add_argument("--classes", nargs="+")
    for name, kind in {
        "label": str, "lam": float, "test": str, "clean": str, "points": _points, "n-train": int,
        "n-test": int, "size": int, "top": int, "seed": int, "out": Path,
    }.items():  # fmt: skip
        default = inspect.signature(audit).parameters[name.replace("-", "_")].default
        command.add_argument(f"--{name}", type=kind, default=default, help=f"by default {default}")
    given = vars(parser.parse_args(arguments))
    out = given["out"] or Path(
        "audit-" + re.sub(r"\W+", "-", Path(given["source"]).stem).strip("-")
    )
    begin = time.time()
    try:
        found = audit(**given | {"out": out})
    except (ValueError, TypeError, IndexError, OSError, MemoryError, RuntimeError) as error:
        print(f"ntk-influence: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        there = [f.name for f in out.glob("*") if f.stat().st_mtime >= begin]
        words = f"finished in {out}: {', '.join(sorted(there))}" if there else "nothing is finished"
        print(f"\nstopped; {words}. The same command goes on with it.", file=sys.stderr)
        return 130
    if found.model.K is None:
        shutil.rmtree(out / TILES)
    print(f"{report.headline(found)}\n{out / 'report.html'}\n{out / 'points.csv'}")
    return 0


def _points(text: str) -> str | int | list[int]:
    """Read "all", a number, or a list such as "3,17" or "3,"."""
    if "," in text:
        return [int(x) for x in text.split(",") if x.strip()]
    return text if text == "all" else int(text)


if __name__ == "__main__":
    sys.exit(main())
