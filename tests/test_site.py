"""The built site in a headless browser that reaches nothing but this machine.

`SITE` names the folder of the site (default `_build/html`). Without a site or a browser the tests
are skipped, unless `CI` is set: then they fail.
"""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path
from urllib.parse import unquote, urldefrag

import numpy as np
import pytest

from book.browser import serve
from lib.data import load
from lib.dynamics import Flow
from lib.kernel import ntk
from lib.ridge import Ridge
from tests.conftest import unavailable

SITE = Path(os.environ.get("SITE", Path(__file__).parents[1] / "_build" / "html"))
PHONE, DESKTOP = (390, 844), (1280, 900)

# what a page is asked once its formulas are set
PROBE = """
const done = arguments[arguments.length - 1];
const text = element => {
  const copy = element.cloneNode(true);
  copy.querySelectorAll('pre, code, script, style, mjx-container').forEach(x => x.remove());
  return copy.textContent;
};
const report = () => document.fonts.ready.then(() => done({
  files: ['navigation', 'resource'].flatMap(kind => performance.getEntriesByType(kind))
    .map(x => x.name),
  shared: [document.querySelector('meta[property="og:description"]')?.content ?? ''],
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
  height: document.documentElement.scrollHeight,
  cut: [...document.querySelectorAll('div.math mjx-container')]
    .filter(x => x.scrollWidth > x.clientWidth + 1)
    .map(x => x.closest('div.math').textContent),
}));
const start = Date.now();
const typeset = () => window.MathJax?.startup?.promise
  ? MathJax.startup.promise.then(report)
  : Date.now() - start > 10000 ? report() : setTimeout(typeset, 50);
document.querySelector('.math') ? typeset() : report();
"""


@pytest.fixture(scope="module")
def root():
    """The address of the site, served on the loopback address."""
    if not (SITE / "index.html").is_file():
        unavailable(f"there is no site in {SITE}; `make book` builds one")
    with serve(SITE) as address:
        yield address


@pytest.fixture(scope="module")
def names(root) -> list[str]:
    """The pages of the site, by their addresses below its root."""
    files = sorted(p for p in SITE.rglob("*.html") if "_static" not in p.parts)
    return [p.relative_to(SITE).as_posix() for p in files if p != SITE / "index.html"]


@pytest.fixture(scope="module")
def pages(root, browser, names) -> dict[str, dict]:
    """What every page says for itself at the width of a desktop: name -> answers of the probe."""
    return {name: visit(browser, root + name, DESKTOP) for name in names}


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


def test_texts_for_sharing_have_no_markup(pages):
    assert all(page["shared"][0] for name, page in pages.items() if name.startswith("book/"))
    assert not re.findall(r".*[\\$`].*", told(pages, "shared"))


# --- weight -----------------------------------------------------------------------------------


def weight(addresses: list[str], root: str) -> dict[str, int]:
    """The size in bytes of each file of the site that a page asks for; no compression assumed."""
    asked = {unquote(a.split("?")[0].removeprefix(root)) for a in addresses if a.startswith(root)}
    return {name: (SITE / name).stat().st_size for name in asked}


def test_a_first_visit_is_light(root, pages):
    heavy = {}
    for name, page in pages.items():
        sizes = weight(page["files"], root)
        without = sum(size for file, size in sizes.items() if "/mathjax/" not in file)
        assert without > 300_000, f"{name}: these are not all files: {sizes}"
        if without > 1_500_000:
            heavy[name] = sorted(sizes.items(), key=lambda item: -item[1])[:8]
    assert not heavy


def test_the_formula_engine_is_loaded_once_and_cached(root, browser, pages):
    scripts = [
        {file for file in page["files"] if "/mathjax/" in file and file.endswith(".js")}
        for page in pages.values()
        if page["formulas"]
    ]
    assert set.union(*scripts) == set.intersection(*scripts) and len(scripts[0]) == 1
    name = next(name for name, page in pages.items() if page["formulas"])
    visit(browser, root + name, DESKTOP)
    again = """return performance.getEntriesByType('resource')
      .filter(x => x.name.includes('/mathjax/')).map(x => x.transferSize)"""
    assert sum(browser.execute_script(again)) < 2000  # heads of answers "not modified", no more


# --- a phone ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_a_phone(root, browser, pages) -> dict[str, dict]:
    """The same at the width of a phone."""
    return {name: visit(browser, root + name, PHONE) for name in pages}


def test_nothing_is_wider_than_a_phone(on_a_phone):
    widths = {name: page["width"] for name, page in on_a_phone.items()}
    assert not {name: width for name, width in widths.items() if width > PHONE[0]}


def test_no_page_is_too_high_for_a_phone(on_a_phone):
    heights = {name: page["height"] for name, page in on_a_phone.items() if "book/" in name[:5]}
    assert heights and not {k: height for k, height in heights.items() if not 0 < height <= 12_000}


