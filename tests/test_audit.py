"""The audit: every kind of input, good and bad, its numbers, its report and its interruption."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from book.browser import chromium
from lib import audit as module
from lib import packed, report
from lib.audit import GRID, audit, choose, main, safe
from lib.data import import_datasets, load, unit_rows
from lib.kernel import ntk
from lib.labels import scores, suggested
from lib.points import read
from lib.ridge import Ridge
from tests.cases import loss, refit

EVIL = "<script>alert('x')</script>"
QUIET = {"progress": False}


@pytest.fixture
def blobs() -> dict[str, np.ndarray]:
    """60 points of three classes, two labels of them wrong, and 12 test points."""
    rng = np.random.default_rng(0)
    y = np.repeat(["ant", "bee", "cat"], 24)
    X = 4 * np.eye(3)[pd.factorize(y)[0]] @ rng.standard_normal((3, 8))
    X += rng.standard_normal(X.shape)
    order = rng.permutation(72)
    X, y = X[order], y[order]
    wrong = y[:60].copy()
    wrong[[7, 31]] = ["bee" if name != "bee" else "cat" for name in y[[7, 31]]]
    return {"X": X[:60], "y": wrong, "X_test": X[60:], "y_test": y[60:]}


def frame(blobs, end="") -> pd.DataFrame:
    table = pd.DataFrame(blobs[f"X{end}"], columns=[f"x{k}" for k in range(8)])
    return table.assign(species=blobs[f"y{end}"])


def photos(folder: Path, names=("cats", "<b onclick=alert(1)>"), count=6, size=(5, 4)) -> Path:
    rng = np.random.default_rng(1)
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            pixels[..., k] = 255
            Image.fromarray(pixels).save(folder / name / f"<b>{i}.png")
    return folder


# --- numbers ------------------------------------------------------------------------------------


def test_eq_9_the_table_is_that_of_the_model_on_all_points(blobs, tmp_path):
    result = audit(blobs, lam=0.5, out=tmp_path, **QUIET)
    X, X_te = unit_rows(blobs["X"]), unit_rows(blobs["X_test"])
    classes = ["ant", "bee", "cat"]
    Y, Y_te = (
        np.eye(3)[[classes.index(c) for c in y]] - 1 / 3 for y in (blobs["y"], blobs["y_test"])
    )
    model = Ridge(ntk(X), Y, 0.5)
    influence = model.influence(ntk(X, X_te), Y_te)
    written = pd.read_csv(tmp_path / "points.csv", index_col="index").sort_index()
    for table in (result.table.sort_index(), written):
        assert list(table.label) == list(blobs["y"])
        assert list(table.source) == [f"row {i}" for i in range(60)]
        assert list(table.suggested) == [classes[k] for k in suggested(model)]
        expected = scores(model) | {
            "leverage": model.h, "test influence": influence.exact.mean(axis=1)
        }  # fmt: skip
        for name, values in expected.items():
            np.testing.assert_allclose(
                table[re.sub(r"\W", "_", name)], values, rtol=1e-9, atol=1e-12
            )
    assert set(result.table.index[:2]) == {7, 31}
    assert (np.diff(result.table.margin) <= 0).all()
    tests = pd.read_csv(tmp_path / "tests.csv", index_col="index")
    np.testing.assert_allclose(tests.loss, 0.5 * ((influence.f - Y_te) ** 2).sum(axis=1))
    for row in result.pairs.itertuples():
        assert row.influence == pytest.approx(influence.exact[row.train, row.test], abs=1e-12)
        assert row.ihvp == pytest.approx(influence.ihvp[row.train, row.test], abs=1e-12)
    for j, rows in result.pairs.groupby("test"):
        order = np.argsort(influence.exact[:, j])
        assert list(rows.train) == [*order[:-6:-1], *order[:5]]
    assert set(result.pairs.test) == set(result.tests.loss.nlargest(6).index)


@pytest.mark.parametrize("count", [2, 3])
def test_another_label_does_what_a_refit_says(blobs, count):
    if count == 2:
        kept = {end: blobs[f"y{end}"] != "cat" for end in ("", "_test")}
        blobs = {name: x[kept[name[1:]]] for name, x in blobs.items()}
    result = audit(blobs, lam=0.5, top=3, **QUIET)
    K = ntk(result.train.X)
    k = ntk(result.train.X, result.test.X)
    Y, Y_te = result.outputs(result.train.label), result.outputs(result.test.label)
    before = Ridge(K, Y, 0.5)
    for i, row in result.suspects.iterrows():
        changed = Y.copy()
        changed[i] = result.outputs(np.array([result.table.suggested[i]]))[0]
        after = Ridge(K, changed, 0.5)
        others = np.arange(len(Y)) != i
        gap = (loss(after.rho, 0 * Y) - loss(before.rho, 0 * Y))[others].mean()
        assert row.others == pytest.approx(gap, abs=1e-12)
        f, g = before.predict(k), after.predict(k)
        assert row.test == pytest.approx((loss(g, Y_te) - loss(f, Y_te)).mean(), abs=1e-12)
        right, now = (result.named(x) == result.test.label for x in (f, g))
        assert (row.mended, row.spoilt) == ((now & ~right).sum(), (right & ~now).sum())


def test_eq_9_the_chosen_ridge_is_that_of_refits(blobs, monkeypatch):
    result = audit(blobs, **QUIET)
    K, Y = ntk(result.train.X), result.outputs(result.train.label)
    n, losses = len(Y), []
    for lam in GRID:
        out = [refit(K, Y, lam, K[:, [i]], [i])[0] for i in range(n)]
        losses.append(0.5 * ((np.array(out) - Y) ** 2).sum(axis=1))
    mean, error = np.mean(losses, axis=1), np.std(losses, axis=1) / n**0.5
    np.testing.assert_allclose(result.choice.loss, mean, rtol=1e-6)
    best = mean.argmin()
    right = GRID[mean <= mean[best] + error[best]].max()
    assert result.model.lam == right and result.choice.lam[result.choice.chosen].tolist() == [right]
    monkeypatch.setattr(module, "CHOICE", 25)
    few = choose(result.train.X, Y)
    assert set(few.n) == {25} and "25 points, drawn at random" in report.render(
        audit(blobs, **QUIET)
    )


def test_a_clean_set_ranks_by_influence(blobs):
    by_test = audit(blobs, lam=0.5, clean="test", **QUIET)
    clean = {"X": blobs["X_test"], "y": blobs["y_test"]}
    by_clean = audit({"X": blobs["X"], "y": blobs["y"]}, lam=0.5, clean=clean, **QUIET)
    assert by_clean.tests is None and list(by_test.table.index) == list(by_clean.table.index)
    np.testing.assert_allclose(by_test.table.clean_influence, -by_test.table.test_influence)
    assert {7, 31} <= set(by_test.table.index[:4])
    assert "do most harm on the points known to be right" in report.render(by_clean)


def test_many_points_take_the_packed_inverse(blobs, monkeypatch, tmp_path):
    dense = audit(blobs, lam=0.5, **QUIET)
    monkeypatch.setattr(module, "DENSE", 50)
    for out in (None, tmp_path):
        packed = audit(blobs, lam=0.5, out=out, **QUIET)
        assert packed.model.K is None
        gap = (packed.table.sort_index().margin - dense.table.sort_index().margin).abs().max()
        assert gap < 1e-5
    assert list((tmp_path / module.TILES).glob("*.npy"))


# --- what it reads --------------------------------------------------------------------------------


def test_kinds_of_input_agree(blobs, tmp_path):
    np.savez(tmp_path / "a.npz", **blobs)
    np.savez(tmp_path / "b.npz", embeddings=blobs["X"], Y=blobs["y"], images=np.ones((60, 2, 2)),
             X_te=blobs["X_test"], y_te=blobs["y_test"])  # fmt: skip
    np.savez(tmp_path / "c.npz", embeddings=blobs["X"], y=blobs["y"])
    np.savez(tmp_path / "d.npz", X=blobs["X_test"], y=blobs["y_test"])
    found = [
        audit(blobs, lam=0.5, **QUIET), audit(tmp_path / "a.npz", lam=0.5, **QUIET),
        audit(str(tmp_path / "c.npz"), test=tmp_path / "d.npz", lam=0.5, **QUIET),
        audit(tmp_path / "b.npz", lam=0.5, **QUIET),
    ]  # fmt: skip
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0].table, other.table)
        pd.testing.assert_frame_equal(found[0].pairs, other.pairs)
    frame(blobs).to_csv(tmp_path / "a.csv", index=False)
    frame(blobs).to_parquet(tmp_path / "a.parquet")
    frame(blobs, "_test").to_csv(tmp_path / "test.csv", index=False)
    tables = [
        audit(source, label="species", test=tmp_path / "test.csv", lam=0.5, **QUIET).table
        for source in (frame(blobs), tmp_path / "a.csv", tmp_path / "a.parquet")
    ]
    for other in tables[1:]:
        pd.testing.assert_frame_equal(tables[0], other, rtol=1e-9)


def test_columns_of_a_table_are_scaled_and_words_become_indicators(blobs):
    table = frame(blobs)[["x0", "x1", "species"]].rename(columns={"species": "Label"})
    table["colour"] = np.where(np.arange(60) % 3, "red", "=blue")
    table["id"], table["day"] = [f"no {i}" for i in range(60)], pd.Timestamp("2020-01-01")
    result = audit(table, lam=0.5, **QUIET)
    raw = np.c_[table.x0, table.x1, table.colour == "=blue", table.colour == "red"].astype(float)
    scaled = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    np.testing.assert_allclose(result.train.X, unit_rows(np.c_[scaled, np.full(60, 2.0)]))
    page = report.render(result)
    assert "the numbers of 2 columns, and indicators of the texts of 1, were scaled" in page
    assert "more than 20 texts: id, day" in page


def test_folders_and_data_sets(tmp_path):
    result = audit(photos(tmp_path / "photos"), n_test=4, lam=1.0, **QUIET)
    assert len(result.table) == 8 and len(result.tests) == 4
    assert all(Path(source).is_file() for source in result.table.source)
    for part in ("train", "test"):
        photos(tmp_path / "two" / part, ("a", "b"), 4)
    assert [len(x.label) for x in read(tmp_path / "two")] == [8, 8]
    train, test = read("digits", n_train=50, n_test=10)
    assert len(train.label) == 50 and len(test.label) == 10
    assert not set(train.source) & set(test.source)
    whole, none = read("digits", classes=[3, "8"])
    assert none is None and set(whole.label) == {"3", "8"}
    assert len(whole.label) == len(read("digits:3/8")[0].label) == 357
    drawn = load("digits:3/8", n_train=40, n_test=20)
    where = {source: k for k, source in enumerate(whole.source)}
    rows = [where[f"image {i}"] for i in drawn.index]
    np.testing.assert_allclose(whole.X[rows], drawn.X)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, 9, 10], ["9", "10"]), ([1.0, 0.0, 1.0, 0.0], ["0", "1"]),
        ([b"b", b"a", b"b", b"a"], ["a", "b"]), ([True, False, True, False], ["False", "True"]),
        ([-1, 1, -1, 1], ["-1", "1"]),
    ],
)  # fmt: skip
def test_names_of_classes(labels, classes):
    result = audit({"X": np.eye(4) + 1, "y": np.array(labels)}, lam=1.0, **QUIET)
    assert result.classes == classes
    assert set(result.model.Y) == {-1.0, 1.0}


# --- bad input ------------------------------------------------------------------------------------

POINTS = np.eye(4) + 1.0
AB = np.array(["a", "b", "a", "b"])


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("nowhere", {}, "name = 'nowhere' is no data set"),
        ("nowhere.npz", {}, "source = 'nowhere.npz' is not there"),
        (3.5, {}, "source = 3.5; pass a path, a DataFrame or a dict of arrays"),
        ({"X": POINTS}, {}, "the arrays X need X .*, y, and"),
        ({"y": AB}, {}, "the arrays y need X"),
        ({"X": POINTS, "y": AB[:3]}, {}, "of one length"),
        ({"X": POINTS, "y": AB, "names": AB[:3]}, {}, "of one length"),
        ({"X": POINTS, "y": AB, "X_test": POINTS}, {}, "y_test"),
        ({"X": POINTS, "y": np.eye(4)}, {}, r"y has shape \(4, 4\); give each point the name"),
        ({"X": POINTS * np.nan, "y": AB}, {}, "X has 16 values that are not finite"),
        ({"X": POINTS * 0, "y": AB}, {}, r"X\[0\] is all zeros"),
        ({"X": POINTS, "y": AB[[0, 0, 0, 0]]}, {}, "1 different labels"),
        ({"X": POINTS, "y": np.arange(4)}, {}, "4 points have 4 different labels"),
        ({"X": POINTS, "y": np.array([0, 1, np.nan, 1])}, {}, "y has no label in row 2"),
        ({"X": POINTS, "y": AB}, {"classes": ["a", "c"]}, "class 'c' has no points; choose"),
        ({"X": POINTS, "y": AB}, {"lam": 0}, "lam must be a finite number > 0"),
        ({"X": POINTS, "y": AB}, {"top": 0}, "top must be at least 1"),
        ({"X": POINTS, "y": AB}, {"n_test": 4}, "n_test = 4 leaves no point"),
        ({"X": POINTS, "y": AB}, {"n_train": 0}, "n_train must be at least 1"),
        ({"X": POINTS, "y": AB}, {"clean": "test"}, "there are no test points"),
        ({"X": POINTS, "y": AB}, {"test": {"X": POINTS, "y": AB[::-1] + "x"}}, "has the label"),
        ({"X": POINTS, "y": AB}, {"test": {"X": POINTS[:, :3], "y": AB}}, "differ in feature 3"),
        ({"X": POINTS, "y": AB, "X_test": POINTS, "y_test": AB}, {"points": [4]}, "= 4 is out"),
        ({"X": POINTS, "y": AB, "X_test": POINTS, "y_test": AB}, {"points": 0}, "points must"),
        ({"X": POINTS, "y": AB}, {"points": "worst"}, "points must be a number, not 'worst'"),
        (pd.DataFrame({"x": [1.0, 2], "z": [1, 2]}), {}, "label = None names no column .* of x, z"),
        (pd.DataFrame({"x": [1.0, 2], "y": [1, 2]}), {"label": "q"}, "label = 'q' names no column"),
        (pd.DataFrame({"x": [1.0, None] * 2, "y": AB}), {}, "column 'x' has no value in row 1"),
        (pd.DataFrame({"x": [1.0, np.inf] * 2, "y": AB}), {}, "column 'x' has no value in row 1"),
        (pd.DataFrame({"x": ["u", None] * 2, "y": AB}), {}, "column 'x' has no value in row 1"),
        (pd.DataFrame({"x": [1.0, 2] * 2, "y": ["a", None] * 2}), {}, "y has no label in row 1"),
        (pd.DataFrame({"x": [1.0, 2] * 2, "y": AB}),
         {"test": pd.DataFrame({"z": [1.0, 2] * 2, "y": AB})}, "differ in feature 'x'"),
    ],
)  # fmt: skip
def test_bad_input(source, settings, message):
    with pytest.raises((ValueError, TypeError, OSError, IndexError), match=message):
        audit(source, **settings, **QUIET)


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = np.array([Bomb(), "b", "c", "d"], dtype=object)
    np.savez("a.npz", X=POINTS, y=AB, names=names, allow_pickle=True)
    Path("b.npz").write_bytes(pickle.dumps({"X": POINTS, "y": Bomb()}))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ValueError, match="pickled Python objects, which can run code, or is"):
            audit(name, **QUIET)
        assert main(["audit", name]) == 2
        assert "dtype=str" in capsys.readouterr().err
    assert not Path("exploded").exists() and sorted(os.listdir()) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("name", ["a.npz", "a.csv", "a.parquet"])
def test_damaged_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00PK nothing")
    with pytest.raises(
        ValueError, match=rf"{name} (cannot be read .*; save it anew|is refused: .* or is damaged)"
    ):
        audit(tmp_path / name, **QUIET)
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match="is no .npz, .csv or .parquet file; save it as one"):
        audit(tmp_path / "a.xlsx", **QUIET)


def test_bad_folders(tmp_path):
    photos(tmp_path / "a", ("a", "b"))
    (tmp_path / "a" / "empty").mkdir()
    with pytest.raises(ValueError, match="class 'empty' has no points; choose from a, b"):
        audit(tmp_path / "a", **QUIET)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a" / "a" / "large.png")
    with pytest.raises(ValueError, match="images differ in size: .*; pass size=32"):
        audit(tmp_path / "a", classes=["a", "b"], **QUIET)
    assert len(audit(tmp_path / "a", classes=["a", "b"], size=4, lam=1.0, **QUIET).table) == 13
    (tmp_path / "a" / "b" / "x.png").write_bytes(b"no picture")
    with pytest.raises(OSError, match="1 of 14 images cannot be read: .*x.png"):
        audit(tmp_path / "a", classes=["a", "b"], size=4, **QUIET)


@pytest.mark.parametrize(
    ("images", "error", "match"),
    [
        (np.full(60, "/etc/hostname"), TypeError, "images must be a real numeric array, not"),
        (np.ones((60, 4)), ValueError, r"images must have 3 or 4 axes, .* \(60, 4\)"),
        (np.ones((60, 3, 4, 4)), ValueError, r"images has shape \(60, 3, 4, 4\); pass grey images"),
        (np.ones((60, 4, 4, 4)), ValueError, "or colour ones"),
        (np.full((60, 4, 4), np.nan), ValueError, "images has 960 values that are not finite"),
    ],
)
def test_images_that_are_none_are_refused_before_the_work(blobs, images, error, match):
    with pytest.raises(error, match=match):
        audit(blobs | {"images": images}, lam=1.0, **QUIET)


def test_too_many_points_for_the_machine(blobs, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "DENSE", 50)
    monkeypatch.setattr(packed, "_free_memory", lambda: 1)
    with pytest.raises(MemoryError, match="needs .* GB of memory, but"):
        audit(blobs, lam=0.5, **QUIET)


# --- tables and report ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1", "\tx", "＝1"]
)
def test_no_cell_becomes_a_formula(text, blobs, tmp_path):
    assert safe(text) == "'" + text
    blobs["y"] = np.where(blobs["y"] == "ant", text, blobs["y"])
    blobs["y_test"] = np.where(blobs["y_test"] == "ant", text, blobs["y_test"])
    audit(blobs | {"names": np.array([text] * 60)}, lam=0.5, out=tmp_path, **QUIET)
    for name in ("points.csv", "tests.csv"):
        cells = pd.read_csv(tmp_path / name, dtype=str, skipinitialspace=False).stack()
        risky = cells[cells.str.match(r"\s*[=+@＝-]|\t")]
        assert risky.map(lambda cell: bool(re.fullmatch(r"-[\d.e-]+", cell))).all()
        assert ("'" + text) in set(cells)


@pytest.mark.parametrize("text", ["cat", "-1", "+2.5", "1e-3", "", "a=b"])
def test_other_cells_stay(text):
    assert safe(text) == text and safe(-1.5) == -1.5


class Tags(HTMLParser):
    """The tags of a page, and the addresses it names."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "action", "data")]
        assert not [k for k, _ in attributes if k.startswith("on")]


