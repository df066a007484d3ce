"""What the repository says of itself is true: its dependencies, notebooks, pages and README."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(r) for r in sum(EXTRAS.values(), PROJECT["dependencies"])]
FORBIDDEN = r"TODO|FIXME|XXX|(?<![\w.~/])/[a-z]+/\w+/|allow_errors|except AssertionError"

spec = importlib.util.spec_from_file_location("build", ROOT / "book" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


# --- dependencies -----------------------------------------------------------------------------


def test_conda_installs_what_pyproject_lists():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert packages[-1] == {"pip": [f"-e .[{','.join(EXTRAS)}]"]}
    python = next(p for p in packages if str(p).startswith("python="))
    minor = int(python.removeprefix("python=3."))
    assert minor >= int(PROJECT["requires-python"].removeprefix(">=3."))


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_version_is_bounded_and_installed(requirement):
    operators = {s.operator for s in requirement.specifier}
    assert operators & {"<", "=="}, f"{requirement} has no upper bound"
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)


def test_every_import_is_declared():
    declared = {canonicalize_name(r.name) for r in REQUIREMENTS} | {"ntk-influence"}
    distributions = packages_distributions()
    sources = {p: p.read_text(encoding="utf-8") for p in ROOT.glob("[!._]*/*.py")}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        sources[path] = "\n".join(c.source for c in cells if c.cell_type == "code")
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names):
                if not (ROOT / top).is_dir() and not list(path.parent.glob(f"{top}.py")):
                    owners = {canonicalize_name(d) for d in distributions.get(top, ())}
                    assert owners & declared, f"{path.name} imports {top}, not in pyproject.toml"


# --- notebooks --------------------------------------------------------------------------------


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def code(path) -> list:
    """The code cells of a notebook."""
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def tags(cell) -> set:
    return set(cell.metadata.get("tags", ()))


def test_notebooks_are_the_chapters():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {c["file"] for part in toc["parts"] for c in part["chapters"]}
    assert NOTEBOOKS and {f"book/{p.stem}" for p in NOTEBOOKS} <= listed
    assert all(list(ROOT.glob(f"{file}.*")) for file in listed | {toc["root"]})


def test_parameters_are_in_one_cell(code):
    assert sum("parameters" in tags(cell) for cell in code) == 1


def test_a_checked_cell_has_a_stored_output(code):
    def checked(output):
        return output.output_type == "stream" or set(output.get("data", ())) - {"image/png"}

    cells = [c for c in code if not tags(c) & {"nbval-ignore-output", "nbval-skip"}]
    assert any(checked(output) for cell in cells for output in cell.outputs)


def test_stored_outputs_are_of_one_clean_run(path, code, tmp_path):
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(o.output_type == "error" for cell in code for o in cell.outputs)
    build.clean(path, tmp_path / path.name)
    same = (tmp_path / path.name).read_text() == path.read_text()
    assert same, f"{path.name} holds what differs from run to run; `make notebooks` stores it clean"


def test_chapter_records_claims_that_hold(path, code):
    records = [
        o.metadata["ledger"] for c in code for o in c.outputs if "ledger" in o.get("metadata", {})
    ]
    assert records or path.stem == "ledger"
    assert all(record["holds"] for record in records)


def test_what_a_chapter_draws_from_records_is_there(code):
    names = {name for cell in code for name in re.findall(r'\brecorded\("([\w-]+)"', cell.source)}
    missing = [name for name in names if not (ROOT / "book" / "records" / f"{name}.csv").is_file()]
    assert not missing, f"make paper records {missing}"


def test_no_word_that_has_no_place_in_a_chapter(path):
    for cell in nbformat.read(path, as_version=4).cells:
        text = cell.source + "".join(
            str(o.get("text", o.get("data", {}).get("text/plain"))) for o in cell.get("outputs", ())
        )
        assert not (found := re.search(FORBIDDEN, text)), found


def test_misspelt_parameter_is_refused(path, tmp_path):
    with pytest.raises(ValueError, match="has no parameter lamda; it has: "):
        build.execute(path, tmp_path / path.name, {"lamda": 1.0})
    assert not list(tmp_path.iterdir())


def test_shared_parameter_that_no_chapter_has_is_refused(path, tmp_path):
    with pytest.raises(ValueError, match="no chapter has a parameter n_trian"):
        build.execute(path, tmp_path / path.name, {}, {"n_trian": 20})


def test_quantised_picture_stays_as_it_is():
    from base64 import b64encode
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "PNG")
    once = build.quantise(b64encode(buffer.getvalue()).decode())
    assert build.quantise(once) == once and len(once) < len(b64encode(buffer.getvalue()))


# --- pages ------------------------------------------------------------------------------------


def test_api_page_has_every_module():
    listed = re.findall(r"automodule:: (lib\.\w+)", (ROOT / "book" / "api.md").read_text())
    modules = {f"lib.{p.stem}" for p in (ROOT / "lib").glob("*.py") if p.stem != "__init__"}
    assert sorted(listed) == sorted(modules)


def rows() -> list[tuple[str, str, str]]:
    """Rows of the README's table `item | function | page`, as (items, functions, pages)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    cells = [
        re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")
    ]
    return [tuple(row) for row in cells if len(row) == 3 and "`lib." in row[1]]


