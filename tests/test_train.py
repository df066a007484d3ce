"""Training (Eq 2, 3): by hand, against autodiff on the weights, then Newton against descent."""

import pickle
import re

import numpy as np
import pytest
import torch
from torch.func import grad

from lib import data, train
from lib.kernel import ntk
from lib.network import finite_kernel, forward, initialise
from lib.ridge import Ridge
from lib.train import Problem, gradient_descent, newton


def sample(n=8, t=3, d=4, seed=0):
    A = np.random.default_rng(seed).standard_normal((n + t, d))
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    return A[:n], np.sign(A[:n, 0] + 0.3 * A[:n, 1]), A[n:]


def problem(m=64, lam=0.5, kappa=0.5, seed=1, dtype="float64", antisymmetric=False, **size):
    settings = {"lam": lam, "m": m, "kappa": kappa, "seed": seed}
    return Problem(*sample(**size), **settings, antisymmetric=antisymmetric, dtype=dtype)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def weights(p, d=4, seed=1):
    """W(0), a and the loss of Eq 2 on the weights, in torch."""
    W0, a = (torch.as_tensor(v) for v in initialise(d, p.m, p.kappa, seed))
    X, _, X_te = (torch.as_tensor(v) for v in sample(p.n))

    def loss(W, keep=slice(None)):
        r = (forward(X, W, a) - p.Y)[keep]
        return 0.5 * (r**2).sum() + 0.5 * p.lam * ((W - W0) ** 2).sum()

    return W0, a, X, X_te, loss


# --- by hand ------------------------------------------------------------------------------------


def by_hand(method, **how):
    """n = 2, m = 2, orthogonal points, so that the neurons see each point on its own.

    Neuron 1 (a = 1) is active on point 1 only, neuron 2 (a = -1) on point 2 only, at 0.1 each.
    There f_i = ±(0.1 + c_i/√2)/√2 with a pull of λc²/2, and the minimum is a scalar problem.
    """
    p = Problem(np.eye(2), [1.0, -1.0], np.eye(2), lam=0.5, m=2, kappa=0.1, seed=0, dtype="float64")
    p.Z0[:] = p.Z0_te[:] = torch.tensor([[0.1, -0.1], [-0.1, 0.1]], dtype=torch.float64)
    p.a[:] = torch.tensor([1.0, -1.0], dtype=torch.float64) / 2**0.5
    return method(p, **how)


def test_eq2_minimiser_by_hand():
    # f = 0.1/√2 + K b with K = 1/2, λ b = 1 − f: b = 1 − 0.1/√2, f = 1 − λ b
    f = 1 - 0.5 * (1 - 0.1 / 2**0.5)
    for method, how in ((newton, {"settle": 90}), (gradient_descent, {"steps": 300})):
        done = by_hand(method, **how)
        np.testing.assert_allclose(done.f, [f, -f], atol=1e-9)
        np.testing.assert_allclose(done.f_te, [f, -f], atol=1e-9)
        np.testing.assert_allclose(done.kernel()[1], np.eye(2) / 2)
    wrong = 1 - 2 * 0.5 * (1 - 0.1 / 2**0.5) / 1.5  # λ counted twice
    assert abs(done.f[0] - wrong) > 0.1


def test_eq3_one_step_by_hand():
    done = by_hand(gradient_descent, step=0.2, steps=1)
    f = 0.1 / 2**0.5  # the gradient of f_i is 1/2 in its own direction
    np.testing.assert_allclose(done.f, [f + 0.1 * (1 - f), -f - 0.1 * (1 - f)], atol=1e-15)


# --- against autodiff on the weights ------------------------------------------------------------


