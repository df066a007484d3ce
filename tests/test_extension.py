"""The Sphinx extension: which section is closed, and pictures that get files of their own."""

from base64 import b64encode
from io import BytesIO
from types import SimpleNamespace

import pytest
from docutils.core import publish_doctree
from docutils.nodes import raw, section
from PIL import Image
from sphinx.addnodes import desc

from book import extension

PAGE = """
Title
=====

One
---
text

How this was checked
--------------------
checks

More
~~~~
more checks

A module
--------
text
"""


def test_sections_of_checks_and_of_modules_are_closed_and_to_their_end():
    document = publish_doctree(PAGE)
    sections = {part[0].astext(): part for part in document.findall(section)}
    sections["A module"] += desc()
    extension.Fold(document).apply()
    for name, summary in ((extension.TITLE, extension.CHECKS), ("A module", extension.MODULE)):
        closed = sections[name]
        first = f'<details class="fold"><summary>{summary}</summary>'
        assert [part.astext() for part in (closed[1], closed[-1])] == [first, "</details>"]
    assert sections[extension.TITLE][-2] is sections["More"]  # what is below it is inside
    assert len(list(document.findall(raw))) == 4


@pytest.fixture
def site(tmp_path):
    """Mend a page: what the extension makes of a body, and the folder that it writes to."""

    def mend(body: str) -> str:
        context = {"body": body, "pathto": lambda name, resource: f"../{name}"}
        extension.mend(SimpleNamespace(outdir=tmp_path), "book/x", "page.html", context, None)
        return context["body"]

    return mend, tmp_path


def picture(colour: str) -> tuple[bytes, str]:
    buffer = BytesIO()
    Image.new("RGB", (96, 60), colour).save(buffer, "PNG")
    return buffer.getvalue(), b64encode(buffer.getvalue()).decode()


def test_pictures_of_figures_get_files_and_others_stay(site):
    mend, folder = site
    (png, code), (other, second) = picture("red"), picture("blue")
    figure = '<figure class="plot"><img alt="x" src="data:image/png;base64,{}"></figure>'.format
    explorer = f'<script>"data:image/png;base64,{code}"</script>'
    page = mend(figure(code) + explorer + figure(second) + figure(code))
    files = {file.read_bytes(): file for file in (folder / "_images").iterdir()}
    assert set(files) == {png, other}
    for one in (png, other):
        shown = f'alt="x" loading="lazy" height="40" src="../_images/{files[one].name}"'
        assert page.count(shown) == (2 if one is png else 1)
    assert explorer in page and mend("<p>no picture</p>") == "<p>no picture</p>"


def test_entries_of_the_bibliography_are_items_of_a_list(site):
    mend, _ = site
    assert mend('<div role="doc-biblioentry">') == '<div role="listitem">'


def test_a_page_without_a_body_is_left_alone(site):
    context = {}
    extension.mend(SimpleNamespace(outdir=site[1]), "search", "search.html", context, None)
    assert not context
