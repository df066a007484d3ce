"""The audit: every kind of input, good and bad, its numbers, its report and its interruption."""

from __future__ import annotations

import base64
import io
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix

from lib import __version__, data, packed, report
from lib import audit as module
from lib.audit import DENSE, GRID, audit, choose, main, safe
from lib.data import import_datasets, load, unit_rows
from lib.kernel import ntk
from lib.labels import scores, suggested
from lib.points import read
from lib.ridge import Ridge
from tests.cases import loss, refit

EVIL = "<script>alert('x')</script>"
QUIET = {"progress": False}
FILES = ["pairs.csv", "points.csv", "report.html", "suspects.csv", "tests.csv"]


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
    Q = np.linalg.inv(ntk(X) + 0.5 * np.eye(60))
    tau = 0.25 * (model.rho**2).sum(axis=1) * (Q @ ntk(X) @ Q).diagonal()
    written = pd.read_csv(tmp_path / "points.csv", index_col="index").sort_index()
    for table in (result.table.sort_index(), written):
        assert list(table.label) == list(blobs["y"])
        assert list(table.source) == [f"row {i}" for i in range(60)]
        assert list(table.suggested) == [classes[k] for k in suggested(model)]
        expected = scores(model) | {
            "leverage": model.h, "test influence": influence.exact.mean(axis=1), "certificate": tau
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
    told = pd.read_csv(tmp_path / "pairs.csv")
    values = ["test", "train", "influence", "ihvp", "leverage"]
    assert list(told) == [*values, "test_source", "train_source"]
    assert list(told.train_source) == [f"row {i}" for i in told.train]
    assert list(told.test_source) == [f"row {i}" for i in told.test]
    pd.testing.assert_frame_equal(told, result.pairs, rtol=1e-12)
    assert set(result.pairs.test) == set(result.tests.loss.nlargest(6).index)
    for points in ("all", "3,7", [3, 7], "2"):
        pairs = audit(blobs, lam=0.5, points=points, **QUIET).pairs
        some = pairs.test.unique()
        assert len(some) == (12 if points == "all" else 2) and len(pairs) == 10 * len(some)
        assert points in ("all", "2") or set(some) == {3, 7}
        for row in pairs.itertuples():
            assert row.influence == pytest.approx(influence.exact[row.train, row.test], abs=1e-12)


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
    np.testing.assert_array_equal(by_test.table.clean_influence, by_test.table.test_influence)
    assert (np.diff(by_clean.table.clean_influence) >= 0).all()  # the most harmful first
    model, X_te = by_clean.model, unit_rows(blobs["X_test"])
    y_te = by_clean.outputs(blobs["y_test"])
    mean = model.influence(ntk(by_clean.train.X, X_te), y_te).exact.mean(axis=1)
    np.testing.assert_allclose(by_clean.table.clean_influence.sort_index(), mean, rtol=1e-9)
    assert {7, 31} <= set(by_test.table.index[:4])


CARD = re.compile(r"point (\d+)<br>.*?</article>", re.DOTALL)


def test_only_points_that_harm_are_shown_as_harmful(blobs):
    """With ten suspects of sixty points most do harm; with all of them many help."""
    clean = {"X": blobs["X_test"], "y": blobs["y_test"]}
    train = {"X": blobs["X"], "y": blobs["y"]}
    for top in (10, 60):
        result = audit(train, clean=clean, lam=0.5, top=top, **QUIET)
        page, mean = report.render(result), result.table.clean_influence
        cards = {int(card[1]): card[0] for card in CARD.finditer(page)}
        assert list(cards) == [i for i in result.table.index[:top] if mean[i] < 0]
        assert f"Shown are {len(cards)} of {(mean < 0).sum()}</b> points that do harm" in page
        assert ("<code>--top</code> shows more" in page) == (top == 10)
        for i, card in cards.items():
            number = f"{-mean[i]:.2g}".replace("-", "−")
            assert number[0] != "−" and f"on the clean points falls by {number}." in card
    assert 0 < len(cards) < 60
    result.table["clean_influence"] = mean.abs()
    page = report.render(result)
    assert "No point does harm on the points known to be right" in page and "Shown" not in page


def test_how_many_labels_are_shown_is_said(blobs):
    for top, more in ((1, True), (60, False)):
        result = audit(blobs, lam=0.5, top=top, **QUIET)
        count = (result.table.label != result.table.suggested).sum()
        page, words = report.render(result), "is 1" if top == 1 else f"are {count}"
        assert f"Shown {words} of {count}</b> labels that the rest of the data contradict" in page
        assert ("<code>--top</code> shows more" in page) == more and "lead" not in page


def test_suspects_are_a_table_of_what_the_suggested_labels_do(blobs, tmp_path):
    result = audit(blobs, lam=0.5, top=20, out=tmp_path, **QUIET)
    told = pd.read_csv(tmp_path / "suspects.csv", index_col="index")
    first = result.table[:20]
    first = first[first.label != first.suggested]
    assert list(told.index) == list(first.index) and 0 < len(told) < 20
    pd.testing.assert_frame_equal(told[["source", "label", "suggested"]], first.iloc[:, :3])
    pd.testing.assert_frame_equal(told.iloc[:, 3:], result.suspects.loc[told.index])


def test_it_says_its_shape(blobs):
    few = {name: x for name, x in blobs.items() if "test" not in name}
    assert repr(audit(few, lam=0.5, **QUIET)) == "Audit: dict, n = 60, t = 0, c = 3, lam = 0.5"
    assert repr(audit(blobs, lam=2, **QUIET)) == "Audit: dict, n = 60, t = 12, c = 3, lam = 2"


def test_points_that_are_all_equal_are_refused(blobs, tmp_path):
    blobs["X"] = np.outer(np.arange(1, 61), [0.2, 0.3, 0.9])
    blobs["X_test"] = np.eye(12, 3) + 1
    words = "all 60 training points of 'dict' are equal once they have unit norm, as shades of one"
    with pytest.raises(ValueError, match=words):
        audit(blobs, **QUIET)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.new("L", (4, 5), 40 + i).save(tmp_path / name / f"{i}.png")
    with pytest.raises(ValueError, match="all 12 training .* are equal .*; add some that differ"):
        audit(tmp_path, **QUIET)


@pytest.mark.parametrize("call", [audit, load])
def test_a_folder_of_a_format_that_is_not_read_is_told(tmp_path, call):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.heic").write_bytes(b"not read")
    with pytest.warns(UserWarning, match="left out: .*x.heic; save them as .png or .jpg"):
        words = r"'a' has only images of a format that is not read \(.*\.heic, .*; save them as .pn"
        with pytest.raises(ValueError, match=words):
            call(str(tmp_path))


def test_every_column_is_explained_in_the_report(blobs, tmp_path):
    page = report.render(audit(blobs, lam=0.5, clean="test", out=tmp_path, **QUIET))
    for file in tmp_path.glob("*.csv"):
        for name in pd.read_csv(file):
            (row,) = re.findall(f"<dt><code>{name}</code> in .*</dt><dd>.{{9,}}</dd>", page)
            assert file.name in row
    plain = report.render(audit({"X": blobs["X"], "y": blobs["y"]}, lam=0.5, **QUIET))
    assert "<code>clean_influence</code>" not in plain and "tests.csv" not in plain


def low(n: int, d: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Tables of d columns, encoded, with labels that a few columns and chance give."""
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((n + 200, d))
    X = unit_rows(np.c_[Z, np.full(len(Z), d**0.5)])
    y = np.where(Z[:, 0] + Z[:, 1] ** 2 / 2 + rng.standard_normal(len(Z)) / 2 > 0.5, 1.0, -1.0)
    return {"X": X[:n], "Y": y[:n], "X_te": X[n:], "Y_te": y[n:]}


@pytest.mark.parametrize(
    ("d", "share", "single"),
    [(3, 1.2e-7, False), (3, 1e-5, False), (3, 1e-3, True), (6, 1e-5, None), (12, 1.2e-7, True)],
)
def test_single_precision_is_taken_where_it_leaves_three_digits(d, share, single, monkeypatch):
    """At 3 columns and λ = 1.2e-7 n, float32 had no digit left on some test points."""
    monkeypatch.setattr(module, "DENSE", 100)
    case = low(900, d)
    lam = share * 900
    model = module._fit(case["X"], case["Y"], lam, None, 0, False)
    assert single is None or model.Q.dtype == ("float32" if single else "float64")
    k = ntk(case["X"], case["X_te"])
    right = Ridge(ntk(case["X"]), case["Y"], lam).influence(k, case["Y_te"]).exact

    def lost(one):
        gap = np.abs(one.influence(k, case["Y_te"]).exact - right).max(axis=0)
        return (gap / np.abs(right).max(axis=0)).max()

    assert lost(model) < 1e-3
    if not single and d == 3:  # control
        rough = packed.PackedInverse(ntk, case["X"], lam, **QUIET)
        assert lost(Ridge.packed(rough, case["Y"])) > 1e-3


def test_what_single_precision_loses_is_measured_and_said(monkeypatch):
    monkeypatch.setattr(module, "DENSE", 100)
    case = low(300, 12)
    arrays = {"X": case["X"], "y": case["Y"], "X_test": case["X_te"], "y_test": case["Y_te"]}
    found = audit(arrays, lam=1e-4, **QUIET)
    k = ntk(found.train.X, found.test.X)
    y_te = found.outputs(found.test.label)
    right = Ridge(ntk(found.train.X), found.model.Y, 1e-4).influence(k, y_te).exact
    off = np.abs(found.model.influence(k, y_te).exact - right).max(axis=0)
    off = (off / np.abs(right).max(axis=0))[np.linspace(0, 199, 20).astype(int)].max()
    assert 0 < off < 1e-3 and found.lost == pytest.approx(off, rel=0.1)
    words = f"changes an influence by at most {report.percent(found.lost)} of the largest influence"
    assert words in report.render(found)
    monkeypatch.setattr(module, "single_will_do", lambda *_: False)
    found = audit(arrays, lam=1e-4, **QUIET)
    page = report.render(found)
    assert found.lost is None and "is in double precision." in page and "by at most" not in page


def test_an_earlier_audit_leaves_nothing(blobs, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    audit(blobs, lam=0.5, out=tmp_path, **QUIET)
    with monkeypatch.context() as patch:  # what stops before its first result removes nothing
        patch.setattr(module, "_fit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            audit(blobs, lam=0.5, out=tmp_path, **QUIET)
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, "notes.txt"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "_relabelled", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            audit({"X": blobs["X"], "y": blobs["y"]}, lam=0.5, out=tmp_path, **QUIET)
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "points.csv"]
    audit({"X": blobs["X"], "y": blobs["y"]}, lam=0.5, out=tmp_path, **QUIET)
    assert sorted(os.listdir(tmp_path)) == [
        "notes.txt",
        "points.csv",
        "report.html",
        "suspects.csv",
    ]


def test_many_points_take_the_packed_inverse(blobs, monkeypatch, tmp_path):
    dense = audit(blobs, lam=0.5, **QUIET)
    monkeypatch.setattr(module, "DENSE", 50)
    for out in (None, tmp_path):
        packed = audit(blobs, lam=0.5, out=out, **QUIET)
        words = "The inverse of so many points is in single precision. Measured at"
        assert words in report.render(packed) and words not in report.render(dense)
        assert packed.model.K is None and set(dense.table) - set(packed.table) == {"certificate"}
        assert "points.csv</code> bounds" in report.render(dense)
        assert "points.csv</code> bounds" not in report.render(packed)
        gap = (packed.table.sort_index().margin - dense.table.sort_index().margin).abs().max()
        assert gap < 1e-5
        pd.testing.assert_frame_equal(packed.suspects, dense.suspects, rtol=1e-3)
    assert sorted(os.listdir(tmp_path)) == FILES
    with pytest.raises(OSError, match="cannot be read .* make the inverse again"):
        packed.model.Q.diagonal()
    audit(blobs, lam=0.6, out=tmp_path, **QUIET)  # into the same folder, in the same process


def test_memory_is_that_of_the_suspects_times_the_points(monkeypatch):
    rng = np.random.default_rng(0)
    n, c = 400, 50
    arrays = {"X": rng.standard_normal((n, 5)), "y": np.arange(n) % c}
    arrays |= {"X_test": arrays["X"][:200], "y_test": arrays["y"][:200]}
    peaks, inner = [], module._relabelled

    def traced(*args):
        tracemalloc.start()
        found = inner(*args)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        return found

    monkeypatch.setattr(module, "_relabelled", traced)
    audit(arrays, lam=0.5, top=300, **QUIET)
    assert peaks[0] < 10 * 8 * 300 * n < 8 * 300 * n * c / 2


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
    tables[1]["source"] = [
        f"row {int(where.removeprefix('line ')) - 2}" for where in tables[1].source
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
    assert "are no feature of the model: id (60 texts), day (date)." in page


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
SAME, TABLE = {"X": POINTS, "y": AB}, pd.DataFrame({"x": [1.0, 2, 0, 4], "y": AB})


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
        ({"X": POINTS, "y": np.eye(4)}, {}, r"y has shape \(4, 4\); give each point one"),
        ({"X": POINTS * np.nan, "y": AB}, {}, "X has 16 values that are not finite"),
        ({"X": POINTS * 0, "y": AB}, {}, r"X\[0\] is all zeros"),
        ({"X": POINTS, "y": AB[[0, 0, 0, 0]]}, {}, "1 different labels"),
        ({"X": POINTS, "y": np.arange(4)}, {}, "4 points have 4 different labels"),
        ({"X": POINTS, "y": np.array([0, 1, np.nan, 1])}, {}, "y has no value in row 2"),
        ({"X": POINTS, "y": AB}, {"classes": ["a", "c"]}, "class 'c' has no points; choose"),
        ({"X": POINTS, "y": AB}, {"lam": 0}, "lam must be a finite number > 0"),
        ({"X": POINTS, "y": AB}, {"top": 0}, "top must be at least 1"),
        ({"X": POINTS, "y": AB}, {"n_test": 4}, "n_test = 4 leaves no point"),
        ({"X": np.eye(9) + 1, "y": np.array([*"aaabbbccc"])}, {"n_test": 7},
         "class '[abc]' has no training point left: n_test = 7 .* smaller n_test, another seed"),
        ({"X": np.eye(9) + 1, "y": np.array([*"aaabbbccc"])}, {"n_test": 3, "n_train": 2},
         "class .* has no training .*; choose a smaller n_test, another seed, or a larger n_t"),
        ({"X": POINTS, "y": AB}, {"n_train": 0}, "n_train must be at least 1"),
        (SAME | {"X_te": POINTS, "X_test": POINTS, "y_test": AB}, {},
         "both X_test and X_te are there; leave out one"),
        (SAME | {"X_te": POINTS, "y_te": AB, "y_test": AB}, {}, "both y_test and y_te are there"),
        ({"X": POINTS, "y": AB}, {"clean": "test"}, "there are no test points"),
        ({"X": POINTS, "y": AB}, {"test": {"X": POINTS, "y": AB[::-1] + "x"}},
         "no training point has the label 'bx' of a test or clean point; remove such points, or"),
        ({"X": POINTS, "y": AB}, {"test": {"X": POINTS[:, :3], "y": AB}}, "differ in feature 3"),
        ({"X": POINTS, "y": AB, "X_test": POINTS, "y_test": AB}, {"points": [4]}, "= 4 is out"),
        ({"X": POINTS, "y": AB, "X_test": POINTS, "y_test": AB}, {"points": 0}, "points must"),
        ({"X": POINTS, "y": AB}, {"points": "worst"}, "points must be a number, not 'worst'"),
        (pd.DataFrame({"x": [1.0, 2], "z": [1, 2]}), {}, "label = None names no column .* of x, z"),
        (pd.DataFrame({"x": [1.0, 2], "y": [1, 2]}), {"label": "q"}, "label = 'q' names no column"),
        (pd.DataFrame({"x": [1.0, None] * 2, "y": AB}), {},
         r"column 'x' has no number in row 1 \(2 such rows, 1 such columns\); fill it"),
        (pd.DataFrame({"x": [1.0, np.inf] * 2, "y": AB}), {}, "column 'x' has no number in row 1"),
        (pd.DataFrame({"x": ["u", None] * 2, "y": AB}), {}, "column 'x' has no value in row 1"),
        (pd.DataFrame({"x": [1.0, 2] * 2, "y": ["a", None] * 2}), {}, "y has no value in row 1"),
        (pd.DataFrame({"x": [1.0, 2] * 2, "y": AB}),
         {"test": pd.DataFrame({"z": [1.0, 2] * 2, "y": AB})}, "differ in feature 'x'"),
        ({"X": POINTS, "y": AB}, {"n_test": 0, "test": SAME}, "n_test must be at least 1, not 0"),
        ({"X": POINTS, "y": AB}, {"n_test": -1}, "n_test must be at least 0, not -1"),
        ({"X": POINTS, "y": AB}, {"points": "all"}, "points = 'all', but there are no test points"),
        ({"X": POINTS, "y": AB}, {"points": [3]}, r"points = \[3\], but there are no test points"),
        (SAME, {"points": "3,x", "n_test": 1}, "points must be a number, not '3,x'"),
        (SAME, {"points": ",", "n_test": 1}, "points must be a number, not ','"),
        (SAME, {"points": "", "n_test": 1}, "points must be a number, not ''"),
        (SAME, {"points": "1.5", "n_test": 1}, "points must be an integer, not 1.5"),
        (SAME, {"points": [], "n_test": 1}, "points must be one or several integers"),
        (SAME, {"label": "q"}, r"the arrays X, y need X \(or .*\), q, and"),
        (SAME, {"test": {"X": POINTS}}, "the arrays X need X"),
        (SAME, {"test": 3.5}, "test = 3.5; pass a path"),
        (SAME, {"test": "nowhere.csv"}, "test = 'nowhere.csv' is not there"),
        (SAME, {"test": {"X": POINTS, "y": AB}, "classes": ["a"]}, "4 points|2 points have 1"),
        (SAME | {"names": np.array([["a"]] * 4)}, {}, r"names has shape \(4, 1\); give each"),
        ({"embeddings": POINTS * np.nan, "y": AB}, {}, "embeddings has 16 values that are not fin"),
        ({"X": POINTS, "y": "a"}, {}, "y must be an array with a row for each point"),
        ({"X": POINTS[:0], "y": AB[:0]}, {}, "X is empty"),
        ("digits", {"label": "y"}, "label = 'y' is for tables and arrays; leave it out"),
        ("digits:3+5/8", {}, r"'digits:3\+5/8' joins 3\+5; name each class by itself, as in a/b/c"),
        ("digits:3", {}, "183 points have 1 different labels"),
        (TABLE[:0], {}, "source has no points; add some"),
        (TABLE, {"test": TABLE[:0]}, "test has no points; add some"),
        (TABLE, {"test": TABLE, "clean": TABLE.drop(columns="y")}, "no column of clean; choose"),
        (TABLE.assign(label=AB), {}, "source has the columns y, label, .*; pass label='y'"),
        (TABLE.assign(Y=AB), {}, "source has the columns y, Y, .*; pass label='y', or another"),
        (SAME | {"Y": AB[::-1]}, {}, "both y and Y are there; leave out one, or pass label='y'"),
        (SAME, {"test": SAME | {"Y": AB}}, "both y and Y are there"),
        (SAME | {"X_test": POINTS, "y_test": AB, "Y_test": AB}, {}, "both y_test and Y_test are"),
        (SAME | {"embeddings": POINTS}, {}, "both embeddings and X are there; leave out one"),
        (pd.DataFrame({"t": pd.to_datetime(["2020-01-01"] * 4), "y": AB}), {},
         "no column can be a feature, of t: add numbers; constants, dates, row numbers"),
        (TABLE.assign(x=0.1), {}, "no column can be a feature, of x: add numbers"),
        (pd.DataFrame({"y": AB}), {}, "no column can be a feature, of none"),
        (pd.DataFrame([[1, 2, "a"]] * 4, columns=["x", "x", "y"]), {}, "has the column 'x' twice"),
        (pd.DataFrame([[1, 2, "a"]] * 4, columns=[1, "1", "y"]), {}, "has the column '1' twice"),
        (TABLE, {"test": TABLE.assign(x=["1", "2", "low", "?"])},
         r"'x' has no number in row 2 of the test or clean points \(2 such rows"),
        (TABLE, {"size": 8}, "size = 8 is for images of folders and data sets; leave it out"),
        (TABLE, {"out": 3}, "out must be the name of a folder, not 3; pass one"),
        (TABLE, {"label": ["y"]}, r"label must be the name of a .* not \['y'\]; pass one"),
        (TABLE, {"classes": "ab"}, r"classes must be a list of names, not 'ab'; pass \['ab'\]"),
        (TABLE, {"classes": 3}, r"classes must be a list of names, not 3; pass \[3\]"),
        (TABLE, {"classes": []}, "classes is empty; name two, or leave it out"),
        (TABLE.assign(z=1j * np.arange(4)), {}, "column 'z' has complex numbers; make two columns"),
        (TABLE.x, {}, "source = of type Series; pass a path, a DataFrame or a dict of"),
        (TABLE, {"out": ""}, "out = '' is no folder to write to .*; choose another one"),
        (TABLE, {"out": __file__}, f"out = '{__file__}' is no folder to write to .*exists"),
        (TABLE, {"out": __file__ + "/in"}, "is no folder to write to .*Not a directory"),
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
    with pytest.raises(ValueError, match="is no .npz or .csv or .parquet file; save it as one"):
        audit(tmp_path / "a.xlsx", **QUIET)


def test_bad_folders(tmp_path):
    photos(tmp_path / "a", ("a", "b"))
    (tmp_path / "a" / "empty").mkdir()  # no class
    (tmp_path / "a" / "none").mkdir()
    (tmp_path / "a" / "none" / "x.heic").write_bytes(b"not read")
    with pytest.warns(UserWarning, match="left out: .*x.heic; save them as .png or .jpg"):
        words = r"'none' has only images of a format that is not read \(.*\.heic, .*; save them as"
        with pytest.raises(ValueError, match=words):
            audit(tmp_path / "a", **QUIET)
    (tmp_path / "a" / "none" / "x.heic").unlink()
    with pytest.raises(ValueError, match="'c' has no points; choose from a, b$"):
        audit({"X": POINTS, "y": AB}, classes=["a", "c"], **QUIET)
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
        (np.ones((60, 3, 4, 4)), ValueError, r"images has shape \(60, 3, 4, 4\); pass \(n, h"),
        (np.ones((60, 4, 4, 4)), ValueError, "for colours"),
        (np.full((60, 4, 4), np.nan), ValueError, "images has 960 values that are not finite"),
    ],
)
def test_images_that_are_none_are_refused_before_the_work(blobs, images, error, match):
    with pytest.raises(error, match=match):
        audit(blobs | {"images": images}, lam=1.0, **QUIET)


def test_a_folder_may_have_any_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos(Path("ph.npz"), ("a", "b"))
    photos(Path("more.csv"), ("a", "b"))
    assert len(audit("ph.npz", test=Path("more.csv"), lam=1.0, **QUIET).tests) == 12
    assert main(["audit", "ph.npz", "--lam", "1"]) == 0 and Path("audit-ph/points.csv").is_file()


def test_semicolons_are_named(tmp_path):
    for text in (
        "x;label\n" + "1;a\n2;b\n" * 3, "x;z;label\n" + "1,5;2,5;a\n2,5;1,5;b\n" * 3,
        "weight, kg;label\n" + "1,5;a\n2,5;b\n" * 3,
    ):  # fmt: skip
        (tmp_path / "a.csv").write_text(text)
        for label in (None, "label"):
            with pytest.raises(ValueError, match="seems to be separated by semicolons; save it wi"):
                audit(tmp_path / "a.csv", label=label, **QUIET)


def test_out_is_not_in_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"out = 'found' lies in '\.', where .*; choose a folder"):
        audit(".", out="found", **QUIET)
    assert main(["audit", str(tmp_path)]) == 2
    assert "would be a class" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_out_is_made_before_the_work(blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "read", lambda *_, **__: pytest.fail("it has started"))
    with pytest.raises(OSError, match="is no folder to write to"):
        audit(blobs, out=__file__, **QUIET)


@pytest.mark.parametrize("kind", ["arrays", "table", "photos", "dense"])
def test_too_little_memory_is_told_before_the_work(blobs, tmp_path, monkeypatch, kind):
    """The features take three times their size in float64, the dense inverse three times n²."""
    wide = pd.DataFrame(np.ones((60, 5))).assign(word=np.tile([*"abcdef"], 10), y=blobs["y"])
    source, need, words = {
        "arrays": (blobs, 24 * 60 * 8, "X needs"),
        "table": (wide, 24 * 60 * 11, "the table of 11 features needs"),
        "photos": (str(photos(tmp_path / "photos")), 24 * 12 * 60, "12 images needs"),
        "dense": ({"X": blobs["X"][:, :2], "y": blobs["y"]}, 24 * 60**2, "dense inverse needs"),
    }[kind]
    monkeypatch.setattr(packed, "free_memory", lambda: need - 1)
    stopped = {"photos": data, "dense": module}.get(kind)
    if stopped:
        monkeypatch.setattr(stopped, "tqdm" if kind == "photos" else "ntk", pytest.fail)
    with pytest.raises(MemoryError, match=rf"{words} .* GB of memory, but .* are free; .*"):
        audit(source, lam=1.0, **QUIET)
    monkeypatch.undo()
    audit(source, lam=1.0, **QUIET)


def test_header_alone_and_row_names(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n")
    with pytest.raises(ValueError, match="source has no points; add some"):
        audit(tmp_path / "a.csv", **QUIET)
    table = TABLE.set_axis(["p", "q", "r", "s"])
    table.to_csv(tmp_path / "b.csv")
    table.to_parquet(tmp_path / "b.parquet")
    for name in ("b.csv", "b.parquet", None):
        result = audit(tmp_path / name if name else table, lam=1.0, **QUIET)
        lines = [f"line {i} ({x})" for i, x in zip((2, 3, 4, 5), "pqrs", strict=True)]
        names = lines if name == "b.csv" else ["row p", "row q", "row r", "row s"]
        assert list(result.table.source.sort_index()) == names
        assert list(result.train.show) == ["x"]


def test_a_row_of_a_csv_is_named_by_its_line(blobs, tmp_path):
    """As an editor counts: with the header, lines that are empty, and cells of several lines."""
    rows = [",".join([*map(str, x), f'"{y}\n2"' if y == "bee" else y, str(9 * i)])
            for i, (x, y) in enumerate(zip(blobs["X"], blobs["y"], strict=True))]  # fmt: skip
    rows[4] += "\n\n  "
    head = ",".join(f"x{k}" for k in range(8)) + ",species,mark"
    for end in ("\n", "\r\n"):
        text = "\n".join([head, *rows]).replace("\n", end)
        (tmp_path / "a.csv").write_bytes(("\ufeff" + text).encode())
        lines = text.split(end)
        result = audit(tmp_path / "a.csv", label="species", n_test=20, lam=0.5, **QUIET)
        for points in (result.train, result.test):
            for source, mark, name in zip(
                points.source, points.show.mark, points.label, strict=True
            ):
                line = lines[int(re.fullmatch(r"line (\d+)", source)[1]) - 1]
                assert line.startswith(",".join(map(str, blobs["X"][mark // 9])))
                assert name.split(end)[0] in line
    with pytest.raises(ValueError, match="'x0' has no number in line 3 "):
        (tmp_path / "b.csv").write_text("x0,y\n1,a\n,b\n3,a\n4,b\n")
        audit(tmp_path / "b.csv", **QUIET)


def test_row_numbers_are_no_feature(blobs):
    table = frame(blobs)
    numbered = table.assign(Id=range(1, 61))
    result = audit(numbered, label="species", n_test=20, lam=0.5, **QUIET)
    assert result.train.X.shape[1] == 9 and result.unused == "Id (row number)"
    plain = audit(table, label="species", n_test=20, lam=0.5, **QUIET)
    pd.testing.assert_frame_equal(result.table, plain.table)
    order = audit(table.assign(Id=range(60, 0, -1)), label="species", lam=0.5, **QUIET)
    assert order.train.X.shape[1] == 10


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16"])
def test_numbers_without_a_sign_are_features_unless_they_grow(blobs, dtype):
    up_and_down = np.tile([1, 9, 3, 7, 5], 12).astype(dtype)
    table = frame(blobs).assign(n=up_and_down, Id=np.arange(60, dtype=dtype))
    result = audit(table, label="species", lam=0.5, **QUIET)
    assert result.train.X.shape[1] == 10 and result.unused == "Id (row number)"
    flat = audit(frame(blobs).assign(n=np.arange(60) // 2), label="species", lam=0.5, **QUIET)
    assert flat.train.X.shape[1] == 10  # it stays where it is at times, so it counts no rows


@pytest.mark.parametrize("step", [lambda i: 2 * i, lambda i: i + (i > 40), lambda i: i**2])
def test_a_sorted_column_is_a_feature(blobs, step):
    table = frame(blobs).assign(age=step(np.arange(60)), Id=np.arange(7, 67))
    result = audit(table, label="species", lam=0.5, **QUIET)
    assert result.train.X.shape[1] == 10 and result.unused == "Id (row number)"
    order = np.random.default_rng(0).permutation(60)
    other = audit(table.iloc[order], label="species", lam=0.5, **QUIET)
    assert other.train.X.shape[1] == 11 and not other.unused


def test_a_long_file_is_read_as_one(tmp_path, recwarn):
    """pandas guesses the type of a column part by part, and warns where the parts differ."""
    head, row = ",".join(["y", *(f"x{k}" for k in range(128))]), ",1" * 127
    rows = [f"{i % 2},{'n/k' if i == 4200 else 1}{row}" for i in range(4201)]
    (tmp_path / "a.csv").write_text("\n".join([head, *rows]))
    points, _ = read(tmp_path / "a.csv")
    assert {type(x) for x in points.X.x0} == {str} and not recwarn.list


def test_columns_that_are_no_feature_are_told_before_the_work(blobs, tmp_path, capsys, monkeypatch):
    table = frame(blobs).assign(Id=range(60), who=[f"no {i}" for i in range(60)])
    table.to_csv(tmp_path / "a.csv", index=False)
    monkeypatch.setattr(module, "_fit", lambda *_: 1 / 0)
    command = ["audit", str(tmp_path / "a.csv"), "--label", "species", "--out", str(tmp_path / "o")]
    with pytest.raises(ZeroDivisionError):
        main([*command, "--n-test", "10", "--lam", "1"])
    told = capsys.readouterr().err
    assert "columns that are no feature: Id (row number), who (50 texts)\n" in told


def odd_cells(kind: str) -> list[str]:
    numbers = [f"{x:.2f}" for x in np.linspace(-3, 9, 60)]
    return {
        "n/a?": [*numbers[:41], "n/a?", *numbers[42:]],
        "many": ["?" if i % 5 < 2 else x for i, x in enumerate(numbers)],
        "commas": [x.replace(".", ",") for x in numbers],
        "all": numbers,
        "none": [None, "?", *numbers[2:]],
        "tickets": [f"A/5 {i}" if i % 4 == 0 else str(7 * i) for i in range(60)],
        "lists": [f"{i},{i + 1},{i % 7}" for i in range(60)],
        "few": ["?", *[str(i % 19) for i in range(59)]],
        "money": [f"{51886.2 + 1000 * i:,.2f}" for i in range(60)],
        "dollars": [f"${512 + i}" for i in range(60)],
        "euros": [f"{i + 7} €" for i in range(60)],
        "shares": [f"{i + 10}%" for i in range(60)],
        "spaces": [f"{51886 + 1000 * i:,}".replace(",", " ") for i in range(60)],
        "narrow": [f"{51886 + 1000 * i:,}".replace(",", "\u202f") for i in range(60)],
        "swiss": [f"{51886 + 1000 * i:,}".replace(",", "'") for i in range(60)],
        "german": [f"{1234567 + 1000 * i:,}".replace(",", ".") + ",8" for i in range(60)],
        "minus": [f"−{i + 10}" for i in range(60)],
        "books": [f"({51886 + 1000 * i:,})" for i in range(60)],
        "mostly": ["?", "none", *[f"${512 + i}" for i in range(58)]],
        "dates": [f"{1 + i % 28}.{1 + i % 12}.20{10 + i % 60}" for i in range(60)],
        "times": [f"{i % 24}:{i:02}" for i in range(60)],
        "phones": [f"555 123 {1000 + i}" for i in range(60)],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "count", "cell", "row"),
    [("n/a?", 1, "'n/a?'", 41), ("many", 24, "'?'", 0), ("commas", 60, "'-3,00'", 0),
     ("all", 60, "'-3.00'", 0), ("none", 1, "'?'", 1), ("money", 60, "'51,886.20'", 0),
     ("dollars", 60, "'$512'", 0), ("euros", 60, "'7 €'", 0), ("shares", 60, "'10%'", 0),
     ("spaces", 60, "'51 886'", 0), ("narrow", 60, "'51\\u202f886'", 0),
     ("swiss", 60, "\"51'886\"", 0), ("german", 60, "'1.234.567,8'", 0),
     ("minus", 60, "'−10'", 0), ("books", 60, "'(51,886)'", 0), ("mostly", 60, "'?'", 0)],
)  # fmt: skip
def test_numbers_written_as_text_are_named(blobs, tmp_path, kind, count, cell, row):
    table = frame(blobs).assign(age=odd_cells(kind))
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    for source in (table, *(tmp_path / f for f in ("a.parquet", "a.csv")[: 1 + (kind != "all")])):
        where = f"line {row + 2}" if str(source).endswith(".csv") else f"row {row}"
        with pytest.raises(
            ValueError,
            match=f"'age' seems to hold numbers, but {count} of its (59|60) cells .* "
            f"such as {re.escape(cell)} in {where}; write .* or remove the column",
        ):
            audit(source, label="species", lam=0.5, **QUIET)


@pytest.mark.parametrize(
    ("kind", "width"),
    [("tickets", 9), ("lists", 9), ("few", 29), ("dates", 9), ("times", 9), ("phones", 9)],
)
def test_other_texts_stay_texts(blobs, kind, width):
    table = frame(blobs).assign(age=odd_cells(kind))
    result = audit(table, label="species", lam=0.5, **QUIET)
    assert result.train.X.shape[1] == width
    assert ("age (" in result.unused) == (width == 9)  # it is said


def test_points_that_are_in_both_sets_are_told(blobs, tmp_path, capsys):
    X, y = blobs["X"], blobs["y"]
    arrays = {"X": X, "y": y, "X_test": np.vstack([X[:3], X[3:6] + 0.1]), "y_test": y[:6]}
    result = audit(arrays, lam=0.5, clean="test", out=tmp_path / "out")
    assert result.copies == ["3 of the 6 test points"]
    assert "3 of the 6 test points are training points, too" in capsys.readouterr().err
    words = (tmp_path / "out" / "report.html").read_text()
    assert "3 of the 6 test points have the features of a training point" in words
    arrays["X_test"] = X[:6] + 0.1
    assert not audit(arrays, lam=0.5, out=tmp_path / "out", **QUIET).copies


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["00123", "0123", "123"], ["0123", "00123", "123"]), (["1.10", "1.1"], ["1.1", "1.10"]),
        (["12E4", "120000"], ["120000", "12E4"]), (["1.0", "2.0"], ["1", "2"]),
        (["10", "9"], ["9", "10"]), ([" 07", "7 "], ["07", "7"]),
        (["1.1", "1.1.0"], ["1.1", "1.1.0"]), (["NA", "ZA"], ["NA", "ZA"]),
        (["None", "null"], ["None", "null"]),
        (["+1", "-1"], ["-1", "+1"]), (["0.5", "1.0"], ["1", "0.5"]),
        (["9007199254740993", "9007199254740992"], ["9007199254740992", "9007199254740993"]),
    ],
)  # fmt: skip
def test_codes_of_classes_stay_as_they_are_written(cells, classes, tmp_path):
    y = np.resize(cells, 6)
    rows = [f"{x},{code}" for x, code in zip((1, 5, 2, 4, 3, 7), y, strict=True)]
    for head, label in (("x,Class", None), ("x,species", "species")):
        (tmp_path / "a.csv").write_text("\n".join([head, *rows]))
        (tmp_path / "test.csv").write_text("\n".join([head, rows[0]]))
        how = {"label": label, "lam": 1.0, **QUIET}
        result = audit(tmp_path / "a.csv", test=tmp_path / "test.csv", **how)
        assert set(result.classes) == set(classes) and len(result.tests) == 1
        ends = {"1.0": "1", "2.0": "2"}
        assert list(result.train.label) == [ends.get(code, code.strip()) for code in y]
        kept = audit(tmp_path / "a.csv", classes=classes[:2], **how)
        assert kept.classes == [name for name in result.classes if name in classes[:2]]


def test_a_column_of_a_file_that_is_there_twice_is_named(tmp_path):
    rows = "1,a,a\n5,b,b\n" * 3
    (tmp_path / "a.csv").write_text("x,y,y\n" + rows)
    with pytest.raises(ValueError, match="source has the column 'y' twice; rename one of them"):
        audit(tmp_path / "a.csv", **QUIET)
    (tmp_path / "a.csv").write_text("x,y,Y\n" + rows)
    with pytest.raises(ValueError, match="source has the columns y, Y, and each .*label='y'"):
        audit(tmp_path / "a.csv", **QUIET)
    for label, other in (("y", "Y"), ("Y", "y")):
        result = audit(tmp_path / "a.csv", label=label, lam=1.0, **QUIET)
        assert list(result.train.show) == ["x", other]
    arrays = SAME | {"Y": AB[[0, 0, 1, 1]]}
    assert list(audit(arrays, label="Y", lam=1.0, **QUIET).train.label) == ["a", "a", "b", "b"]
    assert list(audit(arrays, label="y", lam=1.0, **QUIET).train.label) == list(AB)


def test_label_names_the_array_or_the_column(blobs, tmp_path):
    named = {"X": blobs["X"], "species": blobs["y"], "y": np.arange(60)}
    ours = audit(named, label="species", lam=0.5, **QUIET).table
    plain = audit({"X": blobs["X"], "y": blobs["y"]}, lam=0.5, **QUIET).table
    pd.testing.assert_frame_equal(ours, plain)
    table = frame(blobs).assign(y=blobs["X"][:, 0] ** 2)
    result = audit(table, label="species", lam=0.5, **QUIET)
    assert result.train.X.shape[1] == 10 and "y" in result.train.show


def test_test_and_clean_points_may_lack_classes(blobs, tmp_path):
    few = blobs["y_test"] == "ant"
    clean = {"X": blobs["X_test"][few], "y": blobs["y_test"][few]}
    train = {"X": blobs["X"], "y": blobs["y"]}
    result = audit(train, test=clean, clean="test", lam=0.5, **QUIET)
    assert result.unknown == ["bee", "cat"] and len(result.tests) == few.sum()
    page = report.render(result)
    assert "None of the points known to be right is of the class bee, cat" in page
    assert "None of the points" not in report.render(
        audit(train, test=train, clean="test", lam=0.5, **QUIET)
    )
    kept = audit(train, test=clean, classes=["ant", "bee"], lam=0.5, **QUIET)
    assert kept.classes == ["ant", "bee"] and len(kept.tests) == few.sum()
    two = {name: x[train["y"] != "bee"] for name, x in train.items()}
    with pytest.raises(ValueError, match="no training point has the label 'bee' of a test or"):
        audit(two | {"X_test": blobs["X_test"], "y_test": blobs["y_test"]}, lam=0.5, **QUIET)
    photos(tmp_path / "all", ("a", "b"))
    photos(tmp_path / "new", ("a",))
    folder = audit(tmp_path / "all", test=tmp_path / "new", lam=1.0, **QUIET)
    assert set(folder.tests.label) == {"a"} and len(folder.tests) == 6


@pytest.mark.parametrize(
    ("y", "y_test"),
    [
        ([0.5, 1.0, 1.5], [1.0]), ([0.5, 1.0, 1.5], np.array([1])), ([1, 2, 3], [2.0]),
        (np.array([0.5, 1.0, 2.0**60], "float32"), np.array([2**60])),
        (np.array([1, 2.5, "a"], object), [1.0]), ([-0.0, 0.5], [0]),
    ],
)  # fmt: skip
def test_equal_numbers_are_the_same_label(y, y_test):
    train = {"X": np.eye(6) + 1, "y": np.resize(y, 6)}
    test = {"X": np.eye(6)[:2] + 1, "y": np.resize(y_test, 2)}
    result = audit(train, test=test, clean=test, lam=1.0, **QUIET)
    assert set(result.tests.label) < set(result.train.label) == set(result.classes)
    kept = audit(train, classes=[float(x) for x in y if x != "a"][:2], lam=1.0, **QUIET)
    assert kept.classes == [x for x in result.classes if x in kept.classes] and len(kept.table) > 3


def test_a_number_may_name_a_column(blobs):
    table = frame(blobs).set_axis(range(9), axis=1)
    result = audit(table, label=8, lam=0.5, **QUIET)
    assert list(result.train.label) == list(blobs["y"]) and result.train.X.shape == (60, 9)


@pytest.mark.parametrize("scale", [1e-310, 1e-300, 1e200, 1e307])
def test_columns_of_any_size_have_the_same_features(blobs, scale):
    plain, scaled = frame(blobs), frame(blobs)
    scaled["x3"] *= scale / 100
    a, b = (audit(t, label="species", lam=0.5, **QUIET).train.X for t in (plain, scaled))
    np.testing.assert_allclose(a, b, atol=1e-12 if scale > 1e-305 else 1e-10)


def test_a_column_that_only_rounding_changes_is_constant_and_no_feature(blobs):
    sums = np.where(np.arange(60) % 2, 0.1 + 0.2, 0.3)
    assert len(set(sums)) == 2
    table = frame(blobs).assign(
        sums=sums, one=1, word="w", small=sums[0] + 1e-9 * np.arange(60) ** 2
    )
    result = audit(table, label="species", lam=0.5, **QUIET)
    assert result.unused == "sums (constant), one (constant), word (constant)"
    assert result.train.X.shape == (60, 8 + 1 + 1)  # and the constant of each row
    assert "the numbers of 9 columns, and indicators of the texts of 0," in result.note


def test_a_table_with_tabs_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("x\tlabel\n" + "1\ta\n2\tb\n" * 3)
    with pytest.raises(ValueError, match="seems to be separated by tabs; save it with commas"):
        audit(tmp_path / "a.csv", **QUIET)


def test_an_array_that_is_called_npz(tmp_path):
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, POINTS)
    words = r"a.npz cannot be read .*; save it anew, with np.savez\(file, X=X, y=y\)"
    with pytest.raises(ValueError, match=words):
        audit(tmp_path / "a.npz", **QUIET)


def test_what_is_no_array_of_points_is_named():
    for one, shown in ((csr_matrix(POINTS), "csr_matrix"), (3, "int"), (None, "NoneType")):
        words = f"X must be an array with a row for each point, not a single {shown}; pass"
        with pytest.raises(TypeError, match=words):
            audit({"X": one, "y": AB}, **QUIET)
    with pytest.raises(
        TypeError, match="y must be an array with a row for each point, not a single s"
    ):
        audit({"X": POINTS, "y": "a"}, **QUIET)
    with pytest.raises(ValueError, match=r"the arrays 0, 1 need X \(or embeddings"):
        audit({0: POINTS, 1: AB}, **QUIET)
    with pytest.raises(ValueError, match=r"the arrays \(none\) need X \(or embeddings"):
        audit({}, **QUIET)


def test_names_that_are_no_text_have_a_mark(tmp_path):
    odd = os.fsdecode(b"\xff\xfe")
    folder = photos(tmp_path / "photos", ("a", odd))
    (folder / "a" / "<b>0.png").rename(folder / "a" / f"{odd}.png")
    result = audit(folder, lam=1.0, out=tmp_path / "out", **QUIET)
    assert result.classes == ["a", "��"] and len(result.table) == 12
    assert f"{folder}/a/��.png" in pd.read_csv(tmp_path / "out" / "points.csv").source.tolist()
    assert "<td>��</td>" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert audit(f"{folder}:a/��", lam=1.0, **QUIET).classes == ["a", "��"]


def test_any_name_of_a_class(tmp_path):
    y = np.array(["a+b/c", "d:e", "a+b/c", "d:e", "{{ 1 }}", "{{ 1 }}"])
    result = audit({"X": np.eye(6) + 1, "y": y}, classes=["a+b/c", "d:e"], lam=1.0, **QUIET)
    assert result.classes == ["a+b/c", "d:e"]
    folder = photos(tmp_path / "odd: a", ("a+b", "a", "ü {x}"))
    found = audit(f"{folder}:a+b/ü {{x}}", lam=1.0, **QUIET)
    assert found.classes == ["a+b", "ü {x}"] and report.render(found)
    assert audit("digits:3/8", n_train=20, lam=1.0, **QUIET).name == "digits:3/8"


def test_too_many_points_for_the_machine(blobs, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "DENSE", 50)
    monkeypatch.setattr(packed, "free_memory", lambda: 1)
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


def test_only_all_is_a_hundred_per_cent():
    whole = [report.percent(x) for x in (1.0, 1 - 1e-16, 1 - 1e-9, 0.99996, 0.9995, 0.99949, 0.995)]
    assert whole == ["100 %", *["> 99.9 %"] * 4, "99.9 %", "99.5 %"]
    assert [report.percent(x) for x in (0.0, 1e-5, 0.0994, 0.0995, 0.5)] == [
        "0 %", "0.001 %", "9.9 %", "10 %", "50 %"
    ]  # fmt: skip
    table = pd.DataFrame({"label": ["a"] * 5000, "suggested": ["b"] * 4999 + ["a"]})
    assert "(> 99.9 %)" in report.headline(type("Found", (), {"table": table}))


def test_pictures_take_time_in_proportion_to_their_number(blobs):
    images = np.zeros((60, 4, 4))
    images[0], images[1] = 3.0, -1.0
    result = audit(blobs | {"images": images}, lam=1.0, **QUIET)
    passes = []

    class Counted(np.ndarray):
        def max(self, *args, **settings):
            passes.append(1)
            return np.asarray(self).max(*args, **settings)

    result.train.show = images.view(Counted)
    assert report.picture(result.train, 0) != report.picture(result.train, 1)
    report.picture(result.train, 2)
    assert len(passes) == 1 and result.train.look == (-1.0, 3.0)


def test_pictures_of_small_integers_do_not_wrap(blobs):
    images = np.zeros((60, 2, 2))
    images[0], images[1] = 100, -100
    signed, plain = (audit(blobs | {"images": images.astype(t)}, lam=1.0, **QUIET).train
                     for t in ("int8", "float64"))  # fmt: skip
    assert [report.picture(signed, i) for i in range(3)] == [
        report.picture(plain, i) for i in range(3)
    ]


def test_pictures_show_the_pixels_of_the_data(blobs, tmp_path):
    def shown(points, i):
        one = report.picture(points, i)
        return Image.open(io.BytesIO(base64.b64decode(one["uri"].partition(",")[2]))), one["tiny"]

    bytes_ = np.random.default_rng(0).integers(0, 256, (60, 5, 7, 3)).astype(np.uint8)
    bytes_[0, 0, 0] = 0, 255, 1
    for images in (bytes_, bytes_ / 255):
        points = audit(blobs | {"images": images}, lam=1.0, **QUIET).train
        for i in (0, 59):
            image, tiny = shown(points, i)
            assert tiny and image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), bytes_[i])
    shares = np.linspace(0, 100, 60 * 7 * 9).reshape(60, 7, 9)  # the darkest is black
    points = audit(blobs | {"images": shares}, lam=1.0, **QUIET).train
    np.testing.assert_array_equal(np.asarray(shown(points, 7)[0]), np.rint(2.55 * shares[7]))
    for width in (63, 64):
        images = np.tile(np.linspace(0, 1, width), (60, 2, 1))
        small = shown(audit(blobs | {"images": images}, lam=1.0, **QUIET).train, 0)[1]
        assert small == (width == 63)
    folder = photos(tmp_path / "large", ("a", "b"), size=(200, 150))
    image, tiny = shown(audit(folder, lam=1.0, **QUIET).train, 0)
    assert image.size == (96, 96) and image.format == "JPEG" and not tiny


def test_report_shows_the_numbers_of_the_tables(blobs):
    result = audit(blobs, lam=0.5, points=3, **QUIET)
    page = report.render(result)
    tests = result.tests.loss.nlargest(3)
    assert re.findall(r"test point (\d+), loss", page) == [str(j) for j in tests.index]
    parts = page.partition('id="tests"')[2].partition('id="trust"')[0].split('class="head"')[1:]
    for j, part in zip(tests.index, parts, strict=True):
        pairs = result.pairs[result.pairs.test == j]
        order = [*pairs[pairs.influence > 0].train, *pairs[pairs.influence < 0].train]
        assert re.findall(r">point (\d+)</span>", part) == [str(i) for i in order]
        assert {*np.sign(pairs.influence)} == {-1, 1}
    wrong = result.table[result.table.label != result.table.suggested]
    counts = [(c, (blobs["y"] == c).sum(), (wrong.label == c).sum()) for c in ("ant", "bee", "cat")]
    cells = re.findall(r"<tr><td>(\w+)</td><td>(\d+)</td><td>(\d+)</td>", page)
    assert [(c, int(n), int(k)) for c, n, k in cells] == counts and min(counts)[2] == 0
    shares = result.suspects.test[wrong.index] / result.tests.loss.mean()
    words = re.findall(r"test points (falls|rises) by ([\d.]+ %)", page)
    said = [("falls" if x < 0 else "rises", report.percent(abs(x))) for x in shares]
    assert words == said and len(words) >= 2
    assert f"Made by ntk-influence {__version__} on 20" in page


def test_report_says_what_was_done(blobs):
    result = audit(blobs, points="all", **QUIET)
    page = report.render(result)
    assert page.count("Helped most") == 12 and "exact leave-one-out loss of all points" in page
    assert all(f"<td>{step}</td>" in page for step in result.seconds)
    assert "λ was given" in report.render(audit(blobs, lam=1.0, **QUIET))
    assert "What made these predictions" not in report.render(
        audit({"X": blobs["X"], "y": blobs["y"]}, lam=1.0, **QUIET)
    )


AXE = (resources.files("selenium_axe_python") / "axe-core" / "axe.min.js").read_text("utf-8")
PROBE = """
const done = arguments[0], style = getComputedStyle(document.body);
const own = performance.getEntriesByType('resource').map(x => x.name);
axe.run().then(found => done({
  width: document.documentElement.scrollWidth, page: style.backgroundColor,
  loaded: own.filter(x => !x.startsWith('data:')), scripts: document.scripts.length,
  thin: [...document.querySelectorAll('dt, dd')].filter(x => x.offsetWidth < 48).length,
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
        assert not found["thin"], kind
        assert (found["page"] == "rgb(255, 255, 255)") == (scheme == "light")


# --- the command ----------------------------------------------------------------------------------


def test_command_writes_a_report_and_tables(blobs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("my data.npz", **blobs)
    arguments = "--points 3, --top 2 --n-train 50 --classes ant bee --lam 0.5".split()
    assert main(["audit", "my data.npz", *arguments]) == 0
    told = capsys.readouterr()
    assert re.match(r"The other points contradict \d+ of \d+ labels", told.out)
    assert sorted(os.listdir("audit-my-data")) == FILES
    assert "inverse" not in told.err
    assert main(["audit", "my data.npz", "--label", "x", "--lam", "0"]) == 2
    assert capsys.readouterr().err.startswith("ntk-influence: lam must be")


def test_command_removes_the_tiles_it_made(blobs, tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **blobs)
    monkeypatch.setattr(module, "DENSE", 50)
    out = tmp_path / "out"
    assert main(["audit", str(tmp_path / "a.npz"), "--out", str(out)]) == 0
    assert sorted(f.name for f in out.glob("*")) == FILES


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
    assert f"finished in {tmp_path / 'out'}: points.csv. The same command goes on with the" in told
    table = pd.read_csv(tmp_path / "out" / "points.csv")
    assert len(table) == 60 and "margin" in table
    tiles = tmp_path / "out" / module.TILES
    words = (
        f"{tiles} holds tiles of another λ, seed or data: choose another --out, or delete {tiles}"
    )
    for more in (["--lam", "0.6"], ["--n-train", "55"]):
        assert main([*command, *more]) == 2
        told = capsys.readouterr().err
        assert words in told and "goes on" not in told and len(told) < 900
        assert "lam is 0.5 in the file and 0.6 here" in told or "X differs" in told
    with monkeypatch.context() as patch:
        patch.setattr(packed._Folder, "put", lambda *_: pytest.fail("a tile is made again"))
        audit(tmp_path / "a.npz", lam=0.5, out=tmp_path / "out", **QUIET)
    assert not (tmp_path / "out" / module.TILES).exists()
    for name, at in ((DENSE, "read"), (DENSE, "stream")):
        monkeypatch.setattr(module, "DENSE", name)
        with monkeypatch.context() as patch:
            patch.setattr(module, at, stop)
            assert main([*command[:2], "--lam", "1", "--out", str(tmp_path / at)]) == 130
        told = capsys.readouterr().err
        words = (
            "nothing is finished" if at == "read" else f"finished in {tmp_path / at}: points.csv"
        )
        assert f"stopped; {words}. The same command begins anew." in told


def test_what_a_failed_command_leaves_is_named(blobs, tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "a.npz", **blobs)
    out = tmp_path / "out"
    command = ["audit", str(tmp_path / "a.npz"), "--out", str(out), "--lam", "0.5"]

    def full(*_, **__):
        raise OSError("no space left")

    for dense, size in ((DENSE, 0), (50, 1)):
        monkeypatch.setattr(module, "DENSE", dense)
        with monkeypatch.context() as patch:
            patch.setattr(module, "stream", full)
            assert main(command) == 2
        told = capsys.readouterr().err
        assert "ntk-influence: no space left" in told
        words = f"{out / module.TILES} holds the inverse so far: the same command goes on with it; "
        assert told.count(words + "or delete this folder") == size
    assert main(command) == 0 and not (out / module.TILES).exists()
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr(packed.shutil, "disk_usage", lambda folder: full)
    assert main([*command[:-1], "0.6"]) == 2
    told = capsys.readouterr().err
    assert "needs" in told and "free in" in told and "holds" not in told and "dtype" not in told
    assert not (out / module.TILES).exists()


@pytest.mark.parametrize(
    ("source", "folder"), [("digits:3/8", "digits-3-8"), ("no such.csv", None), ("a.b.csv", "a-b")]
)
def test_command_names_its_folder(source, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    TABLE.to_csv("a.b.csv", index=False)
    done = main(
        ["audit", source, "--lam", "1", *(["--n-train", "30"] if "digits" in source else [])]
    )
    assert sorted(x for x in os.listdir() if x != "a.b.csv") == (
        [f"audit-{folder}"] if folder else []
    )
    assert done == (0 if folder else 2) and main(["audit", source, "--points", "abc"]) == 2
    assert "points must be a number, not 'abc'" in capsys.readouterr().err or not folder


WITHOUT = """
import importlib.metadata, re, sys
from packaging.requirements import Requirement

wanted = [Requirement(x) for x in importlib.metadata.requires("ntk-influence")]
extra = {x.name for x in wanted if x.marker} - {x.name for x in wanted if not x.marker}
names = {re.sub("-", "_", x).lower() for x in extra}
names |= {"IPython", "yaml", "jupyter_client", "jupyter_book", "dask", "distributed", "book"}
names -= {"packaging"}

class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in names:
            raise ImportError(f"{name} is not installed")

assert len(names) > 25 and not names & set(sys.modules)
sys.meta_path.insert(0, Blocked())
from lib.audit import main
for arguments in (["digits", "--n-train", "60", "--n-test", "9"], ["a.csv"], ["photos"]):
    assert main(["audit", *arguments]) == 0
assert not names & {name.split(".")[0] for name in sys.modules}
"""


def test_the_tool_needs_none_of_the_packages_of_the_book(blobs, tmp_path):
    frame(blobs).rename(columns={"species": "label"}).to_csv(tmp_path / "a.csv", index=False)
    photos(tmp_path / "photos")
    path = {"PYTHONPATH": str(Path(module.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reports = [file.parent.name for file in tmp_path.glob("*/report.html")]
    assert sorted(reports) == ["audit-a", "audit-digits", "audit-photos"]


def test_command_is_installed():
    done = subprocess.run(
        [sys.executable, "-m", "lib.audit", "audit", "--help"], capture_output=True, text=True,
        env=os.environ | {"COLUMNS": "500"},
    )  # fmt: skip
    assert done.returncode == 0
    assert "put it first: --classes takes all words that follow" in done.stdout
    assert "ridge λ; by default the one that the exact leave-one-out error chooses" in done.stdout
    assert "None" not in done.stdout and "credit" not in done.stdout
    for name in set(module.audit.__kwdefaults__) - {"progress"}:  # each has a line of its own
        option = "--" + name.replace("_", "-")
        assert re.search(rf"\n +{option} [A-Z_]+.*\s{{2,}}\S+ \S+ \S+", done.stdout), option


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
