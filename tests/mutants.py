"""Mutation testing: make the library wrong in one place, and see whether its tests notice.

    python -m tests.mutants [MODULE ...] [--sample N]

A mutant is one small change of one module: < for <=, + for -, min for max, a number one larger, a
call, an argument, a minus sign or a statement dropped. A fork of this process, which has imported
torch once, runs tests/test_MODULE.py, or what TESTS has in its place, and the module's doctests
against each.

Verdicts go to _build/mutants.csv as they come, and the next run goes on from there: what was killed
stays so, and survivors are tried again once the module or its tests have changed. For mutants that
no test can tell from the library, tests/equivalent.csv has the reason. tests/mutants.csv is the
record: how many mutants of each module were drawn in its last run, and how many of them survived.
"""

from __future__ import annotations

import argparse
import ast
import copy
import csv
import hashlib
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from datetime import date
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parent.parent
VERDICTS, EQUIVALENT = ROOT / "_build" / "mutants.csv", ROOT / "tests" / "equivalent.csv"
RECORD = ROOT / "tests" / "mutants.csv"
COUNTS = "mutants", "tried", "killed", "equivalent", "survived", "date"
ALLOWED = 0.03  # share of the mutants, without the equivalent ones, that may survive
AUDIT = [
    "tests/test_audit.py",
    "-k",
    "not (browser or of_photos or installed or packages)",
]  # apart
TESTS = {  # of modules without tests/test_MODULE.py, and a choice where all would take long
    "audit": AUDIT, "points": AUDIT, "report": AUDIT,
    "stream": ["tests/test_packed.py", "-k", "stream or influences"],
    "packed": ["tests/test_packed.py", "-k", "not (memory-1- or folder-7- or duplicates)"],
    "retrain": ["tests/test_retrain.py", "-k", "not (thm_2 or dask or kill_9)"],
}  # fmt: skip

FLIPS = {
    ast.Lt: "LtE GtE", ast.LtE: "Lt Gt", ast.Gt: "GtE LtE", ast.GtE: "Gt Lt", ast.Eq: "NotEq",
    ast.NotEq: "Eq", ast.Is: "IsNot", ast.IsNot: "Is", ast.In: "NotIn", ast.NotIn: "In",
    ast.And: "Or", ast.Or: "And", ast.BitAnd: "BitOr", ast.BitOr: "BitAnd", ast.Add: "Sub",
    ast.Sub: "Add", ast.Mult: "Div", ast.Div: "Mult", ast.FloorDiv: "Mult", ast.Mod: "Mult",
    ast.Pow: "Mult",
}  # fmt: skip
PAIRS = (
    "min max, argmin argmax, minimum maximum, amin amax, any all, tril triu, zeros ones, sin cos, "
    "real imag, zeros_like ones_like"
)
SWAPS = {a: b for pair in PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}


def changes(node: ast.AST, imported: set[str]):
    """Yield what may stand in the place of a node."""

    def edited(**fields):
        changed = copy.copy(node)
        vars(changed).update(fields)
        return changed

    def flipped(op):
        return [getattr(ast, name)() for name in FLIPS.get(type(op), "").split()]

    match node:
        case ast.Compare(ops=ops):
            for k, op in enumerate(ops):
                yield from (edited(ops=[*ops[:k], new, *ops[k + 1 :]]) for new in flipped(op))
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op):
            yield from (edited(op=new) for new in flipped(op))
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield edited(value=not value)
        case ast.Constant(value=int(value)):
            yield from (edited(value=value + 1), edited(value=value - 1))
        case ast.Constant(value=float(value)):  # a small one is a tolerance
            yield edited(value=value * (1000 if value < 1e-2 else 2) if value else 1.0)
        case ast.Call(func=func, args=args, keywords=keywords):
            for k in range(len(keywords)):
                yield edited(keywords=[*keywords[:k], *keywords[k + 1 :]])
            if args and not isinstance(args[0], ast.Constant | ast.Starred):
                yield args[0]
            if isinstance(func, ast.Attribute):
                if ast.unparse(func).partition(".")[0] not in imported:
                    yield func.value
        case ast.Name(id=name) if name in SWAPS:
            yield edited(id=SWAPS[name])
        case ast.If(test=test) | ast.IfExp(test=test):
            yield edited(test=ast.UnaryOp(ast.Not(), test))
    if isinstance(node, ast.Attribute) and node.attr in SWAPS:
        yield edited(attr=SWAPS[node.attr])
    if isinstance(node, ast.AugAssign | ast.Expr | ast.Continue | ast.Break):
        yield ast.Pass()


def mutants(module: str):
    """Yield the name of each mutant of a module and its tree, which is good until the next one."""
    tree, seen = ast.parse((ROOT / "lib" / f"{module}.py").read_text(encoding="utf-8")), Counter()
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }  # fmt: skip

    def visit(node, path):
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for k, child in enumerate(value if isinstance(value, list) else [value]):
                text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
                if text or not isinstance(child, ast.AST) or isinstance(child, ast.Raise):
                    continue  # docstrings and the words of errors are no mutants
                where = [*path, child]
                # the largest expression around it that fits a line says which one it is
                around = [n for n in where if isinstance(n, ast.expr) and len(ast.unparse(n)) < 70]
                shown = around[0] if around else child
                scope = [n.name for n in path if isinstance(n, ast.FunctionDef | ast.ClassDef)]
                before = _text(shown)
                for changed in changes(child, imported):
                    several = isinstance(value, list)
                    put = [*value[:k], changed, *value[k + 1 :]] if several else changed
                    setattr(node, field, put)
                    after = _text(changed if shown is child else shown)
                    name = f"{'.'.join([module, *scope])}: {before} → {after}"
                    seen[name] += 1
                    yield name + f" ({seen[name]})" * (seen[name] > 1), tree
                    setattr(node, field, value)
                if not isinstance(child, ast.JoinedStr):
                    yield from visit(child, where)

    yield from visit(tree, [])


