"""Eq 4: by hand, by quadrature, against 50 digits; blocks, precisions, tensors, bad input."""

import warnings

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp

from book.oracles import Deep
from lib.data import unit_rows
from lib.kernel import NEAR, deep_ntk, ntk
from lib.module import empirical_ntk
from tests.cases import EPS, unit_points


def naive(X, X2):
    """Eq 4 as it is written: the negative control of every accuracy below."""
    u = np.clip(X @ X2.T, -1, 1)
    return u * (np.pi - np.arccos(u)) / (2 * np.pi)


def precise(x, y):
    """Eq 4 at 50 digits for the angle between two vectors, whatever their norms."""
    with mpmath.workdps(50):
        x, y = mpmath.matrix(x.tolist()), mpmath.matrix(y.tolist())
        u = (x.T * y)[0] / (mpmath.norm(x) * mpmath.norm(y))
        return u * (mpmath.pi - mpmath.acos(min(u, 1))) / (2 * mpmath.pi)


def relative_error(kernel, x, Y):
    got = np.asarray(kernel(x[None], Y))[0]
    expected = [precise(x, y) for y in Y]
    return max(float(abs(g / e - 1)) for g, e in zip(map(mpmath.mpf, got), expected, strict=True))


@pytest.mark.parametrize(
    ("degrees", "value"),
    [
        (0, 1 / 2),  # u = 1: 1 · (π − 0)/2π
        (45, 3 * 2**0.5 / 16),  # u = 1/√2: (1/√2)(3π/4)/2π
        (60, 1 / 6),  # u = ½: ½(π − π/3)/2π
        (90, 0),  # u = 0
        (120, -1 / 12),  # u = −½: −½(π − 2π/3)/2π
        (180, 0),  # u = −1: −(π − π)/2π
    ],
)
def test_eq_4_by_hand(degrees, value):
    t = np.radians(degrees)
    K = ntk(np.array([[1.0, 0.0], [np.cos(t), np.sin(t)]]))
    assert K[0, 0] == K[1, 1] == 0.5
    assert K[0, 1] == K[1, 0] == pytest.approx(value, abs=2 * EPS)


def test_gradients_pass_through_the_kernel():
    X = torch.from_numpy(unit_points(5, 3))
    close = torch.cat([X, X[:1], -X[:1]]).requires_grad_()  # where arccos is infinitely steep
    for K in (ntk(close), ntk(close, close)):
        assert torch.isfinite(torch.autograd.grad(K.sum(), close)[0]).all()
    X.requires_grad_()
    u = (X @ X.T).fill_diagonal_(0)
    expected = u * (torch.pi - torch.acos(u)) / (2 * torch.pi)
    own, other = torch.autograd.grad(ntk(X).sum(), X)[0], torch.autograd.grad(expected.sum(), X)[0]
    assert torch.allclose(own, other, rtol=0, atol=100 * EPS)


def test_eq_4_against_quadrature_of_its_definition():
    # E[x·x' 1{w·x > 0} 1{w·x' > 0}]: only the direction of w in the plane of x, x' matters, and it
    # is uniform. The midpoint rule errs by at most one cell at each of the four ends: 4/N.
    N = 200_000
    w = (np.arange(N) + 0.5) * 2 * np.pi / N
    angles = np.linspace(0, np.pi, 13)
    active = (np.cos(w) > 0) & (np.cos(w - angles[:, None]) > 0)
    expected = np.cos(angles) * active.mean(axis=1)
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert np.abs(ntk(X)[0] - expected).max() <= 4 / N
    everywhere = np.cos(angles) / 2  # control: the kernel of a network without the kink
    assert np.abs(everywhere - expected).max() > 4 / N


@pytest.mark.parametrize("side", [1, -1])
def test_eq_4_keeps_its_digits_near_duplicates_and_antipodes(side):
    # Pairs about an axis have unit norm to better than their distance δ times √eps. The dot product
    # errs by (d + 2) eps/2, hence K near u = −1, where K ≈ −δ/2π and dK/K = du/δ², by at most
    # (d + 2) eps/(4 NEAR) before the chords take over.
    x, tolerance = np.array([1.0, 0.0, 0.0]), 5 * EPS / (4 * NEAR)
    for distance in 10.0 ** -np.arange(1, 15):
        y = side * np.array([np.cos(distance), 0.6 * np.sin(distance), 0.8 * np.sin(distance)])
        assert relative_error(ntk, x, y[None]) <= tolerance, distance
    Y = side * np.array([[np.cos(t), np.sin(t), 0.0] for t in 10.0 ** -np.arange(1, 15)])
    assert relative_error(ntk, x, Y) <= tolerance
    assert relative_error(naive, x, Y) > 1000 * tolerance


