"""Execute chapters, clean them for git, and collect the ledger.

python -m book.chapters build FOLDER SOURCE ... [--jobs N] [--set NAME VALUE ...]
python -m book.chapters execute SOURCE TARGET [-p NAME VALUE ...] [--set NAME VALUE ...]
python -m book.chapters clean SOURCE TARGET
python -m book.chapters ledger FOLDER CSV
python -m book.chapters record NOTEBOOK FOLDER
python -m book.chapters compare OLD NEW
"""

from __future__ import annotations

import argparse
import ast
import csv
import itertools
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from papermill.exceptions import PapermillExecutionError
from PIL import Image, PngImagePlugin

from book import ledger
from book.run import end_with_parent

ROOT = Path(__file__).parents[1]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
# pages import the others
RUNS = {"__init__", "browser", "chapters", "extension", "paper", "pdf", "run", "sweep"}
TOOLS = [file for file in sorted((ROOT / "book").glob("*.py")) if file.stem not in RUNS]
LARGEST = 150_000  # bytes of a recorded picture
LEAST = 20  # training images that every chapter can be executed with


def parameters(notebook) -> dict:
    """Return the names that the cell tagged `parameters` assigns, with their defaults."""
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    lines = [line for cell in cells for line in ast.parse(cell.source).body]
    return {
        line.targets[0].id: ast.literal_eval(line.value)
        for line in lines
        if isinstance(line, ast.Assign)
    }


def read(text: str, name: str, default):
    """Return the value that `text` spells; where the default is text, that is `text` itself.

    So the data set "2024" stays a name. Where the default is a whole number, or None, a whole
    number becomes an int, and 6e1 is one. Raises `ValueError` for text that spells nothing of the
    kind of the default.

    >>> read("6e1", "n_train", 240), read("None", "size", None), read("2024", "datasets", "digits")
    (60, None, '2024')
    """
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = ...
    if default is None and value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, int | None):
        kind, good = "whole number", number and value % 1 == 0
    elif isinstance(default, float):
        kind, good = "number", number and math.isfinite(value)
    else:
        kind, good = type(default).__name__, isinstance(value, type(default))
    if not good:
        raise ValueError(f"{name} = {text} is not a {kind}; by default it is {default}")
    return int(value) if kind == "whole number" else value


def execute(source: Path, target: Path, values: dict, shared: dict | None = None) -> None:
    """Run the notebook `source` in the folder of `target`, and keep it there if all cells pass.

    `values` are parameters by name, and as text; those in `shared` are passed only if the notebook
    has them. Raises `ValueError` for a name in `values` that the notebook does not have, for one in
    `shared` that no chapter has, and for fewer training images than the chapters need.
    """
    notebook = nbformat.read(source, as_version=4)
    known = parameters(notebook)
    if unknown := sorted(set(values) - set(known)):
        has = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{source.name} has no parameter {', '.join(unknown)}; it has: {has}")
    shared = shared or {}
    chapters = [nbformat.read(path, as_version=4) for path in source.parent.glob("*.ipynb")]
    if unknown := sorted(set(shared) - set().union(*map(parameters, chapters))):
        raise ValueError(f"no chapter has a parameter {', '.join(unknown)}")
    values = values | {name: value for name, value in shared.items() if name in known}
    values = {name: read(text, name, known[name]) for name, text in values.items()}
    if values.get("n_train", LEAST) < LEAST:
        raise ValueError(f"n_train = {values['n_train']} is too few; use {LEAST} or more")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ |= ONE_THREAD
    start = time.perf_counter()
    result = papermill.execute_notebook(
        str(source),
        None,
        values,
        kernel_name="python3",
        cwd=str(target.parent),
        progress_bar=False,
        extra_arguments=["--log-level=CRITICAL"],
    )
    write(result, target)
    print(f"executed {source.name} in {time.perf_counter() - start:.0f} s", flush=True)


