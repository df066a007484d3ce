"""Leave-one-out retraining: the right points, on any workers, through every interruption."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from joblib import parallel_config
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm

from book.oracles import Centred, Deep
from lib import retrain as module
from lib.descent import gradient_descent
from lib.journal import Journal
from lib.kernel import ntk
from lib.losses import Softmax, Squared
from lib.newton import newton
from lib.problem import Problem
from lib.retrain import Retrained, retrain, retrain_modules
from lib.ridge import Ridge
from tests.cases import labels, loss, refit, sample, unit_points

SETTINGS = {"lam": 0.5, "m": 64, "kappa": 0.1, "seed": 0, "progress": False}
DESCENT = {"method": "gradient descent", "options": {"steps": 40}} | SETTINGS
GROUPS = [4, [0, 2], 7, [9, 1, 5], 0]


@pytest.fixture
def data():
    """X (10, 4), Y (10,), X_te (3, 4)."""
    A = unit_points(13, 4)
    return A[:10], np.sign(A[:10, 0]), A[10:]


@pytest.fixture
def stand_in(monkeypatch):
    """Replace Newton by a known function of the removed points; returns the list of calls."""
    calls = []

    def train(problem, start=None, remove=(), settle_steps=None):
        assert settle_steps is None or (settle_steps == 0 and start is None)
        calls.append((problem, start, tuple(remove)))
        time.sleep(0.005)  # long enough for other threads to come by
        f = np.cos(1.0 + np.sum(remove)) / np.arange(3, 3 + problem.Z0_te.shape[1])
        return SimpleNamespace(f_te=f, seconds=0.25, iterations=2, change=1e-9)

    monkeypatch.setitem(module.METHODS, "newton", train)
    return calls


def sorted_tuple(group) -> tuple:
    return tuple(np.sort(np.atleast_1d(group)).tolist())


def same(a: Retrained, b: Retrained):
    """Equal to the last bit, in everything but the time it took."""
    for key in ("f", "f_without", "iterations", "change"):
        assert getattr(a, key).tobytes() == getattr(b, key).tobytes(), key
    assert a.groups == b.groups


# --- Eq 7 ---------------------------------------------------------------------------------------


def test_eq_7_is_the_difference_of_the_losses(stand_in, data):
    result = retrain(*data, GROUPS, **SETTINGS)
    y_te = np.array([1.0, -1.0, 0.5])
    expected = loss(result.f_without, y_te) - loss(result.f, y_te)
    np.testing.assert_allclose(result.influence(y_te).exact, expected, rtol=1e-14, atol=1e-15)
    with pytest.raises(ValueError, match="y_te has 2 entries"):
        result.influence(y_te[:2])


@pytest.mark.parametrize("c", [1, 2, 10])
def test_eq_7_of_several_outputs_is_the_sum_over_single_ones(c):
    rng = np.random.default_rng(c)
    f, without = rng.standard_normal((4, c)), rng.standard_normal((3, 4, c))
    y_te, groups, cost = labels(rng, 4, c), [(0,), (1, 2), (3,)], np.zeros((3, 3))
    result = Retrained(groups, f, without, *cost)
    found = result.influence(y_te)
    assert found.exact.shape == (3, 4) and found.loo.shape == (3, 4, c)
    np.testing.assert_allclose(found.exact, loss(without, y_te) - loss(f, y_te), atol=1e-14)
    single = [
        Retrained(groups, f[:, k], without[:, :, k], *cost).influence(y_te[:, k]).exact
        for k in range(c)
    ]
    np.testing.assert_allclose(found.exact, np.sum(single, axis=0), atol=1e-14)
    with pytest.raises(ValueError, match="y_te has shape .*, but the outputs have"):
        result.influence(y_te[:, 0])
    with pytest.raises(ValueError, match="y_te has 3 entries, but there are 4 points"):
        result.influence(y_te[:3])


def test_eq_11_thm_2_fig_1_predicted_influence_is_the_actual_one():
    A = unit_points(50, 8)
    X, Y, X_te, y_te = A[:30], np.sign(A[:30, 0]), A[30:], np.sign(A[30:, 0])
    inf = Ridge(ntk(X), Y, 0.5).influence(ntk(X, X_te), y_te)
    R, distance = {}, {}
    for m in (500, 32_000):
        how = {"lam": 0.5, "m": m, "kappa": 0.5, "seed": 0, "antisymmetric": True}
        run = retrain(X, Y, X_te, range(30), progress=False, **how)
        I = run.influence(y_te).exact
        R[m] = np.corrcoef(I.ravel(), inf.exact.ravel())[0, 1]
        distance[m] = np.sqrt(np.mean((I - inf.exact) ** 2))
    # Eq 11: the influence is as near as the two predictions that it is made of
    assert R[32_000] > 0.998 and 1 - R[32_000] < 0.1 * (1 - R[500])
    assert 4 < distance[500] / distance[32_000] < 16  # m^{-1/2}: 8
    for estimate in (inf.ihvp, inf.rescaled):  # the control: they leave T₂ out
        assert np.corrcoef(I.ravel(), estimate.ravel())[0, 1] < 0.998


# --- which points are removed -------------------------------------------------------------------


def test_cold_start_is_training_on_the_points_that_are_left(data):
    X, Y, X_te = data
    result = retrain(X, Y, X_te, GROUPS, warm=False, dtype="float64", **DESCENT)
    settings = {k: SETTINGS[k] for k in ("lam", "m", "kappa", "seed")} | {"dtype": "float64"}
    assert result.groups == [(4,), (0, 2), (7,), (1, 5, 9), (0,)]
    for group, f in zip([(), *GROUPS], [result.f, *result.f_without], strict=True):
        keep = np.setdiff1d(np.arange(len(X)), group)
        alone = gradient_descent(Problem(X[keep], Y[keep], X_te, **settings), steps=40)
        np.testing.assert_allclose(f, alone.f_te, atol=1e-10, err_msg=f"without {group}")
        assert np.ptp([f, result.f], axis=0).max() > 1e-3 or not group


@pytest.mark.parametrize("backend", ["sequential", "threading"])
def test_warm_start_of_newton_is_one_flow_for_all(stand_in, data, backend):
    with parallel_config(backend=backend, n_jobs=3):
        retrain(*data, GROUPS, **SETTINGS)
    (_, nothing, _), *rest = stand_in
    assert nothing is None and {removed for *_, removed in rest} == {(), *map(sorted_tuple, GROUPS)}
    assert len({id(start) for _, start, _ in rest}) == len({id(p) for p, _, _ in stand_in}) == 1
    assert rest[0][1] is not None and not module._cache  # not kept beyond the call
    del stand_in[:]
    retrain(*data, GROUPS, warm=False, **SETTINGS)
    assert [start for _, start, _ in stand_in] == [None] * (1 + len(GROUPS))


def test_warm_start_of_newton_is_the_end_of_the_flow_and_not_the_settled_model(data):
    result = retrain(*data, GROUPS, **SETTINGS)
    problem = Problem(*data, **{k: SETTINGS[k] for k in ("lam", "m", "kappa", "seed")})
    begin, settled = newton(problem, settle_steps=0), newton(problem)
    for group, f in zip([(), *GROUPS], [result.f, *result.f_without], strict=True):
        np.testing.assert_allclose(f, newton(problem, start=begin, remove=group).f_te, atol=1e-5)
        other = newton(problem, start=settled, remove=group).f_te
        assert np.abs(f - other).max() > 1e-4, "kinks that hold do not let go"


def test_warm_start_of_descent_is_the_full_model(data):
    calls = []

    @wraps(gradient_descent)
    def train(problem, start=None, remove=(), **options):
        calls.append((start, tuple(remove)))
        return gradient_descent(problem, start=start, remove=remove, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.METHODS, "gradient descent", train)
        retrain(*data, GROUPS, **DESCENT)
    (nothing, none), *rest = calls
    assert nothing is None and none == () and len(rest) == 1 + len(GROUPS)
    assert len({id(start) for start, _ in rest}) == 1


def test_warm_and_cold_start_differ_by_less_than_the_removal(data):
    settings = DESCENT | {"m": 1024, "options": {"steps": 60}}
    warm, cold = (retrain(*data, range(10), warm=w, **settings) for w in (True, False))
    effects = [run.f_without - run.f for run in (warm, cold)]
    assert 0 < np.abs(effects[0] - effects[1]).mean() < 0.1 * np.abs(effects[1]).mean()


def test_warm_start_with_few_steps_compares_trainings_of_equal_length(data):
    settings = DESCENT | {"m": 1024, "options": {"steps": 5}}  # far from the end
    warm = retrain(*data, [3], **settings)
    more = retrain(*data, [3], **settings | {"options": {"steps": 10}, "warm": False})
    np.testing.assert_allclose(warm.f, more.f, atol=0.01)  # 5 + 5 steps, as without the point


def test_newton_is_the_default_and_agrees_with_gradient_descent(data):
    settings = SETTINGS | {"m": 1024}
    descent = settings | {"method": "gradient descent", "options": {"steps": 60}}
    result, reference = (retrain(*data, range(10), **s) for s in (settings, descent))
    assert module.METHODS["newton"] is newton
    shift, expected = (r.f_without - r.f for r in (result, reference))
    assert np.abs(shift - expected).mean() < 0.1 * np.abs(expected).mean()


# --- on any workers -----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SETTINGS, DESCENT], ids=["newton", "descent"])
def test_order_and_workers_change_no_bit(data, tmp_path, settings):
    one = retrain(*data, GROUPS, **settings)
    pair = retrain(*data, GROUPS[::-1], workers=2, file=tmp_path / "pair", **settings)
    order = slice(None, None, -1)
    same(one, Retrained(pair.groups[order], pair.f, pair.f_without[order], *[
        getattr(pair, k)[order] for k in ("seconds", "iterations", "change")
    ]))  # fmt: skip
    with parallel_config(backend="threading", n_jobs=3):
        same(one, retrain(*data, GROUPS, **settings))
    same(one, retrain(*data, GROUPS, file=tmp_path / "pair", **settings))


def test_dask_cluster_of_two_workers_gives_the_same_numbers(data, tmp_path):
    distributed = pytest.importorskip("dask.distributed")
    one = retrain(*data, GROUPS, **SETTINGS)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None,
        local_directory=tmp_path,
    )  # fmt: skip
    with cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        with parallel_config(backend="dask"):
            same(one, retrain(*data, GROUPS, file=tmp_path / "file", **SETTINGS))
            same(one, retrain(*data, GROUPS, file=tmp_path / "file", **SETTINGS))
        processes = client.run(lambda: (os.getpid(), len(sys.modules["lib.retrain"]._cache)))
    assert len({p for p, _ in processes.values()} - {os.getpid()}) == 2
    assert all(cached == 1 for _, cached in processes.values())  # one warm start in each


def test_threads_of_torch_are_fixed_inside_and_restored(data, monkeypatch):
    seen = []

    def train(problem, **arguments):
        seen.append(torch.get_num_threads())
        return SimpleNamespace(f_te=np.zeros(3), seconds=0.0, iterations=1, change=0.0)

    monkeypatch.setitem(module.METHODS, "newton", train)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        retrain(*data, [0], **SETTINGS)
        retrain(*data, [0], threads=2, **SETTINGS)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1, 1, 2, 2, 2]


# --- through every interruption -----------------------------------------------------------------

SLOW = """
import sys, time
from functools import wraps
import numpy as np
from lib import retrain as module
from lib.kernel import ntk
from lib.descent import gradient_descent

