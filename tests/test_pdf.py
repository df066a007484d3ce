"""The PDF: pages of the site as they are printed, and a link to it where there is one."""

from io import BytesIO
from unicodedata import normalize

import pytest
from pypdf import PdfReader

from book import pdf
from book.browser import chromium, serve
from tests.test_site import SITE, unavailable


@pytest.fixture(scope="module")
def browser():
    if not (SITE / "index.html").is_file():
        unavailable(f"there is no site in {SITE}; `make book` builds one")
    try:
        with chromium() as started:
            yield started
    except FileNotFoundError as error:
        unavailable(str(error))


def test_a_page_is_printed_without_the_tools_of_the_site(browser):
    with serve(SITE) as root:
        listed = pdf.pages(browser, root)
        title, page = pdf.printed(browser, f"{root}book/03-influence.html")
    names = [address.removeprefix(f"{root}book/") for address in listed]
    assert names[0] == "intro.html" and names[3] == "03-influence.html"
    assert len(names) == len(set(names)) > 15
    reader = PdfReader(BytesIO(page))
    width, height = (float(x) / 72 * 2.54 for x in reader.pages[0].mediabox[2:])
    assert (round(width), round(height)) == (21, 30)  # A4, in cm
    text = [normalize("NFKC", sheet.extract_text()) for sheet in reader.pages]  # no ligatures
    assert 3 <= len(text) <= 15 and title == "3. Influence in closed form"
    everything = "\n".join(text)
    assert title in text[0] and "What it means for you" in everything
    assert "The site has the checks" in everything and "controls hold" not in everything
    for tool in ("Search", "Kernel ridge regression\n3.", "Previous", "Hide the code"):
        assert tool not in everything
    links = [
        note.get_object()["/A"]["/URI"]
        for sheet in reader.pages
        for note in sheet.get("/Annots", ())
        if "/URI" in note.get_object().get("/A", {})
    ]
    assert any("/book/04-training.html" in link for link in links)
    assert not [link for link in links if "127.0.0.1" in link]


def test_the_front_page_offers_the_pdf_once(tmp_path):
    front = tmp_path / "book" / "intro.html"
    front.parent.mkdir()
    front.write_text('<p>Print it. <span id="pdf"></span></p>')
    for number in (8, 9):
        pdf.offer(tmp_path, number)
    link = '<a href="../influence.pdf">Download the book as a PDF</a>, 9 pages.'
    assert front.read_text() == f'<p>Print it. <span id="pdf">{link}</span></p>'


def test_the_front_page_has_room_for_the_link():
    if not (SITE / "book" / "intro.html").is_file():
        unavailable(f"there is no site in {SITE}; `make book` builds one")
    text = (SITE / "book" / "intro.html").read_text(encoding="utf-8")
    assert text.count('<span id="pdf">') == 1
    assert ("influence.pdf" in text) == (SITE / "influence.pdf").is_file()


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="there is no site in .*; `make book` builds one"):
        pdf.main(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="Chromium and chromedriver are needed; on Debian"):
        with chromium():
            pass


def test_the_book_is_one_file_in_order(tmp_path, monkeypatch, browser):
    """Of two pages, so that it does not take minutes."""
    (tmp_path / "book").mkdir()
    for name in ("index.html", "book/intro.html"):
        (tmp_path / name).write_text('<span id="pdf"></span>')
    names = ["book/13-where.html", "book/bibliography.html"]
    with serve(SITE) as root:
        monkeypatch.setattr(pdf, "pages", lambda *_: [root + name for name in names])
        pdf.main(tmp_path)
    reader = PdfReader(tmp_path / "influence.pdf")
    titles = [item.title for item in reader.outline if not isinstance(item, list)]
    assert titles == ["13. Where each finding holds", "Bibliography"]
    assert "influence.pdf" in (tmp_path / "book" / "intro.html").read_text()
