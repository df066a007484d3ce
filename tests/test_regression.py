"""Regression with any loss: by hand, dense autodiff, refits by other solvers, and ridge."""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from sklearn.linear_model import LogisticRegression
from torch.func import grad, hessian, jacrev

from lib.losses import Logistic, Softmax, Squared
from lib.regression import Curvature, Regression
from lib.ridge import Ridge
from tests.cases import OUTPUTS, digits, near, several

N, T, P = 14, 5, 4  # points, test points, explicit features


class Case:
    """A linear model on explicit features, so that its Hessian is small and dense."""

    def __init__(self, name, lam, seed=0):
        rng = np.random.default_rng(seed)
        self.X, self.X_te = rng.standard_normal((N, P)), rng.standard_normal((T, P))
        self.name, self.lam = name, lam
        if name == "logistic":
            self.loss, self.c = Logistic(), 1
            self.Y = np.sign(self.X[:, 0] + rng.standard_normal(N))
            self.y_te = np.sign(rng.standard_normal(T))
        else:
            self.loss, self.c = Softmax(), 3
            classes = np.argmax(self.X[:, :3] + rng.standard_normal((N, 3)), axis=1)
            self.Y, self.y_te = np.eye(3)[classes], np.eye(3)[rng.integers(0, 3, T)]
        self.K, self.k = self.X @ self.X.T, self.X @ self.X_te.T
        self.model = Regression(self.K, self.Y, lam, self.loss, tol=1e-10)
        self.influence = self.model.influence(self.k, self.y_te)
        self.W = torch.tensor(self.X.T @ self.model.beta.reshape(N, -1))

    def one(self, W, x, y):
        """The loss of one point at the weights W (P, c), as it is written."""
        f = x @ W.reshape(P, self.c)
        if self.name == "logistic":
            return torch.log(1 + torch.exp(-y * f)).sum()
        return torch.logsumexp(f, 0) - (y * f).sum()

    def total(self, keep, lam=None):
        X, Y = torch.tensor(self.X), torch.tensor(self.Y)
        lam = self.lam if lam is None else lam
        return lambda W: (
            sum(self.one(W, X[i], Y[i]) for i in keep) + 0.5 * lam * (W.reshape(-1) ** 2).sum()
        )

    def hessian(self, keep=range(N), lam=None):
        return hessian(self.total(keep, lam))(self.W.reshape(-1)).numpy()

    def gradients(self, X, Y):
        X, Y = torch.tensor(X), torch.tensor(Y)
        return np.array(
            [grad(self.one)(self.W.reshape(-1), x, y).numpy() for x, y in zip(X, Y, strict=True)]
        )

    def jacobian(self, x):
        """∂f/∂W of one point, (c, P c)."""
        x = torch.tensor(x)
        return jacrev(lambda W: x @ W.reshape(P, self.c))(self.W.reshape(-1)).numpy()

    def refit(self, keep):
        """The minimum over some points by another optimiser, from W = 0; predictions (t, c)."""
        total = self.total(list(keep))

        def slope(w):
            return grad(total)(torch.tensor(w)).numpy()

        def bend(w):
            return hessian(total)(torch.tensor(w)).numpy()

        def value(w):
            return total(torch.tensor(w)).item()

        start = np.zeros(P * self.c)
        found = minimize(
            value, start, jac=slope, hess=bend, method="trust-exact", options={"gtol": 1e-11}
        )
        assert np.linalg.norm(slope(found.x)) < 1e-7
        w = found.x - np.linalg.solve(bend(found.x), slope(found.x))
        return (self.X_te @ w.reshape(P, self.c)).reshape(self.y_te.shape)


@pytest.fixture(params=[("logistic", 1.0), ("logistic", 0.01), ("softmax", 1.0), ("softmax", 0.01)])
def case(request):
    return Case(*request.param)


# --- by hand --------------------------------------------------------------------------------------


def test_one_point_by_hand():
    # one point of kernel ½: λβ = 1/(1 + e^{β/2}); without it f = 0 and the loss is log 2
    lam = 0.2
    beta = brentq(lambda b: lam * b - 1 / (1 + np.exp(b / 2)), 0, 10, xtol=1e-15)
    model = Regression([[0.5]], [1.0], lam, Logistic())
    p = 1 / (1 + np.exp(beta / 2))
    w = p * (1 - p)
    near(model.beta, beta, 1e-8)
    h = 0.5 * w / (0.5 * w + lam)
    near([model.h, model.leverage], h, 1e-8)
    inf = model.influence([[0.5]], [1.0])
    near(inf.exact, np.log(2) - np.log(1 + np.exp(-beta / 2)), 1e-8)
    near(inf.ihvp, p**2 * 0.5 / (0.5 * w + lam), 1e-8)  # C = K/(λ + Kw)
    near(inf.rescaled, p**2 * 0.5 / lam, 1e-8)  # without the point C = K/λ
    assert abs(inf.ihvp - inf.rescaled) > 0.05
    assert repr(model) == "Regression: Logistic, n = 1, lam = 0.2"