data, path, log = np.load(sys.argv[1]), sys.argv[2], open(sys.argv[3], "a")

@wraps(gradient_descent)
def slow(problem, remove=(), **arguments):
    done = gradient_descent(problem, remove=remove, **arguments)
    print(*remove, file=log, flush=True)
    time.sleep(0.2)
    return done

module.METHODS["gradient descent"] = slow
module.retrain(
    data["X"], data["Y"], data["X_te"], range(10), file=path, method="gradient descent",
    options={"steps": 40}, lam=0.5, m=64, kappa=0.1, seed=0,
)
"""


def test_resumed_after_kill_9_with_nothing_lost_and_nothing_done_twice(data, tmp_path):
    X, Y, X_te = data
    np.savez(tmp_path / "data.npz", X=X, Y=Y, X_te=X_te)
    file, log = tmp_path / "file", tmp_path / "log"
    command = [sys.executable, "-c", SLOW, tmp_path / "data.npz", file, log]
    root = Path(module.__file__).parents[1]
    run = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not file.exists() or file.read_bytes().count(b"\n") < 4:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(BlockingIOError, match="another run is writing to it"):
        retrain(*data, range(10), file=file, **DESCENT)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    kept, trained = file.read_bytes(), log.read_text().split("\n")[:-1]
    records = [json.loads(line)["without"] for line in kept.splitlines()[1:]]
    assert trained[0] == ""  # the warm start, in no record
    assert [" ".join(map(str, g)) for g in records] == trained[1 : 1 + len(records)]
    assert len(trained) - 1 - len(records) <= 1  # the one that was running

    result = retrain(*data, range(10), file=file, **DESCENT)
    assert file.read_bytes().startswith(kept)
    groups = [json.loads(line)["without"] for line in file.read_bytes().splitlines()[1:]]
    assert sorted(groups) == [[], *([i] for i in range(10))]
    same(result, retrain(*data, range(10), **DESCENT))


def test_a_file_torn_at_any_byte_is_completed(stand_in, data, tmp_path):
    file = tmp_path / "file"
    expected = retrain(*data, GROUPS, file=file, **SETTINGS)
    whole = file.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {0, 1, 5, 12, 20, *range(0, len(whole), 61), *ends, *(end + 1 for end in ends)}
    for cut in sorted(cuts):
        del stand_in[:]
        file.write_bytes(whole[:cut])
        same(expected, retrain(*data, GROUPS, file=file, **SETTINGS))
        assert file.read_bytes() == whole, f"cut at byte {cut}"
        missing = 1 + len(GROUPS) - max(0, whole[:cut].count(b"\n") - 1)
        assert len(stand_in) == missing + bool(missing), f"cut at byte {cut}"  # one flow for all
    file.write_bytes(whole[: ends[-2] + 1] + bytes(40) + b"\n")  # zeros, as a power cut leaves them
    same(expected, retrain(*data, GROUPS, file=file, **SETTINGS))
    assert file.read_bytes() == whole


def test_a_finished_file_is_read_and_more_groups_are_added(stand_in, data, tmp_path):
    first = retrain(*data, GROUPS, file=tmp_path / "file", **SETTINGS)
    del stand_in[:]
    same(first, retrain(*data, GROUPS, file=tmp_path / "file", **SETTINGS))
    assert not stand_in
    more = retrain(*data, [8, *GROUPS], file=tmp_path / "file", **SETTINGS)
    assert [remove for _, _, remove in stand_in] == [(), (8,)]
    np.testing.assert_array_equal(more.f_without[1:], first.f_without)


OTHER = {
    "X": None, "Y": None, "X_te": None, "lam": 0.25, "m": 66, "kappa": 0.2, "seed": 1,
    "antisymmetric": True, "dtype": "float64", "method": "gradient descent", "warm": False,
    "threads": 2, "options": {"settle_steps": 3},
}  # fmt: skip


@pytest.mark.parametrize("key", OTHER)
def test_a_file_of_another_setting_is_refused_by_its_name(stand_in, data, tmp_path, key):
    file = tmp_path / "file"
    data = dict(zip(("X", "Y", "X_te"), data, strict=True))
    retrain(**data, groups=GROUPS, file=file, **SETTINGS)
    before, settings = file.read_bytes(), data | SETTINGS
    settings[key] = data[key][::-1].copy() if key in data else OTHER[key]
    with pytest.raises(ValueError, match=f"another setting: {key} is .* choose another") as error:
        retrain(**settings, groups=GROUPS, file=file)
    assert str(error.value).count(" in the file and ") == 1 and str(file) in str(error.value)
    assert file.read_bytes() == before


def test_full_disk_says_what_is_kept_and_the_next_call_goes_on(
    stand_in, data, tmp_path, monkeypatch
):
    file, sync, count = tmp_path / "file", os.fsync, []

    def full(descriptor):
        count.append(descriptor)
        if len(count) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="3 results are kept: make room and call"):
            retrain(*data, GROUPS, file=file, **SETTINGS)
    text = file.read_text()
    assert text.endswith("\n") and len(text.splitlines()) == 4  # the header and three
    del stand_in[:]
    retrain(*data, GROUPS, file=file, **SETTINGS)
    assert [remove for _, _, remove in stand_in] == [(), (7,), (1, 5, 9), (0,)]


def test_progress_shows_the_time_left_and_counts_what_was_there(
    stand_in, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(module, "tqdm", partial(tqdm, mininterval=0))
    retrain(*data, GROUPS[:2], file=tmp_path / "file", **SETTINGS)
    assert not capsys.readouterr().err
    retrain(*data, GROUPS, file=tmp_path / "file", **SETTINGS | {"progress": True})
    lines = capsys.readouterr().err.split("\r")
    assert "3/6 [00:00<?" in lines[1] and "4/6 [00:00<00:0" in lines[2] and "6/6" in lines[-1]


# --- bad input ----------------------------------------------------------------------------------

BAD = [
    ({"groups": [0, 10]}, IndexError, r"groups\[1\] = 10 is out of range; use 0 to 9"),
    ({"groups": [-1]}, IndexError, "out of range"),
    ({"groups": [[3, 3]]}, IndexError, "names 3 more than once"),
    ({"groups": [[1, 2], 0, [2, 1]]}, IndexError, r"groups\[2\] is groups\[0\] again"),
    ({"groups": [4, 4]}, IndexError, r"groups\[1\] is groups\[0\] again"),
    ({"groups": [0, []]}, IndexError, r"groups\[1\] must be one or several integers"),
    ({"groups": []}, IndexError, "groups is empty"),
    ({"groups": [range(10)]}, IndexError, "every training point; keep at least one"),
    ({"groups": [0.5]}, IndexError, "must be one or several integers"),
    ({"method": "adam"}, ValueError, "method must be 'newton' or 'gradient descent', not 'adam'"),
    ({"warm": "hot"}, TypeError, "warm must be True or False, not 'hot'; pass one of them"),
    ({"workers": 0}, ValueError, "workers = 0 trains nothing; pass a number, or -1 for every core"),
    ({"workers": 1.5}, ValueError, "workers must be an integer, not 1.5"),
    ({"threads": 0}, ValueError, "threads must be at least 1"),
    ({"lamda": 1.0}, TypeError, "lamda"),
    ({"lam": 0}, ValueError, "lam must be a finite number > 0"),
    ({"kappa": 0}, ValueError, "kappa must be a finite number > 0"),
    ({"m": 0}, ValueError, "m must be at least 1"),
    ({"Y": [1.0]}, ValueError, "Y has 1 entries"),
    ({"Y": np.ones((10, 2))}, ValueError, r"Y must have 1 axes, but its shape is \(10, 2\)"),
    ({"Y": 1e3 * np.ones(10)}, ValueError, r"Y must lie in \[-1, 1\], but Y\[0\] = 1000"),
    ({"Y": np.arange(10) % 2}, ValueError, "Y has labels 0 and 1, but the two classes are -1 and"),
    ({"Y": [True] * 10}, ValueError, "Y has labels False and True"),
    ({"Y": np.ma.array(np.ones(10), mask=[1] + 9 * [0])}, ValueError, "Y has 1 masked entry"),
    ({"X": [[np.nan, 1.0]]}, ValueError, "X has 1 value that is not finite"),
]


@pytest.mark.parametrize(("bad", "error", "match"), BAD, ids=lambda v: str(v)[:40])
def test_bad_input(stand_in, data, tmp_path, bad, error, match):
    arguments = dict(zip(("X", "Y", "X_te"), data, strict=True)) | {"groups": [0]} | SETTINGS
    with pytest.raises(error, match=match):
        retrain(**arguments | bad, file=tmp_path / "file")
    assert not stand_in and not any(file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("workers", [-1, -2, 1.0, None])
def test_workers_are_those_of_joblib(stand_in, data, workers):
    with parallel_config(backend="threading"):
        result = retrain(*data, GROUPS, workers=workers, **SETTINGS | {"m": 64.0})
    same(result, retrain(*data, GROUPS, workers=1, **SETTINGS))
    with pytest.raises(ValueError, match="y_te has labels 0 and 1"):
        result.influence([0, 1, 0])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_that_fails_stops_the_call_and_names_its_points(data, tmp_path, workers):
    settings = DESCENT | {"options": {"step": 50.0}, "warm": False, "workers": workers}
    with pytest.raises(ValueError, match="step = 50 is not stable") as error:
        retrain(*data, [3], file=tmp_path / "file", **settings)
    assert error.value.__notes__[0].startswith("in the training without the points [")
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"options": {"remove": [1]}},
            "options has 'remove'; newton takes flow_steps, settle_steps, tol",
        ),
        ({"options": {"stop": 1}}, "options has 'stop'; newton takes"),
        ({"options": {"tol": range(3)}}, "must be plain numbers and names, not range"),
        ({"options": {"tol": np.nan}}, "tol must be a finite number"),
    ],
)
def test_bad_options(data, change, message):
    with pytest.raises(ValueError, match=message):
        retrain(*data, [3], **SETTINGS | change)


def test_a_missing_setting_is_named_beside_those_there_are(data):
    with pytest.raises(TypeError, match="settings: missing .*seed.*; pass .*: lam, m, kappa"):
        retrain(*data, [0], lam=1.0, m=64, kappa=0.1)


def test_a_file_is_locked_within_a_process_too(data, tmp_path):
    with Journal(tmp_path / "file", {"format": "lib.retrain 3"}):
        with pytest.raises(BlockingIOError, match="another run is writing to it"):
            retrain(*data, [3], file=tmp_path / "file", **DESCENT)


def test_results_of_other_code_are_refused(stand_in, data, tmp_path, monkeypatch):
    retrain(*data, [3], file=tmp_path / "file", **SETTINGS)
    monkeypatch.setattr(module, "code_version", lambda: "other")
    with pytest.raises(ValueError, match="is of another setting: code is .* and 'other' here"):
        retrain(*data, [3, 4], file=tmp_path / "file", **SETTINGS)


def test_predictions_that_are_not_finite_are_never_recorded(data, tmp_path, monkeypatch):
    def train(problem, start=None, remove=(), settle_steps=None):
        assert settle_steps is None or (settle_steps == 0 and start is None)
        f = np.full(3, np.nan if 7 in remove else 0.5)
        return SimpleNamespace(f_te=f, seconds=0.0, iterations=1, change=0.0)

    monkeypatch.setitem(module.METHODS, "newton", train)
    with pytest.raises(RuntimeError, match="predictions that are not finite") as error:
        retrain(*data, [4, 7, 0], file=tmp_path / "file", **SETTINGS)
    assert error.value.__notes__ == ["in the training without the points [7]"]
    assert len((tmp_path / "file").read_text().splitlines()) == 3


# --- modules --------------------------------------------------------------------------------------

X, Y, X_TE = sample(n=8, t=3, d=4)
QUIET = {"lam": 0.3, "steps": 300, "progress": False}


def line(bias=False):
    net = nn.Sequential(nn.Linear(4, 1, bias=bias), nn.Flatten(0)).double().eval()
    nn.init.zeros_(net[0].weight)
    return net


@pytest.mark.parametrize("warm", [True, False])
def test_linear_modules_are_ridge_regression(warm):
    groups = [0, 3, [1, 2]]
    trained, result = retrain_modules(line(), Squared(), (X, Y), X_TE, groups, warm=warm, **QUIET)
    K, k = X @ X.T, X @ X_TE.T
    np.testing.assert_allclose(result.f, refit(K, Y, 0.3, k), atol=1e-9)
    for group, f in zip(groups, result.f_without, strict=True):
        np.testing.assert_allclose(f, refit(K, Y, 0.3, k, group), atol=1e-9)
    assert np.abs(result.f_without[0] - refit(K, Y, 0.3, k, [1])).max() > 1e-3  # control
    np.testing.assert_allclose(trained(torch.as_tensor(X_TE)).detach(), result.f, atol=1e-12)
    assert result.change.max() < 1e-9


def steps_by_hand(A, Y, lam, step, steps, begin, keep):
    """Nesterov's method for ½ Σ (aᵢ w − yᵢ)² + ½ λ w² as it is documented; w after each step."""
    q = (step * lam) ** 0.5
    w = ahead = begin
    path = []
    for k in range(steps):
        size = step if k < steps / 2 else step * 2 * (1 - k / steps)
        slope = (keep * A * (A * ahead - Y)).sum() + lam * ahead
        new = ahead - size * slope
        ahead, w = new + (1 - q) / (1 + q) * (new - w), new
        path.append(w)
    return np.array(path)


