"""What the repository says of itself is true: its dependencies, notebooks, pages and README."""

from __future__ import annotations

import ast
import csv
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from datetime import date
from importlib.metadata import packages_distributions, version
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from book import chapters, plots, sweep
from tests import mutants

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(r) for r in sum(EXTRAS.values(), PROJECT["dependencies"])]
OPTIONAL = {"labels"}  # which only `make labels` installs
FORBIDDEN = r"TODO|FIXME|XXX|(?<![\w.~/])/[a-z]+/\w+/|allow_errors|except AssertionError"


# --- dependencies -----------------------------------------------------------------------------


def test_conda_installs_what_pyproject_lists():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    wanted = [extra for extra in EXTRAS if extra not in OPTIONAL]
    assert packages[-1] == {"pip": [f"-e .[{','.join(wanted)}]"]}
    python = next(p for p in packages if str(p).startswith("python="))
    minor = int(python.removeprefix("python=3."))
    assert minor >= int(PROJECT["requires-python"].removeprefix(">=3."))


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda r: r.name)
def test_version_is_bounded_and_installed(requirement):
    operators = {s.operator for s in requirement.specifier}
    assert operators & {"<", "=="}, f"{requirement} has no upper bound"
    optional = {Requirement(r).name for extra in OPTIONAL for r in EXTRAS[extra]}
    if requirement.name in optional and not importlib.util.find_spec(requirement.name):
        pytest.skip("`make labels` installs it")
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)


def test_every_import_is_declared():
    declared = {canonicalize_name(r.name) for r in REQUIREMENTS} | {"ntk-influence"}
    declared |= {"pydvl"}  # `make labels` installs it, without what it asks for
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
                if not (ROOT / top).is_dir() and not list(ROOT.glob(f"[!._]*/{top}.py")):
                    owners = {canonicalize_name(d) for d in distributions.get(top, [top])}
                    assert owners & declared, f"{path.name} imports {top}, not in pyproject.toml"


# what the book needs and the library does not
OF_THE_BOOK = ["IPython", "pandas", "seaborn", "matplotlib", "nbformat", "papermill"]


def loaded(*modules: str) -> dict[str, list[str]]:
    """Import modules one by one in a fresh process; what of the book each has loaded."""
    program = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
    print(name, *sorted(set({OF_THE_BOOK}) & set(sys.modules)))"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True
    )
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}


def test_no_module_of_the_library_loads_what_only_the_book_needs():
    tool = {"__init__", "audit", "points", "report"}  # which reads tables
    others = sorted(f"lib.{p.stem}" for p in ROOT.glob("lib/*.py") if p.stem not in tool)
    *found, control = loaded("lib", "lib.ridge", *others, "book.plots").items()
    assert {"lib.ridge", "lib.retrain", "lib.data"} <= dict(found).keys()
    assert not any(what for _, what in found), found
    assert {"matplotlib", "seaborn"} <= set(control[1])


def test_folders_of_the_same_name_where_one_works_hide_no_package(tmp_path):
    for name in ("lib", "book"):
        (tmp_path / name).mkdir()
    program = "import lib.ridge, book.measures; print(lib.__file__, book.__file__, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, check=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},  # as it is installed
    )  # fmt: skip
    for path, name in zip(map(Path, done.stdout.splitlines()), ("lib", "book"), strict=True):
        assert path.parts[-2:] == (name, "__init__.py") and not path.is_relative_to(tmp_path)


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
    assert NOTEBOOKS and {f"book/{p.stem}" for p in NOTEBOOKS} <= listed | {toc["root"]}
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
    chapters.clean(path, tmp_path / path.name)
    same = (tmp_path / path.name).read_text() == path.read_text()
    assert same, f"{path.name} holds what differs from run to run; `make notebooks` stores it clean"


def test_chapter_records_claims_that_hold(path, code):
    records = [
        row for c in code for o in c.outputs for row in o.get("metadata", {}).get("ledger", [])
    ]
    assert records or path.stem in ("ledger", "summary")  # which count those of the others
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
        chapters.execute(path, tmp_path / path.name, {"lamda": 1.0})
    assert not list(tmp_path.iterdir())