@pytest.mark.parametrize("momentum", [False, True])
def test_eq3_descent_is_autodiff_descent(momentum):
    p, step, steps = problem(), 0.05, 12
    W, a, X, X_te, loss = weights(p)
    q = step * p.lam
    mu, last = (1 - q**0.5) / (1 + q**0.5) if momentum else 0.0, W
    for k in range(steps):
        look = W + mu * (W - last) * (k > 0)
        last, W = W, look - step * grad(loss)(look)
    done = gradient_descent(p, momentum=momentum, step=step, steps=steps, record=[0, steps])
    np.testing.assert_allclose(done.f, forward(X, W, a), atol=1e-13)
    np.testing.assert_allclose(done.f_te, forward(X_te, W, a), atol=1e-13)
    assert sorted(done.trajectory) == [0, steps]
    np.testing.assert_array_equal(done.trajectory[steps][1], done.f_te)
    np.testing.assert_allclose(done.trajectory[0][0], p.a @ p.Z0.relu())


@pytest.mark.parametrize(
    ("flow", "lam", "last", "removed"),
    [
        (3, 0.5, 0.5, []),  # s λ of the last step: three cannot add up to 3
        (3, 0.5, 0.5, [1, 4]),
        (24, 0.02, None, []),  # 24 can
        (24, 40.0, "first", []),  # the first is large enough
    ],
)
def test_eq3_flow_takes_linearly_implicit_euler_steps(flow, lam, last, removed, monkeypatch):
    monkeypatch.setattr(train, "REFRESH", 1)  # a new kernel in each step
    p = problem(m=32, lam=lam)
    W0, a, X, X_te, _ = weights(p)
    keep = np.setdiff1d(np.arange(p.n), removed)
    X, Y, W = X[keep], p.Y[keep], W0
    one = torch.vmap(grad(lambda W, x: forward(x, W, a)), (None, 0))

    def J(W):
        return one(W, X).flatten(1)

    q = p.lam / (float(torch.linalg.eigvalsh(J(W) @ J(W).T)[-1]) + p.lam)
    last = {None: 2 * 3 / flow - q, "first": q}.get(last, last)
    for share in np.linspace(q, last, flow):  # s λ
        tau = share / p.lam / (1 - share)
        # (JᵀJ + λ + 1/τ)(W' − W) = −∇L(W) where the pattern stays as it is
        A = J(W).T @ J(W) + (p.lam + 1 / tau) * torch.eye(W.numel(), dtype=W.dtype)
        downhill = J(W).T @ (Y - forward(X, W, a)) - p.lam * (W - W0).flatten()
        W = W + torch.linalg.solve(A, downhill).reshape(W.shape)
    done = newton(p, flow=flow, settle=0, remove=removed)
    np.testing.assert_allclose(done.f[keep], forward(X, W, a), atol=1e-6)  # q by power iteration
    np.testing.assert_allclose(done.f_te, forward(X_te, W, a), atol=1e-6)


def test_eq1_single_precision_keeps_its_state_in_step():
    p = problem(m=2000, dtype="float32", n=40)
    for done in (newton(p, settle=0), newton(p), newton(p, start=newton(p), remove=[3, 5])):
        exact = p.Z0.double() + p.a.double()[:, None] * (done.C.double() @ p.G64)
        assert (done.Z - exact).abs().max() < 1e-4 < (p.Z0 - exact).abs().max()


def test_eq2_newton_ends_where_the_autodiff_gradient_vanishes():
    p = problem(m=256, kappa=2.0)  # a large kappa: hardly a kink
    done = newton(p, settle=300)
    W0, a, X, X_te, loss = weights(p)
    W = W0 + X.T @ done.C.T * p.a
    np.testing.assert_allclose(forward(X, W, a), done.f, atol=1e-12)
    np.testing.assert_allclose(forward(X_te, W, a), done.f_te, atol=1e-12)
    np.testing.assert_allclose(done.beta, (p.Y - forward(X, W, a)) / p.lam, atol=1e-8)
    free = (done.Z.abs() > 1e-6).all(1)  # neurons without a point on a kink
    gradient = grad(loss)(W).abs().amax(0)
    assert free.double().mean() > 0.9
    assert gradient[free].max() < 1e-7 < grad(loss)(W0).abs().max()


