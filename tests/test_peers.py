"""The comparison with other libraries: its oracle, its networks and its plan; no peer is needed."""

import io
import json
import logging
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench.peers import __main__ as runner
from bench.peers import case, plan, prepare, side, solvers, tasks
from bench.peers.plan import Network
from lib.dynamics import Flow
from lib.ihvp import ihvp
from lib.kernel import ntk
from lib.newton import newton
from lib.problem import Problem

SMALL = Network("digits:3/8", 60, 1.0, kappa=1.0)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A small network, prepared with few points."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "N", 24)
        patch.setattr(prepare, "T", 6)
        return prepare.prepare(SMALL, tmp_path_factory.mktemp("networks"))


def dense(one: solvers.Case, lam: float) -> np.ndarray:
    """Î from the dense Hessian by automatic differentiation, float64."""
    module, size = one.module.double(), one.module.hidden.weight.numel()
    X, Y, X_te, Y_te = (v.double() for v in (one.X, one.Y, one.X_te, one.Y_te))
    shape = one.module.hidden.weight.shape

    def loss(w, x, y):
        f = torch.func.functional_call(module, {"hidden.weight": w.reshape(shape)}, (x,))
        return 0.5 * ((f - y) ** 2).sum()

    w = module.hidden.weight.detach().reshape(-1)
    H = torch.autograd.functional.hessian(lambda w: loss(w, X, Y), w)
    of = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))
    g, g_te = of(w, X[:, None], Y[:, None]), of(w, X_te[:, None], Y_te[:, None])
    H = H + lam * torch.eye(size, dtype=H.dtype)
    return (g @ torch.linalg.solve(H, g_te.T)).numpy()


def test_eq_12_oracle_is_the_dense_hessian_of_the_module_that_the_peers_get(file):
    z = np.load(file)
    found = dense(solvers.Case.load(file), SMALL.lam)
    scale = np.abs(found).max()
    assert np.abs(found - z["ihvp"]).max() <= 1e-5 * scale  # the network is of single precision
    assert np.abs(dense(solvers.Case.load(file), 2 * SMALL.lam) - z["ihvp"]).max() > 0.05 * scale
    assert np.abs(z["counted"] - z["ihvp"]).max() <= 1e-2 * scale


def test_gradients_of_a_case_are_residual_times_jacobian(file):
    one = solvers.Case.load(file)
    g = solvers.gradients(one, one.X, one.Y)
    Z = one.module.hidden(one.X)
    r = one.module(one.X) - one.Y
    J = ((Z > 0) * one.module.a[:, 0])[:, :, None] * one.X[:, None, :]
    assert torch.allclose(g, (r[:, :, None] * J).reshape(len(g), -1), atol=1e-6)
    assert one.module(one.X).shape == one.Y.shape  # or losses would broadcast


def test_no_pair_is_on_a_kink(file):
    z = np.load(file)
    Z = z["X"] @ z["hidden.weight"].T.astype(float)
    assert np.abs(Z).min() > 0.5 * prepare.AWAY


def test_errors_by_hand():
    exact = np.array([[3.0], [4.0]])
    found = case.errors(np.array([[6.0], [8.0]]), exact, np.array([[6.0], [0.0]]))
    assert found["error"] == pytest.approx(1) and found["fitted"] == pytest.approx(0, abs=1e-12)
    assert found["factor"] == pytest.approx(0.5)
    assert found["error actual"] == pytest.approx(8 / 6)
    off = case.errors(np.array([[4.0], [-3.0]]), exact, exact)  # orthogonal to it
    assert off["fitted"] == pytest.approx(1) and off["error"] == pytest.approx(2**0.5)


def ask(monkeypatch, capsys, file, solver, **rest):
    """One case as `case.py` answers it, in a process of its own."""
    asked = {"solver": "ours", "network": str(file), "knobs": {}, "seed": 0, "seconds": 2,
             "memory": 64e9, "unit": True} | rest  # fmt: skip
    monkeypatch.setitem(sys.modules, "solvers", solvers)
    monkeypatch.setattr(solvers, "ours", solver, raising=False)
    monkeypatch.setattr(case.multiprocessing, "set_start_method", lambda how: None)
    monkeypatch.setitem(solvers.LIBRARIES, "ours", ("numpy", ["numpy"]))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked) + "\n"))
    case.main()
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line.removeprefix(case.MARK))


