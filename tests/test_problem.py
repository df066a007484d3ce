"""The problem of Eq 2 and a trained network: its kernel, its kinks, and what is refused."""

import pickle
from decimal import Decimal

import numpy as np
import pytest
import torch
from torch.func import grad

from lib import packed
from lib.descent import gradient_descent
from lib.kernel import ntk
from lib.network import finite_kernel, forward, initialise
from lib.newton import newton
from lib.problem import Problem
from lib.ridge import Ridge
from tests.cases import problem, rms, sample, trained_weights, weights


def test_eq_1_blocks_of_neurons_and_the_start_of_training():
    p = problem(m=5000, kappa=0.1)
    done = gradient_descent(p, steps=0)
    X, _, X_te = sample()
    W, a = initialise(4, 5000, 0.1, 1)
    np.testing.assert_allclose(done.f, forward(X, W, a), atol=1e-12)
    for K, X2 in zip(done.kernel(), (X, X_te), strict=True):
        np.testing.assert_allclose(K, finite_kernel(X2, X, m=5000, seed=1, dtype="float64"))


@pytest.mark.parametrize("chunk", [1, 100])
def test_blocks_that_are_worked_on_together_are_a_matter_of_memory(chunk, monkeypatch):
    p = problem(m=70, kappa=0.1)
    whole = newton(p, remove=2)
    assert list(p.blocks()) == [slice(0, 70)] and whole.kinks > 0
    monkeypatch.setattr("lib.problem.CHUNK", chunk)
    *blocks, last = p.blocks()
    sizes = {b.stop - b.start for b in blocks}
    assert sizes == {max(1, chunk // 8)} and last.stop == 70  # n = 8 numbers for each neuron
    parts = newton(p, remove=2)
    for name in ("f", "f_te", "Z", "C"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-10)
    assert parts.kinks == whole.kinks and type(parts.kinks) is float
    for side in (None, 0, 1):
        for a, b in zip(parts.kernel(side), whole.kernel(side), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-14)


def test_eq_3_antisymmetric_network_starts_at_zero():
    zero = gradient_descent(problem(antisymmetric=True), steps=0)
    plain = gradient_descent(problem(), steps=0)
    assert rms(zero.f) < 1e-15 < 0.01 < rms(plain.f)


def test_thm_1_kernel_at_the_trained_pattern_is_the_autodiff_gram_matrix():
    p = problem()
    done = newton(p, settle_steps=30)
    (W0, a), (X, _, X_te) = weights(p), (torch.as_tensor(v) for v in sample())
    W = trained_weights(done, W0)
    one = grad(lambda W, x: forward(x, W, a))
    J, J_te = (torch.stack([one(W, x).flatten() for x in v]) for v in (X, X_te))
    K, K_te = done.kernel()
    assert type(K) is type(K_te) is np.ndarray and K.dtype == K_te.dtype == np.float64
    np.testing.assert_allclose(K, J @ J.T, atol=1e-12)
    np.testing.assert_allclose(K_te, J_te @ J.T, atol=1e-12)


def test_eq_2_kinks_of_the_points_that_are_left_and_the_kernel_on_both_sides_of_them():
    p = problem(m=256, kappa=0.1)
    gone, left = [2, 5], [0, 1, 3, 4, 6, 7]
    done = newton(p, remove=gone, settle_steps=300)
    on = done.Z.abs() < 1e-7
    assert on[:, left].sum() > 20
    assert done.kinks == pytest.approx(float(on[:, left].double().mean()))
    on[:, gone] = False  # a removed point pulls no weights, so no kink holds it
    active_te = (done.at_test_points(slice(None)) > 0).double()
    for side in (0, 1):
        S = torch.where(on, float(side), (done.Z > 0).double())
        K, K_te = done.kernel(side)
        np.testing.assert_allclose(K, p.G64 * (S.T @ S) / p.m, atol=1e-14)
        np.testing.assert_allclose(K_te, p.G64_te.T * (active_te.T @ S) / p.m, atol=1e-14)


def test_eq_2_share_of_kinks_is_as_theory_expects():
    p = problem(m=20_000, kappa=0.2, n=30, d=10, dtype="float32")
    done = newton(p)
    expected = float(done.beta.abs().mean()) / (2 * (2 * np.pi) ** 0.5 * p.kappa * p.m**0.5)
    assert done.kinks == pytest.approx(expected, rel=0.1)


def test_thm_1_wide_network_is_kernel_ridge_regression():
    X, Y, X_te = sample(20, 10, 6)
    model = Ridge(ntk(X), Y, 0.5)
    f_ntk = model.predict(ntk(X, X_te))
    errors = []
    for m in (1000, 64_000):
        how = {"lam": 0.5, "m": m, "kappa": 1.0, "antisymmetric": True}
        runs = [newton(Problem(X, Y, X_te, seed=s, **how)).f_te - f_ntk for s in range(4)]
        errors.append(rms(runs))
    assert errors[1] < 0.01 and 4 < errors[0] / errors[1] < 16  # m^{-1/2}: 8
    assert rms(f_ntk) > 0.1


def test_eq_7_state_survives_pickling():
    p = problem(dtype="float32")
    full = newton(p)
    copy = pickle.loads(pickle.dumps(full))
    a, b = (newton(s.problem, start=s, remove=2).f_te for s in (full, copy))
    np.testing.assert_array_equal(a, b)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": 0}, "lam must be a finite number > 0"),
        ({"kappa": -1.0}, "kappa must be a finite number > 0"),
        ({"m": 0}, "m must be at least 1"),
        ({"m": 3, "antisymmetric": True}, "m must be even"),
        ({"X": [[1.0, 1.0]]}, "X must have rows of unit norm"),
        ({"X_te": [[1.0, 0.0, 0.0]]}, "X_te must have 2 columns"),
        ({"X_te": [[np.inf, 0.0]]}, "X_te has 1 value that is not finite"),
        ({"Y": [1.0, 1.0]}, "Y has 2 entries"),
        ({"Y": [2.0]}, r"Y must lie in \[-1, 1\]"),
        ({"Y": [-1e3]}, r"Y must lie in \[-1, 1\], but Y\[0\] = -1000; use -1 and \+1"),
        ({"Y": [[1.0]]}, r"Y must be one label a point, but its shape is \(1, 1\)"),
        ({"dtype": "int8"}, "dtype must be 'float64' or 'float32'"),
        ({"device": "gpu"}, "device = 'gpu' is not at hand"),
    ],
)
def test_eq_2_bad_problems(change, message):
    good = {"X": [[1.0, 0.0]], "Y": [1.0], "X_te": [[0.0, 1.0]], "lam": 1.0, "m": 4, "kappa": 0.1}
    with pytest.raises(ValueError, match=message):
        Problem(**(good | {"seed": 0} | change))


