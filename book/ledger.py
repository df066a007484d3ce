"""The ledger: claims that are checked as they are made, and collected from the notebooks.

There are three kinds. `claim` is for identities, bounds and theorems under their hypotheses: they
hold on any data, and one that fails always stops the run. `finding` is for what was found on the
book's own data, and `refute` for controls, wrong formulas that must fail there. On other data these
two may fail: that is a fact about the data, so they become rows that do not hold. Where the
environment variable NTK_FINDINGS is "raise", as in the book's own builds, they stop the run too.

The rows of a cell live in its output, as one line that opens to a table. So a notebook carries its
own rows, and a new run replaces them. `collect` reads them back, with the section each belongs to.
"""

from __future__ import annotations

import html
import io
import itertools
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from IPython import get_ipython
from IPython.display import HTML, display

COLUMNS = ("item", "claim", "measured", "expected", "holds", "setting", "kind")
VARIABLE = "NTK_FINDINGS"  # "raise": findings and controls that do not hold stop the run
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_TESTS = {
    "<=": float.__le__,
    "<": float.__lt__,
    ">=": float.__ge__,
    ">": float.__gt__,
    "==": float.__eq__,
}


@dataclass(frozen=True)
class Row:
    """One row of the ledger: what the paper says, where it was tried and what came out."""

    item: str
    claim: str
    measured: str
    expected: str
    holds: bool
    setting: str
    kind: str  # "claim", "finding" or "control"

    def __str__(self) -> str:
        mark = "✓" if self.holds else "✗"
        other = "" if self.holds or self.kind == "claim" else " · does not hold on these data"
        return (
            f"{mark} {self.item} · {self.claim} · {self.setting} · "
            f"measured {self.measured}, expected {self.expected}{other}"
        )

    @property
    def html(self) -> str:
        """The row of a table: mark, item, claim, measured, expected."""
        other = "" if self.holds else " <b>does not hold on these data</b>"
        cells = [
            "✓" if self.holds else "✗", f"<b>{_page(self.item)}</b>", _page(self.claim) + other,
            _page(self.measured), _page(self.expected),
        ]  # fmt: skip
        start = "<tr>" if self.holds else '<tr class="fails">'
        return start + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


class Block:
    """The rows of a cell: one line that says how many hold, and opens to a table of them."""

    def __init__(self, rows: list[Row], anchor: str = ""):
        self.rows, self.anchor = rows, anchor
        self.checks = [row for row in rows if row.kind != "control"]
        self.controls = [row for row in rows if row.kind == "control"]

    @property
    def line(self) -> str:
        """For instance "✓ 12 checks and 6 controls hold"."""
        parts = ((self.checks, "check"), (self.controls, "control"))
        words = [f"{len(rows)} {name}{'s' * (len(rows) > 1)}" for rows, name in parts if rows]
        failing = sum(not row.holds for row in self.rows)
        if failing:
            verb = "does" if failing == 1 else "do"
            return f"✗ {failing} of {' and '.join(words)} {verb} not hold"
        return f"✓ {' and '.join(words)} hold{'s' * (len(self.rows) == 1)}"

    def __repr__(self) -> str:
        return "\n".join([self.line, *map(str, self.rows)])

    def _repr_mimebundle_(self, include=None, exclude=None):
        failing = not all(row.holds for row in self.rows)
        parts = [_head("holds", "item", "claim", "measured", "expected")]
        for setting in dict.fromkeys(row.setting for row in self.rows):
            parts.append(f'<tbody><tr><th scope="rowgroup" colspan=5>{_page(setting)}</th></tr>')
            parts += [row.html for row in self.checks if row.setting == setting]
            controls = [row.html for row in self.controls if row.setting == setting]
            if controls:
                words = "controls, which must fail their check"
                parts.append(f"<tr><td colspan=5><i>{words}</i></td></tr>")
            parts += [*controls, "</tbody>"]
        # the anchor is inside, so that a link to it opens the line
        page = (
            f'<details class="checks{" fails" * failing}"{" open" * failing}>'
            f'<summary>{self.line}</summary><div id="{self.anchor}" class="scroll" tabindex="0">'
            f'<table class="dataframe checks">{"".join(parts)}</table></div></details>'
        )
        return {"text/plain": repr(self), "text/html": page}


