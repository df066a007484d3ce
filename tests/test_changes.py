"""Removing groups, relabelling and adding points: by refits in float64, for any outputs."""

import numpy as np
import pytest

from lib.bounds import certificate, worst_case
from lib.changes import Removal, addition, relabelling
from lib.kernel import DIAGONAL, ntk
from lib.packed import PackedInverse
from lib.ridge import Ridge
from tests.cases import EPS, OUTPUTS, labels, near, unit_points

N, T, LAM = 40, 6, 0.3
GROUPS = [[0], [3, 17], [39, 5, 21, 8, 30], list(range(20))]


class Case:
    def __init__(self, c, lam=LAM):
        rng = np.random.default_rng(7)
        self.X, self.X_te = unit_points(N, 5, rng), unit_points(T, 5, rng)
        self.Y, self.y_te = labels(rng, N, c), labels(rng, T, c)
        self.X_new, self.y_new = unit_points(4, 5, rng), labels(rng, 4, c)
        self.lam, self.k = lam, ntk(self.X, self.X_te)
        self.model = Ridge(ntk(self.X), self.Y, lam)

    def after(self, X, Y):
        """Predictions and losses of a model that is fitted again."""
        f = ntk(self.X_te, X) @ np.linalg.solve(ntk(X) + self.lam * np.eye(len(X)), Y)
        return f, self.loss(f)

    def loss(self, f):
        return 0.5 * ((f - self.y_te).reshape(T, -1) ** 2).sum(axis=1)

    def check(self, influence, refits):
        before = self.loss(self.model.predict(self.k))
        for k, (f, after) in enumerate(refits):
            near(influence.loo[k], f, 1e-12)
            near(influence.exact[k], after - before, 1e-12)


@pytest.fixture(params=OUTPUTS, ids=str)
def case(request):
    return Case(request.param)


def test_groups_leave_as_in_a_refit(case):
    removal = Removal(case.model, GROUPS, case.k, case.y_te)
    stay = [np.delete(np.arange(N), I) for I in GROUPS]
    case.check(removal, [case.after(case.X[S], case.Y[S]) for S in stay])
    near(case.model.remove(GROUPS, case.k), removal.loo, 1e-12)


def test_residuals_of_a_group_that_has_left(case):
    I, S = GROUPS[2], np.delete(np.arange(N), GROUPS[2])
    f = ntk(case.X[I], case.X[S]) @ np.linalg.solve(
        ntk(case.X[S]) + LAM * np.eye(len(S)), case.Y[S]
    )
    near(case.model.without(I), f - case.Y[I], 1e-12)
    near(case.model.without([4]), case.model.rho[[4]], 1e-12)


def test_the_estimate_of_a_group_is_the_sum_of_its_points(case):
    removal = Removal(case.model, GROUPS, case.k, case.y_te)
    single = case.model.influence(case.k, case.y_te)
    near(removal.ihvp, [single.ihvp[I].sum(axis=0) for I in GROUPS], 1e-12)


def test_single_points_are_those_of_the_model(case):
    removal = Removal(case.model, range(N), case.k, case.y_te)
    single = case.model.influence(case.k, case.y_te)
    near(removal.exact, single.exact, 1e-12)
    near(removal.ihvp, single.ihvp, 1e-12)


@pytest.mark.parametrize("lam", [0.0, 1e-3, 0.3, 10.0])
@pytest.mark.parametrize("c", OUTPUTS, ids=str)
def test_the_bound_holds_and_is_that_of_one_point(c, lam):
    case = Case(c, lam)
    removal = Removal(case.model, GROUPS, case.k, case.y_te)
    error = np.abs(removal.exact - removal.ihvp)
    assert (error <= removal.bound(DIAGONAL) * (1 + 1e-9) + 1e-12).all()
    q = np.array([squared_norm(case, I, case.model.without(I)) for I in GROUPS])
    left = np.array(
        [squared_norm(case, I, case.model.without(I) - case.model.r[I]) for I in GROUPS]
    )
    size = np.sqrt(2 * case.loss(case.model.predict(case.k)))
    by_hand = np.sqrt(DIAGONAL * left)[:, None] * size + 0.5 * DIAGONAL * q[:, None]
    near(removal.bound(DIAGONAL), by_hand, 1e-8 * by_hand)


def squared_norm(case, I, v):
    """tr vᵀ [QKQ]_II v with every matrix in full."""
    K = ntk(case.X)
    Q = np.linalg.inv(K + case.lam * np.eye(N))
    v = v.reshape(len(I), -1)
    return np.trace(v.T @ (Q @ K @ Q)[np.ix_(I, I)] @ v)


