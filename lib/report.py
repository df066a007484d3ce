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

PICTURE, COLUMNS = 96, 8  # height of a picture; columns of a row


def headline(found) -> str:
    """Say in a sentence what an `lib.audit.Audit` found."""
    wrong = int((found.table.label != found.table.suggested).sum())
    share = percent(wrong / len(found.table))
    return f"The other points contradict {wrong:,} of {len(found.table):,} labels ({share})."


def percent(x: float) -> str:
    """Write a share with two digits, three where it is nearly all.

    >>> percent(0.123), percent(0.00123), percent(0.9987)
    ('12 %', '0.12 %', '99.9 %')
    """
    if x >= 0.0995:
        return f"{100 * x:.{int(0.99 < x < 1)}f} %"
    return f"{100 * x:.2g} %"


def number(x: float) -> str:
    """Write a number with two digits."""
    return f"{x:.2g}".replace("-", "−")


def moved(share: float) -> str:
    """Say by what share a loss moves."""
    return f"{'falls' if share < 0 else 'rises'} by {percent(abs(share))}"


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
    groups = None if tests is None else found.pairs.groupby("test", sort=False)
    if tests is not None:
        suspects["test"] /= tests.loss.mean()
    template = resources.files("lib").joinpath("report.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(template).render(
        a=found, h=found.model.h, by_class=by_class, suspects=suspects, headline=headline(found),
        clean="clean_influence" in table, groups=groups,
        picture=picture, row=row, percent=percent, number=number, moved=moved,
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
        low, high = min(0, show.min()), max(show.max(), 1e-9)
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
    cells = points.show.iloc[i, :COLUMNS].items()
    return [(name, f"{x:.4g}" if isinstance(x, float) else str(x)[:60]) for name, x in cells]