_waiting: list[Row] = []  # the rows of the cell that runs
_blocks = itertools.count(1)  # numbers the blocks of a page, so that the ledger can lead to each


def _show() -> None:
    """Show the rows that wait; IPython calls this when a cell has run."""
    if _waiting:
        rows = _waiting.copy()
        _waiting.clear()
        block = Block(rows, f"checks-{next(_blocks)}")
        kept = {"ledger": [asdict(row) for row in rows], "block": block.anchor}
        display(block, metadata=kept)


if get_ipython():
    get_ipython().events.register("post_execute", _show)


def _head(*names: str) -> str:
    """The head of a table."""
    cells = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f"<thead><tr>{cells}</tr></thead>"


def _page(value) -> str:
    """Text for a page: ≤ for <=, = for ==, and no mark-up."""
    text = str(value)
    for sign, shown in (("<= ", "≤ "), (">= ", "≥ "), ("== ", "= ")):
        text = text.replace(sign, shown)
    return html.escape(text)


def claim(item: str, claim: str, setting, measured: float, expected: str) -> None:
    """Check an identity, a bound or a theorem; raise `AssertionError` unless it holds.

    It must hold on any data that satisfy its hypotheses. For what was found on some data, and may
    be false on others, use `finding`.

    `item` is the paper's, for instance "Eq 9", `claim` the claim in words, `setting` anything whose
    `str` tells data, sizes and seeds, `measured` the number that came out, and `expected` one of
    "<= 1e-9", "< 0.1", ">= 0.99", "> 0", "== 0" and "in [-0.6, -0.4]". NaN never holds. Raises
    `ValueError` for an `expected` of another form.

    >>> claim("Eq 4", "the diagonal is one half", "n = 2", 0.5, "== 0.5")
    ✓ 1 check holds
    ✓ Eq 4 · the diagonal is one half · n = 2 · measured 0.5, expected == 0.5
    """
    _enter(item, claim, setting, measured, expected, "claim", _holds(measured, expected))


def finding(item: str, claim: str, setting, measured: float, expected: str) -> None:
    """Check what was found on the book's own data, and may be false on others.

    Takes what `claim` takes. A finding that does not hold is a row that says so; it raises
    `AssertionError` only where the environment variable NTK_FINDINGS is "raise".

    >>> finding("Fig 5", "the extreme groups are the most complex", "digits", 0.99, "> 0.5")
    ✓ 1 check holds
    ✓ Fig 5 · the extreme groups are the most complex · digits · measured 0.99, expected > 0.5
    """
    _enter(item, claim, setting, measured, expected, "finding", _holds(measured, expected))


def refute(item: str, claim: str, setting, measured: float, expected: str) -> None:
    """Check that a wrong formula fails: a negative control shows that the right one can fail.

    Takes what `claim` takes; `measured` comes from a wrong formula or a broken hypothesis, and
    `expected` is the check of the right one. NaN refutes nothing. Like a finding, a control that
    does not fail is a row that says so, and raises where NTK_FINDINGS is "raise".

    >>> refute("Eq 4", "the diagonal is one", "n = 2", 0.5, "== 1")
    ✓ 1 control holds
    ✓ Eq 4 · control: the diagonal is one · n = 2 · measured 0.5, expected not == 1
    """
    fails = measured == measured and not _holds(measured, expected)
    _enter(item, f"control: {claim}", setting, measured, f"not {expected}", "control", fails)


def _enter(item, claim, setting, measured, expected, kind, holds) -> None:
    value = float(measured)
    digits = ".0f" if value.is_integer() and abs(value) < 1e9 else ".3g"
    row = Row(item, claim, f"{value:{digits}}", expected, bool(holds), str(setting), kind)
    _waiting.append(row)
    if not get_ipython():
        _show()
    if not holds and (kind == "claim" or os.environ.get(VARIABLE) == "raise"):
        raise AssertionError(str(row))