# --- squared loss is ridge regression -------------------------------------------------------------


@pytest.mark.parametrize("c", OUTPUTS, ids=str)
@pytest.mark.parametrize("lam", [1.0, 0.01])
def test_eq_5_squared_loss_is_ridge(c, lam):
    K, Y, k, y_te = digits(n=80, t=20) if c is None else several(c, 80, 20)
    ridge, model = Ridge(K, Y, lam), Regression(K, Y, lam)
    exact, inf = ridge.influence(k, y_te), model.influence(k, y_te)
    close = 1e-12 / lam
    near(model.beta, ridge.beta, close / lam)
    near(model.h, ridge.h, close)
    near(model.g, ridge.r, close)
    near(model.omega, ridge.rho, close)
    for name in ("shift", "exact", "ihvp", "rescaled", "T1", "T2", "loo"):
        near(getattr(inf, name), getattr(exact, name), close)
    near(inf.newton, exact.exact, close)  # one Newton step is all there is
    wrong = Regression(K, Y, 2 * lam)
    assert np.abs(wrong.h - ridge.h).max() > 1e-3


# --- dense autodiff -------------------------------------------------------------------------------


def test_the_fit_is_a_minimum(case):
    slope = grad(case.total(range(N)))(case.W.reshape(-1)).numpy()
    assert np.linalg.norm(slope) < 1e-9
    near(case.model.g, -case.lam * case.model.beta, 1e-9)
    assert case.model.gap <= 1e-10


def test_eq_12_ihvp_against_a_dense_hessian(case):
    g, g_te = case.gradients(case.X, case.Y), case.gradients(case.X_te, case.y_te)
    H = case.hessian()
    near(case.influence.ihvp, g @ np.linalg.solve(H, g_te.T), 1e-8 / case.lam)
    for wrong in (case.hessian(lam=2 * case.lam), H - case.hessian([0], lam=0)):
        assert np.abs(case.influence.ihvp - g @ np.linalg.solve(wrong, g_te.T)).max() > 1e-4


def test_leverage_against_a_dense_hessian(case):
    H, blocks = case.hessian(), case.model.leverage.reshape(N, case.c, case.c)
    d, v = case.loss.curvature(case.model.f.reshape(N, -1))
    twice, other = case.hessian(lam=2 * case.lam), []
    for i in range(N):
        J, own = case.jacobian(case.X[i]), np.diag(d[i]) - np.outer(v[i], v[i])
        near(blocks[i], J @ np.linalg.solve(H, J.T) @ own, 1e-9 / case.lam)
        other.append(np.abs(blocks[i] - J @ np.linalg.solve(twice, J.T) @ own).max())
    assert max(other) > 0.01
    if case.c == 1:
        near(case.model.h, case.model.leverage, 1e-9)
    assert (case.model.h > 0).all() and (case.model.h < 1).all()


def test_the_newton_step_is_that_without_the_point(case):
    g, H = case.gradients(case.X, case.Y), case.hessian()
    g_te, apart = case.gradients(case.X_te, case.y_te), []
    for i in range(N):
        left = np.linalg.solve(H - case.hessian([i], lam=0), g[i])
        steps = np.array([case.jacobian(x) @ left for x in case.X_te])
        near(case.influence.step[i], steps.reshape(case.y_te.shape), 1e-7)
        near(case.influence.rescaled[i], g_te @ left, 1e-7)
        with_it = np.array([case.jacobian(x) @ np.linalg.solve(H, g[i]) for x in case.X_te])
        apart.append(np.abs(case.influence.step[i] - with_it.reshape(case.y_te.shape)).max())
    assert max(apart) > 0.01
    f, step = (
        x.reshape(*x.shape[:1], T, -1)
        for x in (case.model.predict(case.k)[None], case.influence.step)
    )
    y = case.y_te.reshape(T, -1)
    near(case.influence.newton, case.loss.value(f + step, y) - case.loss.value(f, y)[0], 1e-12)


# --- refits by other optimisers -------------------------------------------------------------------