@pytest.mark.parametrize("warm", [True, False])
def test_steps_fall_and_begin_where_they_should(warm):
    A, lam, steps, step = np.array([1.0, 2.0, -0.5]), 2.0, 20, 0.02
    B, test, x = np.array([1.0, -2.0, 3.0]), np.array([[1.0], [3.0]]), np.array([1.0, 3.0])
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Flatten(0)).double().eval()
    net[0].weight.data.zero_()
    how = QUIET | {"lam": lam, "steps": steps, "step": step, "warm": warm}
    _, result = retrain_modules(net, Squared(), (A[:, None], B), test, [1, [0, 2]], **how)
    full = steps_by_hand(A, B, lam, step, steps, 0.0, np.ones(3))
    np.testing.assert_allclose(result.f, x * full[-1], rtol=1e-12)
    for group, f, change in zip(([1], [0, 2]), result.f_without, result.change, strict=True):
        keep = np.ones(3)
        keep[group] = 0
        begin = full[-1] if warm else 0.0
        path = steps_by_hand(A, B, lam, step, steps, begin, keep)
        np.testing.assert_allclose(f, x * path[-1], rtol=1e-12)
        moved = np.abs(path[-1] - path[-3]) * np.sqrt(5)  # the last 2 of 20 steps, rms of x
        assert change == pytest.approx(moved, rel=1e-9) and change > 1e-6
    assert (result.iterations == steps).all() and (result.seconds > 0).all()


