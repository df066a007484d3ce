"""Claims raise when they fail, controls when they hold, and records survive in a notebook."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from book import ledger
from book.ledger import (
    COLUMNS,
    claim,
    collect,
    finding,
    frames,
    keep,
    matrix,
    recorded,
    refute,
    table,
)

HOLD = [
    (1e-10, "<= 1e-9"),
    (0.1, "<= 0.1"),
    (0.0999, "< 0.1"),
    (0.99, ">= 0.99"),
    (1e-300, "> 0"),
    (0, "== 0"),
    (-0.6, "in [-0.6, -0.4]"),
    (-0.4, "in [-0.6, -0.4]"),
    (3, "in [1, 1e1]"),
]
FAIL = [
    (1e-8, "<= 1e-9"),
    (0.1, "< 0.1"),
    (0.98, ">= 0.99"),
    (0, "> 0"),
    (-1e-300, "== 0"),
    (-0.61, "in [-0.6, -0.4]"),
    (-0.39, "in [-0.6, -0.4]"),
    (float("inf"), "<= 1e300"),
]


@pytest.fixture
def shown(monkeypatch):
    """What is published, as a notebook would store it: outputs with data and metadata."""
    outputs = []

    def display(record, metadata, raw=False):
        json.dumps(metadata)
        bundle = {"data": record if raw else record._repr_mimebundle_(), "metadata": metadata}
        outputs.append({"output_type": "display_data"} | bundle)

    monkeypatch.setattr(ledger, "display", display)
    monkeypatch.setattr(ledger, "_blocks", itertools.count(1))
    return outputs


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """Findings and controls raise, as in the book's own builds."""
    monkeypatch.setenv(ledger.VARIABLE, "raise")


@pytest.mark.parametrize("kind", [finding, refute])
def test_on_other_data_what_was_found_may_fail_and_a_theorem_may_not(shown, monkeypatch, kind):
    fails = 1 if kind is finding else 0
    with pytest.raises(AssertionError):
        kind("Fig 5", "extremes lead", "n = 2", fails, "< 1")
    monkeypatch.delenv(ledger.VARIABLE)
    kind("Fig 5", "extremes lead", "n = 2", fails, "< 1")
    shown.pop(0)  # of the one that raised
    (row,) = shown[0]["metadata"]["ledger"]
    assert row["holds"] is False and row["kind"] == {finding: "finding", refute: "control"}[kind]
    assert all("does not hold on these data" in text for text in shown[0]["data"].values())
    assert all("✗" in text and "✓" not in text for text in shown[0]["data"].values())
    kind("Fig 5", "extremes lead", "n = 2", np.float64("nan"), "< 1")  # a record for JSON, too
    assert shown[1]["metadata"]["ledger"][0]["holds"] is False
    with pytest.raises(AssertionError):
        claim("Thm 3", "a bound", "n = 2", 1, "< 1")


@pytest.mark.parametrize(("measured", "expected"), HOLD)
def test_a_claim_that_holds_is_recorded_and_its_control_raises(shown, measured, expected):
    claim("Eq 9", "all pairs", "n = 2", measured, expected)
    assert [set(row) for o in shown for row in o["metadata"]["ledger"]] == [set(COLUMNS)]
    assert shown[0]["metadata"]["ledger"][0]["holds"] is True
    with pytest.raises(AssertionError, match=r"✗ Eq 9 · control: all pairs · n = 2 · measured"):
        refute("Eq 9", "all pairs", "n = 2", measured, expected)
    assert '<details class="checks fails" open>' in shown[1]["data"]["text/html"]


@pytest.mark.parametrize(("measured", "expected"), FAIL)
def test_a_claim_that_fails_raises_and_its_control_is_recorded(shown, measured, expected):
    with pytest.raises(AssertionError, match=r"✗ Eq 9 · all pairs · n = 2 · measured .* expected"):
        claim("Eq 9", "all pairs", "n = 2", measured, expected)
    assert shown.pop()["metadata"]["ledger"][0]["holds"] is False
    refute("Eq 9", "all pairs", "n = 2", measured, expected)
    (record,) = shown[0]["metadata"]["ledger"]
    assert record["claim"] == "control: all pairs" and record["expected"] == f"not {expected}"


@pytest.mark.parametrize("record", [claim, refute])
@pytest.mark.parametrize("expected", ["<= 1", ">= 1", "== 1", "in [0, 1]"])
def test_nan_neither_holds_nor_refutes(shown, record, expected):
    with pytest.raises(AssertionError, match="measured nan"):
        record("Eq 4", "a number", "n = 2", float("nan"), expected)
    assert shown[0]["metadata"]["ledger"][0]["holds"] is False