def test_every_point_left_out_against_another_optimiser(case):
    near(case.influence.f, case.refit(range(N)), 1e-8)
    y = case.y_te.reshape(T, -1)
    before = case.loss.value(case.influence.f.reshape(T, -1), y)
    after = []
    for i in range(N):
        f = case.refit(np.delete(np.arange(N), i))
        after.append(f)
        near(case.influence.loo[i], f, 1e-8)
        near(case.influence.exact[i], case.loss.value(f.reshape(T, -1), y) - before, 1e-8)
    assert np.abs(case.influence.f + case.influence.step - after).max() > 1e-3  # control: one step


@pytest.mark.parametrize("name", ["logistic", "softmax"])
def test_the_same_as_scikit_learn(name):
    case = Case(name, 0.3, seed=1)
    classes = case.Y if name == "logistic" else case.Y.argmax(axis=1)
    for i in [None, *range(N)]:
        keep = np.delete(np.arange(N), [] if i is None else [i])
        other = LogisticRegression(
            C=1 / case.lam, fit_intercept=False, solver="lbfgs", tol=1e-12, max_iter=10_000
        ).fit(case.X[keep], classes[keep])
        f = other.decision_function(case.X_te)
        near(case.influence.f if i is None else case.influence.loo[i], f, 2e-6)
    other.set_params(C=1 / (2 * case.lam)).fit(case.X, classes)
    assert np.abs(other.decision_function(case.X_te) - case.influence.f).max() > 0.01


def test_softmax_of_two_classes_is_logistic_with_half_the_ridge():
    K, Y, k, y_te = digits(n=60, t=10)
    hot, hot_te = (np.column_stack([y > 0, y < 0]).astype(float) for y in (Y, y_te))
    one = Regression(K, Y, 0.1, Logistic()).influence(k, y_te)
    two = Regression(K, hot, 0.2, Softmax()).influence(k, hot_te)
    near(two.f[:, 0] - two.f[:, 1], one.f, 1e-8)
    near(two.model.h, one.model.h, 1e-8)
    for name in ("exact", "ihvp", "rescaled", "newton"):
        near(getattr(two, name), getattr(one, name), 1e-7)


# --- Newton's method ------------------------------------------------------------------------------