def _holds(measured: float, expected: str) -> bool:
    """Whether `measured` satisfies the text `expected`; NaN never does."""
    value = float(measured)
    if match := re.fullmatch(rf"(<=|<|>=|>|==) {_NUMBER}", expected):
        return _TESTS[match[1]](value, float(match[2]))
    if match := re.fullmatch(rf"in \[{_NUMBER}, {_NUMBER}\]", expected):
        return float(match[1]) <= value <= float(match[2])
    raise ValueError(
        f"expected = {expected!r} is not understood; write '<= 1e-9', '< 0.1', '>= 0.99', '> 0', "
        "'== 0' or 'in [-0.6, -0.4]'"
    )


def keep(name: str, frame: pd.DataFrame) -> None:
    """Keep the numbers behind a figure in the notebook, so that they can be recorded.

    `name` is that of the record, for instance "fig-7"; a second frame of that name goes below the
    first. `frames` reads them back, `make paper` writes them to book/records/NAME.csv, and
    `recorded` reads that. Raises `ValueError` for a name with other characters than a-z, 0-9, -.

    >>> keep("fig-7", pd.DataFrame({"t": [1.0], "noisy": [0.25]}))
    {}
    """
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise ValueError(f"name must be lower-case letters, digits and '-', not {name!r}")
    display({}, raw=True, metadata={"record": {"name": name, "csv": frame.to_csv(index=False)}})


def recorded(name: str, now: pd.DataFrame | None = None, folder="records") -> pd.DataFrame:
    """Return what `make paper` recorded under `name`, and show when and on what it was measured.

    Where there is no FOLDER/NAME.csv, as in `make paper` itself, it is `now`, and that is shown.
    Raises `FileNotFoundError` if there is neither.

    >>> recorded("fig-7", pd.DataFrame({"t": [1.0]}), folder="nowhere").t.tolist()
    No record fig-7: the numbers of this run.
    [1.0]
    """
    file = Path(folder) / f"{name}.csv"
    if not file.is_file() and now is None:
        raise FileNotFoundError(f"there is no record {str(file)!r}; `make paper` writes it")
    if not file.is_file():
        print(f"No record {name}: the numbers of this run.")
        return now
    frame = pd.read_csv(file)
    for source in frame[["date", "machine", "versions"]].drop_duplicates().itertuples(index=False):
        display(Source(" · ".join(["Recorded", *source])))
    return frame


@dataclass(frozen=True)
class Source:
    """When, on what and with which versions something was recorded: a line in small letters."""

    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f'<p class="source" style="font-size: 0.75rem">{_page(self.text)}</p>'


def frames(path) -> dict[str, pd.DataFrame]:
    """Return the frames that a notebook, or those of a folder, keep, by name; see `keep`."""
    found: dict[str, list] = {}
    for notebook in _notebooks(path):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                if kept := output.get("metadata", {}).get("record"):
                    frame = pd.read_csv(io.StringIO(kept["csv"]))
                    found.setdefault(kept["name"], []).append(frame)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def _notebooks(path) -> list[Path]:
    path = Path(path)
    notebooks = sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
    if not notebooks or not all(notebook.is_file() for notebook in notebooks):
        raise FileNotFoundError(f"{str(path)!r} is no notebook and holds none (*.ipynb)")
    return notebooks


def collect(path) -> list[dict]:
    """Return the rows of a notebook, or of those of a folder in order of name, cell by cell.

    Each is a dict of `COLUMNS` plus `notebook`, the file's name, `anchor`, the last MyST label
    `(label)=` before the cell, and `block`, the anchor of its line of checks. Raises
    `FileNotFoundError` if there is no notebook.
    """
    rows = []
    for notebook in _notebooks(path):
        anchor = ""
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                labels = re.findall(r"^\(([\w-]+)\)=\s*$", "".join(cell["source"]), re.MULTILINE)
                anchor = labels[-1] if labels else anchor
            for output in cell.get("outputs", ()):
                found = output.get("metadata", {})
                where = {"notebook": notebook.name, "anchor": anchor, "block": found.get("block")}
                for row in found.get("ledger", []):
                    rows.append(row | where)
    return rows