@pytest.mark.parametrize("side", [1, -1])
def test_eq_4_keeps_its_digits_for_pairs_in_any_direction(side):
    # Rounding leaves ‖x‖ − ‖y‖ = ν of order eps, which lengthens a chord δ to √(δ² + ν²).
    d = 784
    x, z = unit_points(2, d)
    z -= (z @ x) * x
    for distance in 10.0 ** -np.arange(1, 15):
        y = x + distance * z / np.linalg.norm(z)
        y *= side / np.linalg.norm(y)
        with mpmath.workdps(50):
            nu = mpmath.norm(mpmath.matrix(x.tolist())) - mpmath.norm(mpmath.matrix(y.tolist()))
            chord = mpmath.norm(mpmath.matrix(x.tolist()) - side * mpmath.matrix(y.tolist()))
        tolerance = (d + 2) * EPS / (4 * NEAR) + float(nu / chord) ** 2
        assert relative_error(ntk, x, y[None]) <= tolerance, distance


def test_eq_4_duplicates_are_one_half_and_antipodes_zero_exactly():
    X = unit_points(5, 40)
    np.testing.assert_array_equal(ntk(np.r_[X, X]).diagonal(5), 0.5)
    np.testing.assert_array_equal(ntk(X, X).diagonal(), 0.5)
    np.testing.assert_array_equal(ntk(X, -X).diagonal(), 0)
    assert np.abs(naive(X, X).diagonal() - 0.5).max() > 0  # control


@given(n=st.integers(1, 40), d=st.integers(1, 30), seed=st.integers(0, 9), block=st.integers(1, 50))
def test_eq_4_matrix_is_symmetric_bounded_and_the_same_in_blocks(n, d, seed, block):
    X = unit_points(n, d, seed)
    X[-1] = X[0]
    K = ntk(X, block=block)
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_array_equal(K.diagonal(), 0.5)
    assert K.max() <= 0.5 and K.min() >= -0.09
    assert np.linalg.eigvalsh(K).min() >= -n * EPS * n
    # the order of a sum of d products, and with it u, may depend on the block: (d + 2) eps/2 in u,
    # and |dK/du| ≤ ½ + 1/(2π √(2 NEAR)) < 5 outside the chords
    tolerance = 5 * (d + 2) * EPS
    np.testing.assert_allclose(K, ntk(X), rtol=0, atol=tolerance)
    np.testing.assert_allclose(K, ntk(X, X, block=block), rtol=0, atol=tolerance)
    np.testing.assert_allclose(K, naive(X, X), rtol=0, atol=((d + 2) * EPS) ** 0.5)


@pytest.mark.parametrize("scale", [1, 1e-3])
def test_eq_4_when_all_pairs_are_near(scale):
    X = unit_rows(1 + scale * unit_points(60, 8))
    expected = np.array([[float(precise(x, y)) for y in X[:5]] for x in X])
    np.testing.assert_allclose(ntk(X)[:, :5], expected, rtol=1e-14)


def test_eq_4_more_than_d_antipodal_pairs_make_it_singular():
    X = unit_points(4, 3)
    below, above = (np.linalg.eigvalsh(ntk(np.r_[X[:p], -X[:p]])).min() for p in (3, 4))
    assert below > 1e-6 and abs(above) < 1e-15


def test_single_precision_error():
    X = unit_points(200, 50)
    X[100:] = X[:100] + 1e-4 * unit_points(100, 50, 1)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    K, K32 = ntk(X), ntk(X, dtype="float32")
    assert K32.dtype == np.float32 and (K32 == K32.T).all() and (K32.diagonal() == 0.5).all()
    eps = np.finfo(np.float32).eps
    error = np.abs(K32 - K).max()
    assert eps / 16 < error <= 5 * eps  # |dK/du| < 5 outside the chords, see above
    cast = np.abs(naive(*[X.astype(np.float32)] * 2) - K).max()
    assert cast > 5 * eps  # control: the arccosine loses half of the digits of single precision