def test_shared_parameter_that_no_chapter_has_is_refused(path, tmp_path):
    with pytest.raises(ValueError, match="no chapter has a parameter n_trian"):
        chapters.execute(path, tmp_path / path.name, {}, {"n_trian": 20})


def test_figures_that_are_named_are_recorded_as_pictures(tmp_path):
    from IPython.display import HTML

    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "display", lambda page, metadata=None: drawn.append((page, metadata)))
        for name in (None, "fig-4"):
            plots.plt.plot([1, 2])
            plots.figure("1.1", "A line.", "One line that rises.", record=name)
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": page.data}, metadata=kept)
        for page, kept in drawn
    ]
    assert all(isinstance(page, HTML) for page, _ in drawn)
    cell = nbformat.v4.new_code_cell("", outputs=outputs)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    kept = chapters.pictures(tmp_path / "a.ipynb")
    assert list(kept) == ["fig-4"] and kept["fig-4"].startswith(b"\x89PNG")
    chapters.draw(kept["fig-4"], tmp_path / "fig-4.png", "2026-01-02 · two cores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "display", lambda page: drawn.append(page))
        plots.recorded_figure("fig-4", "1.2", "A line.", "One line.", folder=tmp_path)
    assert "<b>Figure 1.2.</b> A line. (Recorded · 2026-01-02 · two cores)" in drawn[-1].data
    assert 'alt="One line."' in drawn[-1].data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapters, "LARGEST", 100)
        with pytest.raises(ValueError, match="bytes; draw fewer or smaller pictures"):
            chapters.draw(kept["fig-4"], tmp_path / "fig-4.png", "")


# --- the form of a page ---------------------------------------------------------------------------