def data_set(setting: str) -> str:
    """Return the data set that a setting begins with, or "other" where there is none.

    >>> data_set("digits 3/8, n = 240, seed 0"), data_set("6 components, n = 252")
    ('digits 3/8', 'other')
    """
    match = re.match(r"(?:images of )?([^,=]+ [^,=]+/[^,=]+?)(?: as files)?,", setting)
    return match[1] if match else "other"


def table(found: list[dict]) -> HTML:
    """Return the rows of `collect` as a table to filter and to sort.

    Each item links to the line of checks that measured it, or where there is no such line to its
    section. Rows that do not hold have the class `fails`. An item or a setting that is that of the
    row above is left out, and table.js puts it in: else the page would be too heavy.
    """
    rows, above = [], {}
    for one in found:
        cells = {name: _page(one[name]) for name in COLUMNS}
        page = Path(one["notebook"]).stem
        anchor = one.get("block") or one["anchor"]
        cells["item"] = f'<a href="{page}.html#{anchor}">{cells["item"]}</a>'
        cells["holds"] = "✓" if one["holds"] else "✗"
        start = "<tr" if one["holds"] else '<tr class="fails"'
        same = {name for name in ("item", "setting") if cells[name] == above.get(name)}
        data = "" if "setting" in same else f' data-data="{_page(data_set(one["setting"]))}"'
        above = cells
        shown = ("" if name in same else cell for name, cell in cells.items())
        rows.append(
            f"{start}{data}>{''.join(f'<td>{cell}' for cell in shown)}"
        )  # no end tags needed
    script = Path(__file__).with_name("table.js").read_text(encoding="utf-8")
    return HTML(
        '<div class="rows"><div class="scroll" tabindex="0"><table class="dataframe ledger">'
        f"{_head(*COLUMNS)}<tbody>{''.join(rows)}</tbody></table></div></div>"
        f"<script>(function (root) {{\n{script}\n}})"
        "(document.currentScript.previousElementSibling);</script>"
    )


def matrix(sweep: pd.DataFrame, runs: pd.DataFrame) -> HTML:
    """Return where each finding holds as a table: a row for a finding, a column for a setting.

    `sweep` and `runs` are records of `make sweep`. A mark says whether all rows of the finding hold
    (✓), none (✗) or so many (1/2); · that its page was not run on the setting or found no such row,
    and ! that the page came to an error.

    >>> run = {"page": "02-b", "group": "other λ", "setting": "λ = 10", "status": "done"}
    >>> row = {"page": "02-b", "anchor": "a", "item": "Fig 2", "claim": "E falls", "λ = 10": "1/2"}
    >>> '<td class="some">1/2</td>' in matrix(pd.DataFrame([row]), pd.DataFrame([run])).data
    True
    """
    settings = runs[["group", "setting"]].drop_duplicates()
    settings = pd.concat([part for _, part in settings.groupby("group", sort=False)])
    status = runs.set_index(["page", "setting"]).status
    groups = settings.groupby("group", sort=False).size().items()
    top = "".join(
        f'<th scope="colgroup" colspan="{size}">{_page(group)}</th>' for group, size in groups
    )
    names = "".join(f'<th scope="col"><span>{_page(name)}</span></th>' for name in settings.setting)
    rows = []
    for row in sweep.to_dict("records"):
        link = f'<a href="{row["page"]}.html#{row["anchor"]}">{_page(row["item"])}</a>'
        cells = f"<td>{link}</td><td>{_page(row['claim'])}</td>"
        for name in settings.setting:
            kind, mark = _mark(row[name], status.get((row["page"], name), ""))
            cells += f'<td class="{kind}">{mark}</td>'
        rows.append(f"<tr>{cells}</tr>")
    return HTML(
        '<table class="dataframe matrix"><thead>'
        f'<tr><td colspan="2"></td>{top}</tr>'
        f'<tr><th scope="col">item</th><th scope="col">finding</th>{names}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _mark(cell: str, status: str) -> tuple[str, str]:
    """The class and the mark of "held/tried" rows in a run that came to `status`."""
    if not isinstance(cell, str) or not cell:
        return ("none", "!") if status in ("crash", "violated") else ("", "·")
    held, tried = map(int, cell.split("/"))
    return ("all", "✓") if held == tried else ("none", "✗") if not held else ("some", cell)