def endless(one):
    while True:
        pass


def fails(one):
    raise ValueError("no\nsecond line")


@pytest.mark.parametrize(
    ("solver", "outcome"),
    [
        (lambda one: np.load(one.file)["ihvp"], "ok"),
        (lambda one: 1e3 * np.load(one.file)["ihvp"], "diverged"),
        (lambda one: np.nan * np.load(one.file)["ihvp"], "not finite"),
        (fails, "ValueError: no"),
        (endless, "time limit"),
    ],
)
def test_a_case_ends_as_a_row_whatever_happens(monkeypatch, capsys, file, solver, outcome):
    monkeypatch.setattr(solvers.Case, "file", file, raising=False)
    found = ask(monkeypatch, capsys, file, solver)
    assert found["outcome"] == outcome and found["library"] == "numpy"
    if outcome == "ok":
        assert found["error"] == 0 and found["memory"] >= 0 and found["seconds"] < 2


def test_memory_of_a_case_is_its_own(monkeypatch, capsys, file):
    monkeypatch.setattr(solvers.Case, "file", file, raising=False)

    def hungry(one):
        return np.load(one.file)["ihvp"] + 0 * np.ones(25_000_000).sum()

    found = ask(monkeypatch, capsys, file, hungry)
    assert 190 < found["memory"] < 400


def test_plan_names_each_case_once_and_every_function_is_there():
    for network in plan.NETWORKS + plan.MORE:
        named = [(c.method, c.solver, runner.words(c.knobs)) for c in plan.cases(network)]
        assert len(set(named)) == len(named), network.name
        assert {solver for _, solver, _ in named} <= set(solvers.LIBRARIES) & set(plan.ORDER)
        assert all(callable(getattr(solvers, solver)) for _, solver, _ in named)


def test_off_kinks_changes_little_and_keeps_sides():
    torch.manual_seed(0)
    X = torch.nn.functional.normalize(torch.randn(6, 10, dtype=torch.float64), dim=1)
    W = torch.randn(5, 10, dtype=torch.float64)
    W[0] -= (W[0] @ X[0]) * X[0] * (1 - 1e-9)  # a pair next to its kink
    moved = prepare.off_kinks(W, X)
    assert ((moved @ X.T) > 0).equal((W @ X.T) > 0)
    assert (moved @ X.T).abs().min() >= prepare.AWAY * 0.99
    assert (moved - W).norm() < 1e-3 and (moved[1:] == W[1:]).all()


def test_ihvp_of_the_trained_state_is_what_the_tasks_time():
    assert prepare.ihvp is ihvp and prepare.measured is side.measured
    assert tasks.fastest is side.fastest


def test_measured_counts_what_a_call_adds_even_where_the_heap_has_room():
    room = [np.ones(1000) for _ in range(20_000)]  # 160 MB in small pieces, freed before the call
    del room
    _, seconds, memory = side.measured(lambda: [np.ones(1000) for _ in range(10_000)])
    assert 70 < memory < 120 and 0 < seconds < 5
    assert side.measured(lambda: None)[2] < 5


def test_a_row_has_all_that_it_must_have():
    cost = {"seconds": 1.0, "memory": 2.0}
    one = tasks.row("a", "b", "numpy", "c", cost, 0.0, "d")
    assert one["version"] == f"numpy {np.__version__}" and one["outcome"] == "ok"
    assert tasks.row("a", "b", "", "c", cost | {"version": "x 1"}, 0.0, "d")["version"] == "x 1"
    lost = {
        "version": "x 1",
        "outcome": "ValueError: no",
    }  # a library that has failed is a row, too
    one = tasks.row("a", "b", "", "c", tasks.scaled(lost, 2.0), tasks.gap(None, 1.0), "d")
    assert one["outcome"] == "ValueError: no" and np.isnan(one["error"])
    assert tasks.scaled(cost, 3.0) == {"seconds": 3.0, "memory": 2.0}