def test_the_bound_of_one_point_is_the_worst_case_with_its_residual():
    case = Case(None)
    removal = Removal(case.model, range(N), case.k, case.y_te)
    h, tau = case.model.h, certificate(case.model, DIAGONAL)
    expected = (h * np.sqrt(2 * tau))[:, None] * np.abs(removal.r_te) + tau[:, None]
    near(removal.bound(DIAGONAL), expected, 1e-12)
    assert (removal.bound(DIAGONAL) <= worst_case(case.model, DIAGONAL)[:, None] + 1e-12).all()


def test_other_labels_as_in_a_refit(case):
    points, given = [3, 11, 39], case.y_new[:3]
    refits = []
    for i, y in zip(points, given, strict=True):
        Y = case.Y.copy()
        Y[i] = y
        refits.append(case.after(case.X, Y))
    influence = relabelling(case.model, points, given, case.k, case.y_te)
    case.check(influence, refits)
    same = relabelling(case.model, points, case.Y[points], case.k, case.y_te)
    assert not same.exact.any()


@pytest.mark.parametrize("groups", [None, [[0, 2], [1], [3, 1, 0, 2]]])
def test_new_points_as_in_a_refit(case, groups):
    args = ntk, case.X, case.X_new, case.y_new, case.X_te, case.y_te
    influence = addition(case.model, *args, groups)
    refits = []
    for A in groups or [[i] for i in range(4)]:
        X, Y = np.vstack([case.X, case.X_new[A]]), np.concatenate([case.Y, case.y_new[A]])
        refits.append(case.after(X, Y))
    case.check(influence, refits)


def test_what_is_added_can_be_removed_again(case):
    args = case.X_new, case.y_new, case.X_te, case.y_te, [range(4)]
    added = addition(case.model, ntk, case.X, *args)
    X, Y = np.vstack([case.X, case.X_new]), np.concatenate([case.Y, case.y_new])
    more = Ridge(ntk(X), Y, LAM)
    near(more.remove([range(N, N + 4)], ntk(X, case.X_te))[0], added.f, 1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_on_a_packed_inverse(case, dtype):
    close = {"float64": 1e-11, "float32": 1e-5}[dtype]
    Q = PackedInverse(ntk, case.X, LAM, dtype=dtype, tile=16, progress=False)
    packed = Ridge.packed(Q, case.Y)
    both = case.k, case.y_te
    a, b = (Removal(model, GROUPS, *both) for model in (packed, case.model))
    near(a.exact, b.exact, close)
    near(a.bound(DIAGONAL), b.bound(DIAGONAL), 10 * close)
    a, b = (relabelling(model, [2], case.y_new[:1], *both) for model in (packed, case.model))
    near(a.exact, b.exact, close)
    args = ntk, case.X, case.X_new, case.y_new, case.X_te, case.y_te
    a, b = (addition(model, *args) for model in (packed, case.model))
    near(a.exact, b.exact, 1e-9)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda c: Removal(c.model, [], c.k, c.y_te), IndexError, "groups is empty"),
        (lambda c: Removal(c.model, [[1, 1]], c.k, c.y_te), IndexError, "1 more than once"),
        (lambda c: Removal(c.model, [N], c.k, c.y_te), IndexError, f"{N} is out of range"),
        (lambda c: Removal(c.model, [0], c.k[1:], c.y_te), ValueError, "k has"),
        (lambda c: Removal(c.model, [0], c.k, c.y_te[1:]), ValueError, "y_te has 5 entries"),
        (lambda c: Removal(c.model, [0], c.k, c.y_te).bound(0), ValueError, "k_xx must be"),
        (lambda c: relabelling(c.model, [1], [1, 2], c.k, c.y_te), ValueError, "labels has 2"),
        (
            lambda c: relabelling(c.model, [1], [[1, 2]], c.k, c.y_te),
            ValueError,
            "labels has shape",
        ),
        (lambda c: relabelling(c.model, [N], [1], c.k, c.y_te), IndexError, "points = 40 is out"),
        (lambda c: c.add(y_new=c.y_new[1:]), ValueError, "y_new has 3 entries"),
        (lambda c: c.add(y_new=c.Y[:8].reshape(4, 2)), ValueError, "y_new has shape"),
        (lambda c: c.add(X_new=np.eye(4)), ValueError, "columns"),
        (lambda c: c.add(X_new=2 * c.X_new), ValueError, "unit norm"),
        (lambda c: c.add(X=c.X[1:]), ValueError, "k has"),
        (lambda c: c.add(groups=[[4]]), IndexError, "out of range; use 0 to 3"),
    ],
)
def test_bad_input(call, error, match):
    case = Case(None)

    def add(**change):
        given = {name: getattr(case, name) for name in ("X", "X_new", "y_new", "X_te", "y_te")}
        return addition(case.model, ntk, **given | change)

    case.add = add
    with pytest.raises(error, match=match):
        call(case)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("near_by", [0, 1e-14])
