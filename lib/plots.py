"""One style for every figure: colour-blind safe, legible on a phone and in dark mode."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

from lib import check

COLOURS = sns.color_palette("colorblind")
WIDTH = 6.4
"""Width of a figure in inches; letters of 12 points stay legible when a phone halves it."""


def style() -> None:
    """Set the style of all figures that follow: call it once, at the top of a page.

    The white ground is part of the figure, so that it reads the same on a dark page.
    """
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.8),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "axes.labelsize": 12,
            "axes.titlesize": 12,
            "legend.fontsize": 11,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
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
        rows, columns, figsize=(WIDTH if columns == 1 else 1.25 * WIDTH, height * rows),
        squeeze=False, **options,
    )
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, axes.flat[:count]


def images(rows: dict[str, tuple[np.ndarray, list[str]]]):
    """Return a figure with one row of images for each entry: title → (images, captions).

    Images are (k, height, width) grey or (k, height, width, 3) colour, with values in [0, 1].
    """
    columns = max(len(pictures) for pictures, _ in rows.values())
    figure, axes = plt.subplots(
        len(rows), columns, squeeze=False, figsize=(1.25 * WIDTH, 1.75 * len(rows))
    )
    for axis in axes.flat:
        axis.axis("off")
    for line, (title, (pictures, captions)) in zip(axes, rows.items(), strict=True):
        line[0].set_title(title, loc="left", fontsize=12, pad=18)
        for axis, picture, caption in zip(line, pictures, captions, strict=False):
            axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axis.text(0.5, 1.02, caption, transform=axis.transAxes, ha="center", va="bottom", fontsize=10)
    return figure
