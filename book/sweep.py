"""Execute the chapters on held-out settings, and record where each finding holds.

python -m book.sweep WORK RECORDS [--cifar10 NAME] [--jobs N] [--settings PATTERN] CHAPTER ...

Every setting changes one thing of the defaults. A run of a chapter on a setting leaves one file in
WORK, so that a sweep that was cut short goes on, and one where nothing changed has nothing to do.
Tables go to RECORDS: sweep.csv says for each finding and setting how many rows hold of how many,
sweep-exceptions.csv has each row that does not hold, and sweep-runs.csv each run with its
date, processor and versions.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd

from book import ledger
from book.chapters import (
    ONE_THREAD,
    ROOT,
    TOOLS,
    parameters,
    provenance,
    recorder,
    side_by_side,
    store,
)
from book.measures import load_all
from book.run import end_with_parent, locked

LIMIT = 1800  # seconds that a chapter may take


def add(k: int) -> Callable:
    return lambda seed: seed + k


def times(factor: float) -> Callable:
    return lambda n: 2 * round(n * factor / 2)  # an even number


@dataclass(frozen=True)
class Setting:
    """One change of the defaults: its name, its kind, and parameters, as values or as functions of
    the default."""

    name: str
    group: str
    change: dict


# The list was fixed before the first result.
PAIRS = {
    "digits": ("0/1", "1/7", "5/6"),
    "mnist": ("0/1", "3/8", "1/7"),
    "cifar10": ("cat/dog", "bird/frog", "deer/horse"),
}
MORE = {"n_train": times(2), "n_points": times(2)}
FEWER = {"n_train": times(0.5), "n_points": times(0.5)}
SETTINGS = [
    Setting("as on the pages", "the book's own", {}),
    *[
        Setting(f"{name} {pair}", "other classes", {"datasets": f"{name}:{pair}"})
        for name, pairs in PAIRS.items()
        for pair in pairs
    ],
    Setting("seed + 100", "other seeds", {"seed": add(100)}),
    Setting("seed + 200", "other seeds", {"seed": add(200)}),
    Setting("n / 2", "other n", FEWER),
    Setting("2 n", "other n", MORE),
    Setting("mnist 4/9, 2 n", "other n", {"datasets": "mnist:4/9"} | MORE),
    Setting("λ = 0.1", "other λ", {"lam": 0.1}),
    Setting("λ = 10", "other λ", {"lam": 10.0}),
]


@dataclass(frozen=True)
class Run:
    """A chapter on a setting: `values` are its parameters that differ from the defaults."""

    setting: Setting
    chapter: Path
    values: dict
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / f"{self.chapter.stem}.json"

    def key(self) -> str:
        """Digest of all that the outcome depends on: code of the chapter, library, parameters."""
        return hashlib.sha256(repr([code(self.chapter), self.values]).encode()).hexdigest()[:16]

    def outcome(self) -> dict | None:
        """What the run came to, or None where it is still to be done."""
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found if found["key"] == self.key() else None


@cache
def code(chapter: Path) -> list[str]:
    """The code of a chapter and of the library."""
    cells = nbformat.read(chapter, as_version=4).cells
    found = [cell.source for cell in cells if cell.cell_type == "code"]
    return found + [bare(file) for file in (*sorted((ROOT / "lib").glob("*.py")), *TOOLS)]


@cache
def bare(file: Path) -> str:
    """The code of a module without comments and docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant):
                body[0] = ast.Pass()
    return ast.unparse(tree)