LONGEST = 30  # lines of a cell
PAGES = [page for page in NOTEBOOKS if re.match(r"\d\d-", page.name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_begins_with_its_question_and_ends_with_its_checks(page):
    cells = nbformat.read(page, as_version=4).cells
    first = cells[0].source
    assert first.startswith("# ") and re.search(r"\*\*[^*]*\?\*\*", first), "a question in bold"
    (closed,) = [k for k, c in enumerate(cells) if "\n## How this was checked\n" in c.source]
    rest = [c.source for c in cells[closed + 1 :] if c.cell_type == "markdown"]
    rest.append(cells[closed].source.split("## How this was checked")[1])
    assert not [text for text in rest if re.search("^##? ", text, re.MULTILINE)], "it comes last"
    assert "## What it means for you" in "\n".join(cell.source for cell in cells[: closed + 1])
    for k, cell in enumerate(cells):
        if cell.cell_type == "code":
            tags = cell.metadata.get("tags", ())
            lines = len(cell.source.splitlines())
            assert lines <= LONGEST and ("hide-input" in tags or lines <= 14), cell.source
            calls = re.search(r"\b(claim|finding|refute)\(", cell.source)
            assert not calls or k > closed, cell.source


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_figures_and_tables_have_numbers_in_order_captions_and_texts(page):
    chapter = str(int(page.name[:2]))
    found = {"Figure": [], "Table": []}
    for cell in nbformat.read(page, as_version=4).cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            assert "image/png" not in data, "a figure without plots.figure"
            shown = data.get("text/html", "")
            for kind, number, caption in re.findall(r"<b>(\w+) ([\d.]+)\.</b> ([^<]*)", shown):
                found[kind].append(number)
                assert len(caption) > 15, caption
            texts = re.findall(r'<img alt="([^"]*)"', shown)
            assert all(len(text) > 30 for text in texts) and shown.count(
                '<figure class="plot'
            ) == len(texts)
            raw = 'class="dataframe"' in shown and "figcaption" not in shown
            assert not raw, "a table without plots.table"
    for numbers in found.values():
        assert numbers == [f"{chapter}.{k + 1}" for k in range(len(numbers))]
    assert found["Figure"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_picture_comes_before_the_first_section(page):
    cells = nbformat.read(page, as_version=4).cells
    section = next(k for k, cell in enumerate(cells) if re.search("^## ", cell.source, re.M))
    shown = [str(cell.get("outputs", "")) for cell in cells[:section]]
    pictures = [k for k, x in enumerate(shown) if re.search('class=\\\\?"(plot|explorer)', x)]
    assert pictures, "no picture in the first screen"
    code = [cell for cell in cells[: pictures[0]] if cell.cell_type == "code"]
    assert len(code) <= 4 and all("hide-input" in tags(cell) for cell in code)


# --- commands ---------------------------------------------------------------------------------


def make(*arguments, rules=""):
    """Run make with the repository's Makefile and further rules; return its output."""
    command = ["make", "-s", "-f", "-", *arguments]
    rules = f"include Makefile\n{rules}"
    environ = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(
        command, cwd=ROOT, env=environ, input=rules, text=True, capture_output=True, check=True
    ).stdout


def test_help_lists_every_parameter():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    parameters = set(re.findall(r"^([A-Z_0-9]+) \?=", text, re.M))
    told = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True).stdout
    assert {"DATASETS", "SIZE", "JOBS"} <= parameters
    assert parameters | {"NTK_DATA"} <= set(re.findall(r"^([A-Z_0-9]+)  +\w", told, re.M))
    commands = re.search(r"^\.PHONY: (.*)", text, re.M)[1].split()
    inner = {"help", "site", "install", "stored"}
    assert set(commands) - set(re.findall(r"make (\w+)", told)) == inner


@pytest.mark.parametrize("target", ["book", "notebooks"])
def test_what_writes_the_build_waits_for_others_that_do(target):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:\n\t@\$\(RUN\) --lock _build/lock \$\(MAKE\)", text, re.M)


@pytest.mark.parametrize(
    "name", ["mnist:4/9, digits:3/8", "/o'neil's photos:a b/c++", 'a"b$c', "2024", "; #", "-1"]
)
def test_data_sets_reach_the_chapters_as_they_are(name):
    rules = "p:\n\t@printf '%s\\n' $(SET)\n\t@echo '$(BUILD)' $(NTK_FINDINGS)"
    *words, build = make("p", f"DATASETS={name}", "SIZE=32", rules=rules).splitlines()
    assert words == ["--set", "DATASETS", name, "--set", "SIZE", "32"]
    assert re.fullmatch(r"_build/\w*-\d+ report", build)
    other = make("p", f"DATASETS={name}/", "SIZE=32", rules=rules).splitlines()[-1]
    assert other != build
    assert make("p", rules=rules).splitlines() == ["", "_build raise"]


def test_a_value_is_text_where_the_default_is():
    assert chapters.read("2024", "datasets", "digits:3/8") == "2024"
    assert chapters.read("60", "n_train", 240) == 60
    assert chapters.read("32", "size", None) == 32
    for text in ("many", "None", "60.5", "True", "1e999", "(60,)"):
        words = re.escape(f"n_train = {text} is not a whole number; by default it is 240")
        with pytest.raises(ValueError, match=words):
            chapters.read(text, "n_train", 240)


def test_a_whole_number_is_an_int_however_it_is_written():
    for value in (chapters.read("6e1", "n_train", 240), chapters.read("60.0", "size", None)):
        assert value == 60 and type(value) is int
    assert chapters.read("None", "size", None) is None
    with pytest.raises(ValueError, match="size = 32.5 is not a whole number; by def"):
        chapters.read("32.5", "size", None)
    assert chapters.read("1e-1", "lam", 1.0) == 0.1
    for text in ("None", "1e999", "[1]", "ten"):
        with pytest.raises(ValueError, match="is not a number; by default it is 1.0"):
            chapters.read(text, "lam", 1.0)
    assert chapters.read("(1.0, 2.0)", "lams", (10.0, 1.0)) == (1.0, 2.0)
    with pytest.raises(ValueError, match="lams = 3 is not a tuple; by default it is"):
        chapters.read("3", "lams", (10.0, 1.0))


def test_too_few_images_for_the_chapters_are_refused_before_any_is_executed(tmp_path):
    with pytest.raises(ValueError, match="n_train = 18 is too few; use 20 or more"):
        page = ROOT / "book" / "10-complexity.ipynb"
        chapters.execute(page, tmp_path / page.name, {}, {"n_train": "18"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "page", ["01-kernel", "07-regularisation", "09-trust", "10-complexity", "11-dynamics"]
)
def test_photos_of_one_colour_stop_no_page(tmp_path, monkeypatch, page):
    """Equal images within a class, and no likeness between the classes: little is defined there."""
    monkeypatch.setenv("NTK_FINDINGS", "report")
    for name, channel in (("red", 0), ("blue", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(24):
            image = np.zeros((8, 8, 3), dtype=np.uint8)
            image[:, :, channel] = 60 + 8 * i
            Image.fromarray(image).save(tmp_path / "photos" / name / f"{i:02}.png")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "records").symlink_to(ROOT / "book" / "records")
    target = tmp_path / "book" / f"{page}.ipynb"
    shared = {"datasets": f"{tmp_path}/photos:red/blue", "n_train": "20", "n_test": "10"}
    chapters.execute(ROOT / "book" / target.name, target, {}, shared)
    assert chapters.ledger.collect(target)


def test_no_module_is_named_as_what_pip_leaves_behind():
    names = {
        path.stem for folder in ("book", "bench", "tests") for path in ROOT.glob(f"{folder}/*.py")
    }
    assert not names & {"build", "dist"}
    if (ROOT / ".git").exists():
        left = ["build/lib/lib/x.py", "dist/x.whl"]
        ignored = subprocess.run(
            ["git", "check-ignore", *left], cwd=ROOT, capture_output=True, text=True
        )
        assert ignored.stdout.split() == left


RUN = [sys.executable, str(ROOT / "book" / "run.py")]


def test_two_builds_wait_for_each_other(tmp_path):
    command = [*RUN, "--lock", str(tmp_path / "new" / "lock"), "sh", "-c"]
    first = subprocess.Popen([*command, "echo begun; read line"], stdin=-1, stdout=-1, text=True)
    assert first.stdout.readline() == "begun\n"
    second = subprocess.Popen([*command, "echo second"], stdout=-1, text=True)
    assert second.stdout.readline().startswith("waiting for another make")
    assert second.poll() is None
    first.communicate("go on\n")
    assert second.communicate()[0] == "second\n" and second.returncode == 0


def test_a_failure_names_its_log(tmp_path):
    log = tmp_path / "x.log"
    command = [*RUN, "--log", str(log), "sh", "-c", "echo told; echo why >&2; exit 3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3 and log.read_text() == "told\nwhy\n"
    assert done.stderr == f"told\nwhy\nsh failed; the log: {log}\n"


def write_notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    language = {"language_info": {"name": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=language), path)


BUILD = [sys.executable, str(ROOT / "book" / "chapters.py"), "build"]


def test_build_says_where_it_is_and_what_failed(tmp_path):
    write_notebook(tmp_path / "01.ipynb", "n = 1", "print(n)")
    write_notebook(tmp_path / "02.ipynb", "n = 1", "assert n == 1, f'n is\\n{n}'")
    command = [*BUILD, tmp_path / "new" / "book", tmp_path / "01.ipynb", tmp_path / "02.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"\[1 of 2, \d+ s\] executed 01.ipynb in \d+ s", lines[0])
    assert re.fullmatch(r"\[2 of 2, \d+ s\] executed 02.ipynb in \d+ s", lines[1])
    (tmp_path / "02.ipynb").touch()
    done = subprocess.run([*command, "--set", "N", "2"], capture_output=True, text=True)
    log = tmp_path / "new" / "logs" / "02.log"
    assert done.returncode == 1 and "01.ipynb" not in done.stdout
    assert done.stderr == f"02.ipynb, cell 3: AssertionError: n is 2\nthe log: {log}\n"
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT], ids=str)
@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_what_make_started_ends_with_it(tmp_path, how):
    if how == signal.SIGINT and not Path("/proc/self/status").exists():
        pytest.skip("only Linux shows that make was interrupted")
    pid = tmp_path / "pid"
    sleep = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    write_notebook(tmp_path / "01.ipynb", "n = 1", sleep)
    command = " ".join(map(str, [*RUN, *BUILD, tmp_path / "new" / "book", tmp_path / "01.ipynb"]))
    started = subprocess.Popen(
        ["make", "-f", "-"], stdin=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # nohup ignores it
    )  # fmt: skip
    started.stdin.write(f"p:\n\t@exec {command}\n")
    started.stdin.close()

    def wait(condition):
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.1)

    wait(lambda: pid.exists() and pid.read_text())
    os.kill(started.pid, how)
    wait(lambda: not running(int(pid.read_text())))
    assert started.wait(timeout=10) != 0


def running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


def test_rows_that_do_not_hold_are_counted():
    def rows(kind, *holds):
        return [{"kind": kind, "holds": bool(h)} for h in holds]

    held = rows("claim", 1, 1)
    assert chapters.count(held) == "2 of 2 claims hold"
    mixed = held + rows("finding", 0, 1, 0) + rows("control", 0)
    words = "1 control does not hold on these data; 2 findings do not hold on these data"
    assert chapters.count(mixed) == f"3 of 6 claims hold; {words}"


# --- the sweep ---------------------------------------------------------------------------------


def test_a_setting_changes_one_thing_of_the_defaults():
    names = [setting.name for setting in sweep.SETTINGS]
    assert len(set(names)) == len(names) and sweep.SETTINGS[0].change == {}
    changed = {setting.group: set(setting.change) for setting in sweep.SETTINGS[1:]}
    assert changed.pop("other n") >= {"n_train", "n_points"}
    assert changed == {
        "other classes": {"datasets"}, "other seeds": {"seed"}, "other λ": {"lam"}
    }  # fmt: skip
    known = set().union(
        *(chapters.parameters(nbformat.read(path, as_version=4)) for path in NOTEBOOKS)
    )
    assert set().union(*(setting.change for setting in sweep.SETTINGS)) <= known
    held_out = {pair for pairs in sweep.PAIRS.values() for pair in pairs}
    assert not held_out & {"4/9", "airplane/automobile"} and "3/8" not in sweep.PAIRS["digits"]


def plan(tmp_path, *names):
    settings = [setting for setting in sweep.SETTINGS if setting.name in names]
    chapter = tmp_path / "02-a.ipynb"
    runs = sweep.plan(settings, [chapter], tmp_path / "work", "nowhere")
    for folder in {run.folder for run in runs}:
        folder.mkdir(parents=True, exist_ok=True)
    return runs


PARAMETERS = 'datasets = "digits:3/8"\nn_train = 120\nn_test = 100\nseed = 5\nlam = 1.0'


def test_sweep_plans_what_the_images_allow(tmp_path, capsys, no_network, monkeypatch):
    monkeypatch.setenv("NTK_DATA", str(tmp_path / "data"))
    write_notebook(tmp_path / "02-a.ipynb", PARAMETERS.replace("120", "320"))
    names = ("as on the pages", "digits 1/7", "mnist 1/7", "seed + 100", "n / 2", "2 n", "λ = 10")
    found = {run.setting.name: run.values for run in plan(tmp_path, *names)}
    assert found == {
        "digits 1/7": {"datasets": "digits:1/7", "n_train": 160}, "n / 2": {"n_train": 160}
    }  # fmt: skip
    write_notebook(tmp_path / "02-a.ipynb", PARAMETERS)
    found = {run.setting.name: run.values for run in plan(tmp_path, *names)}
    assert found == {
        "as on the pages": {}, "digits 1/7": {"datasets": "digits:1/7"},
        "seed + 100": {"seed": 105}, "n / 2": {"n_train": 60}, "2 n": {"n_train": 240},
        "λ = 10": {"lam": 10.0},
    }  # fmt: skip
    write_notebook(tmp_path / "02-a.ipynb", PARAMETERS.replace("datasets", "source"))
    names += ("cifar10 cat/dog", "mnist 4/9, 2 n")  # whose images this chapter does not take
    found = {run.setting.name: run.values for run in plan(tmp_path, *names)}
    assert found["digits 1/7"] == {"source": "digits:1/7"} and "2 n" in found
    assert not {"mnist 1/7", "cifar10 cat/dog", "mnist 4/9, 2 n"} & set(found)
    write_notebook(tmp_path / "02-a.ipynb", "n_train = 120\nseed = 5")
    assert {"seed + 100", "2 n"} < {run.setting.name for run in plan(tmp_path, *names)}
    told = capsys.readouterr().out
    assert "mnist 1/7: left out, " in told and "2 n, 02-a: left out, n_train = 640" in told


def test_sweep_records_what_holds_where_and_does_nothing_twice(tmp_path):
    body = """from book.ledger import claim, finding, refute
claim("Thm 3", "a bound", f"{datasets}, λ = {lam:g}", 0.25 * lam, "< 1")
for k in range(2):
    finding("Fig 5", f"group {k} leads", f"{datasets}, λ = {lam:g}", seed + k, "<= 5")
finding("Fig 5", "recorded: group 3 leads", "mnist", 1, "== 1")
finding("Fig 5", "group 4 leads", "recorded: mnist", 1, "== 1")
assert n_train > 60"""
    write_notebook(tmp_path / "02-a.ipynb", PARAMETERS, body)
    runs = plan(tmp_path, "as on the pages", "seed + 100", "n / 2", "λ = 10")
    for run in runs:
        assert run.outcome() is None
        sweep.execute(run)
    frames = sweep.tables(runs)
    first, second = frames["sweep"].to_dict("records")
    assert (first["item"], first["claim"], first["kind"]) == ("Thm 3", "a bound", "claim")
    assert (second["item"], second["claim"], second["kind"]) == (
        "Fig 5",
        "group … leads",
        "finding",
    )
    assert [first[run.setting.name] for run in runs] == ["1/1", "1/1", "", ""]
    assert [second[run.setting.name] for run in runs] == ["1/2", "0/2", "", ""]
    states = frames["sweep-runs"].set_index("setting").status
    assert list(states[run.setting.name] for run in runs) == ["done", "done", "crash", "violated"]
    failed = frames["sweep-exceptions"]
    assert list(failed.kind) == ["finding"] * 3 + ["claim"]
    assert list(failed.measured) == ["6", "105", "106", "2.5"]
    assert list(failed["where"])[-1] == "digits:3/8, λ = 10"
    sweep.record(frames, tmp_path)
    dates = pd.read_csv(tmp_path / "sweep-runs.csv")
    assert (dates.date == runs[0].outcome()["source"]["date"]).all()
    assert {"machine", "versions"} <= set(dates)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("sweep*.csv")}
    assert len(before) == 3 and all(run.outcome() for run in plan(tmp_path, *states.index))
    sweep.record(sweep.tables(runs), tmp_path)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    others = pd.DataFrame(
        {
            "page": ["01-b", "03-c"],
            "setting": "n / 2",
            "message": ["", "a, b"],
            "seconds": ["1.0", "2"],
        }
    )
    sweep.record({name: others for name in frames}, tmp_path)  # on other chapters
    runs_kept = pd.read_csv(tmp_path / "sweep-runs.csv")
    assert list(runs_kept.page) == ["01-b", *["02-a"] * 4, "03-c"]
    assert (
        runs_kept[runs_kept.page == "02-a"]
        .dropna(axis=1, how="all")
        .equals(dates.set_axis(range(1, 5)).dropna(axis=1, how="all"))
    )
    sweep.record(sweep.tables(runs[:2]), tmp_path)  # lacks two settings of the record
    assert runs_kept.equals(pd.read_csv(tmp_path / "sweep-runs.csv"))
    sweep.record(sweep.tables(runs), tmp_path)
    assert runs_kept.equals(pd.read_csv(tmp_path / "sweep-runs.csv"))
    write_notebook(tmp_path / "02-a.ipynb", PARAMETERS, body + "\npass")
    sweep.code.cache_clear()
    assert all(run.outcome() is None for run in runs)


def test_comments_and_docstrings_ask_for_no_new_sweep(tmp_path):
    (tmp_path / "a.py").write_text('"""One."""\ndef f(x):\n    """Two."""\n    return x  # three\n')
    (tmp_path / "b.py").write_text('"""1."""\ndef f(x):\n    """2."""\n    return x\n')
    (tmp_path / "c.py").write_text('"""1."""\ndef f(x):\n    """2."""\n    return -x\n')
    one, same, other = (sweep.bare(tmp_path / f"{name}.py") for name in "abc")
    assert one == same != other


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
    return [tuple(row) for row in cells if len(row) == 3 and re.search("`(lib|book)[.]", row[1])]


def test_readme_has_the_table():
    items = " ".join(row[0] for row in rows())
    for item in [f"Eq {n}" for n in (1, 4, 5, 6, 8, 9, 13, 14, 15)] + ["Prop 2"]:
        assert re.search(rf"{item}\b", items), f"{item} has no row in the README's table"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].strip())