def test_no_equation_is_cut(pages, on_a_phone):
    assert not told(pages, "cut")
    assert not told(on_a_phone, "cut")


# --- for everyone -----------------------------------------------------------------------------

AXE = (resources.files("selenium_axe_python") / "axe-core" / "axe.min.js").read_text("utf-8")
# what axe-core finds with all sections open; a few rows of a table and a few blocks of code stand
# for all of a page
AUDIT = """
const done = arguments[arguments.length - 1];
document.querySelectorAll('details').forEach(x => x.open = true);
document.querySelectorAll('tbody').forEach(x => [...x.rows].slice(20).forEach(y => y.remove()));
[...document.querySelectorAll('pre')].slice(8).forEach(x => x.remove());
const all = {type: 'tag', values: ['wcag2a', 'wcag2aa']};
const options = {
  resultTypes: ['violations'],
  runOnly: arguments[0] === 'colours' ? ['color-contrast'] : all,
  rules: {'heading-order': {enabled: arguments[0] !== 'colours'},
          'color-contrast': {enabled: arguments[0] !== 'shapes'}},
};
const told = rule => rule.nodes.map(node =>
  `${rule.id} (${rule.impact}): ${node.html.slice(0, 200)} ${node.failureSummary}`);
const bad = rule => ['serious', 'critical'].includes(rule.impact) || rule.id === 'heading-order';
const audit = () => axe.run({exclude: ['mjx-container']}, options)
  .then(found => done(found.violations.filter(bad).flatMap(told)));
setTimeout(audit, 500);  // when what opens has been faded in
"""


def audit(browser, what: str = "all") -> list[str]:
    browser.execute_script(AXE)
    return browser.execute_async_script(AUDIT, what)


# colours are those of the scheme, and the rest that of the width
@pytest.mark.parametrize(
    ("size", "scheme", "what"),
    [(DESKTOP, "light", "all"), (DESKTOP, "dark", "colours"), (PHONE, "light", "shapes")],
    ids=["desktop", "dark", "phone"],
)
def test_axe_finds_nothing_serious(root, browser, names, size, scheme, what):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    found = {}
    for name in names:
        if not name.startswith("_modules/"):  # listings of source
            visit(browser, root + name, size)
            found[name] = {"axe": audit(browser, what)}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert not told(found, "axe")


def test_axe_finds_what_is_wrong(root, browser):
    visit(browser, root + "search.html", DESKTOP)
    assert not audit(browser)
    for fault, rule in (
        ("<img src='data:,'>", "image-alt"),
        ("<p style='color: #999; background: #fff'>grey</p>", "color-contrast"),
        ("<h1>one</h1><h4>four</h4>", "heading-order"),
    ):
        wrong = "document.querySelector('main').innerHTML = arguments[0]"
        browser.execute_script(wrong, fault)
        found = browser.execute_async_script(AUDIT, "all")
        assert found and all(text.startswith(rule) for text in found), (rule, found)


def test_what_has_the_focus_is_seen(root, browser):
    seen = """
    const kinds = ['a', 'button', 'summary', 'input', 'select', '[tabindex="0"]'];
    return kinds.flatMap(kind => [...document.querySelectorAll(`main ${kind}`)].slice(0, 3))
      .map(x => [x, x.focus(), getComputedStyle(x).outlineStyle])
      .filter(([x]) => x.checkVisibility())
      .map(([x, _, style]) => [x.outerHTML.slice(0, 80), style]);"""
    visit(browser, root + "book/ledger.html", DESKTOP)
    outlines = browser.execute_script(seen)
    assert len(outlines) > 10 and all(style == "solid" for _, style in outlines), outlines


# --- the ledger -------------------------------------------------------------------------------

# the rows of the first table that are seen, as text
ROWS = """return [...document.querySelector('.rows tbody').rows].filter(row => !row.hidden)
  .map(row => [...row.cells].map(cell => cell.textContent))"""
CHOOSE = """
const box = document.querySelector(`.rows select[name=${arguments[0]}]`);
const value = arguments[1] ?? box.options[1].value;
box.value = value;
box.dispatchEvent(new Event('input'));
return value;
"""