def test_readme_has_the_table():
    items = " ".join(row[0] for row in rows())
    for item in [f"Eq {n}" for n in (1, 4, 5, 6, 8, 9, 13, 14, 15)] + ["Prop 2"]:
        assert re.search(rf"{item}\b", items), f"{item} has no row in the README's table"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].strip())
def test_readme_row_is_true(row):
    items = re.findall(r"\b(?:Eq|Thm|Prop|Def|Fig|Table) \d+", row[0])
    functions = re.findall(r"`(lib\.[\w.]+)", row[1])
    pages = re.findall(r"book/([\w-]+)\.(?:ipynb|html|md)#([\w-]+)", row[2])
    assert items and functions and pages, "a row names its items, functions and pages with anchors"
    docs = "\n".join(documentation(name) for name in functions)
    tests = "\n".join(
        re.findall(r"def (test_\w+)", "\n".join(p.read_text() for p in ROOT.glob("tests/*.py")))
    )
    for item in items:
        assert names(item, docs), f"no docstring of {functions} contains {item}"
        wanted = item.lower().replace(" ", "_?")
        assert re.search(rf"_{wanted}(?!\d)", tests), f"no test is named after {item}"
    for page, anchor in pages:
        found = (*ROOT.glob(f"book/{page}.ipynb"), *ROOT.glob(f"book/{page}.md"))
        assert found, f"there is no page book/{page}"
        label = anchor.removeprefix("equation-")
        source = nbformat.read(found[0], as_version=4) if found[0].suffix == ".ipynb" else None
        text = "\n".join(c.source for c in source.cells) if source else found[0].read_text()
        assert re.search(rf"^\({label}\)=$|^:label: {label}$|\$\$ ?\({label}\)", text, re.M), label


def documentation(name: str) -> str:
    """The docstring of `lib.module`, `lib.module.function` or `lib.module.Class.method`."""
    module, *attributes = name.removeprefix("lib.").split(".")
    found = importlib.import_module(f"lib.{module}")
    for attribute in attributes:
        found = getattr(found, attribute)
    return found.__doc__ or ""


def names(item: str, text: str) -> bool:
    """Whether the text contains an item, alone or in a list or range: "Eq 4, 5", "Eq 5-9"."""
    kind, number = item.split()
    for run in re.findall(rf"\b{kind}s?\.? (\d+(?:(?:, | and |[-–])\d+)*)", text):
        for part in re.split(", | and ", run):
            first, *last = map(int, re.split("[-–]", part))
            if first <= int(number) <= (last or [first])[0]:
                return True
    return False


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PROJECT["version"]


def test_git_keeps_the_library():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    ignored = subprocess.run(
        ["git", "check-ignore", "lib/kernel.py"], cwd=ROOT, capture_output=True
    )
    assert ignored.returncode == 1, "lib/ is ignored by git"