def test_readme_row_is_true(row):
    items = re.findall(r"\b(?:Eq|Thm|Prop|Def|Fig|Table) \d+", row[0])
    functions = re.findall(r"`((?:lib|book)\.[\w.]+)", row[1])
    pages = re.findall(r"book/([\w-]+)\.(?:ipynb|html|md)#([\w-]+)", row[2])
    assert items and functions and pages, "a row names its items, functions and pages with anchors"
    docs = "\n".join(documentation(name) for name in functions)
    for item in items:
        assert names(item, docs), f"no docstring of {functions} contains {item}"
        wanted = item.lower().replace(" ", "_")
        assert re.search(rf"_{wanted}(?!\d)", names_of_tests()), f"no test is named after {item}"
    for page, anchor in pages:
        found = (*ROOT.glob(f"book/{page}.ipynb"), *ROOT.glob(f"book/{page}.md"))
        assert found, f"there is no page book/{page}"
        label = anchor.removeprefix("equation-")
        source = nbformat.read(found[0], as_version=4) if found[0].suffix == ".ipynb" else None
        text = "\n".join(c.source for c in source.cells) if source else found[0].read_text()
        assert re.search(rf"^\({label}\)=$|^:label: {label}$|\$\$ ?\({label}\)", text, re.M), label