def test_the_ledger_is_filtered_and_sorted(root, browser):
    visit(browser, root + "book/ledger.html", DESKTOP)
    rows = browser.execute_script(ROWS)
    head = browser.execute_script(
        "return [...document.querySelectorAll('.rows')[0].querySelectorAll('thead button')]"
        ".map(x => x.textContent)"
    )
    column = {name: k for k, name in enumerate(head)}
    for name in ("item", "kind"):
        value = browser.execute_script(CHOOSE, name)
        shown = browser.execute_script(ROWS)
        assert shown == [row for row in rows if row[column[name]] == value] and shown
        browser.execute_script(CHOOSE, name, "")
    data = browser.execute_script(CHOOSE, "data")
    shown = browser.execute_script(ROWS)
    assert shown and len(shown) < len(rows)
    assert all(data in row[column["setting"]] for row in shown)
    status = "return document.querySelector('.rows [role=status]').textContent"
    assert browser.execute_script(status) == f"{len(shown)} of {len(rows)} rows"
    browser.execute_script(CHOOSE, "data", "")
    page = browser.execute_script(CHOOSE, "page")
    links = """return [...document.querySelectorAll('.rows')[0].querySelectorAll('tbody tr')]
      .filter(row => !row.hidden).map(row => row.querySelector('a').getAttribute('href'))"""
    assert all(link.startswith(f"{page}.html#") for link in browser.execute_script(links))
    browser.execute_script(CHOOSE, "page", "")
    sort = "document.querySelectorAll('.rows')[0].querySelectorAll('thead button')[2].click()"
    browser.execute_script(sort)
    values = [float(row[2]) for row in browser.execute_script(ROWS)]
    assert values == sorted(values) and len(values) == len(rows)
    visit(browser, root + "book/ledger.html?item=Thm+3", DESKTOP)
    assert {row[0] for row in browser.execute_script(ROWS)} == {"Thm 3"}


def test_a_row_of_the_ledger_leads_to_the_line_that_measured_it(root, browser):
    visit(browser, root + "book/ledger.html", DESKTOP)
    rows = """return [...document.querySelectorAll('.rows')[0].querySelectorAll('tbody tr')]
      .map(row => [row.querySelector('a').href, row.cells[1].textContent])"""
    last = {address.split("#")[0]: (address, claim) for address, claim in
            browser.execute_script(rows)}  # fmt: skip
    for address, claim in last.values():
        visit(browser, address, DESKTOP)
        block = browser.execute_script(
            "const x = document.getElementById(location.hash.slice(1));"
            "return [x.checkVisibility(), x.textContent]"
        )
        assert block[0] and claim in block[1], f"{address}: {claim}"


# --- the explorer -----------------------------------------------------------------------------

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


def drive(root, browser, name: str) -> list:
    """What the explorer of a page shows: (value, test image, helped, hurt) of every view."""
    (page,) = SITE.rglob(name)
    browser.get(root + page.relative_to(SITE).as_posix())
    return browser.execute_script(DRIVE)


def compare(shown: list, stops: int, influence_at) -> None:
    """Hold what an explorer shows to (exact, estimate), (n, t) each, at every value it has."""
    at = {value: influence_at(float(value)) for value in {view[0] for view in shown}}
    assert len(at) == stops
    for value, j, helped, hurt in shown:
        exact, estimate = (both[:, j] for both in at[value])
        for side, order in ((helped, np.argsort(-exact)), (hurt, np.argsort(exact))):
            assert [row for row, *_ in side] == order[:4].tolist()
            np.testing.assert_allclose([x for _, x, _ in side], exact[order[:4]], rtol=1e-3)
            np.testing.assert_allclose(
                [x for *_, x in side], estimate[order[:4]], rtol=1e-3, atol=1e-12
            )


def test_the_explorer_shows_what_the_library_computes(root, browser):
    shown = drive(root, browser, "intro.html")
    assert len(shown) == 13 * 8
    if "SITE" in os.environ:  # a site of other images
        return
    d = load("digits:3/8", n_train=200, n_test=100)
    K, k = ntk(d.X), ntk(d.X, d.X_te)

    def influence_at(lam):
        influence = Ridge(K, d.Y, lam).influence(k, d.Y_te)
        return influence.exact, influence.ihvp

    compare(shown, 13, influence_at)


def test_the_explorer_along_time_shows_what_the_library_computes(root, browser):
    shown = drive(root, browser, "11-dynamics.html")
    assert len(shown) == 11 * 8
    # the mark of a wrong label, in words and in what a screen reader says
    marked = browser.execute_script(
        "return [...document.querySelectorAll('.explorer li')].map(li =>"
        " [li.dataset.row, li.querySelector('.wrong')?.textContent, li.querySelector('img').alt])"
    )
    assert all((note in alt) if note else ("labelled" not in alt) for _, note, alt in marked)
    if "SITE" in os.environ:  # a site of other images
        return
    d = load("digits:3/8", n_train=200, n_test=8, seed=10)
    flipped = np.random.default_rng(10).choice(200, 80, replace=False)
    assert all((int(row) in flipped) == bool(note) for row, note, _ in marked)
    Y = np.where(np.isin(np.arange(200), flipped), -d.Y, d.Y)
    flow, k = Flow(ntk(d.X), Y, 0.0), ntk(d.X, d.X_te)

    def influence_at(t):
        influence = flow.influence(k, d.Y_te, t)
        return influence.exact, influence.unrolled

    compare(shown, 11, influence_at)