def test_pull_to_the_start_and_decay_are_two_problems():
    net = line()
    nn.init.ones_(net[0].weight)
    pulled, decayed = (
        retrain_modules(net, Squared(), (X, Y), X_TE, [0], decay=d, **QUIET)[1].f
        for d in (False, True)
    )
    K, k, f0, f0_te = X @ X.T, X @ X_TE.T, X.sum(1), X_TE.sum(1)
    np.testing.assert_allclose(decayed, refit(K, Y, 0.3, k), atol=1e-9)
    np.testing.assert_allclose(pulled, f0_te + refit(K, Y - f0, 0.3, k), atol=1e-9)


@pytest.mark.parametrize("activation", [torch.relu, torch.nn.functional.gelu])
def test_side_by_side_is_one_by_one(activation):
    net = Centred(Deep(4, width=32, depth=2, activation=activation, seed=0).eval())
    five = [0, 1, 2, 3, 4]
    one, all_ = (
        retrain_modules(net, Squared(), (X, Y), X_TE, five, together=b, **QUIET)[1] for b in (1, 16)
    )
    np.testing.assert_allclose(one.f_without, all_.f_without, atol=1e-9)


def test_the_end_is_a_minimum():
    net = Centred(Deep(4, width=32, depth=3, activation=nn.functional.gelu, seed=0).eval())
    trained, result = retrain_modules(net, Squared(), (X, Y), X_TE, [0], **QUIET)
    f = trained(torch.as_tensor(X))
    start = dict(net.named_parameters())
    loss = 0.5 * ((f - torch.as_tensor(Y)) ** 2).sum()
    loss = loss + 0.15 * sum(
        ((p - start[k].detach()) ** 2).sum() for k, p in trained.named_parameters()
    )
    loss.backward()
    assert max(p.grad.abs().max() for p in trained.parameters()) < 1e-6
    assert torch.equal(net.model.W[0], start["model.W.0"])
    assert result.influence(np.sign(X_TE[:, 0])).exact.shape == (1, 3)


