"""Audit training data: which labels look wrong, which points made a prediction, how sure is that.

    ntk-influence audit photos                # a folder of images, one sub-folder a class
    ntk-influence audit table.csv --label species --n-test 100
    result = audit("features.npz")            # from Python: result.table is a DataFrame

The model is ridge regression with the neural tangent kernel. All training points take part, and
nothing is estimated: leave-one-out residuals, influences, and what another label would do. Beyond
8,000 points the inverse is in single precision where a trial shows that influences keep three
digits of the largest influence of their test point, and else in double precision. Nothing in the
data is executed: arrays with pickles are refused, and the report escapes every name.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from lib import check, data, labels, report
from lib.bounds import certificate
from lib.journal import OtherSetting
from lib.kernel import DIAGONAL, ntk
from lib.packed import BLOCK, PackedInverse
from lib.points import Points, encode, read, room
from lib.ridge import Ridge, RidgeInfluence, products, squares
from lib.stream import Streamed, stream

DENSE = 8000  # points with a dense kernel and inverse, 1 GB of them; beyond, the packed inverse
CHOICE = 2000  # points on which λ is chosen, and single precision tried
GRID = 10.0 ** np.arange(-4, 2.1, 0.5)  # the λ to choose from; K(x, x) = ½ is their unit
LOST = 3e-4  # of the largest influence of a test point, that single precision may lose in the trial
TRIED, MEASURED = 200, 20  # test points of the trial, and of what is measured in the end
SHOWN = 5  # helpful and harmful points of a test point
TILES = "inverse-tiles"  # folder of the packed inverse
FILES = ("points.csv", "tests.csv", "pairs.csv", "suspects.csv", "report.html")
OPTIONS = {
    "label": (str, "array or column of labels; by default y, or in a table label, target, class"),
    "lam": (float, "ridge λ; by default the one that the exact leave-one-out error chooses"),
    "test": (str, "test points, a source like the first"),
    "clean": (str, "points whose labels are right: a source, or 'test', the test points; the "
              "report then ranks points by the harm that they do to these"),
    "points": (str, "test points to explain: how many, of largest loss, or all, or 3,17"),
    "n-train": (int, "take so many training points, at random; by default all"),
    "n-test": (int, "take so many test points, at random; sets them aside if there are none"),
    "size": (int, "height and width to which images are brought; by default they stay"),
    "top": (int, "suspicious points to look at more closely"),
    "seed": (int, "of all that is at random"),
    "out": (Path, "folder of the results; by default audit-SOURCE"),
}  # fmt: skip


@dataclass(repr=False)
class Audit:
    """What an audit found, with the points, the model, and after how many seconds a step was done.

    - table: a row a training point, the most suspicious first: source, label, suggested label, the
      scores of `lib.labels.scores`, mean influence on the test and on the clean points (positive:
      helpful), leverage h, and up to 8,000 points the certificate τ: at every test point
      Î/(1 − h) ≤ I ≤ Î/(1 − h) + τ, Î being IHVP
    - suspects: what the suggested label of the first points would do. `others` is the change of the
      mean leave-one-out loss of the other points, `test` that of the mean test loss; `mended` and
      `spoilt` count test points whose predicted class becomes right or wrong
    - tests: a row a test point: source, label, predicted class, loss
    - pairs: the most helpful and harmful points of some test points: their influence (positive:
      helpful), the usual estimate of it (ihvp), leverage, and the sources of both points
    - choice: the leave-one-out loss of each λ, see `choose`
    - unknown: classes of which there is no clean point, so that their points help none
    - lost: by how much single precision changes an influence on some test points at most, over the
      largest influence on this test point; None for double precision
    - unused: columns of a table that are no feature, and why
    - copies: how many test and clean points have the features of a training point
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
    unknown: list[str] = field(default_factory=list)
    unused: str = ""
    copies: list[str] = field(default_factory=list)
    lost: float | None = None

    def __repr__(self) -> str:
        t = 0 if self.test is None else len(self.test.label)
        shape = f"n = {len(self.train.label)}, t = {t}, c = {len(self.classes)}"
        lam = "" if self.model is None else f", lam = {self.model.lam:g}"
        return f"Audit: {self.name}, {shape}{lam}"

    def outputs(self, label: np.ndarray) -> np.ndarray:
        """Labels of two classes as ±1, (n,), of c > 2 as one-hot rows less 1/c, (n, c)."""
        c, number = len(self.classes), pd.Index(self.classes).get_indexer(label)
        if (number < 0).any():
            raise ValueError(
                f"no training point has the label {str(label[number.argmin()])!r} of a test or "
                "clean point; remove such points, or take more training points"
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
    X_test and y_test; a .csv or .parquet file or a DataFrame. `label` names the array or column of
    labels, by default y (in a table also label, target or class); all other columns are features.
    Labels of a .csv stay as they are written, 00123 is not 123, but for whole numbers like 1.0.
    `test` and `clean` are more of the same: test points, and points whose labels are known to be
    right (clean="test": the test points). Points are ranked by their leave-one-out margin, or, if
    there are clean points, by the harm that they do to these. If no clean point is of a class, the
    points of that class can do harm, but hardly good. `classes` are names to keep, `n_train` and
    `n_test` the most points to take, at random; where there are no test points, `n_test` are set
    aside.

    `lam` is the ridge λ, by default chosen by the exact leave-one-out loss, see `choose`. `points`
    are the test points to explain: so many with the largest loss, "all", or a list. The first `top`
    suspicious points get a closer look. The folder `out` gets points.csv, tests.csv, pairs.csv,
    suspects.csv and report.html, each as soon as it is known; those of an earlier call go before.
    Two classes have labels ±1, as in the paper. As one-hot rows less ½ they would give the same
    margins, suggestions and leverages, half the losses, influences and certificates, and residuals
    smaller by √2. Above 8,000 points the inverse is a `lib.packed.PackedInverse`. With `out` it is
    in a folder there, so that the same call goes on after an interruption, and is removed at the
    end: `model.Q` is of no more use. Without, it is in memory and stays.

    Raises `ValueError`, `TypeError`, `IndexError` or `OSError` for bad input, and `MemoryError` or
    `OSError` before the work where memory or disk will not do. Source: Eq 9, 14.

    >>> result = audit("digits:3/8", n_train=40, n_test=20, progress=False)
    >>> len(result.table), len(result.tests), len(result.pairs), len(result.suspects)
    (40, 20, 60, 24)
    """
    top, start = check.integer("top", top), time.perf_counter()
    lam = lam if lam is None else check.number("lam", lam, above=0)
    n_train = n_train if n_train is None else check.integer("n_train", n_train)
    if n_test is not None:
        n_test = check.integer("n_test", n_test, at_least=0 if test is None else 1)
    out = out if out is None else _folder(out, source)
    own = isinstance(clean, str) and clean == "test"
    how = label, classes, size, seed, progress
    train, there = read(source, *how, n_train, n_test if test is None else None)
    test = there if test is None else read(test, *how, n_test, name="test")[0]
    if own and test is None:
        raise ValueError("clean = 'test', but there are no test points; pass test or n_test")
    known = None if clean is None or own else read(clean, *how, name="clean")[0]
    name = str(source) if isinstance(source, str | Path) else type(source).__name__
    name = name if ":" in name else Path(name).name
    found = Audit(name, train, test, _classes(train.label))
    found.note, found.unused = encode(train, *(x for x in (test, known) if x))
    data.different(f"training points of {name!r}", train.X)
    for which, x in (("test", test), ("clean", known)):
        if x and (count := _copies(train.X, x.X)):
            found.copies.append(f"{count} of the {len(x.X)} {which} points")
    if found.unused and progress:
        tqdm.write(f"columns that are no feature: {found.unused}", file=sys.stderr)
    if found.copies and progress:
        words = f"{' and '.join(found.copies)} are training points, too: predictions look too good"
        tqdm.write(words, file=sys.stderr)
    Y, Y_te, Y_clean = (x and found.outputs(x.label) for x in (train, test, known))
    if (judge := test if own else known) is not None:
        found.unknown = sorted(set(found.classes) - set(judge.label))
    points = _chosen(points, 0 if test is None else len(Y_te))
    found.seconds["reading"] = time.perf_counter() - start
    if lam is None:
        found.choice = choose(train.X, Y, seed, progress)
        lam = float(found.choice.lam[found.choice.chosen].iloc[0])
        found.seconds["choice of λ"] = time.perf_counter() - start
    model = found.model = _fit(train.X, Y, lam, out and out / TILES, seed, progress)
    found.seconds["inverse"] = time.perf_counter() - start
    found.table = _ranked(found, labels.scores(model))
    clear(out)
    _write(out, "points.csv", found.table)
    most = min(SHOWN, len(Y) // 2)
    on_test, on_clean = (
        x and stream(model, ntk, train.X, x.X, y, top=most, progress=progress)
        for x, y in ((test, Y_te), (known, Y_clean))
    )
    on_clean = on_test if own else on_clean
    found.lost = _lost(model, train.X, *((test, Y_te) if test else (known, Y_clean)))
    scores = labels.scores(model)
    if on_clean is not None:
        scores["clean influence"] = on_clean.mean
    if test is not None:
        scores["test influence"], f = on_test.mean, on_test.f
        found.tests = pd.DataFrame({
            "source": test.source, "label": test.label, "predicted": found.named(f),
            "loss": 0.5 * squares(f - Y_te),
        }).rename_axis("index")  # fmt: skip
        _write(out, "tests.csv", found.tests)
        found.pairs = _pairs(found, on_test, points)
        _write(out, "pairs.csv", found.pairs.set_index("test"))
    found.table = _ranked(found, scores)
    _write(out, "points.csv", found.table)
    found.seconds["influence"] = time.perf_counter() - start
    found.suspects = _relabelled(found, found.table.index[:top].to_numpy(), on_test)
    first = found.table[["source", "label", "suggested"]].join(found.suspects, how="right")
    _write(out, "suspects.csv", first[first.label != first.suggested])
    found.seconds["other labels"] = time.perf_counter() - start
    _write(out, "report.html", out and report.render(found))
    if out and model.K is None:
        shutil.rmtree(out / TILES)
    return found


def _folder(out, source) -> Path:
    """Make the folder of the results, before the work, and see that it takes files."""
    inside = isinstance(source, str | Path) and Path(source).is_dir()
    if inside and Path(out).resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(
            f"out = {str(out)!r} lies in {str(source)!r}, where it would be a class; choose a "
            "folder elsewhere"
        )
    if not isinstance(out, str | Path):
        raise TypeError(f"out must be the name of a folder, not {out!r}; pass one")
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out or "/nowhere").close()  # "" would be the current folder
    except OSError as error:
        why = f"out = {str(out)!r} is no folder to write to ({error})"
        raise OSError(f"{why}; choose another one") from error
    return Path(out)


def _chosen(points, t: int) -> int | np.ndarray:
    """Return how many of t test points to explain, or which."""
    if isinstance(points, str) and points != "all":
        with suppress(ValueError, SyntaxError):
            points = ast.literal_eval(points)  # a number, or a list such as 3,17
    named = np.ndim(points) > 0 or str(points) == "all"
    if named and not t:
        raise ValueError(f"points = {points!r}, but there are no test points; pass test or n_test")
    if np.ndim(points):
        return check.indices("points", points, t)
    return t if named else check.integer("points", points)


def _classes(label: np.ndarray) -> list[str]:
    """Return the names of the classes, whole numbers in their order."""
    whole = {name: bool(re.fullmatch("-?[0-9]{1,18}", name)) for name in set(label.tolist())}
    names = sorted(whole, key=lambda name: (not whole[name], whole[name] and int(name), name))
    if not 2 <= len(names) <= max(2, len(label) / 2):
        raise ValueError(
            f"{len(label)} points have {len(names)} different labels, such as {names[0]!r}; an "
            "audit needs two classes or more, with two points each on average"
        )
    return names


def choose(X: np.ndarray, Y: np.ndarray, seed: int = 0, progress: bool = False) -> pd.DataFrame:
    """Return the mean of the leave-one-out loss ½ ‖ρ_i‖² for each λ of `GRID`, and its error.

    The λ that is `chosen` is the largest whose loss is within one standard error of the smallest,
    on `CHOICE` points at most, drawn at random: a weaker ridge does no better, and is worse to
    invert. Source: Eq 9; the rule of one error is that of Breiman et al. (1984).
    """
    some = np.sort(np.random.default_rng(seed).permutation(len(X))[:CHOICE])
    K, lams = ntk(X[some]), tqdm(GRID, desc="choice of λ", disable=not progress)
    loss = pd.DataFrame({lam: 0.5 * squares(Ridge(K, Y[some], lam).rho) for lam in lams})
    table = pd.DataFrame({"loss": loss.mean(), "error": loss.std(ddof=0) / len(some) ** 0.5})
    best = table.loc[table.loss.idxmin()]
    chosen = table.index[table.loss <= best.loss + best.error].max()
    return table.assign(n=len(some), chosen=table.index == chosen).rename_axis("lam").reset_index()


def _fit(X, Y, lam: float, tiles: Path | None, seed: int, progress: bool) -> Ridge:
    if len(X) <= DENSE:
        room("the dense inverse", len(X) ** 2, "choose a smaller n_train")
        return Ridge(ntk(X), Y, lam)
    dtype = "float32" if single_will_do(X, Y, lam, seed) else "float64"
    try:
        Q = PackedInverse(ntk, X, lam, dtype=dtype, folder=tiles, progress=progress)
    except OtherSetting as error:
        words = f"{tiles} holds tiles of another λ, seed or data: choose another --out, or delete"
        raise OtherSetting(f"{words} {tiles} ({error})", error.differ) from error
    return Ridge.packed(Q, Y)


def single_will_do(X: np.ndarray, Y: np.ndarray, lam: float, seed: int = 0) -> bool:
    """Whether single precision leaves influences three digits of the largest of their test point.

    It is tried against double precision on `CHOICE` points with the same λ/n, where `TRIED` others
    are the test points. The error has to be below `LOST`, less than a thousandth, for it grows with
    n. How large it depends on the data: λ/n alone says little.
    """
    order = np.random.default_rng(seed).permutation(len(X))
    m = min(CHOICE, 2 * len(X) // 3)
    train, test = order[:m], order[m : m + TRIED]
    K, k, lam = ntk(X[train]), ntk(X[train], X[test]), lam * m / len(X)
    try:
        right = Ridge(K, Y[train], lam).influence(k, Y[test]).exact
        Q = PackedInverse(ntk, X[train], lam, progress=False)
        off = Ridge.packed(Q, Y[train]).influence(k, Y[test]).exact - right
    except (ValueError, RuntimeError):  # K + λI is hardly positive definite there
        return False
    return bool((np.abs(off).max(axis=0) <= LOST * np.abs(right).max(axis=0)).all())


def _lost(model: Ridge, X: np.ndarray, some: Points | None, y: np.ndarray | None) -> float | None:
    """Return what `Audit.lost` says, for some test points at even steps, with refined α."""
    if some is None or model.Q.dtype == "float64":
        return None
    index = np.unique(np.linspace(0, len(y) - 1, MEASURED).astype(int))
    k = ntk(X, some.X[index])
    rough = model.influence(k, y[index])
    right = RidgeInfluence(model, model.Q.solve(k), rough.f, y[index]).exact
    return float((np.abs(rough.exact - right).max(axis=0) / np.abs(right).max(axis=0)).max())


def _ranked(found: Audit, scores: dict) -> pd.DataFrame:
    suggested = np.array(found.classes)[labels.suggested(found.model)]
    first = {"source": found.train.source, "label": found.train.label, "suggested": suggested}
    table = pd.DataFrame({**first, **scores, "leverage": found.model.h})
    if found.model.K is not None:  # the packed inverse needs n³/3 steps more for it
        table["certificate"] = certificate(found.model, DIAGONAL)
    by = "clean influence" if "clean influence" in scores else "margin"
    table = table.rename_axis("index").sort_values(by, ascending=by != "margin", kind="stable")
    return table.rename(columns=lambda name: re.sub(r"\W", "_", name))


def _copies(X: np.ndarray, other: np.ndarray) -> int:
    """How many of the other points have the features of a training point."""
    there = {hash(x.tobytes()) for x in X}
    return sum(hash(x.tobytes()) in there for x in other)


def _pairs(found: Audit, on_test: Streamed, points) -> pd.DataFrame:
    """Return the ends of the influences on some test points, or on so many of largest loss."""
    if not np.ndim(points):
        points = found.tests.loss.nlargest(points).index.to_numpy()
    kept = [(on_test.helpful, on_test.harmful), (on_test.helps, on_test.harms)]
    kept.append((on_test.helps_ihvp, on_test.harms_ihvp))
    train, *values = (np.hstack(both)[points] for both in kept)
    columns = [np.repeat(points, train.shape[1]), *(x.ravel() for x in (train, *values))]
    table = pd.DataFrame(dict(zip(("test", "train", "influence", "ihvp"), columns, strict=True)))
    return table.assign(
        leverage=found.model.h[table.train], test_source=found.test.source[table.test],
        train_source=found.train.source[table.train],
    )  # fmt: skip


def _relabelled(found: Audit, index: np.ndarray, on_test: Streamed | None) -> pd.DataFrame:
    """Return what the suggested labels of some points would do, one at a time.

    A change Δ of y_i moves residuals by w Δ: w = −Q_ij/Q_jj for the leave-one-out residuals ρ_j of
    the others, and w = α_i at a test point. So the loss moves by w ⟨Δ, ρ⟩ + ½ w² ‖Δ‖².
    """
    model, X, test = found.model, found.train.X, found.test
    delta = found.outputs(found.table.suggested[index].to_numpy()) - model.Y[index]

    def total(w: np.ndarray, rho: np.ndarray) -> np.ndarray:
        return (w * (products(delta, rho) + 0.5 * squares(delta)[:, None] * w)).sum(axis=1)

    rows = model.Q.rows(index)
    weight = -rows / model.Q.diagonal()
    weight[np.arange(len(index)), index] = 0  # the others
    others = total(weight, model.rho) / (len(X) - 1)
    result = pd.DataFrame({"others": others}, index=pd.Index(index, name="index"))
    if test is not None:
        f, t = on_test.f, len(test.label)
        parts = np.split(test.X, range(BLOCK, t, BLOCK))
        alpha = np.hstack([rows @ ntk(X, part) for part in parts])
        result["test"] = total(alpha, f - found.outputs(test.label)) / t
        moved = (f + np.multiply.outer(a, change) for a, change in zip(alpha, delta, strict=True))
        before = found.named(f) == test.label
        after = np.array([found.named(f_new) == test.label for f_new in moved])
        result["mended"] = (after & ~before).sum(axis=1)
        result["spoilt"] = (before & ~after).sum(axis=1)
    return result


def safe(cell):
    """Return a cell that no spreadsheet takes for a formula: text like =1+1 gets a quote before it.

    So does text that begins with + - @, a tab or a new line, but for numbers. Source: OWASP.

    >>> safe("=1+1"), safe("-1"), safe("cat")
    ("'=1+1", '-1', 'cat')
    """
    risky = isinstance(cell, str) and re.match(r"\s*[=+\-@＝＋－＠]|[\t\r\n]", cell)
    return f"'{cell}" if risky and not re.fullmatch(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", cell) else cell


def clear(folder: Path | None) -> None:
    """Remove what an earlier audit has written, so that no two are mixed."""
    for name in FILES if folder else ():
        (folder / name).unlink(missing_ok=True)


def _write(folder: Path | None, name: str, what: str | pd.DataFrame) -> None:
    """Write a file in one step."""
    if folder is not None:
        text = what if isinstance(what, str) else what.map(safe).to_csv()
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        part.replace(folder / name)


def main(arguments: list[str] | None = None) -> int:
    """The command `ntk-influence`; returns its exit status."""
    parser = argparse.ArgumentParser("ntk-influence", description=__doc__.split("\n")[0])
    about = (
        "SOURCE is a folder of images (one sub-folder a class), a .npz file of arrays (X, or "
        "embeddings, and y), a .csv or .parquet table with a column of labels, or a data set such "
        "as digits or mnist. The results are report.html and, for what you do next, points.csv and "
        "suspects.csv; tests.csv and pairs.csv are about the test points."
    )
    command = parser.add_subparsers(required=True).add_parser("audit", description=about)
    first = "put it first: --classes takes all words that follow"
    command.add_argument("source", help=f"what to audit; {first}")
    command.add_argument("--classes", nargs="+", help="classes to keep; by default all")
    for name, (kind, words) in OPTIONS.items():
        default = audit.__kwdefaults__[name.replace("-", "_")]
        words += "" if default is None else f"; by default {default}"
        command.add_argument(f"--{name}", type=kind, default=default, help=words)
    given = vars(parser.parse_args(arguments))
    name = given["source"] if ":" in given["source"] else Path(given["source"]).stem
    out = given["out"] or Path("audit-" + re.sub(r"\W+", "-", name).strip("-"))
    begin = time.time()
    try:
        found = audit(**given | {"out": out})
    except (ValueError, TypeError, IndexError, OSError, MemoryError, RuntimeError) as error:
        with suppress(OSError):
            out.rmdir()  # if it is empty
        print(f"ntk-influence: {error}", file=sys.stderr)
        if list((out / TILES).glob("*.npy")) and not isinstance(error, OtherSetting):
            goes_on = "holds the inverse so far: the same command goes on with it; or delete this"
            print(f"{out / TILES} {goes_on} folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        there = sorted(f.name for f in out.glob("*.*") if f.stat().st_mtime >= begin)
        words = f"finished in {out}: {', '.join(there)}" if there else "nothing is finished"
        goes_on = "goes on with the inverse" if (out / TILES).exists() else "begins anew"
        print(f"\nstopped; {words}. The same command {goes_on}.", file=sys.stderr)
        return 130
    print(f"{report.headline(found)}\n{out / 'report.html'}\n{out / 'points.csv'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
