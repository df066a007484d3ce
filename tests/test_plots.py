"""One style: white ground, letters that survive a phone, a colour-blind safe cycle."""

import re
from io import BytesIO

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from IPython.display import HTML
from PIL import Image

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


@pytest.fixture
def displayed(monkeypatch):
    """What is displayed: (page, metadata) of each figure."""
    found = []
    monkeypatch.setattr(
        plots, "display", lambda page, metadata=None: found.append((page.data, metadata))
    )
    return found


def test_a_figure_has_a_number_a_caption_and_a_text_and_is_closed(displayed):
    plt.plot([1, 2])
    plots.figure("3.1", "a < b", 'the "line" rises')
    plots.plt.plot([2, 1])
    plots.figure("3.2", "It falls.", "a line that falls", record="fig-9")
    assert not plt.get_fignums()
    (first, kept), (second, record) = displayed
    assert "<figcaption><b>Figure 3.1.</b> a &lt; b</figcaption>" in first
    assert 'alt="the &quot;line&quot; rises"' in first and "data:image/png;base64," in first
    assert f'width="{plots.WIDTH * 100:.0f}"' in first  # pixels of a page
    assert (kept, record) == ({}, {"picture": "fig-9"}) and "Figure 3.2" in second


def test_a_picture_that_is_not_recorded_is_a_line(displayed, capsys, tmp_path):
    plots.recorded_figure("fig-9", "3.1", "It falls.", "a line", folder=tmp_path)
    assert capsys.readouterr().out == "No picture fig-9: `make paper` draws it.\n"
    assert not displayed


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_quantised_picture_has_few_colours():
    grey = Image.radial_gradient("L")
    picture = png(Image.merge("RGB", [grey, grey.rotate(90), grey.transpose(Image.ROTATE_180)]))
    once = plots.quantise(picture, 16)
    image = Image.open(BytesIO(once))
    assert image.size == grey.size and len(image.convert("RGB").getcolors()) <= 16
    assert len(once) < len(picture)
    gap = np.abs(np.int16(image.convert("RGB")) - np.int16(Image.open(BytesIO(picture))))
    assert gap.mean() < 16


def test_a_table_is_for_readers():
    frame = pd.DataFrame(
        {"data": ["a < b"], "n": [93_100], "error (%)": [12.3456], "R": [-0.00012345],
         "holds": [True], "gap": [np.nan], "limit": [np.inf], "whole": [-4.0]}
    ).rename_axis(columns="kind")  # fmt: skip
    page = plots.table("3.1", "R < 1", frame, digits=2).data
    assert "<figcaption><b>Table 3.1.</b> R &lt; 1</figcaption>" in page
    cells = ["a &lt; b", "93100", "12.3", "−0.00012", "yes", "–", "inf", "−4.0"]
    assert [f"<td>{cell}</td>" in page for cell in cells] == [True] * len(cells)
    assert page.count("<td>") == len(cells) == page.count('<th scope="col">')  # and no index
    assert "kind" not in page and '<div class="scroll" tabindex="0">' in page


def test_measured_numbers_have_decimals_and_large_ones_no_exponent():
    values = [0.0, 1.1, 9.9996, 99.96, 100.0, 123.45, 1234.5, 16_000.0, 1e-11, 2.5e7]
    page = plots.table("3.1", "All kinds.", pd.DataFrame({"x": values})).data
    cells = ["0.00", "1.10", "10.0", "100.0", "100.0", "123.5", "1234.5", "16000", "1.00e−11",
             "25000000"]  # fmt: skip
    assert re.findall("<td>(.*?)</td>", page) == cells
    tens = plots.table("3.1", "Two digits.", pd.DataFrame({"x": [100.0, 7.0]}), digits=2).data
    assert re.findall("<td>(.*?)</td>", tens) == ["100.0", "7.0"]


def test_a_table_that_is_html_stays_as_it_is():
    page = plots.table("3.2", "Marks.", HTML("<table class='marks'></table>")).data
    assert "<table class='marks'></table>" in page and "Table 3.2" in page
