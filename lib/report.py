"""The report of an audit: one HTML file without scripts, with every name of the data escaped."""

from __future__ import annotations

import base64
import io
from datetime import date
from importlib import resources

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

from lib import __version__, data

PICTURE = 96  # height of a picture
COLUMNS = {  # of the tables beside the report
    "index": "number of the point among the training points of this audit, or among its test "
             "points, from 0",
    "source": "where the point is: its file; its line in a .csv, where the header is line 1; else "
              "its row or image, from 0",
    "label": "the label that the data give", "suggested": "the label that the other points suggest",
    "residual": "distance of the prediction from the label, by the model that has seen it",
    "loss": "half the squared distance; in points.csv by the model that has not seen the point",
    "margin": "output for the best other class less that for the label, by the model that has not "
              "seen the point; large is suspicious, below 0 the label is confirmed",
    "self_influence": "how much the loss at the point itself rises without it; large is suspicious",
    "test_influence": "how much the mean loss of the test points rises without the point: it helps "
                      "if this is above 0, and harms if it is below",
    "clean_influence": "the same for the points whose labels are known to be right",
    "leverage": "weight of the point's own label in its prediction, 0 to 1; IHVP, the usual "
                "estimate of influence, is too small by this share",
    "certificate": "the influence on any test point is IHVP / (1 − leverage), plus this at most",
    "others": "how the mean loss of the other training points changes with the suggested label",
    "test": "in suspects.csv, how the mean loss of the test points changes with the suggested "
            "label; in pairs.csv, the index of the test point",
    "mended": "test points that the suggested label makes right",
    "spoilt": "test points that it makes wrong",
    "predicted": "the class that the model predicts", "train": "index of the training point",
    "influence": "how much the loss at the test point rises without the training point",
    "ihvp": "the usual estimate of this", "test_source": "where the test point is",
    "train_source": "where the training point is",
}  # fmt: skip


def headline(found) -> str:
    """Say in a sentence what an `lib.audit.Audit` found."""
    wrong = int((found.table.label != found.table.suggested).sum())
    share = percent(wrong / len(found.table))
    return f"The other points contradict {wrong:,} of {len(found.table):,} labels ({share})."


def percent(x: float) -> str:
    """Write a share with two digits, three where it is nearly all; only all is 100 %.

    >>> percent(0.123), percent(0.00123), percent(0.9987), percent(0.99996), percent(1.0)
    ('12 %', '0.12 %', '99.9 %', '> 99.9 %', '100 %')
    """
    if 0.9995 <= x < 1:
        return "> 99.9 %"
    digits = f".{int(0.99 < x < 1)}f" if x >= 0.0995 else ".2g"
    return f"{100 * x:{digits}} %"


def render(found) -> str:
    """Return the report of an `lib.audit.Audit` as HTML."""
    table, tests = found.table, found.tests
    wrong = table[table.label != table.suggested].groupby("label").suggested
    by_class = pd.DataFrame({
        "n": table.label.value_counts(), "wrong": wrong.size(),
        "most": wrong.agg(lambda names: names.mode()[0]),
    }).reindex(found.classes).fillna({"wrong": 0, "most": ""})  # fmt: skip
    suspects = found.suspects.join(table).reset_index()
    clean = "clean_influence" in table
    bad = table.clean_influence < 0 if clean else table.label != table.suggested
    suspects = suspects[suspects["index"].map(bad)]
    suspects["others"] /= table.loss.mean()
    groups = None
    if tests is not None:
        by_test = found.pairs.groupby("test", sort=False)
        groups = [(j, list(pairs.itertuples())) for j, pairs in by_test]
        suspects["test"] /= tests.loss.mean()
    template = resources.files("lib").joinpath("report.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(template).render(
        a=found, h=found.model.h, by_class=by_class, suspects=suspects, headline=headline(found),
        clean=clean, bad=int(bad.sum()), columns=_columns(found), groups=groups,
        picture=picture, row=row, percent=percent, version=__version__,
        today=date.today().isoformat(),
    )  # fmt: skip


def _columns(found) -> list[tuple[str, str, str]]:
    """Return each column of the tables, the files that have it, and what it says."""
    files = {"points": found.table, "suspects": found.suspects}
    if found.tests is not None:
        files |= {"tests": found.tests, "pairs": found.pairs.set_index("test")}
    heads = {name: [frame.index.name, *frame] for name, frame in files.items()}
    heads["suspects"] += ["source", "label", "suggested"]
    every = dict.fromkeys(column for head in heads.values() for column in head)
    return [
        (name, ", ".join(f"{file}.csv" for file in heads if name in heads[file]), COLUMNS[name])
        for name in every
    ]  # fmt: skip


def picture(points, i: int) -> dict | None:
    """Return the picture of a point, if it has one, as a data URI, and whether it is tiny."""
    show = points.show
    if show is None or isinstance(show, pd.DataFrame):
        return None
    if show.dtype.kind == "U":  # files
        pixels = data.pixels(show[i], PICTURE)
    else:
        low, high = points.look
        pixels = (show[i] - low) / (high - low)
    image, file = Image.fromarray(np.uint8(np.rint(255 * pixels))), io.BytesIO()
    kind = "png" if max(image.size) < 64 else "jpeg"
    image.thumbnail((PICTURE, PICTURE))
    image.save(file, kind)
    text = base64.b64encode(file.getvalue()).decode()
    return {"uri": f"data:image/{kind};base64,{text}", "tiny": kind == "png"}


def row(points, i: int) -> list[tuple[str, str]]:
    """Return the first columns of a row of a table."""
    if not isinstance(points.show, pd.DataFrame):
        return []
    cells = zip(points.show, points.look[i], strict=False)  # zip ends with the shorter
    return [(name, f"{x:.4g}" if isinstance(x, float) else str(x)[:60]) for name, x in cells]