@pytest.mark.parametrize("record", [claim, refute])
@pytest.mark.parametrize("expected", ["1", "=< 1", "<=1", "<= x", "in (0, 1)", "about 3", "!= 0"])
def test_an_expectation_of_another_form(shown, record, expected):
    with pytest.raises(ValueError, match=r"expected = .* is not understood; write '<= 1e-9'"):
        record("Eq 4", "a number", "n = 2", 1, expected)


def notebook(path, *cells):
    path.write_text(json.dumps({"cells": list(cells)}), encoding="utf-8")


def test_records_are_collected_in_order_with_their_section(shown, tmp_path):
    claim("Eq 4", "first", "n = 2", 1, "== 1")
    refute("Eq 4", "second", "n < 3 & more", 2, "<= 1")
    claim("Eq 6", "third", "n = 2", 1.23456, ">= 1")
    text = {"cell_type": "markdown", "source": ["(eq-4)=\n", "## Eq 4"]}
    plain = {"cell_type": "markdown", "source": "no label (here)="}
    notebook(
        tmp_path / "02-b.ipynb",
        text,
        plain,
        {"cell_type": "code", "outputs": [{"output_type": "stream", "text": "x"}, *shown[:2]]},
    )
    notebook(tmp_path / "01-a.ipynb", {"cell_type": "code", "outputs": shown[2:]})
    records = collect(tmp_path)
    assert [r["claim"] for r in records] == ["third", "first", "control: second"]
    assert [r["notebook"] for r in records] == ["01-a.ipynb", "02-b.ipynb", "02-b.ipynb"]
    assert [r["anchor"] for r in records] == ["", "eq-4", "eq-4"]
    assert records[0]["measured"] == "1.23" and all(r["holds"] for r in records)
    page = table(records).data
    assert "".join(f'<th scope="col">{name}</th>' for name in COLUMNS) in page
    assert [r["block"] for r in records] == ["checks-3", "checks-1", "checks-2"]
    assert page.count("<tr") == 4 and '<a href="02-b.html#checks-1">Eq 4</a>' in page
    assert 'id="checks-1"' in shown[0]["data"]["text/html"]
    assert "n &lt; 3 &amp; more" in page and "n < 3" not in page


def test_rows_that_do_not_hold_are_marked(shown, monkeypatch, tmp_path):
    monkeypatch.delenv(ledger.VARIABLE)
    finding("Fig 5", "first", "n = 2", 1, "== 1")
    finding("Fig 5", "second", "n = 2", 2, "== 1")
    notebook(tmp_path / "01-a.ipynb", {"cell_type": "code", "outputs": shown})
    page = table(collect(tmp_path)).data
    head, first, second = page.split("<tr")[1:]
    assert '<th scope="col">kind</th>' in head and "<td>finding" in first
    assert "fails" not in first and "✗" not in first
    assert "<td>n = 2" in first and 'data-data="other"' in first and "Fig 5" in first
    assert "n = 2" not in second and "data-data" not in second and "Fig 5" in second  # as above
    assert second.startswith(' class="fails"') and "<td>✗" in second
    assert 'class="fails"' in second and "<td>finding" in second


def test_what_a_page_shows_is_escaped(shown):
    claim("Eq 4", "a < b", "n & m", 0.5, "<= 1")
    data = shown[0]["data"]
    assert data["text/plain"].splitlines() == [
        "✓ 1 check holds",
        "✓ Eq 4 · a < b · n & m · measured 0.5, expected <= 1",
    ]
    assert "a &lt; b" in data["text/html"] and "n &amp; m" in data["text/html"]


def test_the_rows_of_a_cell_are_one_line_that_opens_to_a_table():
    def row(kind, setting, holds=True):
        return ledger.Row("Eq 4", "c", "1", "> 0", holds, setting, kind)

    many = [row("control", "n = 2"), row("claim", "n = 2"), row("finding", "n = 3")]
    block = ledger.Block(many)
    assert block.line == "✓ 2 checks and 1 control hold"
    page = block._repr_mimebundle_()["text/html"]
    assert page.count("n = 2") == page.count("n = 3") == 1  # each setting said once
    assert "open" not in page and page.index("n = 2") < page.index("controls") < page.index("n = 3")
    failing = ledger.Block([*many, row("finding", "n = 2", holds=False)])
    assert failing.line == "✗ 1 of 3 checks and 1 control does not hold"
    assert '<details class="checks fails" open>' in failing._repr_mimebundle_()["text/html"]