def test_arrays_and_tensors_in_any_layout():
    X, X2 = unit_points(9, 6), unit_points(4, 6, 1)
    for dtype in ("float64", "float32"):
        K = ntk(torch.from_numpy(X), torch.from_numpy(X2), dtype=dtype)
        assert isinstance(K, torch.Tensor) and K.dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(K, ntk(X, X2, dtype=dtype))
    assert isinstance(ntk(X, torch.from_numpy(X2)), np.ndarray)
    assert ntk(X.astype(np.float32)).dtype == np.float64
    assert ntk(torch.eye(3, dtype=torch.int64)).tolist() == ntk(np.eye(3, dtype=int)).tolist()
    X.setflags(write=False)
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(ntk(X), ntk(np.asfortranarray(X)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_other_devices():
    X = torch.from_numpy(unit_points(300, 20))
    K = ntk(X.cuda())
    assert K.is_cuda
    np.testing.assert_allclose(K.cpu(), ntk(X), rtol=0, atol=1e-14)


NOT_FINITE = np.array([[1.0, 0.0], [0.6, np.nan]])


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (([[1.0, 0.0], [0.6, 0.7]],), {}, r"X .* row 1 has norm 0\.92195.*unit_rows\(X\)"),
        (([[1.0, 0.0]], [[2.0, 0.0]]), {}, r"X2 .* row 0 has norm 2; .*unit_rows\(X2\)"),
        ((NOT_FINITE,), {}, r"X has 1 value .* index \(1, 1\): nan; remove"),
        ((torch.tensor([[float("inf"), 0.0]]),), {}, r"X has 1 value .* index \(0, 0\): inf"),
        (([1.0, 0.0],), {}, r"X must have 2 axes.* shape is \(2,\); reshape"),
        ((np.empty((0, 3)),), {}, r"X is empty: its shape is \(0, 3\); pass"),
        (([[1.0, 0.0]], [[1.0]]), {}, "X2 has 1 columns, but X has 2"),
        (([[1.0]], torch.empty(1, 1, device="meta")), {}, "X2 is on meta, but X is on cpu; move"),
        (([[1.0]],), {"dtype": "float16"}, "dtype must be 'float64' or 'float32', not 'float16'"),
        (([[1.0]],), {"block": 0}, "block must be at least 1, not 0; choose a larger one"),
        (([[1.0]],), {"block": 2.5}, "block must be an integer, not 2.5"),
    ],
)
def test_bad_input(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        ntk(*arguments, **settings)


def test_arrays_of_any_strides_locked_or_of_low_precision(recwarn):
    X = unit_points(9, 4)
    K = ntk(X)
    np.testing.assert_allclose(ntk(X[::-1])[::-1, ::-1], K, atol=8 * EPS)
    locked = np.broadcast_to(X, X.shape)
    np.testing.assert_allclose(ntk(locked, X[::-1])[:, ::-1], K, atol=8 * EPS)
    single = X.astype(np.float32)
    np.testing.assert_allclose(ntk(single[::-1])[::-1, ::-1], K, atol=1e-6)
    assert not recwarn.list
    half = unit_rows(torch.tensor(X).bfloat16())
    np.testing.assert_allclose(ntk(half), K, atol=0.02)
    with pytest.raises(ValueError, match="rows of unit norm.*lib.data.unit_rows"):
        ntk(torch.tensor(X).bfloat16())
    with pytest.raises(ValueError, match="X has 1 masked entry"):
        ntk(np.ma.array(X, mask=np.arange(36).reshape(9, 4) == 5))


# --- deep networks --------------------------------------------------------------------------------

DEPTHS = [(1, True), (1, False), (2, True), (2, False), (5, True), (5, False)]


def at(*degrees):
    """The axis, and unit vectors at such angles to it."""
    t = np.radians(degrees)
    return np.array([[1.0, 0.0]]), np.stack([np.cos(t), np.sin(t)], axis=1)


def deep_precise(x, y, depth, frozen):
    """½ Θᴸ as it is written, at 60 digits, for the angle between two vectors of any norm."""
    with mpmath.workdps(60):
        x, y = mpmath.matrix(x.tolist()), mpmath.matrix(y.tolist())
        u = (x.T * y)[0] / (mpmath.norm(x) * mpmath.norm(y))
        sigma = theta = max(min(u, mp.mpf(1)), mp.mpf(-1))
        for layer in range(1, depth + 1):
            angle = mp.pi - mpmath.acos(sigma)
            theta = theta * angle / mp.pi
            sigma = (sigma * angle + mpmath.sqrt(1 - sigma**2)) / mp.pi
            theta += 0 if frozen and layer == depth else sigma
        return theta / 2


def deep_naive(X, X2, depth, frozen=False):
    """The same in floating point: the negative control of every accuracy below."""
    sigma = theta = np.clip(X @ X2.T, -1, 1)
    for layer in range(1, depth + 1):
        angle = np.pi - np.arccos(np.clip(sigma, -1, 1))
        theta = theta * angle / np.pi
        sigma = (sigma * angle + np.sqrt(np.clip(1 - sigma**2, 0, None))) / np.pi
        theta = theta + (0 if frozen and layer == depth else sigma)
    return theta / 2


@pytest.mark.parametrize(
    ("depth", "frozen", "degrees", "value"),
    [
        (1, False, 0, 1),  # Θ¹ = 1 + 1
        (1, False, 90, 1 / (2 * np.pi)),  # Σ¹ = 1/π
        (1, False, 180, 0),
        (2, False, 180, 1 / (2 * np.pi)),  # Σ¹ = 0, so the second layer sees a right angle
        (2, True, 180, 0),
        (2, True, 90, (np.pi - np.arccos(1 / np.pi)) / (2 * np.pi**2)),  # Θ¹ κ₀(1/π), Θ¹ = 1/π
        (3, False, 0, 2),
        (3, True, 0, 1.5),
    ],
)
def test_deep_kernel_by_hand(depth, frozen, degrees, value):
    K = deep_ntk(*at(degrees), depth=depth, frozen=frozen)
    assert K[0, 0] == pytest.approx(value, abs=4 * EPS)


def test_deep_kernel_of_depth_1_with_a_frozen_read_out_is_eq_4():
    X, Y = unit_points(60, 7), unit_points(30, 7, 1)
    np.testing.assert_allclose(deep_ntk(X, depth=1, frozen=True), ntk(X), rtol=2 * EPS)
    np.testing.assert_allclose(deep_ntk(X, Y, depth=1, frozen=True), ntk(X, Y), rtol=4 * EPS)
    assert np.abs(deep_ntk(X, depth=1) - ntk(X)).max() > 0.1  # control: the read-out is trained


# --- to 50 digits ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "frozen"), DEPTHS)
@pytest.mark.parametrize("side", [1, -1])
def test_deep_kernel_keeps_its_digits_near_duplicates_and_antipodes(depth, frozen, side):
    # each layer adds a few eps, whatever the angle; before the chords take over the dot product
    # costs 5 eps/2 in u, and dφ = du/√(2 NEAR)
    x = np.array([1.0, 0.0, 0.0])
    distances = 10.0 ** -np.arange(0, 15)
    Y = side * np.array([[np.cos(t), 0.6 * np.sin(t), 0.8 * np.sin(t)] for t in distances])
    expected = np.array([float(deep_precise(x, y, depth, frozen)) for y in Y])
    tolerance = depth * (4 + 2.5 / (2 * NEAR) ** 0.5) * EPS
    error = np.abs(deep_ntk(x[None], Y, depth=depth, frozen=frozen)[0] - expected)
    assert error.max() <= tolerance
    if side == 1 or depth > 1:
        wrong = np.abs(deep_naive(x[None], Y, depth, frozen)[0] - expected).max()
        assert wrong > (100 if side == 1 else 0) * tolerance  # control


def test_deep_kernel_near_antipodes_is_relatively_accurate_at_depth_1():
    x = np.array([1.0, 0.0])
    Y = np.array([[-np.cos(t), np.sin(t)] for t in 10.0 ** -np.arange(2, 15)])
    expected = [deep_precise(x, y, 1, False) for y in Y]
    got = deep_ntk(x[None], Y, depth=1)[0]
    assert max(abs(float(g / e) - 1) for g, e in zip(got, expected, strict=True)) < 20 * EPS


@given(st.integers(1, 6), st.booleans(), st.integers(0, 99), st.integers(1, 50))
def test_deep_kernel_is_symmetric_positive_and_the_same_in_blocks(depth, frozen, seed, block):
    X = unit_points(25, 4, seed)
    X[-1] = X[0]
    K = deep_ntk(X, depth=depth, frozen=frozen, block=block)
    np.testing.assert_array_equal(K, K.T)
    np.testing.assert_array_equal(K.diagonal(), (depth + (not frozen)) / 2)
    assert np.linalg.eigvalsh(K).min() >= -len(X) * EPS * np.trace(K)
    tolerance = 100 * depth * EPS
    np.testing.assert_allclose(K, deep_ntk(X, X, depth=depth, frozen=frozen), atol=tolerance)
    np.testing.assert_allclose(K, deep_naive(X, X, depth, frozen), atol=depth * (8 * EPS) ** 0.5)


# --- neural-tangents, recorded --------------------------------------------------------------------


def test_deep_kernel_is_that_of_neural_tangents(request):
    record = pd.read_csv(request.config.rootpath / "book/records/deep-kernel.csv")
    assert set(record.depth) == {1, 2, 3, 5} and set(record.frozen) == {True, False}
    for (depth, frozen), rows in record.groupby(["depth", "frozen"]):
        K = deep_ntk(*at(*rows.degrees), depth=depth, frozen=frozen)[0]
        np.testing.assert_allclose(K, rows.kernel, rtol=0, atol=20 * depth * EPS)
        other = deep_ntk(*at(*rows.degrees), depth=depth, frozen=not frozen)[0]
        assert np.abs(other - rows.kernel).max() > 0.1  # control


# --- sampled --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "frozen"), [(1, True), (1, False), (3, True), (3, False)])
def test_deep_kernel_is_the_mean_of_wide_networks(depth, frozen):
    X = at(0, 50, 100, 170)[1]
    draws = np.array([
        empirical_ntk(Deep(2, width=256, depth=depth, frozen=frozen, seed=s).eval(), X)
        for s in range(60)
    ])  # fmt: skip
    mean, error = draws.mean(axis=0), draws.std(axis=0) / 60**0.5
    z = (mean - deep_ntk(X, depth=depth, frozen=frozen)) / (error + 1e-12)
    # of ten pairs none should be beyond 4; beyond one hidden layer the mean itself is off by O(1/m)
    assert np.abs(z).max() < 4
    other = (mean - deep_ntk(X, depth=depth, frozen=not frozen)) / (error + 1e-12)
    assert np.abs(other).max() > 20  # control


def test_deep_kernel_of_finite_networks_converges_as_the_root_of_the_width():
    X, widths = unit_points(5, 3), [16, 64, 256]
    rms = [
        np.mean([
            np.mean((empirical_ntk(Deep(3, width=m, depth=3, seed=s).eval(), X) - K) ** 2)
            for s in range(20)
        ]) ** 0.5
        for K in [deep_ntk(X, depth=3)] for m in widths
    ]  # fmt: skip
    slope = np.polyfit(np.log(widths), np.log(rms), 1)[0]
    assert -0.65 < slope < -0.35


def test_deep_kernel_of_single_precision_and_tensors():
    X = unit_points(50, 20)
    K = deep_ntk(X, depth=3)
    single = deep_ntk(X, depth=3, dtype="float32")
    assert single.dtype == np.float32
    assert np.abs(single - K).max() < 100 * np.finfo(np.float32).eps
    assert isinstance(deep_ntk(torch.as_tensor(X), depth=3), torch.Tensor)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"depth": 0}, ValueError, "depth must be at least 1, not 0; choose"),
        ({"depth": 1.5}, ValueError, "depth must be an integer"),
        ({"depth": 2, "frozen": 1}, TypeError, "frozen must be True or False, not 1; pass"),
        ({"depth": 2, "dtype": "half"}, ValueError, "dtype must be 'float64' or 'float32'"),
    ],
)
def test_bad_input_of_the_deep_kernel(settings, error, message):
    with pytest.raises(error, match=message):
        deep_ntk([[1.0]], **settings)
    with pytest.raises(ValueError, match="rows of unit norm"):
        deep_ntk([[2.0]], depth=2)


@pytest.mark.parametrize("n", [5, 17, 64])
def test_a_kernel_with_gradients_is_symmetric_too(n):
    X = torch.as_tensor(unit_points(n, 19))
    product = X.clone().requires_grad_() @ X.T
    assert not torch.equal(product, product.T)  # torch computes both triangles
    K = ntk(X.clone().requires_grad_(), block=64).detach()
    assert torch.equal(K, K.T)
    np.testing.assert_allclose(K, ntk(X.numpy()), rtol=0, atol=1e-14)
