"""Execute a chapter, clean it for git, and collect the ledger.

python book/build.py execute SOURCE TARGET [-p NAME VALUE ...] [--set NAME VALUE ...]
python book/build.py clean SOURCE TARGET
python book/build.py ledger FOLDER CSV
python book/build.py record NOTEBOOK FOLDER
"""

from __future__ import annotations

import argparse
import ast
import base64
import csv
import io
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import nbformat
import pandas as pd
import papermill
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from lib import ledger


def parameters(notebook) -> set[str]:
    """Return the names that the cell tagged `parameters` assigns."""
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    targets = [node for cell in cells for node in ast.walk(ast.parse(cell.source))]
    return {n.id for n in targets if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def execute(source: Path, target: Path, values: dict, shared: dict | None = None) -> None:
    """Run the notebook `source` in the folder of `target`, and keep it there if all cells pass.

    `values` are parameters by name; those in `shared` are passed only if the notebook has them.
    Raises `ValueError` for a name in `values` that the notebook does not have.
    """
    notebook = nbformat.read(source, as_version=4)
    known = parameters(notebook)
    if unknown := sorted(set(values) - known):
        has = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{source.name} has no parameter {', '.join(unknown)}; it has: {has}")
    shared = shared or {}
    chapters = [nbformat.read(path, as_version=4) for path in source.parent.glob("*.ipynb")]
    if unknown := sorted(set(shared) - set().union(*map(parameters, chapters))):
        raise ValueError(f"no chapter has a parameter {', '.join(unknown)}")
    values = values | {name: value for name, value in shared.items() if name in known}
    target.parent.mkdir(parents=True, exist_ok=True)
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
    print(f"executed {source.name} in {time.perf_counter() - start:.1f} s", flush=True)


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
            for output in cell.outputs:
                if png := output.get("data", {}).get("image/png"):
                    output.data["image/png"] = quantise(png)
    nbformat.validate(notebook)
    write(notebook, target)


def quantise(png: str, colours: int = 128) -> str:
    """Return a base64 PNG in at most so many colours; one that has a palette stays as it is."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P":
        return png
    opaque = "A" not in image.getbands() or image.getchannel("A").getextrema()[0] == 255
    method = Image.Quantize.MEDIANCUT if opaque else Image.Quantize.FASTOCTREE
    buffer = io.BytesIO()
    image.convert("RGB" if opaque else "RGBA").quantize(colours, method).save(
        buffer, "PNG", optimize=True
    )
    return base64.b64encode(buffer.getvalue()).decode()


def collect(folder: Path, target: Path) -> None:
    """Write the ledger of the notebooks in `folder` as a table, one claim a row."""
    records = ledger.collect(folder)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ledger.COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
    holding = sum(record["holds"] for record in records)
    print(f"{target}: {holding} of {len(records)} claims hold", flush=True)


def record(notebook: Path, folder: Path) -> None:
    """Write the claims of an executed notebook, and what it keeps for figures, to `folder`.

    FOLDER/claims/NOTEBOOK.csv has its part of the ledger, FOLDER/NAME.csv each frame that
    `lib.ledger.keep` names; both say when, on what and in how many seconds they were measured.
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
        frame.to_csv(target, index=False, float_format="%.6g")
        print(f"recorded {target}", flush=True)


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
    for name in ("execute", "clean", "ledger", "record"):
        command = commands.add_parser(name)
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path)
        if name == "execute":
            two = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
            command.add_argument("-p", dest="values", help="a parameter of the notebook", **two)
            command.add_argument("--set", dest="shared", help="the same, if it has it", **two)
    args = parser.parse_args()
    try:
        if args.command == "execute":
            values = {name: literal(value) for name, value in args.values}
            shared = {name: literal(value) for name, value in args.shared}
            execute(args.source, args.target, values, shared)
        else:
            function = {"clean": clean, "ledger": collect, "record": record}[args.command]
            function(args.source, args.target)
    except (PapermillExecutionError, ValueError) as error:
        sys.exit(f"{args.source}: {error}")


def literal(text: str):
    """Return the Python literal that `text` spells, or `text` itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
