"""What Newton and descent share: how a step moves the state, removal, and where they start."""

import time

import numpy as np
import pytest
import torch

from lib import state as state_module
from lib.descent import gradient_descent
from lib.newton import newton
from lib.problem import Problem
from lib.state import State, largest_eigenvalue
from tests.cases import problem, rms, sample, two_neurons

GONE, LEFT = [2, 5], [0, 1, 3, 4, 6, 7]  # of the 8 points of `problem`


def holds_together(state):
    """Z belongs to C, f to Z, and removed points pull nothing."""
    p = state.problem
    Z = p.Z0.double() + p.a[:, None] * (state.C.double() @ p.G64)
    torch.testing.assert_close(state.Z.double(), Z, rtol=0, atol=1e-12)
    torch.testing.assert_close(state.f, p.a @ Z.relu(), rtol=0, atol=1e-12)
    assert (state.C[:, state.removed] == 0).all()


def kernel(state):
    S = (state.Z > 0).double()
    return state.problem.G64 * (S.T @ S) / state.problem.m


# --- what a state says and how it moves -----------------------------------------------------------


def test_a_state_begins_with_the_network_and_its_kernel():
    p = problem()
    state = State(p, None, GONE)
    holds_together(state)
    assert not state.beta.any() and not state.C.any()
    np.testing.assert_allclose(state.K, kernel(state), atol=1e-15)
    residual = np.where(np.isin(np.arange(8), GONE), 0, state.f - p.Y)
    np.testing.assert_allclose(state.residual(), residual, atol=0)
    K, G = state.K.numpy()[np.ix_(LEFT, LEFT)], p.G64.numpy()[np.ix_(LEFT, LEFT)]
    assert state.stiffness() == pytest.approx(np.linalg.eigvalsh(K)[-1] + p.lam, rel=1e-6)
    assert state.crowding == pytest.approx(np.linalg.eigvalsh(G)[-1] / 6, rel=1e-2)
    right = torch.linspace(-1, 1, 8, dtype=torch.float64)
    found = state.solve(state.factor(3.0), right).numpy()
    expected = np.linalg.solve(np.eye(6) + 3 * K, right[LEFT].numpy())
    np.testing.assert_allclose(found[LEFT], expected, rtol=1e-12)
    assert (found[GONE] == 0).all()


def test_eq_3_a_step_shrinks_the_coefficients_and_pulls_where_the_network_is_active():
    p, pull = problem(), torch.linspace(-1, 1, 8, dtype=torch.float64)
    S = [(p.Z0 > 0).double()]
    state = State(p, None, ())
    state.descent_step(0.1, pull)
    holds_together(state)
    torch.testing.assert_close(state.C, S[0] * pull, rtol=0, atol=1e-15)
    S.append((state.Z > 0).double())
    assert (S[0] != S[1]).any()
    state.descent_step(0.25, -pull)
    holds_together(state)
    torch.testing.assert_close(state.C, 0.75 * S[0] * pull - S[1] * pull, rtol=0, atol=1e-15)
    assert (state.K - kernel(state)).abs().max() > 0.01  # not counted since
    state.measure(count=True)
    torch.testing.assert_close(state.K, kernel(state), rtol=0, atol=1e-15)


def test_eq_3_a_step_of_the_flow_looks_ahead():
    p, pull = problem(), torch.linspace(-1, 1, 8, dtype=torch.float64)
    state, plain = (State(p, None, (), wide=True) for _ in range(2))
    state.flow_step(0.1, pull, 0.3, count=True)
    plain.descent_step(0.1, pull)
    torch.testing.assert_close(state.Z, plain.Z, rtol=0, atol=1e-8)
    torch.testing.assert_close(state.C, plain.C, rtol=0, atol=1e-15)
    torch.testing.assert_close(state.K, kernel(state), rtol=0, atol=1e-15)
    S = (state.Z > 0).double()
    ahead = p.a @ (S * (0.7 * state.Z + 0.3 * p.Z0))
    torch.testing.assert_close(state.f, ahead, rtol=0, atol=1e-14)
    assert (state.f - plain.f).abs().max() > 1e-3
    state.flow_step(0.1, pull, 0.0, count=False)
    torch.testing.assert_close(state.f, p.a @ state.Z.relu(), rtol=0, atol=1e-14)