@pytest.fixture(scope="module")
def evil(tmp_path_factory) -> dict:
    """Audits of data whose names are markup, of each kind."""
    folder = tmp_path_factory.mktemp("evil")
    rng = np.random.default_rng(0)
    names = np.array([EVIL + str(i) for i in range(12)])
    label = np.array([EVIL, '"><img src=x onerror=alert(1)>'] * 6)
    arrays = {"X": rng.standard_normal((12, 3)), "y": label, "names": names,
              "images": rng.random((12, 80, 80, 3))}  # fmt: skip
    table = pd.DataFrame({EVIL: rng.standard_normal(12), "{{ 7*7 }}": names, "</style>": label})
    settings = {"n_test": 4, "lam": 0.1, "progress": False}
    found = {
        "arrays": audit(arrays, **settings),
        "table": audit(table, label="</style>", **settings),
        "folder": audit(photos(folder / "photos"), **settings),
    }
    for result in found.values():
        result.name = EVIL
    return found


def test_names_of_the_data_are_escaped(evil):
    for kind, result in evil.items():
        page = report.render(result)
        found = Tags(page)
        assert not found.tags & {"script", "b<", "object", "iframe", "link"}, kind
        assert "<script" not in page and "&lt;script&gt;" in page
        assert all(a.startswith(("data:image/", "#")) for a in found.addresses), kind
        assert ("img" in found.tags) == (kind != "table")
        assert kind != "table" or "{{ 7*7 }}" in page
        assert re.search(r"default-src 'none'; img-src data:", page)