def build(sources: list[Path], folder: Path, jobs: int, shared: dict) -> None:
    """Execute those of `sources` that are newer than their copies in `folder`, `jobs` at a time.

    They are also executed again when the library or a record is newer. Output goes to
    logs/NAME.log beside `folder`. Exits with the message of the first that fails.
    """
    scripts = (ROOT / "book").glob("*.js")
    common = [
        __file__,
        *TOOLS,
        *scripts,
        *(ROOT / "lib").glob("*.py"),
        *(folder / "records").rglob("*.*"),
    ]
    newest = max(os.path.getmtime(file) for file in common)
    logs = folder.parent / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    words = [word for name, value in shared.items() for word in ("--set", name, value)]

    def stale(source):
        target = folder / source.name
        after = max(newest, source.stat().st_mtime)
        return not target.exists() or target.stat().st_mtime < after

    def job(source):
        module = [sys.executable, "-m", "book.chapters"]
        command = [*module, "execute", source, folder / source.name, *words]
        log = logs / f"{source.stem}.log"
        with log.open("w") as output:
            status = subprocess.call(command, stdout=output, stderr=subprocess.STDOUT)
        last = log.read_text(encoding="utf-8").rstrip().splitlines()[-1:]
        if status:
            raise SystemExit("\n".join([*last, f"the log: {log}"]))
        return last[0]

    for line in side_by_side(job, filter(stale, sources), jobs):
        print(line, flush=True)


def side_by_side(job: Callable, cases: Iterable, jobs: int) -> Iterable[str]:
    """Call `job` with each case, `jobs` at a time; yield what they return, with where we are."""
    began = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(job, case) for case in cases]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                line = future.result()
                seconds = time.perf_counter() - began
                yield f"[{done} of {len(futures)}, {seconds:.0f} s] {line}"
        except SystemExit:
            print("a chapter failed; waiting for those that are running", flush=True)
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def clean(source: Path, target: Path) -> None:
    """Copy an executed notebook without what differs from one run or machine to the next."""
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    injected = "injected-parameters"
    notebook.cells = [c for c in notebook.cells if injected not in c.metadata.get("tags", ())]
    for cell in notebook.cells:
        noise = {"papermill", "execution"} | (set() if cell.metadata.get("tags") else {"tags"})
        cell.metadata = {k: v for k, v in cell.metadata.items() if k not in noise}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    nbformat.validate(notebook)
    write(notebook, target)


def collect(folder: Path, target: Path) -> None:
    """Write the ledger of the notebooks in `folder` as a table, one claim a row, and count it."""
    records = ledger.collect(folder)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ledger.COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
    print(f"{target}: {count(records)}", flush=True)


def count(records: list[dict]) -> str:
    """Return in words how many rows of a ledger hold, and of which kind the others are."""
    failing = [record["kind"] for record in records if not record["holds"]]
    words = [f"{len(records) - len(failing)} of {len(records)} claims hold"]
    for kind in sorted(set(failing)):
        number = failing.count(kind)
        plural, verb = ("", "does") if number == 1 else ("s", "do")
        words.append(f"{number} {kind}{plural} {verb} not hold on these data")
    return "; ".join(words)


def record(notebook: Path, folder: Path) -> None:
    """Write the claims of an executed notebook, and what it keeps for figures, to `folder`.

    FOLDER/claims/NOTEBOOK.csv has its part of the ledger, FOLDER/NAME.csv each frame that
    `book.ledger.keep` names; both say when, on what and in how many seconds they were measured.
    FOLDER/NAME.png is each figure that `book.plots.figure` names, with its data sets and its date.
    """
    seconds = nbformat.read(notebook, as_version=4).metadata["papermill"]["duration"]
    source = provenance() | {"seconds": round(seconds)}
    tables = {
        name: frame.assign(**source) for name, frame in ledger.frames(notebook).items()
    }  # fmt: skip
    claims = pd.DataFrame(ledger.collect(notebook))
    tables[f"claims/{notebook.stem}"] = claims.assign(**source)
    for name, frame in tables.items():
        target = folder / f"{name}.csv"
        target.parent.mkdir(parents=True, exist_ok=True)
        store(frame, target, float_format="%.6g")
    for name, png in pictures(notebook).items():
        draw(png, folder / f"{name}.png", f"{source['date']} · {source['machine']}")


def pictures(notebook: Path) -> dict[str, bytes]:
    """Return the figures that a notebook keeps, by name, as PNG; see `book.plots.figure`."""
    outputs = [o for cell in nbformat.read(notebook, 4).cells for o in cell.get("outputs", ())]
    kept = [output for output in outputs if "picture" in output.get("metadata", {})]
    base64 = [re.search('base64,([^"]*)', output.data["text/html"])[1] for output in kept]
    return {o.metadata["picture"]: b64decode(png) for o, png in zip(kept, base64, strict=True)}