def test_eq2_kinks_that_attract_hold_a_subgradient_of_zero():
    p = problem(m=256, kappa=0.05)
    done = newton(p, settle=300)
    W0, a, X, _, loss = weights(p)
    W = W0 + X.T @ done.C.T * p.a
    on = done.Z.abs() < 1e-9
    share = done.C / done.beta  # the subgradient of relu that each pair takes
    assert done.kinks == pytest.approx(float(on.double().mean())) and 0.01 < done.kinks < 0.2
    assert share.min() > -1e-6 and share.max() < 1 + 1e-6
    off = ~on
    np.testing.assert_allclose(share[off], (done.Z > 0).double()[off], atol=1e-6)
    assert grad(loss)(W).abs().max() > 1e-3  # autodiff with relu'(0) = 0 or 1 sees no minimum


def test_thm1_kernel_at_the_trained_pattern_is_the_autodiff_gram_matrix():
    p = problem()
    done = newton(p, settle=30)
    W0, a, X, X_te, _ = weights(p)
    W = W0 + X.T @ done.C.T * p.a
    one = grad(lambda W, x: forward(x, W, a))
    J, J_te = (torch.stack([one(W, x).flatten() for x in v]) for v in (X, X_te))
    K, K_te = done.kernel()
    np.testing.assert_allclose(K, J @ J.T, atol=1e-12)
    np.testing.assert_allclose(K_te, J_te @ J.T, atol=1e-12)


@pytest.mark.parametrize(("method", "how"), [(newton, {"settle": 300}), (gradient_descent, {})])
def test_eq2_beta_is_the_residual_that_pulls(method, how):
    done = method(problem(m=256, kappa=2.0), remove=3, **how)
    expected = np.delete((done.problem.Y.numpy() - done.f) / done.problem.lam, 3)
    np.testing.assert_allclose(np.delete(done.beta.numpy(), 3), expected, rtol=0, atol=1e-8)
    assert done.beta[3] == 0 and np.abs(expected).min() > 0.1


def test_eq2_kinks_of_the_points_that_are_left_and_the_kernel_on_both_sides_of_them():
    p = problem(m=256, kappa=0.1)
    gone, left = [2, 5], [0, 1, 3, 4, 6, 7]
    done = newton(p, remove=gone, settle=300)
    on = done.Z.abs() < 1e-7
    assert on[:, left].sum() > 20
    assert done.kinks == pytest.approx(float(on[:, left].double().mean()))
    on[:, gone] = False  # a removed point pulls no weights, so no kink holds it
    active_te = (done._test_points(slice(None)) > 0).double()
    for side in (0, 1):
        S = torch.where(on, float(side), (done.Z > 0).double())
        K, K_te = done.kernel(side)
        np.testing.assert_allclose(K, p.G64 * (S.T @ S) / p.m, atol=1e-14)
        np.testing.assert_allclose(K_te, p.G64_te.T * (active_te.T @ S) / p.m, atol=1e-14)


# --- states, widths, removal ---------------------------------------------------------------------


def test_eq1_blocks_of_neurons_and_the_start_of_training():
    p = problem(m=5000, kappa=0.1)
    done = gradient_descent(p, steps=0)
    X, _, X_te = sample()
    W, a = initialise(4, 5000, 0.1, 1)
    np.testing.assert_allclose(done.f, forward(X, W, a), atol=1e-12)
    for K, X2 in zip(done.kernel(), (X, X_te), strict=True):
        np.testing.assert_allclose(K, finite_kernel(X2, X, m=5000, seed=1, dtype="float64"))


def test_eq3_antisymmetric_network_starts_at_zero():
    zero = gradient_descent(problem(antisymmetric=True), steps=0)
    plain = gradient_descent(problem(), steps=0)
    assert rms(zero.f) < 1e-15 < 0.01 < rms(plain.f)


