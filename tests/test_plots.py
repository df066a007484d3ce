"""One style: white ground, letters that survive a phone, a colour-blind safe cycle."""

import matplotlib as mpl
import numpy as np
import pytest
import seaborn as sns

mpl.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from book import plots  # noqa: E402


@pytest.fixture(autouse=True)
def styled():
    with mpl.rc_context():
        plots.style()
        yield
        plt.close("all")


def test_style_is_legible_on_a_phone_and_on_a_dark_page():
    rc = plt.rcParams
    figure, axis = plt.subplots()
    assert figure.get_facecolor() == axis.get_facecolor() == (1, 1, 1, 1)
    assert figure.get_size_inches()[0] == plots.WIDTH
    phone = 360 / (plots.WIDTH * rc["figure.dpi"])  # a page of 360 pixels shrinks the figure
    for size in ("axes.labelsize", "axes.titlesize", "legend.fontsize", "xtick.labelsize"):
        assert rc[size] * rc["figure.dpi"] / 72 * phone >= 8, size
    cycle = rc["axes.prop_cycle"].by_key()["color"]
    assert [mpl.colors.to_rgb(c) for c in cycle] == sns.color_palette("colorblind")
    assert list(plots.COLOURS) == sns.color_palette("colorblind")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_panels_are_as_many_as_asked_for(count):
    figure, axes = plots.panels(count, sharey=True)
    assert len(axes) == len(figure.axes) == count
    assert figure.get_size_inches()[0] == plots.WIDTH
    for axis in axes:
        axis.plot([1, 2])
    figure.canvas.draw()


def test_panels_refuse_no_panel():
    with pytest.raises(ValueError, match="count must be at least 1, not 0"):
        plots.panels(0)


def test_rows_of_grey_and_colour_images_with_captions():
    grey, colour = np.random.default_rng(0).random((3, 8, 8)), np.zeros((2, 4, 4, 3))
    figure = plots.images({"helpful": (grey, ["a", "b", "c"]), "harmful": (colour, ["d", "e"])})
    figure.canvas.draw()
    shown = [axis for axis in figure.axes if axis.images]
    assert len(shown) == 5
    np.testing.assert_array_equal(shown[1].images[0].get_array(), grey[1])
    words = {text.get_text() for text in figure.findobj(mpl.text.Text)}
    assert {"helpful", "harmful", "a", "b", "c", "d", "e"} <= words
