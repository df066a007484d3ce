"""A random few of the recorded numbers, computed again where the images are at hand."""

import re

import numpy as np
import pandas as pd
import pytest

from book import labels
from book.ledger import collect
from lib import data, product
from lib.descent import gradient_descent
from lib.kernel import ntk
from lib.newton import newton
from lib.problem import Problem
from lib.ridge import Ridge

RECORDS = "book/records"


def images(label: str, n: int, seed: int) -> data.Data:
    """The draw that a record was made from, or skip: nothing is downloaded for a test."""
    name, classes = label.split()
    folder = {"mnist": "MNIST", "cifar10": "cifar-10-batches-py"}.get(name, name)
    there = data.root() / folder
    if name != "digits" and not any(path.is_file() for path in there.rglob("*")):
        pytest.skip(f"{name} is not below {data.root()}")
    return data.load(f"{name}:{classes}", n_train=n, n_test=100, seed=seed)


def settings(row) -> dict:
    return {"lam": row.lam, "kappa": row.kappa, "seed": int(row.seed), "m": int(row.m)}


def tolerance(request, label: str) -> float:
    """What threads, precision and order change on one processor, ten times over.

    We suppose that another processor changes no more; none was tried. As a share of the largest
    influence it is ten times the largest change that was recorded when threads, precision or the
    order of the points changed, and at least a hundredth. None of 240 influences changed by more
    than a tenth of that, so one in 80 may (with a chance of 95 %, if they are independent). We
    suppose that the share falls at least like the square of the change. Then one in 8000 exceeds
    the tolerance, and one of six rows in fewer than one run in a thousand.
    """
    spread = pd.read_csv(request.config.rootpath / RECORDS / "spread.csv")
    part = spread[(spread.data == label) & ~spread.how.str.startswith("start")]
    assert len(part) == 240
    change = (part.influence - part.reference).abs().max() / part.reference.abs().max()
    return max(0.01, 10 * change)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_table_1_records_come_out_again(name, request):
    record = pd.read_csv(request.config.rootpath / RECORDS / "table-1.csv")
    record = record[record.data.str.startswith(name) & (record.m == record.m.min())]
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    rows = record.sample(3, random_state=seed)  # others in every run
    print(f"rows of seed {seed}")
    first = rows.iloc[0]
    d = images(first.data, int(first.n), int(first.seed))
    inf = Ridge(ntk(d.X), d.Y, first.lam).influence(ntk(d.X, d.X_te), d.Y_te)
    problem = Problem(d.X, d.Y, d.X_te, **settings(first))
    begin = newton(problem, settle_steps=0)
    f = newton(problem, start=begin).f_te
    for row in rows.itertuples():
        assert row.ntk == pytest.approx(inf.exact[row.row, row.column], rel=1e-4)
        assert d.index_te[row.column] == row.test
        shift = newton(problem, start=begin, remove=row.row).f_te - f
        I = shift * (f - d.Y_te + 0.5 * shift)
        largest = record[record.column == row.column].retrained.abs().max()
        within = tolerance(request, first.data) * largest
        assert row.retrained == pytest.approx(I[row.column], abs=within)


def test_eq_3_chatter_of_kinks_stops_no_descent_of_the_default_step():
    d = images("mnist 4/9", 60, 0)
    p = Problem(d.X, d.Y, d.X_te, lam=1.0, m=512, kappa=0.003, seed=1)
    assert gradient_descent(p, steps=400).iterations == 400


def shift(d, point: int, dtype: str, Z0=None) -> tuple:
    """What the removal of a point does to the predictions on the test images; the start used."""
    p = Problem(d.X, d.Y, d.X_te, lam=1.0, m=4000, kappa=0.1, seed=0, dtype=dtype)
    for Z, given in zip((p.Z0, p.Z0_te), Z0 or (), strict=False):
        Z.copy_(given)
    begin = newton(p, settle_steps=0)
    f = newton(p, start=begin, remove=point).f_te - newton(p, start=begin).f_te
    return f, (p.Z0, p.Z0_te)


@pytest.mark.parametrize(
    ("label", "n", "bar"),
    [
        ("digits 3/8", 200, 0.005),
        ("mnist 4/9", 400, 0.005),
        ("cifar10-subset airplane/automobile", 400, 0.02),
    ],
)
def test_eq_7_the_shift_of_a_removal_is_free_of_arithmetic_noise(label, n, bar, monkeypatch):
    d = images(label, n, 0)
    inf = Ridge(ntk(d.X), d.Y, 1.0).influence(ntk(d.X, d.X_te), d.Y_te)
    point = int(np.abs(inf.exact).mean(axis=1).argmax())
    found, Z0 = shift(d, point, "float32")
    with monkeypatch.context() as patch:  # all in float64, nothing in 8 bits
        patch.setattr(product, "_integers_win", lambda device, threads: False)
        exact, _ = shift(d, point, "float64", Z0)
    with monkeypatch.context() as patch:  # the flow rounded to 8 bits: what noise looks like
        patch.setattr(product, "_integers_win", lambda device, threads: True)
        patch.setattr(product, "DIGITS", 1)
        rough, _ = shift(d, point, "float32", Z0)
    noise, control = (np.linalg.norm(x - exact) / np.linalg.norm(exact) for x in (found, rough))
    assert noise < bar / 10
    assert control > bar


