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
    suspects["others"] /= table.loss.mean()
    groups = None
    if tests is not None:
        by_test = found.pairs.groupby("test", sort=False)
        groups = [(j, list(pairs.itertuples())) for j, pairs in by_test]
        suspects["test"] /= tests.loss.mean()
    template = resources.files("lib").joinpath("report.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(template).render(
        a=found, h=found.model.h, by_class=by_class, suspects=suspects, headline=headline(found),
        clean="clean_influence" in table, groups=groups, picture=picture, row=row, percent=percent,
        version=__version__, today=date.today().isoformat(),
    )  # fmt: skip


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