def stubborn():
    """A large point on the wrong side, and a small ridge."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((12, 3))
    y = np.sign(rng.standard_normal(12))
    X[0] *= 10
    y[0] = -np.sign(X[0] @ X[y == 1].sum(axis=0))
    return X @ X.T, y, 0.01


def test_undamped_newton_diverges_and_is_caught(monkeypatch):
    K, y, lam = stubborn()
    model = Regression(K, y, lam, Logistic())
    assert model.gap <= 1e-8 and np.isfinite(model.without(np.arange(12))).all()
    monkeypatch.setattr(Regression, "_objective", lambda self, beta, f, keep: 0 * keep[0])
    with pytest.raises(RuntimeError, match="within .* of the minimum after 60 steps, not"):
        Regression(K, y, lam, Logistic()).without(np.arange(12))


def test_points_that_need_their_own_factorisation(monkeypatch):
    K, y, lam = stubborn()
    model = Regression(K, y, lam, Logistic())
    calls, descend = [], Regression._descend
    monkeypatch.setattr(Regression, "_descend", lambda *a: calls.append(len(a)) or descend(*a))
    beta = model.without(np.arange(12), block=5)
    assert calls.count(4) == 3 and calls.count(3) > 0  # three blocks, and some alone
    for i in range(12):
        keep = np.delete(np.arange(12), i)
        alone = Regression(K[np.ix_(keep, keep)], y[keep], lam, Logistic())
        near(K @ beta[i], K[:, keep] @ alone.beta, 2e-8)
        assert abs(beta[i, i]) < 1e-9 / lam


def test_the_gap_bounds_the_distance_from_the_minimum(case):
    best = case.model.f
    for tol in (10.0, 1.0, 0.1, 1e-3):
        rough = Regression(case.K, case.Y, case.lam, case.loss, tol=tol)
        off = np.abs(rough.f - best).max()
        assert off <= rough.gap + 1e-9 and rough.gap <= tol


def test_some_points_are_those_of_all(case):
    every = case.model.without(np.arange(N))
    assert every.shape == (N, *case.Y.shape)
    near(case.model.without([9, 2]), every[[9, 2]], 1e-8)
    near(case.model.without(3, block=1), every[[3]], 1e-8)


def test_curvature_is_the_dense_product():
    rng = np.random.default_rng(0)
    n, c, lam = 6, 3, 0.1
    X = rng.standard_normal((n, 4))
    K = X @ X.T
    d, v = Softmax().curvature(3 * rng.standard_normal((n, c)))
    C = Curvature(K, lam, d.T, v.T)
    blocks = np.array([np.diag(a) - np.outer(b, b) for a, b in zip(d, v, strict=True)])
    big = np.kron(np.eye(c), K)  # rows (a, i)
    Lam = np.zeros((c, n, c, n))
    for i in range(n):
        Lam[:, i, :, i] = blocks[i]
    Lam = Lam.reshape(c * n, c * n)
    dense = np.linalg.solve(lam * np.eye(c * n) + big @ Lam, big)
    s = rng.standard_normal((c, n, 2))
    near(C.times(s), (dense @ s.reshape(-1, 2)).reshape(s.shape), 1e-11)
    near(C.hessian(s), (Lam @ s.reshape(-1, 2)).reshape(s.shape), 1e-13)
    own, hessian_ = C.own()
    for i in range(n):
        near(own[i], dense.reshape(c, n, c, n)[:, i, :, i], 1e-11)
        near(hessian_[i], blocks[i], 1e-14)
    without = Lam.copy().reshape(c, n, c, n)
    without[:, 2, :, 2] = 0
    other = np.linalg.solve(lam * np.eye(c * n) + big @ without.reshape(c * n, -1), big)
    M = np.linalg.solve(np.eye(c) - blocks[2] @ own[2], blocks[2])[None]
    found = C.times(s[:, :, :1], np.array([2]), M)
    near(found, (other @ s[:, :, :1].reshape(-1, 1)).reshape(found.shape), 1e-10)


def test_a_hessian_that_vanishes_is_no_trouble():
    K, _, k, _ = digits("digits:0/1", n=40, t=10)
    _, Y, _, y_te = digits("digits:0/1", n=40, t=10)
    K, k = 1e4 * K, 1e4 * k  # sure of all but a few
    model = Regression(K, Y, 1e-2, Logistic(), tol=1e-4)
    inf = model.influence(k, y_te)
    assert model.C.d.min() < 1e-6
    for x in (model.h, model.leverage, inf.ihvp, inf.rescaled, inf.newton, inf.exact):
        assert np.isfinite(x).all()
    assert (model.h >= 0).all() and (model.h < 1).all()


# --- input ----------------------------------------------------------------------------------------

K2, Y2 = [[0.5, 0.25], [0.25, 0.5]], [1.0, -1.0]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Regression(K2, Y2, 0, Logistic()), ValueError, "lam must be a finite number > 0"),
        (lambda: Regression(K2, Y2, 1, tol=0), ValueError, "tol must be a finite number > 0"),
        (lambda: Regression(K2, [1, 0.5], 1, Logistic()), ValueError, "Y must be -1 or 1"),
        (lambda: Regression(K2, Y2, 1, Softmax()), ValueError, "Y must have one-hot rows"),
        (lambda: Regression(K2, [1.0], 1, Squared()), ValueError, "Y has 1 entries"),
        (lambda: Regression([[0.5, 1], [1, 0.5]], Y2, 1e-3), ValueError, "not positive semidef"),
        (lambda: Regression([[0.5, 1], [0, 0.5]], Y2, 1), ValueError, "K must be symmetric"),
        (
            lambda: Regression(K2, Y2, 1e-9, Logistic(), tol=1e-300),
            RuntimeError,
            "larger lam or tol",
        ),
        (lambda: fitted().predict([[1.0]]), ValueError, "k has shape"),
        (lambda: fitted().influence([[1.0]], [1.0]), ValueError, "k has shape"),
        (lambda: fitted().influence(np.eye(2), [1.0]), ValueError, "y_te has 1 entries"),
        (lambda: fitted().influence(np.eye(2), [1.0, 3.0]), ValueError, "y_te must be -1 or 1"),
        (lambda: fitted().influence(np.eye(2), [[1.0], [1.0]]), ValueError, "y_te has shape"),
        (lambda: fitted().without([2]), IndexError, "points = 2 is out of range"),
        (lambda: fitted().without([]), IndexError, "one or several integers"),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def fitted():
    return Regression(K2, Y2, 1.0, Logistic())


def test_arrays_of_the_caller_may_change_after_the_fit():
    K, Y, k = np.diag([0.5, 0.4, 0.3]), np.array([1.0, -1.0, 1.0]), np.full((3, 1), 0.2)
    model = Regression(K, Y, 0.5, Logistic())
    one = model.influence(k, [1.0])
    expected = Regression(K.copy(), Y, 0.5, Logistic()).influence(k.copy(), [1.0])
    K[:], k[:] = 0, 0
    for name in ("exact", "ihvp", "newton"):
        np.testing.assert_array_equal(getattr(one, name), getattr(expected, name))
    assert repr(one) == "RegressionInfluence: n = 3, t = 1, lam = 0.5"
