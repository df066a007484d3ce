"""The whole book as one PDF: headless Chromium prints the pages of the built site, in order.

python -m book.pdf SITE

writes SITE/influence.pdf, and gives the front page a link to it. What a page leaves closed, as its
checks and their code, stays closed: the site has it.
"""

import re
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path

from pypdf import PdfWriter

from book.browser import chromium, serve

FRONT = "book/intro.html"
A4 = {"paperWidth": 8.27, "paperHeight": 11.69, "marginLeft": 0.7, "marginRight": 0.7}
FOOT = '<p style="width: 100%; text-align: center; font-size: 8px">{} · <span class="pageNumber"/>'
# once formulas are set, links to other pages lead to the published ones
READY = """
const done = arguments[0], home = document.querySelector('link[rel="canonical"]').href;
for (const link of document.links)
  if (link.href.split('#')[0] !== location.href && link.href.startsWith(location.origin))
    link.href = new URL(link.getAttribute('href'), home).href;
for (const image of document.images) image.loading = 'eager';
const images = () => Promise.all([...document.images].map(image => image.decode()));
const wait = () => window.MathJax?.startup?.promise
  ? MathJax.startup.promise.then(images).then(() => done(document.title)) : setTimeout(wait, 50);
document.querySelector('.math') ? wait() : images().then(() => done(document.title));
"""


def pages(browser, root: str) -> list[str]:
    """The addresses of the pages, in the order of the table of contents."""
    browser.get(root + FRONT)
    links = "return [...document.querySelectorAll('.bd-links a')].map(a => a.href.split('#')[0])"
    return list(dict.fromkeys(browser.execute_script(links)))


def printed(browser, address: str) -> tuple[str, bytes]:
    """The title of a page, and the page as a PDF."""
    browser.get(address)
    title = browser.execute_async_script(READY).split(" — ")[0]
    how = {"printBackground": True, "generateDocumentOutline": True, "displayHeaderFooter": True}
    how |= {"headerTemplate": "<p/>", "footerTemplate": FOOT.format(title)}
    return title, b64decode(browser.execute_cdp_cmd("Page.printToPDF", A4 | how)["data"])


def main(site: Path) -> None:
    if not (site / FRONT).is_file():
        sys.exit(f"there is no site in {site}; `make book` builds one")
    writer = PdfWriter()
    with serve(site) as root, chromium() as browser:
        for address in pages(browser, root):
            title, page = printed(browser, address)
            writer.append(BytesIO(page), outline_item=title)
    writer.compress_identical_objects()
    writer.write(site / "influence.pdf")
    offer(site, len(writer.pages))
    print(f"the PDF:    {site / 'influence.pdf'}, {len(writer.pages)} pages")


def offer(site: Path, number: int) -> None:
    """Put a link to the PDF where the front page has room for it, `<span id="pdf">`."""
    front = site / FRONT
    link = f'<a href="../influence.pdf">Download the book as a PDF</a>, {number} pages.'
    old = front.read_text(encoding="utf-8")
    new = re.sub('(<span id="pdf">).*?(</span>)', rf"\g<1>{link}\2", old)
    front.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except FileNotFoundError as error:
        sys.exit(str(error))