def test_a_step_to_settle_removes_points_and_keeps_the_state_together():
    full = newton(problem(), settle_steps=2)
    state = State(full.problem, full, GONE)
    assert (state.C[:, GONE] != 0).any()
    delta = torch.full((8,), 0.1, dtype=torch.float64)
    for count in (True, False):
        state.beta = (state.beta + delta) * state.kept
        state.settle_step(delta * state.kept, count)
        holds_together(state)
    assert (full.C[:, GONE] != 0).any()  # the start keeps its own


def test_eq_2_pairs_settle_on_the_kinks_that_attract_them():
    begin = newton(problem(m=256, kappa=0.05), settle_steps=0)
    state = State(begin.problem, begin, ())
    before = state.C / state.beta
    for _ in range(3000):
        state.settle_step(torch.zeros(8, dtype=torch.float64), count=False)
    holds_together(state)
    share, on = state.C / state.beta, state.Z.abs() < 1e-9
    assert 0.01 < on.double().mean() < 0.2
    assert share.min() > -1e-9 and share.max() < 1 + 1e-9
    np.testing.assert_allclose(share[~on], (state.Z > 0).double()[~on], atol=1e-9)
    assert (before - share).abs().max() > 0.1  # which it was not before


def test_points_that_leave_take_their_pull_along():
    full = newton(problem(), settle_steps=2)
    state = State(full.problem, full, GONE)
    state.leave()
    holds_together(state)
    np.testing.assert_array_equal(state.C[:, LEFT], full.C[:, LEFT])
    assert (full.C[:, GONE] != 0).any()


def test_momentum_goes_on_in_the_direction_of_the_last_step():
    p = problem()
    state = State(p, None, ())
    state.leave()
    old = state.Z.clone(), state.C.clone()
    state.descent_step(0.1, torch.ones(8, dtype=torch.float64))
    now = state.Z.clone(), state.C.clone()
    before = state.extrapolate(old[0].clone(), old[1].clone(), 0.4)
    for moved, a, b, kept in zip((state.Z, state.C), old, now, before, strict=True):
        torch.testing.assert_close(moved, b + 0.4 * (b - a), rtol=0, atol=1e-14)
        torch.testing.assert_close(kept, b, rtol=0, atol=0)
    holds_together(state)


@pytest.mark.parametrize("n", [1, 3, 40])
def test_largest_eigenvalue_from_below(n):
    A = torch.as_tensor(np.random.default_rng(n).standard_normal((n, n)))
    K = A @ A.T
    expected = float(torch.linalg.eigvalsh(K)[-1])
    assert 0.99 * expected < largest_eigenvalue(K) <= expected * (1 + 1e-12)
    assert largest_eigenvalue(K, steps=1) <= largest_eigenvalue(K)


# --- in both methods ------------------------------------------------------------------------------


def test_eq_2_minimiser_by_hand():
    # f = 0.1/√2 + K b with K = 1/2, λ b = 1 − f: b = 1 − 0.1/√2, f = 1 − λ b
    f = 1 - 0.5 * (1 - 0.1 / 2**0.5)
    for method, how in ((newton, {"settle_steps": 90}), (gradient_descent, {"steps": 300})):
        done = method(two_neurons(), **how)
        np.testing.assert_allclose(done.f, [f, -f], atol=1e-9)
        np.testing.assert_allclose(done.f_te, [f, -f], atol=1e-9)
        np.testing.assert_allclose(done.kernel()[1], np.eye(2) / 2)
    wrong = 1 - 2 * 0.5 * (1 - 0.1 / 2**0.5) / 1.5  # λ counted twice
    assert abs(done.f[0] - wrong) > 0.1


@pytest.mark.parametrize(
    ("method", "how"), [(newton, {"settle_steps": 300}), (gradient_descent, {})]
)
def test_eq_2_beta_is_the_residual_that_pulls(method, how):
    done = method(problem(m=256, kappa=2.0), remove=3, **how)
    expected = np.delete((done.problem.Y.numpy() - done.f) / done.problem.lam, 3)
    np.testing.assert_allclose(np.delete(done.beta.numpy(), 3), expected, rtol=0, atol=1e-8)
    assert done.beta[3] == 0 and np.abs(expected).min() > 0.1