@pytest.mark.parametrize("method", [newton, gradient_descent])
def test_eq7_removal_is_training_on_the_other_points(method):
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
def test_eq7_warm_start_leaves_its_start_alone_and_ends_as_a_cold_one(method):
    p = problem(m=2000, kappa=1.0)
    full = method(p)
    Z, C, f = full.Z.clone(), full.C.clone(), full.f_te.copy()
    warm, cold = method(p, start=full, remove=3), method(p, remove=3)
    assert warm.iterations < cold.iterations and warm.f[3] != full.f[3]
    assert torch.equal(full.Z, Z) and torch.equal(full.C, C) and (full.f_te == f).all()
    assert rms(warm.f_te - cold.f_te) < 0.05 * rms(cold.f_te - full.f_te)
    again = method(p, start=warm, remove=[0])
    assert sorted(again.removed) == [0, 3] and again.f[0] != warm.f[0]


def test_eq7_state_survives_pickling():
    p = problem(dtype="float32")
    full = newton(p)
    copy = pickle.loads(pickle.dumps(full))
    a, b = (newton(s.problem, start=s, remove=2).f_te for s in (full, copy))
    np.testing.assert_array_equal(a, b)


def test_thm1_wide_network_is_kernel_ridge_regression():
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


def test_eq2_single_precision_is_close():
    single, double = (newton(problem(m=4000, kappa=1.0, dtype=t)) for t in ("float32", "float64"))
    assert rms(single.f_te - double.f_te) < 1e-5


def test_eq2_share_of_kinks_is_as_theory_expects():
    p = problem(m=20_000, kappa=0.2, n=30, d=10, dtype="float32")
    done = newton(p)
    expected = float(done.beta.abs().mean()) / (2 * (2 * np.pi) ** 0.5 * p.kappa * p.m**0.5)
    assert done.kinks == pytest.approx(expected, rel=0.1)


# --- Newton held to descent ----------------------------------------------------------------------


def test_eq7_one_step_without_a_point_by_the_closed_form(monkeypatch):
    monkeypatch.setattr(train, "RESTLESS", np.inf)  # one step, however much it changes
    p = problem(m=400, kappa=1e4, lam=0.5, antisymmetric=True)  # no activation flips
    begin = newton(p)
    J, keep = begin.kernel()[0], np.delete(np.arange(p.n), 2)
    ends = [newton(p, start=begin, remove=2, settle=k).f[keep] for k in (1, 300)]
    K = J[np.ix_(keep, keep)]
    exact = K @ np.linalg.solve(K + p.lam * np.eye(len(K)), p.Y[keep].numpy())
    np.testing.assert_allclose(ends[1], exact, atol=1e-9)
    assert rms(ends[0] - exact) < 1e-9 < 1e-3 < rms(begin.f[keep] - exact)


def test_eq2_newton_goes_on_where_crowded_points_are_slow_to_settle():
    d = data.load("digits:0+2+4+6+8/1+3+5+7+9", n_train=200, n_test=10, seed=0)
    p = Problem(d.X, d.Y, d.X_te, lam=1 / 8, m=500, kappa=0.1, seed=0)
    done = newton(p)
    assert done.change <= train.RESTLESS
    assert train.FLOW + train.SETTLE < done.iterations <= train.FLOW + 4 * train.SETTLE
    assert newton(p, start=newton(p, settle=0), settle=8).iterations == 8


@pytest.mark.parametrize("spec", ["digits:3/8", "digits:0+2+4+6+8/1+3+5+7+9"])
def test_eq2_newton_is_as_near_to_descent_on_images(spec):
    ratios = []
    for seed in range(2):
        d = data.load(spec, n_train=150, n_test=100, seed=seed)
        p = Problem(d.X, d.Y, d.X_te, lam=1, m=4000, kappa=0.1, seed=seed)
        plain, other = gradient_descent(p), gradient_descent(p, momentum=True)
        ratios.append(rms(newton(p).f_te - plain.f_te) / rms(other.f_te - plain.f_te))
        rough = rms(newton(p, flow=2).f_te - plain.f_te) / rms(other.f_te - plain.f_te)
        assert rough > 1.5  # two steps of flow are too few
    assert max(ratios) < 1.5, ratios