def plan(settings: list[Setting], chapters: list[Path], work: Path, cifar10: str) -> list[Run]:
    """The runs of all settings on the chapters that have a parameter that they change.

    Settings whose images are not at hand are left out with a message. Where classes have too few
    images for a chapter's n, it is halved, and "2 n" is left out.
    """
    runs = []
    for setting in settings:
        folder = work / re.sub(r"\W+", "-", setting.name)
        try:
            for chapter in chapters:
                known = parameters(nbformat.read(chapter, as_version=4))
                values = {
                    name: change(known[name]) if callable(change) else change
                    for name, change in setting.change.items()
                    if name in known
                }
                pair = setting.change.get("datasets", "")
                if pair and "datasets" not in known:
                    if "source" not in known or not pair.startswith("digits"):
                        continue  # it keeps its own images, and larger ones take long there
                    values["source"] = pair
                if "datasets" in values:
                    values["datasets"] = re.sub("^cifar10:", f"{cifar10}:", values["datasets"])
                if (values or not setting.change) and fit(setting, chapter, known, values):
                    runs.append(Run(setting, chapter, values, folder))
        except OSError as error:
            print(f"{setting.name}: left out, {error}", flush=True)
    return runs


def fit(setting: Setting, chapter: Path, known: dict, values: dict) -> bool:
    """Whether there are images enough; with other classes, `values` get an n that is."""
    n = next((name for name in ("n_points", "n_train") if name in known), None)
    while n:
        asked = known | values
        data = asked.get("datasets") or asked.get("source")
        missing = data and lacks(data, asked[n], asked.get("n_test") or asked[n])
        if not missing:
            return True
        if setting.group != "other classes" or asked[n] < 40:
            print(f"{setting.name}, {chapter.stem}: left out, {missing}", flush=True)
            return False
        values[n] = times(0.5)(asked[n])
    return True


@cache
def lacks(datasets: str, n_train: int, n_test: int) -> str:
    """What the data sets lack for a draw of this size, as text; raises `OSError` if not there."""
    try:
        load_all(datasets, n_train=n_train, n_test=n_test)
    except ValueError as error:
        return str(error)
    return ""


