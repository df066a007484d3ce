"""The built site in a headless browser that reaches nothing but this machine.

`SITE` names the folder of the site (default `_build/html`). Without a site or a browser the tests
are skipped, unless `CI` is set: then they fail.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag

import numpy as np
import pytest

from lib.data import load
from lib.kernel import ntk
from lib.ridge import Ridge

SITE = Path(os.environ.get("SITE", Path(__file__).parents[1] / "_build" / "html"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESKTOP = (390, 844), (1280, 900)

# what a page is asked once its formulas are set
PROBE = """
const done = arguments[arguments.length - 1];
const text = element => {
  const copy = element.cloneNode(true);
  copy.querySelectorAll('pre, code, script, style, mjx-container').forEach(x => x.remove());
  return copy.textContent;
};
const report = () => done({
  ids: [...document.querySelectorAll('[id]')].map(x => x.id),
  links: [...document.querySelectorAll('[href], [src]')]
    .map(x => x.href?.baseVal ?? x.href ?? x.src),
  formulas: document.querySelectorAll('.math').length,
  untypeset: [...document.querySelectorAll('.math')]
    .filter(x => !x.querySelector('mjx-container') || x.querySelector('mjx-merror'))
    .map(x => x.textContent),
  text: text(document.querySelector('main') ?? document.body),
  broken: [...document.images].filter(x => x.complete && !x.naturalWidth).map(x => x.src),
  width: document.documentElement.scrollWidth,
  cut: [...document.querySelectorAll('div.math mjx-container')]
    .filter(x => x.scrollWidth > x.clientWidth + 1)
    .map(x => x.closest('div.math').textContent),
});
const start = Date.now();
const typeset = () => window.MathJax?.startup?.promise
  ? MathJax.startup.promise.then(report)
  : Date.now() - start > 10000 ? report() : setTimeout(typeset, 50);
document.querySelector('.math') ? typeset() : report();
"""


def unavailable(reason: str):
    """Skip with the reason, or fail with it in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def root():
    """The address of the site, served on the loopback address."""
    if not (SITE / "index.html").is_file():
        unavailable(f"there is no site in {SITE}; `make book` builds one")
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        unavailable("no headless browser: Chromium and chromedriver are needed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(root, browser) -> dict[str, dict]:
    """What every page says for itself at the width of a desktop: name -> answers of the probe."""
    files = sorted(p for p in SITE.rglob("*.html") if "_static" not in p.parts)
    names = [file.relative_to(SITE).as_posix() for file in files]
    return {name: visit(browser, root + name, DESKTOP) for name in names if name != "index.html"}


def visit(browser, address: str, size: tuple[int, int]) -> dict:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser")  # empties it
    browser.get(address)
    page = browser.execute_async_script(PROBE)
    page["errors"] = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    return page


def test_front_page_leads_to_the_book(root, browser):
    browser.get(root)
    assert browser.current_url.startswith(root) and browser.title


def told(pages: dict, key: str) -> str:
    """What the pages have to say under a key, a line each."""
    return "\n".join(f"{name}: {item}" for name, page in pages.items() for item in page[key])


def test_pages_load_without_an_error(pages):
    assert pages
    assert not told(pages, "errors")


def test_images_are_shown(pages):
    assert not told(pages, "broken")


def test_formulas_are_typeset(pages):
    assert sum(page["formulas"] for page in pages.values()) > 0, "no page has a formula"
    assert not told(pages, "untypeset")


@pytest.mark.parametrize(
    "mark", ["\\(", "\\[", "$$", "\\frac", "\\lambda", "{cite", "{prf:ref", "{eq}"]
)
def test_no_markup_is_left_in_the_text(pages, mark):
    assert not [name for name, page in pages.items() if mark in page["text"]]


def test_links_inside_the_book_lead_somewhere(root, pages):
    ids = {root + name: set(page["ids"]) for name, page in pages.items()}
    broken = []
    for name, page in pages.items():
        for link in filter(lambda link: link.startswith(root), page["links"]):
            address, anchor = urldefrag(link)
            path = SITE / unquote(address.removeprefix(root).split("?")[0])
            if not path.exists():
                broken.append(f"{name} -> {link}: no such page")
            elif anchor and address in ids and unquote(anchor) not in ids[address]:
                broken.append(f"{name} -> {link}: no such place on the page")
    assert not broken, "\n".join(broken)


@pytest.fixture(scope="module")
def on_a_phone(root, browser, pages) -> dict[str, dict]:
    """The same at the width of a phone."""
    return {name: visit(browser, root + name, PHONE) for name in pages}


def test_nothing_is_wider_than_a_phone(on_a_phone):
    widths = {name: page["width"] for name, page in on_a_phone.items()}
    assert not {name: width for name, width in widths.items() if width > PHONE[0]}


def test_no_equation_is_cut(pages, on_a_phone):
    assert not told(pages, "cut")
    assert not told(on_a_phone, "cut")


# what the explorer of a page shows for each test image at each stop of its slider
DRIVE = """
const explorer = document.querySelector('.explorer'), slider = explorer.querySelector('input');
const buttons = [...explorer.querySelectorAll('.choices button')];
const rows = side => [...side.querySelectorAll('li')].map(li =>
  [li.dataset.row, li.dataset.exact, li.dataset.estimate].map(Number));
const shown = [];
for (let stop = 0; stop <= Number(slider.max); stop++) {
  slider.value = stop;
  slider.dispatchEvent(new Event('input'));
  for (const button of buttons) {
    button.click();
    const column = Number(button.getAttribute('aria-label').match(/test image (\\d+)/)[1]);
    const value = explorer.querySelector('output').textContent;
    shown.push([value, column, ...[...explorer.querySelectorAll('.side')].map(rows)]);
  }
}
return shown;
"""


def test_the_explorer_shows_what_the_library_computes(root, browser):
    (page,) = SITE.rglob("intro.html")
    browser.get(root + page.relative_to(SITE).as_posix())
    shown = browser.execute_script(DRIVE)
    assert len(shown) == 13 * 8
    if "SITE" in os.environ:  # a site of other images
        return
    d = load("digits:3/8", n_train=200, n_test=100)
    K, k = ntk(d.X), ntk(d.X, d.X_te)
    influences = {}
    for value, j, helped, hurt in shown:
        if value not in influences:
            influences[value] = Ridge(K, d.Y, float(value)).influence(k, d.Y_te)
        exact, ihvp = influences[value].exact[:, j], influences[value].ihvp[:, j]
        for side, order in ((helped, np.argsort(-exact)), (hurt, np.argsort(exact))):
            assert [row for row, *_ in side] == order[:4].tolist()
            np.testing.assert_allclose([x for _, x, _ in side], exact[order[:4]], rtol=1e-3)
            np.testing.assert_allclose([x for *_, x in side], ihvp[order[:4]], rtol=1e-3)
    assert len(influences) == 13