def test_report_says_what_was_done(blobs):
    result = audit(blobs, points="all", **QUIET)
    page = report.render(result)
    assert page.count("Helped most") == 12 and "exact leave-one-out loss of all points" in page
    assert all(f"<td>{step}</td>" in page for step in result.seconds)
    assert "λ was given" in report.render(audit(blobs, lam=1.0, **QUIET))
    assert "What made these predictions" not in report.render(
        audit({"X": blobs["X"], "y": blobs["y"]}, lam=1.0, **QUIET)
    )


@pytest.fixture(scope="module")
def browser():
    try:
        with chromium() as started:
            yield started
    except FileNotFoundError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))


AXE = (resources.files("selenium_axe_python") / "axe-core" / "axe.min.js").read_text("utf-8")
PROBE = """
const done = arguments[0], style = getComputedStyle(document.body);
const own = performance.getEntriesByType('resource').map(x => x.name);
axe.run().then(found => done({
  width: document.documentElement.scrollWidth, page: style.backgroundColor,
  loaded: own.filter(x => !x.startsWith('data:')), scripts: document.scripts.length,
  broken: [...document.images].filter(x => !x.naturalWidth).map(x => x.alt),
  axe: found.violations.map(x => x.id + ': ' + x.nodes[0].html),
}));"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_report_in_a_browser(browser, evil, tmp_path, width, scheme):
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width == 390}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    for kind, result in evil.items():
        file = tmp_path / f"{kind}.html"
        file.write_text(report.render(result), encoding="utf-8")
        browser.get_log("browser")
        browser.get(file.as_uri())
        errors = [e["message"] for e in browser.get_log("browser")]
        browser.execute_script(AXE)
        found = browser.execute_async_script(PROBE)
        assert not errors and found["width"] <= width, kind
        assert [found[what] for what in ("loaded", "broken", "axe", "scripts")] == [[], [], [], 0]
        assert (found["page"] == "rgb(255, 255, 255)") == (scheme == "light")


# --- the command ----------------------------------------------------------------------------------


def test_command_writes_a_report_and_tables(blobs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("my data.npz", **blobs)
    arguments = "--points 3, --top 2 --n-train 50 --classes ant bee --lam 0.5".split()
    assert main(["audit", "my data.npz", *arguments]) == 0
    told = capsys.readouterr()
    assert re.match(r"The other points contradict \d+ of \d+ labels", told.out)
    assert sorted(os.listdir("audit-my-data")) == ["points.csv", "report.html", "tests.csv"]
    assert "inverse" not in told.err
    assert main(["audit", "my data.npz", "--label", "x", "--lam", "0"]) == 2
    assert capsys.readouterr().err.startswith("ntk-influence: lam must be")


def test_command_removes_the_tiles_it_made(blobs, tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **blobs)
    monkeypatch.setattr(module, "DENSE", 50)
    out = tmp_path / "out"
    assert main(["audit", str(tmp_path / "a.npz"), "--out", str(out)]) == 0
    assert sorted(f.name for f in out.glob("*")) == ["points.csv", "report.html", "tests.csv"]


def test_nothing_is_lost_on_interrupt(blobs, tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "a.npz", **blobs)
    monkeypatch.setattr(module, "DENSE", 50)
    command = ["audit", str(tmp_path / "a.npz"), "--out", str(tmp_path / "out"), "--lam", "0.5"]

    def stop(*args, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "stream", stop)
        assert main(command) == 130
    told = capsys.readouterr().err
    assert f"finished in {tmp_path / 'out'}: inverse-tiles, points.csv" in told
    table = pd.read_csv(tmp_path / "out" / "points.csv")
    assert len(table) == 60 and "margin" in table
    tiles = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*/*.npy")}
    audit(tmp_path / "a.npz", lam=0.5, out=tmp_path / "out", **QUIET)
    assert tiles and {f: f.stat().st_mtime_ns for f in tiles} == tiles
    with monkeypatch.context() as patch:
        patch.setattr(module, "read", stop)
        assert main([*command[:2], "--out", str(tmp_path / "new")]) == 130
    assert "nothing is finished" in capsys.readouterr().err


def test_command_is_installed():
    done = subprocess.run(
        [sys.executable, "-m", "lib.audit", "audit", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--n-train" in done.stdout


# --- features of photos ---------------------------------------------------------------------------


def test_features_of_photos_are_audited(tmp_path, monkeypatch):
    from book import embed

    import_datasets()
    from torchvision import models

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    weights = models.get_model_weights(embed.LAYERS).DEFAULT
    cached = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(models.get_model(embed.LAYERS).state_dict(), cached)  # stand in for the real ones
    embed.embed(photos(tmp_path / "photos", size=(40, 30)), tmp_path / "photos.npz")
    result = audit(tmp_path / "photos.npz", lam=1.0, **QUIET)
    assert result.train.X.shape == (12, 512) and result.train.show.shape == (12, 96, 96, 3)
    assert all(Path(name).is_file() for name in result.table.source)
    assert report.render(result).count("data:image/jpeg") == len(
        result.suspects[result.table.label[:24] != result.table.suggested[:24]]
    )


def test_missing_weights_are_named(tmp_path, monkeypatch):
    from book import embed

    def refuse(*args, **settings):
        raise URLError("the network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(OSError, match=rf"resnet18 are missing, and https.* put it into {tmp_path}"):
        embed.embed("photos", "photos.npz")