def names_of_tests() -> str:
    """The names of all tests, a line each."""
    sources = "\n".join(p.read_text(encoding="utf-8") for p in ROOT.glob("tests/*.py"))
    return "\n".join(re.findall(r"def (test_\w+)", sources))


def test_names_of_tests_write_an_item_in_one_way():
    assert not re.findall(r".*_(?:eq|thm|prop|def|fig|table)\d.*", names_of_tests())  # but eq_9


def test_mutants_without_a_difference_are_mutants_of_the_library():
    there = {name for file in ROOT.glob("lib/*.py") for name, _ in mutants.mutants(file.stem)}
    listed = mutants.rows(mutants.EQUIVALENT)
    assert listed and not set(listed) - there, "tests/equivalent.csv has names that are gone"


def test_the_record_of_mutants_has_each_module_and_few_that_survive():
    head, *table = csv.reader(mutants.RECORD.read_text(encoding="utf-8").splitlines())
    assert head == ["module", *mutants.COUNTS] and [row[0] for row in table] == mutants.modules()
    every, tried, killed, equivalent, survived = np.array(
        [[int(x) for x in row[1:-1]] for row in table]
    ).T
    assert (killed + equivalent + survived == tried).all() and (tried <= every).all()
    few = [row[0] for row, drawn in zip(table, tried, strict=True) if drawn < min(5, int(row[1]))]
    assert len(few) <= 1, f"make mutants MODULE='{' '.join(few)}' SAMPLE=20"
    assert survived.sum() < mutants.ALLOWED * (killed + survived).sum()
    assert all(date.fromisoformat(row[-1]) for row in table)