def execute(run: Run) -> str:
    """Run a chapter to its end, whatever that is, and keep what came out in its file."""
    target = run.folder / run.chapter.name
    log = target.with_suffix(".log")
    target.unlink(missing_ok=True)
    words = [word for name, value in run.values.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "book.chapters", "execute", run.chapter, target, *words]
    environ = os.environ | ONE_THREAD | {ledger.VARIABLE: "report"}
    key, start = run.key(), time.perf_counter()
    with log.open("w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environ)
        try:
            status = child.wait(LIMIT)
        except subprocess.TimeoutExpired:
            child.terminate()
            output.write(f"\n{run.chapter.name}: not at its end after {LIMIT} s\n")
            status = child.wait()
    last = (log.read_text(encoding="utf-8").rstrip().splitlines() or ["killed"])[-1]
    found = {
        "key": key,
        "status": "done" if not status else "violated" if violation(last) else "crash",
        "seconds": round(time.perf_counter() - start, 1),
        "message": last if status else "",
        "rows": ledger.collect(target) if not status else [],
        "source": provenance(),
    }
    part = run.file.with_suffix(".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(run.file)
    return f"{run.setting.name}, {run.chapter.stem}: {last}"


def violation(message: str) -> dict | None:
    """The record of a claim that failed, from the error that it raised; None for other errors."""
    pattern = r"AssertionError: ✗ (.*?) · (.*) · (.*?) · measured (\S+), expected (.*)"
    found = re.search(pattern, message)
    names = ("item", "claim", "setting", "measured", "expected")
    return dict(zip(names, found.groups(), strict=True)) if found else None


def normal(claim: str) -> str:
    """A claim without its numbers: the same on any data."""
    return re.sub(r"[\d.,]+", "#", claim)


def tables(runs: list[Run]) -> dict[str, pd.DataFrame]:
    """What the runs came to as the three records; see the top of this file."""
    found: dict[tuple, dict] = {}
    exceptions, done = [], []
    names = list(dict.fromkeys(run.setting.name for run in runs))
    for run in runs:
        outcome = run.outcome()
        page = {"page": run.chapter.stem, "setting": run.setting.name}
        changed = ", ".join(f"{name} = {value}" for name, value in run.values.items())
        kept = {name: outcome[name] for name in ("status", "seconds", "message")}
        group = {"group": run.setting.group, "changed": changed}
        done.append(page | group | kept | outcome["source"])
        stopped = violation(outcome["message"])
        if stopped:
            exceptions.append(page | {"kind": "claim", "where": stopped.pop("setting")} | stopped)
        for row in outcome["rows"]:
            if "recorded: " in row["claim"] or "recorded" in row["setting"]:
                continue  # measured on other data, earlier
            key = (run.chapter.stem, row["item"], normal(row["claim"]))
            entry = found.setdefault(key, {
                "page": run.chapter.stem, "anchor": row["anchor"], "kind": row["kind"],
                "item": row["item"], "claim": row["claim"], "counts": {},
            })  # fmt: skip
            if entry["claim"] != row["claim"]:
                entry["claim"] = normal(row["claim"]).replace("#", "…")
            held, tried = entry["counts"].get(run.setting.name, (0, 0))
            entry["counts"][run.setting.name] = (held + row["holds"], tried + 1)
            if not row["holds"]:
                cells = {name: row[name] for name in ("kind", "item", "claim")}
                numbers = {name: row[name] for name in ("measured", "expected")}
                exceptions.append(page | cells | {"where": row["setting"]} | numbers)
    rows = []
    for entry in found.values():
        counts = entry.pop("counts")
        cells = {name: "/".join(map(str, counts[name])) if name in counts else "" for name in names}
        rows.append(entry | cells)
    columns = ["page", "setting", "kind", "where", "item", "claim", "measured", "expected"]
    return {
        "sweep": pd.DataFrame(rows).sort_values("page", kind="stable"),
        "sweep-exceptions": pd.DataFrame(exceptions, columns=columns),
        "sweep-runs": pd.DataFrame(done),
    }


def record(frames: dict[str, pd.DataFrame], records: Path) -> None:
    """Write the records. Chapters that did not run keep the rows that they had.

    A sweep that lacks settings of what is recorded of its chapters changes nothing, and says so.
    """

    def pairs(runs: pd.DataFrame) -> set:
        return set(zip(runs.page, runs.setting, strict=True))

    there = {
        name: pd.read_csv(records / f"{name}.csv", dtype=str, keep_default_na=False)
        for name in frames if (records / f"{name}.csv").exists()
    }  # fmt: skip
    ran = set(frames["sweep-runs"].page)
    if "sweep-runs" in there:
        runs = there["sweep-runs"]
        lost = sorted(pairs(runs[runs.page.isin(ran)]) - pairs(frames["sweep-runs"]))
        if lost:
            print(f"nothing recorded: {len(lost)} runs of the record would be lost, as {lost[0]}")
            return
    for name, frame in frames.items():
        file, before = records / f"{name}.csv", ""
        if name in there:
            before, kept = file.read_text(encoding="utf-8"), there[name]
            frame = pd.concat([kept[~kept.page.isin(ran)], frame])
        frame = frame.sort_values("page", kind="stable")
        if before != frame.to_csv(index=False):
            store(frame, file)


def main() -> None:
    parser = recorder(__doc__)
    parser.add_argument("chapters", type=Path, nargs="+")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--settings", default="", help="only those whose name matches this pattern")
    args = parser.parse_args()
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback
    lock = locked(str(args.work / "lock"))
    settings = [setting for setting in SETTINGS if re.search(args.settings, setting.name)]
    runs = plan(settings, args.chapters, args.work, args.cifar10)
    for folder in {run.folder for run in runs}:
        folder.mkdir(exist_ok=True)
        if not (folder / "records").exists():
            (folder / "records").symlink_to(args.records.resolve())
    todo = [run for run in runs if run.outcome() is None]
    print(f"{len(todo)} of {len(runs)} runs to do", flush=True)
    for line in side_by_side(execute, todo, args.jobs):
        print(line, flush=True)
    record(tables(runs), args.records)
    lock.close()


if __name__ == "__main__":
    main()
