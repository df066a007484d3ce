"""One style for every figure: colour-blind safe, legible on a phone and in dark mode."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

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