def test_every_module_with_mutants_has_the_tests_that_it_names():
    for module in mutants.modules():
        file, *choice = mutants.tests(module)
        assert (ROOT / file).is_file(), f"tests/mutants.py: TESTS names no file for {module}"
        assert not choice or choice[0] == "-k"


def documentation(name: str) -> str:
    """The docstring of `lib.module`, `lib.module.function` or `lib.module.Class.method`."""
    package, module, *attributes = name.split(".")
    found = importlib.import_module(f"{package}.{module}")
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


def test_readme_installs_the_torch_that_is_asked_for():
    wanted = {str(r) for r in REQUIREMENTS if r.name.startswith("torch")}
    line = next(x for x in (ROOT / "README.md").read_text().splitlines() if "--index-url" in x)
    assert wanted <= set(line.split())


def test_ci_runs_the_command_for_photos_that_readme_prints():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extract = re.search(r"command=\$\((sed .*README.md)\)", script)[1]
    found = subprocess.run(extract, shell=True, cwd=ROOT, text=True, capture_output=True).stdout
    assert re.fullmatch(r'make book DATASETS="/data/photos:cats/dogs"( [A-Z_]+=\d+)+\n', found)
    assert set(re.findall(r"(\w+)=", found)) == {"DATASETS", "SIZE", "N_TRAIN", "N_TEST"}
    assert subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT).returncode == 0


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