def test_eq_1_kappa_that_single_precision_does_not_hold():
    with pytest.raises(ValueError, match="kappa = 1e-50 is beyond single precision"):
        problem(kappa=1e-50)


def test_arrays_of_any_strides_and_whole_floats(recwarn):
    X, Y, X_te = sample(8, 3, 5)
    X, Y, X_te = (np.asarray(x) for x in (X, Y, X_te))
    settings = {"lam": 1.0, "kappa": 0.1}
    one = Problem(X, Y, X_te, m=40, seed=0, **settings)
    back = [x[::-1].copy()[::-1] for x in (X, Y, X_te)]
    two = Problem(*back, m=4e1, seed=0.0, **settings)
    locked = Problem(*(np.broadcast_to(x, x.shape) for x in (X, Y, X_te)), m=40, seed=0, **settings)
    for other in (two, locked):
        assert torch.equal(one.Z0, other.Z0) and torch.equal(one.G64_te, other.G64_te)
        assert torch.equal(one.Y, other.Y)
    assert not recwarn.list


@pytest.mark.parametrize(
    "m", [np.float16(1000), torch.tensor(1000.0, dtype=torch.float16), Decimal(1000), 1e3]
)
def test_a_whole_number_of_any_kind_gives_the_same_network(m):
    X, Y, X_te = sample(8, 3, 5)
    settings = {"lam": 1.0, "kappa": 0.1, "seed": 0}
    one = Problem(X, Y, X_te, m=1000, **settings)
    two = Problem(X, Y, X_te, m=m, **settings)
    assert two.m == 1000 and torch.equal(one.a, two.a) and torch.equal(one.Z0, two.Z0)


def test_a_problem_stays_as_it_was_made():
    X, Y, X_te = (np.array(x) for x in sample(8, 3, 5))
    problem = Problem(X, Y, X_te, lam=1.0, m=40, kappa=1.0, seed=0)
    before = newton(problem).f
    for array in (X, Y, X_te):
        array[:] = 0.25
    np.testing.assert_array_equal(newton(problem).f, before)


def test_a_problem_says_shapes_and_settings_and_refuses_labels_0_and_1():
    X, _, X_te = sample(8, 3, 5)
    settings = {"lam": 0.5, "m": 40, "kappa": 0.1, "seed": 0}
    problem = Problem(X, np.ones(8), X_te, **settings)
    assert str(problem) == "Problem: n = 8, t = 3, m = 40, lam = 0.5, kappa = 0.1"
    told = repr(newton(problem, remove=2))
    assert told.startswith("Trained(removed=array([2]), iterations=") and "tensor" not in told
    assert "f=" not in told and "trajectory" not in told
    with pytest.raises(ValueError, match="Y has labels 0 and 1"):
        Problem(X, np.arange(8) % 2, X_te, **settings)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_width_that_no_memory_holds_is_told_before_it_is_taken(dtype, monkeypatch):
    X, Y, X_te = sample()
    need = 40 * (len(X) + len(X_te)) * (4 if dtype == "float32" else 8)
    how = {"lam": 1, "m": 40, "kappa": 0.1, "seed": 0, "dtype": dtype}
    monkeypatch.setattr(packed, "free_memory", lambda: need)
    assert Problem(X, Y, X_te, **how).m == 40
    monkeypatch.setattr(packed, "free_memory", lambda: need - 1)
    with pytest.raises(MemoryError, match="the network of m = 40 needs .*; choose a smaller m"):
        Problem(X, Y, X_te, **how)