@pytest.mark.parametrize("lam", [0.25, 4.0])
def test_eq2_newton_is_as_near_to_descent_as_momentum_is(lam):
    ratios = []
    for seed in range(3):
        p = problem(m=2000, kappa=0.1, lam=lam, n=40, t=60, d=10, seed=seed)
        plain, fast = gradient_descent(p), newton(p)
        other = gradient_descent(p, momentum=True)
        ratios.append(rms(fast.f_te - plain.f_te) / rms(other.f_te - plain.f_te))
        assert fast.change < 1e-3
    assert np.median(ratios) < 1.5, ratios


# --- bad input -----------------------------------------------------------------------------------


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
        ({"dtype": "int8"}, "dtype must be 'float64' or 'float32'"),
    ],
)
def test_eq2_bad_problems(change, message):
    good = {"X": [[1.0, 0.0]], "Y": [1.0], "X_te": [[0.0, 1.0]], "lam": 1.0, "m": 4, "kappa": 0.1}
    with pytest.raises(ValueError, match=message):
        Problem(**(good | {"seed": 0} | change))


@pytest.mark.parametrize("method", [newton, gradient_descent])
def test_eq7_bad_removals(method):
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


@pytest.mark.parametrize("momentum", [False, True])
def test_eq3_unstable_steps_are_refused_and_the_remedy_works(momentum):
    p = problem(m=200, kappa=0.1, n=40, d=10)
    limit = 2 / (np.linalg.eigvalsh(gradient_descent(p, steps=0).kernel()[0])[-1] + p.lam)
    for factor in (1.001, 10.0):
        with pytest.raises(ValueError, match=f"not stable; .* {limit:.3g}, {limit / 4:.3g} for"):
            gradient_descent(p, step=factor * limit, steps=5, momentum=momentum)
    with pytest.raises(RuntimeError, match="diverged|oscillates") as error:  # λ_max has grown
        gradient_descent(p, step=0.95 * limit, steps=500, momentum=momentum)
    advised = float(re.search(r"([\d.]+) for instance", str(error.value))[1])
    assert advised < 0.5 * limit
    assert np.abs(gradient_descent(p, step=advised, steps=500, momentum=momentum).f).max() < 1.2


def test_eq3_bad_numbers_of_descent():
    p = problem()
    with pytest.raises(RuntimeError, match="did not come to rest"):
        gradient_descent(problem(m=2000, n=40, d=10), tol=0.0)
    with pytest.raises(ValueError, match="step must be a finite number > 0"):
        gradient_descent(p, step=0.0)
    with pytest.raises(ValueError, match="record must be at least 0"):
        gradient_descent(p, steps=1, record=[-1])
    for method in (newton, gradient_descent):
        with pytest.raises(ValueError, match="tol must be a finite number"):
            method(p, tol=np.nan)


def test_eq2_newton_says_that_it_has_not_come_to_rest():
    with pytest.raises(RuntimeError, match=r"did not come to rest .* m = 4 is too narrow"):
        newton(problem(m=4, n=40, d=10, kappa=0.01, lam=0.01))


@pytest.mark.parametrize("method", [newton, gradient_descent])
def test_eq2_balanced_inputs_and_silent_networks(method):
    X = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # rows that sum to zero
    how = {"lam": 0.5, "kappa": 0.5, "seed": 0, "antisymmetric": True}
    done = method(Problem(X, [1, -1, 1, -1], X, m=4000, **how))
    np.testing.assert_allclose(done.f, [0.5, -0.5, 0.5, -0.5], atol=0.02)
    silent = Problem([[1.0]], [1.0], [[1.0]], m=1, lam=1.0, kappa=0.5, seed=0)
    silent.Z0.fill_(-0.5), silent.Z0_te.fill_(-0.5)  # active nowhere: K_m = 0
    assert method(silent).f_te.tolist() == [0.0]


def test_eq1_kappa_that_single_precision_does_not_hold():
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
    with pytest.raises(ValueError, match="Y has labels 0 and 1"):
        Problem(X, np.arange(8) % 2, X_te, **settings)