def test_softmax_and_convolutions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.GELU(),
                        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 3)).double().eval()  # fmt: skip
    hot = np.eye(3)[np.arange(8) % 3]
    trained, result = retrain_modules(net, Softmax(), (X, hot), X_TE, [0, 1], decay=True, **QUIET)
    assert result.f.shape == (3, 3) and result.f_without.shape == (2, 3, 3)
    f = trained(torch.as_tensor(X))
    loss = nn.functional.cross_entropy(f, torch.arange(8) % 3, reduction="sum")
    (loss + 0.15 * sum((p**2).sum() for p in trained.parameters())).backward()
    assert max(p.grad.abs().max() for p in trained.parameters()) < 1e-4


def test_eq_7_of_modules_is_of_the_loss_that_was_minimised():
    net, classes = nn.Linear(4, 3).double().eval(), np.arange(8) % 3
    y_te, how = np.array([2, 0, 1]), QUIET | {"decay": True}
    data = TensorDataset(torch.as_tensor(X), torch.as_tensor(classes))
    one = retrain_modules(net, Softmax(), (X, np.eye(3)[classes]), X_TE, [0, 1], **how)[1]
    for train in ((X, classes), data):
        same = retrain_modules(net, nn.CrossEntropyLoss(), train, X_TE, [0, 1], **how)[1]
        np.testing.assert_array_equal(same.f_without, one.f_without)

    def value(f):
        return np.log(np.exp(f).sum(-1)) - np.take_along_axis(f, y_te[:, None], -1)[:, 0]

    actual = np.array([value(f) - value(one.f) for f in one.f_without])
    for given in (y_te, np.eye(3)[y_te]):
        np.testing.assert_allclose(one.influence(given).exact, actual, rtol=1e-9, atol=1e-12)
    squared = Retrained(one.groups, one.f, one.f_without, *np.zeros((3, 2)))
    wrong = squared.influence(np.eye(3)[y_te]).exact  # control
    assert np.abs(wrong - actual).max() > 0.1 * np.abs(actual).max()
    signs = np.array([1.0, 0.0, 1.0])
    net = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double().eval()
    one = retrain_modules(net, nn.BCEWithLogitsLoss(), (X, (Y > 0) * 1), X_TE, [0], **how)[1]
    value = lambda f: np.log1p(np.exp(-(2 * signs - 1) * f))  # noqa: E731
    actual = value(one.f_without[0]) - value(one.f)
    np.testing.assert_allclose(one.influence(signs).exact[0], actual, rtol=1e-9, atol=1e-12)