@pytest.mark.parametrize("method", [newton, gradient_descent])
def test_eq_7_removal_is_training_on_the_other_points(method):
    X, Y, X_te = sample()
    how = {"lam": 0.5, "m": 64, "kappa": 0.5, "seed": 1, "dtype": "float64"}
    keep = [0, 1, 3, 4, 6, 7]
    small = method(Problem(X[keep], Y[keep], X_te, **how))
    left = method(Problem(X, Y, X_te, **how), remove=[2, 5])
    np.testing.assert_allclose(left.f_te, small.f_te, atol=1e-6)
    np.testing.assert_allclose(left.f[keep], small.f, atol=1e-6)
    assert (left.C[:, [2, 5]] == 0).all() and left.removed.tolist() == [2, 5]
    if method is gradient_descent:
        np.testing.assert_array_equal(left.iterations, small.iterations)


@pytest.mark.parametrize("method", [newton, gradient_descent])
def test_eq_7_warm_start_leaves_its_start_alone_and_ends_as_a_cold_one(method):
    p = problem(m=2000, kappa=1.0)
    full = method(p)
    Z, C, f = full.Z.clone(), full.C.clone(), full.f_te.copy()
    warm, cold = method(p, start=full, remove=3), method(p, remove=3)
    assert warm.iterations < cold.iterations and warm.f[3] != full.f[3]
    assert torch.equal(full.Z, Z) and torch.equal(full.C, C) and (full.f_te == f).all()
    assert rms(warm.f_te - cold.f_te) < 0.05 * rms(cold.f_te - full.f_te)
    again = method(p, start=warm, remove=[0])
    assert sorted(again.removed) == [0, 3] and again.f[0] != warm.f[0]


@pytest.mark.parametrize("method", [newton, gradient_descent])
def test_eq_2_balanced_inputs_and_silent_networks(method):
    X = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # rows that sum to zero
    how = {"lam": 0.5, "kappa": 0.5, "seed": 0, "antisymmetric": True}
    done = method(Problem(X, [1, -1, 1, -1], X, m=4000, **how))
    np.testing.assert_allclose(done.f, [0.5, -0.5, 0.5, -0.5], atol=0.02)
    silent = Problem([[1.0]], [1.0], [[1.0]], m=1, lam=1.0, kappa=0.5, seed=0)
    silent.Z0.fill_(-0.5), silent.Z0_te.fill_(-0.5)  # active nowhere: K_m = 0
    assert method(silent).f_te.tolist() == [0.0]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [newton, gradient_descent])
def test_eq_7_bad_removals(method):
    p = problem()
    full = method(p, remove=2)
    for remove, message in (
        (8, "out of range; use 0 to 7"),
        ([1, 1], "more than once"),
        (range(8), "all the training points"),
    ):
        with pytest.raises(IndexError, match=message):
            method(p, remove=remove)
    with pytest.raises(IndexError, match="remove names 2, which start has removed"):
        method(p, start=full, remove=[1, 2])
    with pytest.raises(ValueError, match="start belongs to another problem"):
        method(problem(), start=full)


@pytest.mark.parametrize("method", [newton, gradient_descent])
def test_what_is_no_problem_and_no_start_is_named(method):
    words = "start must be a lib.problem.Trained, not 3; pass what newton or gradient_descent ret"
    with pytest.raises(TypeError, match=words):
        method(problem(), start=3)
    with pytest.raises(TypeError, match="start must be .*, not 0; pass"):  # which is false
        method(problem(), start=0)
    with pytest.raises(TypeError, match="start must be .*, not Problem: n = 8, .*; pass"):
        method(problem(), start=problem())
    with pytest.raises(TypeError, match=r"problem must be a lib.problem.Problem, not 'p'; make on"):
        method("p")


def test_the_seconds_of_a_training_are_those_since_it_began():
    began = time.perf_counter()
    done = State(problem(), None, ()).finish(3, 0.5, began)
    assert 0 < done.seconds < time.perf_counter() - began and type(done.seconds) is float
    assert done.iterations == 3 and done.change == 0.5


def test_the_root_of_the_mean_square_is_a_number():
    found = state_module.rms(torch.tensor([3.0, -3.0, 0.0, 0.0]))
    assert type(found) is float and found == pytest.approx(4.5**0.5)