def _text(node: ast.AST) -> str:
    return ast.unparse(node.test if isinstance(node, ast.If) else node)


def survives(module: str, tree: ast.Module | None, limit: float) -> bool:
    """Run the tests of a module in a fork, where it is compiled from `tree`; whether they pass."""
    code = compile(ast.fix_missing_locations(tree), f"{module}.py", "exec") if tree else None
    child = os.fork()
    if not child:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit)))  # of its own time: a busy
        signal.alarm(int(10 * limit))  # machine is no verdict
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
        original = SourceFileLoader.get_code
        SourceFileLoader.get_code = lambda self, name: (
            code if code and name == f"lib.{module}" else original(self, name)
        )
        os._exit(pytest.main(["-x", "--hypothesis-profile=mutants", *options(module)]))
    status = os.waitpid(child, 0)[1]
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return status == 0


def options(module: str) -> list[str]:
    quick = "-q -p no:cacheprovider -p no:xdist --assert=plain --tb=no".split()
    return [*quick, f"lib/{module}.py", *tests(module)]


def tests(module: str) -> list[str]:
    """Return the test file that holds a module, and which of its tests if not all."""
    return TESTS.get(module, [f"tests/test_{module}.py"])


def warm(module: str) -> list:
    """Import what the tests of a module need, and forget what is ours; return that, to keep it."""
    pytest.main(["--collect-only", "-qq", *options(module)])
    sys.modules["lib.data"].import_datasets() if "lib.data" in sys.modules else None
    ours = [n for n, m in sys.modules.items() if _ours(m) and n != "__main__"]
    return [sys.modules.pop(name) for name in ours]


def _ours(module) -> bool:
    file = getattr(module, "__file__", None) or ""
    return file.startswith(tuple(f"{ROOT / name}{os.sep}" for name in ("lib", "tests")))


def rows(file: Path) -> dict[str, list[str]]:
    if not file.exists():
        return {}
    with open(file, encoding="utf-8", newline="") as handle:
        return {name: rest for name, *rest in csv.reader(handle)}


def run(module: str, sample: int | None) -> dict[str, str]:
    """Try the mutants of a module, or so many of them drawn at random; return their verdicts."""
    names = [name for name, _ in mutants(module)]
    random.Random(module).shuffle(names)
    files = [ROOT / f for f in (f"lib/{module}.py", tests(module)[0], "tests/cases.py")]
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:12]
    verdicts, equivalent, wanted = {}, rows(EQUIVALENT), names[:sample]
    for name, row in rows(VERDICTS).items():
        if row[0] == "killed" or row[1] == digest:
            verdicts[name] = row[0]
    verdicts |= dict.fromkeys(equivalent, "equivalent")
    todo = {name for name in wanted if name not in verdicts}
    if todo:
        kept, began = warm(module), time.monotonic()
        if not survives(module, None, 3600):
            sys.exit(f"the tests of {module} fail without any change; mend them first")
        limit = 20 + 4 * (time.monotonic() - began)
        VERDICTS.parent.mkdir(exist_ok=True)
        with open(VERDICTS, "a", encoding="utf-8", newline="") as handle:
            for name, tree in mutants(module):
                if name in todo:
                    verdicts[name] = "survived" if survives(module, tree, limit) else "killed"
                    csv.writer(handle).writerow([name, verdicts[name], digest])
                    handle.flush()
                    print("." if verdicts[name] == "killed" else f"\n{name}\n", end="", flush=True)
        del kept
    return {name: verdicts[name] for name in wanted}


def modules() -> list[str]:
    """Return the modules of the library that have mutants."""
    names = sorted(file.stem for file in ROOT.glob("lib/*.py"))
    return [name for name in names if next(mutants(name), None)]


def record(module: str, count: Counter) -> None:
    """Write the row of a module into the record, in the place of its last one."""
    every = sum(1 for _ in mutants(module))
    row = [every, count.total(), *(count[verdict] for verdict in COUNTS[2:5]), date.today()]
    table = {m: r for m, r in rows(RECORD).items() if r != [*COUNTS]} | {module: row}
    with open(RECORD, "w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, lineterminator="\n").writerows(
            [name, *rest] for name, rest in [("module", COUNTS), *sorted(table.items())]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="of lib; without it, each")
    parser.add_argument("--sample", type=int, help="try so many mutants of a module, not all")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    settings.register_profile(
        "mutants", max_examples=40, deadline=None, derandomize=True, database=None,
        phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    total = Counter()
    for module in arguments.modules or modules():
        verdicts = run(module, arguments.sample)
        count = Counter(verdicts.values())
        total += count
        record(module, count)
        print(f"\n{module}:", ", ".join(f"{n} {verdict}" for verdict, n in sorted(count.items())))
        print(*(f"  {name}" for name, v in verdicts.items() if v == "survived"), sep="\n")
    tried = total["killed"] + total["survived"]
    print(f"{total['survived']} of {tried} mutants survive, {total['equivalent']} are equivalent")
    sys.exit(total["survived"] > ALLOWED * tried)


if __name__ == "__main__":
    main()