# --- the journal ----------------------------------------------------------------------------------


def test_a_file_is_gone_on_with_and_nothing_is_trained_twice(tmp_path, monkeypatch):
    def run(groups, net=None, pair=(X, Y), **change):
        settings = QUIET | {"file": tmp_path / "modules.jsonl"} | change
        return retrain_modules(net or line(), Squared(), pair, X_TE, groups, **settings)

    trained, first = run([0, 1])
    asked, call = [], module.Fit.__call__
    monkeypatch.setattr(module.Fit, "__call__", lambda s, g, b: (asked.extend(g), call(s, g, b))[1])
    same, again = run([1, 2, 0])
    assert asked == [(2,)]  # not even all points
    np.testing.assert_array_equal(again.f_without[[2, 0]], first.f_without)
    np.testing.assert_array_equal(again.f, first.f)
    assert torch.equal(same[0].weight, trained[0].weight)
    header, *results = map(json.loads, (tmp_path / "modules.jsonl").read_text().splitlines())
    assert len(results) == 4 and header["format"] == "lib.retrain.modules 1"
    for change, name in (
        ({"lam": 0.4, "step": header["step"]}, "lam is 0.3 in the file and 0.4 here, choose"),
        ({"warm": False}, "warm is True in the file and False here, choose"),
        ({"decay": True}, "decay is False"),
        ({"pair": (X, -Y)}, "data is"),
    ):
        with pytest.raises(ValueError, match=f"is of another setting: {name}"):
            run([0], **change)
    version = module.code_version
    monkeypatch.setattr(module, "code_version", lambda names: f"other {version(names)}")
    with pytest.raises(ValueError, match="is of another setting: code is"):
        run([0])