def draw(png: bytes, file: Path, source: str) -> None:
    """Write a recorded picture that says where it comes from; raise for one above 150 kB."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Source", source)
    Image.open(BytesIO(png)).save(file, "PNG", optimize=True, pnginfo=text)
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file} has {file.stat().st_size} bytes; draw fewer or smaller pictures")
    print(f"recorded {file}", flush=True)


def compare(old: Path, new: Path) -> None:
    """Say which rows of the ledger differ between two notebooks, or two folders of them.

    A row is the same if item, claim, setting, what was expected and what was measured are. Values
    that are both below 1e-9 differ by rounding, and are only counted. Exits with 1 if rows differ.
    """
    names = ("notebook", "item", "claim", "setting", "expected")
    found = []
    for path in (old, new):
        rows: dict[tuple, list[str]] = {}
        for row in ledger.collect(path):
            rows.setdefault(tuple(row[name] for name in names), []).append(row["measured"])
        found.append(rows)
    before, after = found
    differ, rounding, same = 0, 0, 0
    for key in dict.fromkeys([*before, *after]):
        for a, b in itertools.zip_longest(before.get(key, ()), after.get(key, ()), fillvalue="-"):
            small = "-" not in (a, b) and max(abs(float(a)), abs(float(b))) < 1e-9
            same += a == b
            rounding += a != b and small
            if a != b and not small:
                differ += 1
                print(f"{a} → {b}: {' · '.join(key)}")
    print(f"{same} rows are the same, {rounding} differ by rounding, {differ} differ")
    sys.exit(differ > 0)


def recorder(doc: str) -> argparse.ArgumentParser:
    """The command line of a module that measures into WORK and writes tables to RECORDS.

    >>> recorder("What it does.").parse_args(["work", "records"]).cifar10
    'cifar10'
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--cifar10", default="cifar10", help="name of the data set or its folder")
    return parser


def store(frame: pd.DataFrame, file: Path, **how) -> None:
    """Write a record in one step, so that a run cut short leaves no half of it behind."""
    part = file.with_suffix(".part")
    frame.to_csv(part, index=False, **how)
    part.replace(file)
    print(f"recorded {file}", flush=True)


def provenance() -> dict[str, str]:
    """Return the date, the processor and the versions that a number was measured with."""
    names = ("numpy", "scipy", "torch", "scikit-learn")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": " ".join(f"{name} {version(name)}" for name in names),
    }


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line.split(": ")[1] for line in text.splitlines() if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(notebook, target: Path) -> None:
    """Write in one step, so that a run cut short leaves no half of a notebook behind."""
    part = target.with_suffix(".part")
    nbformat.write(notebook, part)
    os.replace(part, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    two = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    for name in ("execute", "clean", "ledger", "record", "compare"):
        command = commands.add_parser(name)
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path)
        if name == "execute":
            command.add_argument("-p", dest="values", help="a parameter of the notebook", **two)
            command.add_argument("--set", dest="shared", help="the same, if it has it", **two)
    command = commands.add_parser("build")
    command.add_argument("target", type=Path)
    command.add_argument("source", type=Path, nargs="+")
    command.add_argument("--jobs", type=int, default=1)
    command.add_argument("--set", dest="shared", help="a parameter, where there is it", **two)
    args = parser.parse_args()
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback
    shared = {name.lower(): value for name, value in getattr(args, "shared", ())}
    try:
        if args.command == "build":
            build(args.source, args.target, args.jobs, shared)
        elif args.command == "execute":
            execute(args.source, args.target, dict(args.values), shared)
        else:
            commands = {"clean": clean, "ledger": collect, "record": record, "compare": compare}
            function = commands[args.command]
            function(args.source, args.target)
    except PapermillExecutionError as error:
        print(error, flush=True)
        message = " ".join(str(error.evalue).split())
        sys.exit(f"{args.source.name}, cell {error.exec_count}: {error.ename}: {message}")
    except ValueError as error:
        sys.exit(f"{args.source}: {error}")


if __name__ == "__main__":
    main()