def test_eq_4_in_extended_precision_is_what_the_kernel_gives_and_float64_as_written_does_not():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((6, 9))
    X[1] = X[0] + 1e-5 * X[2]  # close to another
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    wanted = tasks.extended(X)
    assert wanted.dtype == np.longdouble and (np.diag(wanted) == 0.5).all()
    assert np.abs(ntk(X) - wanted).max() < 1e-13
    u = np.clip(X @ X.T, -1, 1)
    assert np.abs(u * (np.pi - np.arccos(u)) / (2 * np.pi) - wanted).max() > 1e-13


@pytest.fixture
def start():
    """A problem, its trained network, and what the loop of others is given of them."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((12, 5))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    p = Problem(X, np.sign(rng.standard_normal(12)), X[:3], lam=0.5, m=2000, kappa=1.0, seed=0)
    begin = newton(p)
    rate = 1 / (float(np.linalg.eigvalsh(ntk(X))[-1]) + p.lam)
    W0, a = prepare.initialise(5, p.m, p.kappa, 0)
    W = W0 + X.T @ (begin.C.double().numpy() * p.a.numpy()[:, None]).T
    return p, begin, {
        "W0": W0.T, "W": W.T, "s": a / p.m**0.5, "X": X, "Y": p.Y, "X_te": X[:3], "lam": p.lam,
        "rate": rate, "momentum": 0.5, "points": np.array([0, 7]), "seed": 0,
    }  # fmt: skip


def test_retraining_by_dattri_around_the_plain_loop_is_newton_without_the_point(monkeypatch, start):
    p, begin, inputs = start
    asked = []

    def retrain_loo(train_func, dataloader, path, indices=None, seed=None, **kwargs):
        # as its documentation says: a loader without the point, and a file for each
        for i in indices:
            asked.append(i)
            kept = [k for k in range(len(dataloader.dataset)) if k != i]
            part = torch.utils.data.Subset(dataloader.dataset, kept)
            batches = torch.utils.data.DataLoader(part, batch_size=dataloader.batch_size)
            (Path(path) / f"index_{i}").mkdir()
            file = Path(path) / f"index_{i}" / "model_weights.pt"
            torch.save(train_func(batches, seed=seed, **kwargs), file)

    for name in ("dattri", "dattri.model_util", "dattri.model_util.retrain"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["dattri.model_util.retrain"].retrain_loo = retrain_loo
    found, cost = side.dattri(inputs)
    wanted = np.array([newton(p, start=begin, remove=i).f_te for i in (0, 7)])
    assert np.abs(found - wanted).max() < 5e-3 < np.abs(begin.f_te - wanted).max()
    assert set(asked) == {0, 7} and cost["seconds"] > 0 <= cost["memory"]


def test_flow_of_neural_tangents_has_our_ridge_and_our_time(monkeypatch):
    """By the formula of its documentation, in which the loss is a mean over the points."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((9, 4))
    K = ntk(X / np.linalg.norm(X, axis=1, keepdims=True))
    Y = np.sign(rng.standard_normal(9))

    def gradient_descent_mse(K, y, learning_rate=1.0, diag_reg=0.0, diag_reg_absolute_scale=False):
        assert diag_reg_absolute_scale
        a, V = np.linalg.eigh(K + diag_reg * np.eye(len(K)))

        def predict(t, fx_train_0, fx_test_0, k_test_train):
            learnt = -np.expm1(-a * t / y.size) / a
            return fx_test_0 + k_test_train @ ((V * learnt) @ (V.T @ y))

        return predict

    for name in ("jax", "neural_tangents", "neural_tangents.experimental"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["jax"].config = types.SimpleNamespace(update=lambda *how: None)
    sys.modules["neural_tangents"].predict = types.SimpleNamespace(
        gradient_descent_mse=gradient_descent_mse
    )
    points = np.array([0, 4, 8])
    found, _ = side.gradient_flow({"K": K, "Y": Y, "lam": 0.1, "t": 1.5, "points": points})
    assert np.abs(found - Flow(K, Y, 0.1).rho(1.5)[points]).max() < 1e-12
    assert np.abs(found - Flow(K, Y, 0.2).rho(1.5)[points]).max() > 1e-3


def test_last_column_goes_where_a_bias_is_looked_for_and_comes_back():
    seen = []

    def solve(v):
        seen.append(v)
        return {"hidden": 2 * v}

    found = solvers.last_column(solve, 2)(torch.arange(6.0)[None])
    assert seen[0].tolist() == [
        [0, 1, 3, 4, 2, 5]
    ]  # rows (0, 1) and (3, 4), then the column (2, 5)
    assert found["hidden"].tolist() == [[0, 2, 4, 6, 8, 10]]


def test_theory_by_hand():
    values, of = np.array([3.0, 1.0]), "pydvl"
    case = plan.Case("LiSSA", of, {"maxiter": 2, "scale": 2.0, "batch": 2})  # σ = 4, least 1 − 1/4
    assert plan.theory(case, values, 1.0) == pytest.approx(0.75**2)
    below = plan.Case("LiSSA", of, {"maxiter": 1, "scale": 0.5, "batch": 2})  # σ = 1, and 1 − 4
    assert plan.theory(below, values, 1.0) == pytest.approx(3.0)
    # s = (3/4, 1/2), and s' = (3/5, 1/3) with a ridge of 2, which is n times a damping of 1
    damped = plan.Case("conjugate gradients", of, {"damping": 1.0, "maxiter": 3}, about="damping")
    wanted = (0.75 * 0.6 + 0.5 / 3) / (0.75**2 + 0.5**2)
    assert plan.theory(damped, values, 1.0) == pytest.approx(wanted)
    batches = {"maxiter": 2, "scale": 2.0, "batch": 1}
    for name, solver, knobs in (
        ("LiSSA", of, batches), ("Nyström", of, {"rank": 2}), ("EK-FAC", "kronfluence", {}),
    ):  # fmt: skip
        none = plan.Case(name, solver, knobs)
        assert plan.theory(none, values, 1.0) is None
    assert plan.theory(case, None, 1.0) is None


def test_tracin_takes_the_last_checkpoints_and_the_end(file):
    one = solvers.Case.load(file)
    assert len(one.checkpoints) == len(prepare.CHECKPOINTS)
    first = np.load(file)["checkpoint 0"]
    end = one.module.hidden.weight.detach().numpy()
    assert np.abs(end - first).max() > 1e-3
    seen = [state["hidden.weight"].numpy() for state in solvers.along(one, 2)]
    assert len(seen) == 3 and np.array_equal(seen[0], one.checkpoints[-2])
    assert np.array_equal(seen[-1], end) and len(solvers.along(one, 0)) == 1
    assert np.array_equal(solvers.along(one, None)[0]["hidden.weight"], first)


def test_checkpoints_are_those_of_gradient_descent(file):
    """By hand: two rates of the first step tell the gradient at the start."""
    one, z = solvers.Case.load(file), np.load(file)
    W0, a = prepare.initialise(z["X"].shape[1], SMALL.width, SMALL.kappa, SMALL.seed)
    X, Y, s = z["X"], z["Y"], a / SMALL.width**0.5
    on = (X @ W0 > 0) * s
    r = np.maximum(X @ W0, 0) @ s - Y
    K = (on @ on.T) * (X @ X.T)
    rate = 1 / (np.linalg.eigvalsh(K)[-1] + SMALL.lam)
    wanted = W0.T - rate * (on * r[:, None]).T @ X
    assert np.abs(z["checkpoint 0"] - wanted).max() < 1e-5
    assert len(one.checkpoints) == 6


def test_what_a_library_says_comes_into_the_row(monkeypatch, capsys, file):
    monkeypatch.setattr(solvers.Case, "file", file, raising=False)

    def talks(one):
        one.used |= {"damping": 0.25, "batch": 7}
        for _ in range(2):
            warnings.warn("no convergence", stacklevel=1)
        warnings.warn("use another name", DeprecationWarning, stacklevel=1)
        logging.getLogger("library").warning("step %d", 3)
        return np.load(one.file)["ihvp"]

    found = ask(monkeypatch, capsys, file, talks)
    assert found["said"] == "no convergence | step 3"
    assert found["damping"] == 0.25 and found["batch"] == 7


def rows_of(network, **rest):
    return {"network": network, "method": "dual", "knobs": "", "about": "", "version": ""} | rest


def test_images_that_are_not_at_hand_are_left_out_and_their_rows_are_kept(
    monkeypatch, capsys, tmp_path
):
    def load(name, **how):
        raise OSError(f"{name} is not below /nowhere\nand more")

    monkeypatch.setattr(runner.data, "load", load)
    assert list(runner.solvers([plan.MNIST], tmp_path, "no python", 1e9)) == []
    (line,) = capsys.readouterr().out.splitlines()
    assert line == f"{plan.MNIST.name} is left out: mnist:4/9 is not below /nowhere"

    record = tmp_path / "solvers.csv"
    rows = [rows_of(plan.MNIST.name, error=1.0), rows_of(plan.MAIN.name, error=2.0),
            rows_of("no longer planned", error=3.0)]  # fmt: skip
    pd.DataFrame(rows).assign(date="then", machine="there", versions="old").to_csv(record)
    found = runner.merged([rows_of(plan.MAIN.name, error=4.0)], record)
    assert found.network.tolist() == [plan.MAIN.name, plan.MNIST.name]  # in the order of the plan
    assert found.error.tolist() == [4.0, 1.0] and found.knobs.tolist() == ["", ""]
    assert found.date.iloc[1] == "then" != found.date.iloc[0]


def test_record_has_version_knobs_seed_error_time_and_memory_of_each_row(request):
    record = pd.read_csv(request.config.rootpath / "book/records/peers.csv")
    needed = ["task", "who", "version", "knobs", "seed", "seconds", "memory", "error", "reference"]
    assert not record[needed].isna().to_numpy().any()
    assert (record.outcome == "ok").all() and (record[["seconds", "memory"]] > 0).all(axis=None)
    assert not record.duplicated(["task", "who"]).any()
    parts = dict(list(record.groupby("task")))
    assert {"dattri, retrain_loo"} < set(parts["one retraining, m = 1000"].who)
    along = parts["leave-one-out at a moment of training, n = 300"]
    assert along.who.str.startswith("neural-tangents").sum() == 1 and (along.error < 1e-10).all()
    exact = record[record.task.str.contains("leave-one-out|influence of all")]
    assert (exact.error < 1e-10).all()
    solvers = pd.read_csv(request.config.rootpath / "book/records/solvers.csv")
    ihvp = record[record.task.str.startswith("IHVP") & ~record.who.str.startswith("this library")]
    for one in ihvp.itertuples():  # as they are there
        there = solvers[(solvers.knobs == one.knobs) & (solvers.seconds == one.seconds)]
        assert (there.memory == one.memory).any() and (there.error == one.error).any(), one


def test_readme_says_what_the_record_says(request):
    root = Path(request.config.rootpath)
    told = (root / "README.md").read_text(encoding="utf-8").split("## Beside other tools")[1]
    record = pd.read_csv(root / "book/records/peers.csv")
    lines = [line.split("|")[1:-1] for line in told.splitlines() if line.startswith("| ")][1:]
    assert len(lines) >= 4
    for task, who, times in ([cell.strip() for cell in line] for line in lines):
        part = record[record.task == task]
        ours = part[part.who.str.startswith("this library")].seconds.min()
        ratio = part[part.who == who].seconds.iloc[0] / ours
        assert float(times.replace(",", "")) == pytest.approx(ratio, rel=0.06), (task, who)
