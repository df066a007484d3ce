"""The record of all of MNIST, made at a small n: what it says, and that it goes on after a kill."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from book import scale
from lib.audit import audit
from lib.inverse import Inverse
from lib.kernel import ntk
from lib.packed import PackedInverse
from lib.ridge import Ridge
from tests.cases import near

ROOT = Path(scale.__file__).parents[1]
COMMAND = [sys.executable, "-m", "book.scale"]
LAM = scale.LAM


@pytest.fixture(scope="module")
def found():
    return scale.measure("digits", 200, LAM)


@pytest.fixture(scope="module")
def case():
    d = scale.images("digits").first(200)
    return d, Ridge.packed(PackedInverse(ntk, d.X, LAM, tile=64, progress=False), d.Y)


def test_all_images_are_there_once():
    d, ((X, target),) = scale.images("digits"), scale.whole("digits")
    order = np.concatenate([d.index, d.index_te])
    assert sorted(order) == list(range(1797))
    np.testing.assert_array_equal(np.vstack([d.X, d.X_te]), X[order])
    np.testing.assert_array_equal(np.concatenate([d.target, d.target_te]), target[order])
    assert (d.Y.argmax(axis=1) == d.target).all() and np.abs(d.Y.sum(axis=1)).max() < 1e-15
    assert (scale.images("digits", 1).index != d.index).any()
    few = d.first(20)
    assert len(few.X) == len(few.target) == len(few.index) == 20 and len(few.X_te) == 599


def test_whole_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="name = 'photos' is no data set"):
        scale.whole("photos")


def test_what_is_measured_is_what_refits_say(found):
    d, row = scale.images("digits").first(200), found["row"]
    K, k = ntk(d.X), ntk(d.X, d.X_te)
    f = k.T @ np.linalg.solve(K + LAM * np.eye(200), d.Y)
    assert row["accuracy"] == (f.argmax(axis=1) == d.target_te).mean()
    loo = []
    for i in range(200):
        kept = np.delete(np.arange(200), i)
        beta = np.linalg.solve(K[np.ix_(kept, kept)] + LAM * np.eye(199), d.Y[kept])
        loo.append(K[i, kept] @ beta)
    margin = scale.margins(np.array(loo), d.target)
    assert row["loo_accuracy"] == (margin > 0).mean()
    h = np.diag(np.linalg.solve(K + LAM * np.eye(200), K))
    assert row["mean_leverage"] == pytest.approx(h.mean(), abs=1e-6)
    assert row["dof"] == pytest.approx(h.sum(), abs=1e-4)
    labels = [one for one in found["points"] if one["kind"] == "label"]
    assert [one["row"] for one in labels] == margin.argsort()[: scale.LISTED].tolist()
    near([one["margin"] for one in labels], np.sort(margin)[: scale.LISTED], 1e-5)
    assert all(d.index[one["row"]] == one["image"] for one in found["points"])
    mean = Ridge(K, d.Y, LAM).influence(k, d.Y_te).exact.mean(axis=1)
    harmful = [one for one in found["points"] if one["kind"] == "harmful"]
    assert [one["row"] for one in harmful] == mean.argsort()[: scale.LISTED].tolist()


def test_removals_mend_what_they_mend_after_a_refit(found):
    d, errors = scale.images("digits").first(200), pd.DataFrame(found["errors"])
    K, k = ntk(d.X), ntk(d.X, d.X_te)
    influence = Ridge(K, d.Y, LAM).influence(k, d.Y_te)
    assert len(errors) == found["row"]["errors"] == (influence.f.argmax(1) != d.target_te).sum()

    def margin(j, removed):
        kept = np.delete(np.arange(200), removed)
        beta = np.linalg.solve(K[np.ix_(kept, kept)] + LAM * np.eye(len(kept)), d.Y[kept])
        return float(scale.margins(k[kept, j] @ beta, d.target_te[j]))

    for one in errors.itertuples():
        (j,) = np.flatnonzero(d.index_te == one.test)
        worst = influence.exact[:, j].argsort()[: scale.TOP]
        assert d.index[worst[0]] == one.harmful
        assert one.worst == pytest.approx(margin(j, worst[:1]), abs=1e-5)
        path = np.array([margin(j, worst[:size]) for size in range(1, scale.TOP + 1)])
        assert one.all == pytest.approx(path[-1], abs=1e-5)
        assert one.fewest == (np.flatnonzero(path > 0)[0] + 1 if (path > 0).any() else 0)
        (i,) = np.flatnonzero(d.index == one.one)
        assert one.alone == pytest.approx(margin(j, i), abs=1e-5)
        assert one.alone >= max(margin(j, i) for i in range(0, 200, 9)) - 1e-5
    row = found["row"]
    assert row["mended_by_one"] == (errors.alone > 0).mean()
    assert 0 < row["mended_by_worst"] <= row["mended_within_ten"]
    assert row["refits"] == row["refits_that_mend"] > 0
    kinds = [errors.alone > 0, errors["all"] > 0]
    assert row["refits"] == sum(min(scale.GROUPS, kind.sum()) for kind in kinds)
    assert row["refits_of_others"] == sum(min(scale.GROUPS, (~kind).sum()) for kind in kinds) > 0
    assert row["others_that_mend"] == 0
    assert row["refit_residual"] < 1e-10 and row["refit_gap"] < 1e-5


def test_a_removal_that_only_the_formula_thinks_to_mend_is_seen(case, monkeypatch):
    d, model = case
    kept = scale.stream(model, ntk, d.X, d.X_te, d.Y_te, top=scale.TOP, progress=False)
    inner = scale.mending

    def wrong(*given):
        found = inner(*given)
        return found.assign(alone=-found.alone, all=-found["all"])

    monkeypatch.setattr(scale, "mending", wrong)
    checks = scale.mend(model, kept, d)[1]
    assert checks["refits_that_mend"] == 0 < checks["refits"]
    assert checks["others_that_mend"] == checks["refits_of_others"] > 0
    assert checks["refit_gap"] > 1e-3


def test_an_audit_is_timed_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "audit", lambda name, out: audit(name, n_train=60, out=out))
    begin = time.perf_counter()
    rows = pd.DataFrame(scale.audited("digits", tmp_path / "out")["rows"])
    took = time.perf_counter() - begin
    assert (tmp_path / "out" / "report.html").is_file()
    assert len(rows) == scale.LISTED and rows.place.tolist() == list(range(1, scale.LISTED + 1))
    assert 0 < rows.seconds[0] < took  # steps end one after the other: no sum of their ends
    table = pd.read_csv(tmp_path / "out" / "points.csv")
    assert rows.image.tolist() == table["index"][: scale.LISTED].tolist()
    near(rows.margin.to_numpy(), table.margin[: scale.LISTED].to_numpy(), 1e-12)
    assert (rows.n == 60).all() and rows.contradicted[0] == (table.margin > 0).mean()
    assert (np.diff(rows.margin) <= 0).all() and rows.mean_leverage[0] == pytest.approx(
        table.leverage.mean()
    )


def test_a_residual_tells_a_refit_from_what_is_none(case):
    d, model = case
    groups = [[], [3], [0, 100, 199]]
    betas, residual, exact = scale.refitted(model, groups, [7, 100])
    assert residual < 1e-10
    Q = Inverse(ntk(d.X), LAM)
    near(exact, Q.diagonal()[[7, 100]], 1e-10)
    near(betas[0], Q @ d.Y, 1e-10)
    for I, beta in zip(groups, betas, strict=True):
        kept = np.delete(np.arange(200), np.array(I, dtype=int))
        K = ntk(d.X)[np.ix_(kept, kept)] + LAM * np.eye(len(kept))
        near(beta[kept], np.linalg.solve(K, d.Y[kept]), 1e-10)
        assert (beta[I] == 0).all()
    model.beta = model.beta + 1e-6  # control
    assert scale.refitted(model, groups)[1] > 1e-7
    model.beta = model.beta - 1e-6


def test_float32_is_held_to_float64_and_to_the_dense_inverse(found, monkeypatch):
    row = found["row"]
    for name in ("leverage_float64_max", "leverage_refined_max"):
        assert 0 < row[name] < 1e-6, name
    assert row["leverage_float64_rms"] < row["leverage_float64_max"]
    assert row["dense_float64_max"] < 1e-13
    monkeypatch.setattr(scale, "FLOAT64", 100)
    monkeypatch.setattr(scale, "DENSE", 100)
    again = scale.measure("digits", 150, LAM)["row"]
    assert "leverage_float64_max" not in again and again["leverage_refined_max"] < 1e-6


def run(work, records, *more):
    command = [*COMMAND, work, records, "--data", "digits", "--cluster", 0, *more]
    return subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.DEVNULL)


def test_a_killed_run_loses_one_n_at_most_and_no_step_on_disk(found, tmp_path):
    work, records, tiles = tmp_path / "work", tmp_path / "records", tmp_path / "tiles"
    arguments = ("--n", 60, 200, "--folder", tiles)
    first, deadline = run(work, records, *arguments), time.monotonic() + 300
    try:
        while not list(tiles.glob("digits-200/*.npy")):
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        first.kill()
    first.wait()
    kept = (work / "scale-digits.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"]["n"] for line in kept[1:]] == [60]
    while run(work, records, *arguments).wait():  # until the child has seen that its parent is gone
        assert time.monotonic() < deadline
    lines = (work / "scale-digits.jsonl").read_text().splitlines()
    assert lines[:2] == kept and len(lines) == 3
    row = json.loads(lines[2])["row"]
    assert row["n"] == 200 and not list(tiles.glob("*"))
    for name in ("mean_leverage", "error_rate", "loo_accuracy", "mended_by_ten"):
        assert row[name] == pytest.approx(found["row"][name], rel=1e-12), name
    record = pd.read_csv(records / "scale.csv")
    assert record.n.tolist() == [60, 200] and {"date", "machine"} <= set(record)
    assert {file.name for file in records.iterdir()} == {
        "scale.csv", "scale-points.csv", "scale-errors.csv", "scale-points.png", "scale-errors.png"
    }  # fmt: skip
    before = (records / "scale.csv").read_text()
    assert run(work, records, *arguments).wait() == 0
    assert (records / "scale.csv").read_text() == before


def test_the_inverse_of_a_cluster_is_timed_and_held_to_the_dense_one():
    pytest.importorskip("dask.distributed")
    found = scale.clusters("digits", 90)
    assert found.workers.tolist() == [1, 2] and (found.gap < 1e-12).all()
    assert (found.seconds > 0).all() and (found.seconds_dense > 0).all()


def test_the_benchmark_runs_at_a_small_size():
    command = [sys.executable, "-m", "bench.scale", "--n", "300", "--t", "20"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert re.search(r"all influences, seconds +\S+ +<= 30 +yes", done.stdout), done.stderr
    assert re.search(r"peak memory, GB +\S+ +<= 2.5 +yes", done.stdout)