def test_a_new_point_that_no_interpolation_fits_is_named(packed, near_by):
    """At λ = 0 the input of an old point with another label has no model; with a ridge it has."""
    case = Case(None, lam=0.0)
    if packed:
        case.model = Ridge.packed(
            PackedInverse(ntk, case.X, 0.0, dtype="float64", progress=False), case.Y
        )
    X_new, y_new = case.X_new.copy(), case.y_new
    X_new[2] = case.X[17] + near_by * case.X[3]
    X_new[2] /= np.linalg.norm(X_new[2])

    def added(X_new, groups=None, case=case):
        return addition(case.model, ntk, case.X, X_new, y_new, case.X_te, case.y_te, groups)

    for groups in (None, [[2]], [[0, 2]], [[0, 1, 2, 3]]):
        with pytest.raises(
            ValueError, match="lam = 0 no model fits new point 2 and training point 17"
        ):
            added(X_new, groups)
    others = [0, 1, 3]
    both = np.vstack([case.X, X_new[others]]), np.concatenate([case.Y, y_new[others]])
    found, f = added(X_new, [others]), case.after(*both)[0]
    near(found.loo[0], f, 1e-10)
    X_new[2], X_new[3] = case.X_new[2], case.X_new[1]
    with pytest.raises(ValueError, match="no model fits new points 3 and 1 to working precision"):
        added(X_new, [others])
    assert len(added(X_new).exact) == 4  # one at a time they are
    ridge = Case(None, lam=0.3)
    X_new[2] = ridge.X[17]
    found = added(X_new, [[0, 1, 2, 3]], ridge)
    ridge.check(found, [ridge.after(np.vstack([ridge.X, X_new]), np.concatenate([ridge.Y, y_new]))])


def test_a_removal_says_its_shape_and_its_ridge(case):
    removal = Removal(case.model, GROUPS, case.k, case.y_te)
    assert repr(removal) == f"Removal: groups = 4, t = {T}, lam = 0.3"


def test_what_is_no_model_is_named():
    K, k, y = np.eye(2), np.eye(2), np.ones(2)
    for call, given in (
        (Removal, (K, [[0]], k, y)), (relabelling, (K, [0], [1.0], k, y)),
        (addition, (K, ntk, K, K, y, K, y)),
    ):  # fmt: skip
        words = r"model must be a lib.ridge.Ridge, not .* ndarray; pass Ridge\(K, Y, lam\)"
        with pytest.raises(TypeError, match=words):
            call(*given)


def linear(A, B=None):
    return A @ (A if B is None else B).T


def test_new_points_that_depend_are_named_whatever_their_sign():
    x, y, z = np.eye(3)
    model = Ridge(linear(np.array([x, y])), [1.0, -1.0], 0.0)

    def added(*new):
        group = [list(range(len(new)))]
        return addition(model, linear, np.array([x, y]), np.array(new), np.ones(len(new)),
                        z[None], [1.0], group)  # fmt: skip

    with pytest.raises(ValueError, match="no model fits new point 0 and training point 0 to"):
        added(-x)
    with pytest.raises(ValueError, match="no model fits new points 1 and 0 to working precision"):
        added(z, -z)
    near(added(z).shift, [[1.0]], 1e-12)


def test_new_points_that_only_rounding_tells_apart_are_refused():
    """No training point is near: their α is 0, and what rounding may do is that of K itself."""
    own = np.array([[1, 1], [1, 1 + 2 * EPS]])
    assert 0 < np.linalg.eigvalsh(own)[0] < 4 * EPS

    def kernel(A, B=None):
        table = np.zeros((5, 5))
        table[:2, :2], table[2:4, 2:4], table[4, 4] = np.eye(2), own, 1
        B = A if B is None else B
        return table[np.ix_(A[:, 0].astype(int), B[:, 0].astype(int))]

    rows = np.arange(5.0)[:, None]
    model = Ridge(kernel(rows[:2]), [1.0, -1.0], 0.0)
    with pytest.raises(ValueError, match="no model fits new points 1 and 0 to working precision"):
        addition(model, kernel, rows[:2], rows[2:4], [1.0, 1.0], rows[4:], [1.0], [[0, 1]])