def test_the_code_that_trains_modules_has_a_digest_of_its_own(tmp_path, monkeypatch):
    names = module.TRAINS_MODULES
    assert set(names) == {"retrain", "module", "losses"}  # where a step is computed
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"# {name}")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "retrain.py"))
    module.code_version.cache_clear()
    before = module.code_version(names)
    for name in names:
        (tmp_path / f"{name}.py").write_text("# changed")
        module.code_version.cache_clear()
        assert module.code_version(names) != before
        before = module.code_version(names)
    module.code_version.cache_clear()


def test_a_file_knows_the_activation(tmp_path):
    def run(activation):
        net = Centred(Deep(4, width=8, depth=2, activation=activation, seed=0).eval())
        settings = {**QUIET, "step": 0.02, "steps": 100}
        retrain_modules(net, Squared(), (X, Y), X_TE, [0], file=tmp_path / "f.jsonl", **settings)

    run(torch.relu)
    run(torch.relu)
    with pytest.raises(ValueError, match="is of another setting"):
        run(nn.functional.gelu)


def test_bad_input_of_modules():
    with pytest.raises(ValueError, match=r"Y has shape \(8, 1\), but the outputs have \(8,\)"):
        retrain_modules(line(), Squared(), (X, Y[:, None]), X_TE, [0], **QUIET)
    with pytest.raises(TypeError, match=r"train must be \(X, Y\), .* not a ndarray of 8; pass"):
        retrain_modules(line(), Squared(), X, X_TE, [0], **QUIET)
    sign = line()
    sign.register_forward_hook(lambda *parts: torch.sign(parts[2]))
    with pytest.raises(ValueError, match="outputs do not depend on the chosen parameters"):
        retrain_modules(sign, Squared(), (X, Y), X_TE, [0], step=0.1, **QUIET)
    branch = line()
    branch.register_forward_hook(lambda *parts: parts[2] if parts[2].sum() > 0 else -parts[2])
    with pytest.raises(ValueError, match="torch.func.vmap cannot do .* torch.where"):
        retrain_modules(branch, Squared(), (X, Y), X_TE, [0], step=0.1, **QUIET)
    with pytest.raises(ValueError, match=r"cannot take X_te, 1 points in shape \(1, 3\): .* pass"):
        retrain_modules(line(), Squared(), (X, Y), X_TE[:1, :3], [0], **QUIET)
    with pytest.raises(ValueError, match="training mode"):
        retrain_modules(line().train(), Squared(), (X, Y), X_TE, [0], step=0.1, **QUIET)
    with pytest.raises(IndexError, match=r"groups\[0\] = 8 is out of range"):
        retrain_modules(line(), Squared(), (X, Y), X_TE, [8], **QUIET)
    with pytest.raises(
        RuntimeError, match="came to no rest in 300 steps of 1e.* choose a smaller step"
    ):
        retrain_modules(line(), Squared(), (X, Y), X_TE, [0], step=1e3, **QUIET)
    with pytest.raises(RuntimeError, match=r"no rest in 3 steps .* is \d.* of the pull"):
        retrain_modules(line(), Squared(), (X, Y), X_TE, [0], **(QUIET | {"steps": 3}))
    with pytest.raises(TypeError, match="loss must be an object of lib.losses, .* not 'squared'"):
        retrain_modules(line(), "squared", (X, Y), X_TE, [0], **QUIET)


@pytest.mark.parametrize("flag", [{"decay": 1}, {"warm": "no"}])
def test_what_is_neither_true_nor_false_is_named_for_modules(flag):
    ((name, value),) = flag.items()
    with pytest.raises(TypeError, match=f"{name} must be True or False, not {value!r}; pass one"):
        retrain_modules(line(), Squared(), (X, Y), X_TE, [0], **QUIET, **flag)