def test_counts_are_shown_in_full(shown):
    claim("Eq 4", "pairs", "n = 2", 93_100, "> 0")
    refute("Eq 4", "pairs", "n = 2", 1234.5, "== 0")
    assert "<td>93100</td><td>&gt; 0</td>" in shown[0]["data"]["text/html"]
    assert "<td>1.23e+03</td><td>not = 0</td>" in shown[1]["data"]["text/html"]
    for count, text in ((10**9 - 1, "999999999"), (10**9, "1e+09")):
        claim("Eq 4", "pairs", "n = 2", count, "> 0")
        assert shown[-1]["metadata"]["ledger"][0]["measured"] == text


def test_a_folder_without_notebooks(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no notebook and holds none"):
        collect(tmp_path)
    with pytest.raises(FileNotFoundError, match="there.ipynb' is no notebook and holds none"):
        collect(tmp_path / "not-there.ipynb")


def test_what_a_notebook_keeps_is_recorded_with_its_source(shown, tmp_path, capsys, monkeypatch):
    kept = pd.DataFrame({"t": [0.1, 1.0], "data": ["mnist 4/9", "a, b"]})
    keep("fig-7", kept.iloc[:1])
    keep("fig-7", kept.iloc[1:])
    notebook(tmp_path / "11-a.ipynb", {"cell_type": "code", "outputs": shown})
    found = frames(tmp_path / "11-a.ipynb")
    assert list(found) == ["fig-7"] and found["fig-7"].equals(kept)
    kept.assign(date="2026-01-02", machine="two cores", versions="torch 9").to_csv(
        tmp_path / "fig-7.csv", index=False
    )
    monkeypatch.undo()  # the display of a terminal
    assert recorded("fig-7", now=None, folder=tmp_path)[["t", "data"]].equals(kept)
    source = "Recorded · 2026-01-02 · two cores · torch 9"
    assert capsys.readouterr().out == f"{source}\n"
    assert ledger.Source("1 < 2")._repr_html_().endswith(">1 &lt; 2</p>")
    assert recorded("fig-6", now=kept, folder=tmp_path) is kept
    with pytest.raises(FileNotFoundError, match="there is no record .*fig-6.csv'; `make paper`"):
        recorded("fig-6", folder=tmp_path)


@pytest.mark.parametrize("name", ["Fig 7", "../fig-7", "", "fig-7.csv"])
def test_a_record_of_another_name(shown, name):
    with pytest.raises(ValueError, match="name must be lower-case letters"):
        keep(name, pd.DataFrame())


def test_where_each_finding_holds_is_a_table_of_marks():
    settings = [
        ("own", "as it is"),
        ("other λ", "λ = 0.1"),
        ("other λ", "λ < 10"),
        ("other n", "2 n"),
    ]
    states = ["done", "done", "crash", ""]
    runs = pd.DataFrame([
        {"page": "02-b", "group": group, "setting": name, "status": status}
        for (group, name), status in zip(settings, states, strict=True) if status
    ] + [{"page": "03-c", "group": "other n", "setting": "2 n", "status": "done"}])  # fmt: skip
    row = {"page": "02-b", "anchor": "fig-2", "item": "Fig 2", "claim": "a < b"}
    cells = {"as it is": "2/2", "λ = 0.1": "0/2", "λ < 10": "", "2 n": float("nan")}
    sweep = pd.DataFrame(
        [row | cells, row | {"as it is": "1/2", "λ = 0.1": "", "λ < 10": "", "2 n": ""}]
    )
    page = matrix(sweep, runs).data
    groups, names, first, second = page.split("<tr>")[1:]
    head = '<th scope="colgroup" colspan="{}">{}</th>'.format
    assert head(2, "other λ") + head(1, "other n") in groups
    assert "<span>λ &lt; 10</span>" in names
    assert '<a href="02-b.html#fig-2">Fig 2</a></td><td>a &lt; b</td>' in first
    marks = [("all", "✓"), ("none", "✗"), ("none", "!"), ("", "·")]
    assert first.count("<td") == 6
    assert "".join(f'<td class="{kind}">{mark}</td>' for kind, mark in marks) in first
    assert '<td class="some">1/2</td><td class="">·</td><td class="none">!</td>' in second
    late = {"page": "03-c", "group": "other λ", "setting": "λ = 10", "status": "done"}
    runs = pd.concat([runs, pd.DataFrame([late])])  # a group's column that comes after another's
    groups, names, *_ = matrix(sweep.assign(**{"λ = 10": "1/1"}), runs).data.split("<tr>")[1:]
    assert head(3, "other λ") + head(1, "other n") in groups
    assert names.index("λ = 10") < names.index("2 n")