@pytest.mark.parametrize("name", ["digits", "mnist"])
@pytest.mark.parametrize("part", ["labels", "labels-time"])
def test_records_of_wrong_labels_come_out_again(part, name, request, monkeypatch):
    record = pd.read_csv(request.config.rootpath / RECORDS / f"{part}.csv")
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    row = record[record.data == name].sample(1, random_state=seed).iloc[0]
    print(f"row of seed {seed}")
    images(f"{name} all", int(row.n), 0)  # or skip
    monkeypatch.setattr(labels, "SHARES", (row.share,))
    moment = {"labels": ("LAMS", "lam"), "labels-time": ("TIMES", "t")}[part]
    value = row[moment[1]]
    value = min(getattr(labels, moment[0]), key=lambda x: abs(x - value))  # all its digits
    monkeypatch.setattr(labels, moment[0], (value,))
    found = pd.DataFrame(labels.PARTS[part](labels.Case.draw(f"{name}:all", int(row.seed))))
    found = found[(found.kind == row.kind) & (found.get("how", "") == row.get("how", ""))].iloc[0]
    names = [column for column in record if f"{column} AP" in record and row[column] > 0]
    assert len(names) >= 6
    for column in names:
        assert found[column] == pytest.approx(row[column], abs=2e-3), column


def test_every_record_names_its_source(request):
    files = sorted((request.config.rootpath / RECORDS).glob("**/*.csv"))
    assert files
    for file in files:
        record = pd.read_csv(file)
        source = {"sweep.csv", "sweep-exceptions.csv"}  # theirs is that of each run, in sweep-runs
        assert file.name in source or {"date", "machine", "versions"} <= set(record), file.name
        assert len(record), file.name
        assert len(record) < 2000 and file.stat().st_size < 500_000, file.name


def claims(records) -> set[tuple[str, str]]:
    """Items and claims, whatever numbers they name; but for those about a record itself."""
    rows = [r for r in records if "recorded: " not in r["claim"]]
    return {(r["item"], re.sub(r"[\d.,]+", "#", r["claim"])) for r in rows}


def test_recorded_claims_are_those_of_the_pages(request):
    root = request.config.rootpath
    files = sorted((root / RECORDS / "claims").glob("*.csv"))
    assert files
    for file in files:
        page = claims(collect(root / "book" / f"{file.stem}.ipynb"))
        assert claims(pd.read_csv(file).to_dict("records")) == page, file.name


def test_readme_gives_the_figures_of_the_records(request):
    root = request.config.rootpath
    readme = (root / "README.md").read_text(encoding="utf-8")
    peers = pd.read_csv(root / RECORDS / "peers.csv")
    own = peers.who.str.startswith("this library")
    ours = peers[own].groupby("task").seconds.min()
    times = peers[~own].assign(times=lambda one: one.seconds / one.task.map(ours))
    lines = {
        f"| {one.task} | {one.who} | {one.times:{'.0f' if one.times >= 10 else '.2g'}} |"
        for one in times.itertuples()
    }
    head = "| task | tool | times the seconds of this library |"
    listed = readme.split(head)[1].split("\n\n")[0].strip().splitlines()[1:]
    assert set(listed) == lines

    solvers = pd.read_csv(root / RECORDS / "solvers.csv")
    digits = solvers[solvers.network == "digits-3-8-m1000-lam1-seed0"]
    module = digits[digits.solver == "lib"].iloc[0]
    assert f"on {module.n:.0f} training and {module.t:.0f} test points" in readme

    mnist = solvers[solvers.network.str.startswith("mnist") & (solvers.solver == "lib")].iloc[0]
    words = f"With {mnist.parameters:,.0f} parameters, on MNIST, ours took {mnist.seconds:.1f} s"
    assert words in readme
    exact = digits[digits.solver == "lib.ihvp"].iloc[0]
    assert f"`lib.ihvp` needs {1e3 * exact.seconds:.0f} ms" in readme
    kernel = peers[peers.who == "NumPy, as written"]
    assert (kernel.error > 1e-9).all()  # half the digits
    labels = peers[peers.task.str.startswith("wrong labels")].sort_values("seconds")
    own = labels.who.str.startswith("this library")
    missed = labels[~own].error.iloc[0] / labels[own].error.iloc[0]
    assert f"its fastest misses {missed:.1f} times as much (1 − AUROC)" in readme
    others = times[(times.who != "NumPy, as written") & ~times.task.str.startswith("wrong labels")]
    assert (others.times > 1).all()
    assert (
        times[times.who == "NumPy, as written"].times.between(0.8, 1.25).all()
    )  # "about the same"
