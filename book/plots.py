"""Figures and tables for readers, in one style: colour-blind safe, legible on a phone, in the dark.

Every figure has a number, a caption that says what to see, and a text for those who cannot see it.
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import HTML, display
from PIL import Image

from lib import check

COLOURS = sns.color_palette("colorblind")
WIDTH = 6.4
"""Width of every figure in inches; letters of 12 points are 9 pixels high on a phone."""


def style() -> None:
    """Set the style of all figures that follow: call it once, at the top of a page.

    The white ground is part of the figure, so that it reads the same on a dark page.
    """
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.8),
            "figure.dpi": 150,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "axes.labelsize": 13,
            "axes.titlesize": 13,
            "legend.fontsize": 11,
            "xtick.labelsize": 12,
            "ytick.labelsize": 12,
            "lines.linewidth": 2,
            "lines.markersize": 5,
            "font.family": "DejaVu Sans",
        }
    )


def panels(count: int, height: float = 3.4, **options):
    """Return a figure and a flat array of `count` axes, at most two side by side."""
    columns = min(check.integer("count", count), 2)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH, height * rows),
        squeeze=False,
        **options,
    )
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, axes.flat[:count]


def images(rows: dict[str, tuple[np.ndarray, list[str]]]):
    """Return a figure with one row of images for each entry: title → (images, captions below).

    Images are (k, height, width) grey or (k, height, width, 3) colour, with values in [0, 1].
    """
    columns = max(len(pictures) for pictures, _ in rows.values())
    figure = plt.figure(figsize=(WIDTH, 1.55 * len(rows)))
    strips = figure.subfigures(len(rows), squeeze=False).flat
    for strip, (title, (pictures, captions)) in zip(strips, rows.items(), strict=True):
        strip.suptitle(title, x=0.01, ha="left", fontsize=13)
        axes = strip.subplots(1, columns, squeeze=False)[0]
        for axis in axes[len(pictures) :]:
            axis.axis("off")
        for axis, picture, caption in zip(axes, pictures, captions, strict=False):
            axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[], frame_on=False)
            axis.set_xlabel(caption, fontsize=11)
    return figure


def figure(number: str, caption: str, alt: str, record: str | None = None) -> None:
    """Show the current figure with its number, a caption that says what to see, and a text.

    `number` is that of the chapter and of the figure in it, for instance "3.1". `alt` describes
    the figure to those who cannot see it. Under the name `record`, `make paper` keeps the figure as
    a picture, which `recorded_figure` shows. The figure is closed.
    """
    buffer = io.BytesIO()
    plt.gcf().savefig(buffer, format="png")
    plt.close()
    kept = {"picture": record} if record else {}
    display(_figure(number, caption, alt, quantise(buffer.getvalue())), metadata=kept)


def recorded_figure(name: str, number: str, caption: str, alt: str, folder="records") -> None:
    """Show the picture that `make paper` recorded under `name`, and when and on what it was drawn.

    Where there is no FOLDER/NAME.png, as in `make paper` itself, a line says so.
    """
    file = Path(folder) / f"{name}.png"
    if not file.is_file():
        print(f"No picture {name}: `make paper` draws it.")
        return
    source = Image.open(file).text["Source"]
    display(_figure(number, f"{caption} (Recorded · {source})", alt, file.read_bytes()))


def _figure(number: str, caption: str, alt: str, png: bytes) -> HTML:
    """A figure as a page shows it."""
    width = Image.open(io.BytesIO(png)).width * 2 // 3
    picture = base64.b64encode(png).decode()
    return HTML(
        f'<figure class="plot" style="margin: 0 0 1.5em"><img alt="{html.escape(alt)}" '
        f'width="{width}" style="max-width: 100%" src="data:image/png;base64,{picture}">'
        f"<figcaption><b>Figure {number}.</b> {html.escape(caption)}</figcaption></figure>"
    )


def quantise(png: bytes, colours: int = 128) -> bytes:
    """Return a PNG in at most so many colours."""
    image, buffer = Image.open(io.BytesIO(png)).convert("RGB"), io.BytesIO()
    image.quantize(colours, Image.Quantize.MEDIANCUT).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def table(number: str, caption: str, frame: pd.DataFrame | HTML, digits: int = 3) -> HTML:
    """Return a table for readers: number, caption, no index; numbers in so many digits or more.

    Columns say their units in their names. A value that is missing is a dash. A table that is HTML
    already stays as it is.

    >>> page = table("3.1", "Errors.", pd.DataFrame({"estimate": ["Î"], "error (%)": [12.3456]}))
    >>> "<b>Table 3.1.</b> Errors." in page.data, "<td>12.3</td>" in page.data
    (True, True)
    """
    if isinstance(frame, HTML):
        shown = frame.data
    else:
        cells = frame.map(lambda value: _cell(value, digits)).rename_axis(columns=None)
        shown = cells.to_html(index=False, border=0).replace("<th>", '<th scope="col">')
    return HTML(
        f'<figure class="table" style="margin: 0 0 1.5em"><figcaption><b>Table {number}.</b> '
        f'{html.escape(caption)}</figcaption><div class="scroll" tabindex="0">'
        f"{shown}</div></figure>"
    )


def _cell(value, digits: int) -> str:
    """A value of a table; numbers that are measured have decimals, and counts have none."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        if not np.isfinite(value):
            return "–" if np.isnan(value) else str(value)
        if abs(value) >= 1000 and value.is_integer():
            text = f"{value:.0f}"
        elif 10 ** (digits - 1) <= abs(value) < 1e6:
            text = f"{value:.1f}"
        else:
            text = f"{value:#.{digits}g}"  # 1.10, not 1.1
            text += "0" * text.endswith(".")  # 99.96 is 100. in three digits
    elif isinstance(value, int | np.integer):
        text = str(value)
    else:
        return str(value)
    return text.replace("-", "−")
