"""The comparison with other libraries: its oracle, its networks and its plan; no peer is needed."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bench.peers import __main__ as runner
from bench.peers import case, plan, prepare, solvers, tasks
from bench.peers.plan import Network
from lib.ihvp import ihvp

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
    assert prepare.ihvp is ihvp and tasks.row("a", "b", 1.0, 0.0, "c")["outcome"] == "ok"


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
