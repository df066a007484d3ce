"""The kernel of deep networks: by hand, to 50 digits, sampled, recorded from neural-tangents."""

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp

from book.deep import Case, Convolutional, cases, ended, prepare
from lib.deep import Deep, deep_ntk
from lib.kernel import NEAR, ntk
from lib.module import empirical_ntk
from tests.cases import EPS, unit_points

CASES = [(1, True), (1, False), (2, True), (2, False), (5, True), (5, False)]


def at(*degrees):
    """The axis, and unit vectors at such angles to it."""
    t = np.radians(degrees)
    return np.array([[1.0, 0.0]]), np.stack([np.cos(t), np.sin(t)], axis=1)


def precise(x, y, depth, frozen):
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


def naive(X, X2, depth, frozen=False):
    """The same in floating point: the negative control of every accuracy below."""
    sigma = theta = np.clip(X @ X2.T, -1, 1)
    for layer in range(1, depth + 1):
        angle = np.pi - np.arccos(np.clip(sigma, -1, 1))
        theta = theta * angle / np.pi
        sigma = (sigma * angle + np.sqrt(np.clip(1 - sigma**2, 0, None))) / np.pi
        theta = theta + (0 if frozen and layer == depth else sigma)
    return theta / 2


# --- by hand --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("depth", "frozen"), CASES)
@pytest.mark.parametrize("side", [1, -1])
def test_deep_kernel_keeps_its_digits_near_duplicates_and_antipodes(depth, frozen, side):
    # each layer adds a few eps, whatever the angle; before the chords take over the dot product
    # costs 5 eps/2 in u, and dφ = du/√(2 NEAR)
    x = np.array([1.0, 0.0, 0.0])
    distances = 10.0 ** -np.arange(0, 15)
    Y = side * np.array([[np.cos(t), 0.6 * np.sin(t), 0.8 * np.sin(t)] for t in distances])
    expected = np.array([float(precise(x, y, depth, frozen)) for y in Y])
    tolerance = depth * (4 + 2.5 / (2 * NEAR) ** 0.5) * EPS
    error = np.abs(deep_ntk(x[None], Y, depth=depth, frozen=frozen)[0] - expected)
    assert error.max() <= tolerance
    if side == 1 or depth > 1:
        wrong = np.abs(naive(x[None], Y, depth, frozen)[0] - expected).max()
        assert wrong > (100 if side == 1 else 0) * tolerance  # control


def test_deep_kernel_near_antipodes_is_relatively_accurate_at_depth_1():
    x = np.array([1.0, 0.0])
    Y = np.array([[-np.cos(t), np.sin(t)] for t in 10.0 ** -np.arange(2, 15)])
    expected = [precise(x, y, 1, False) for y in Y]
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
    np.testing.assert_allclose(K, naive(X, X, depth, frozen), atol=depth * (8 * EPS) ** 0.5)


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


def test_deep_network_of_one_layer_is_eq_1():
    net = Deep(3, width=50, depth=1, frozen=True, seed=0)
    X = torch.as_tensor(unit_points(4, 3))
    f = (X @ net.W[0].T).clip(min=0) @ net.A[0] / 50**0.5
    torch.testing.assert_close(net(X), f)
    assert [k for k, p in net.named_parameters() if p.requires_grad] == ["W.0"]
    assert Deep(3, width=50, depth=2, outputs=4, seed=0)(X).shape == (4, 4)


# --- bad input ------------------------------------------------------------------------------------


def test_single_precision_and_tensors():
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
def test_bad_input(settings, error, message):
    with pytest.raises(error, match=message):
        deep_ntk([[1.0]], **settings)
    with pytest.raises(ValueError, match="rows of unit norm"):
        deep_ntk([[2.0]], depth=2)
    with pytest.raises(ValueError, match="width must be at least 1"):
        Deep(2, width=0, depth=1, seed=0)


# --- the networks that book.deep trains again -----------------------------------------------------


@pytest.mark.parametrize("colours", [1, 3])
def test_convolutions_see_the_planes_of_an_image(colours):
    image = torch.rand(2, 6, 6, colours, dtype=torch.float64, generator=torch.Generator())
    net = Convolutional(36 * colours, width=2, outputs=1, activation=torch.nn.GELU, seed=0)
    _, *layers = net  # the first makes planes of a vector
    by_hand = 16 * torch.nn.Sequential(*layers)(8 * image.permute(0, 3, 1, 2))
    torch.testing.assert_close(net(image.flatten(1)), by_hand)
    turned = net(image.transpose(1, 2).flatten(1))  # control: rows for columns
    assert not torch.allclose(turned, by_hand)


def test_recorded_networks_are_those_of_the_plan(request):
    key = ["page", "data", "seed", "kind", "width", "depth", "activation", "ridge", "steps", "n"]
    plan = {tuple(str(vars(case)[k]) for k in key) for case in cases()}
    for page in ("lazy", "kinks"):
        record = pd.read_csv(request.config.rootpath / f"book/records/{page}.csv")
        record["ridge"] = record["ridge"].astype(float)
        found = {tuple(str(v) for v in row) for row in record[key].itertuples(index=False)}
        assert found <= plan and len(found) == len(record)


def test_a_trained_network_has_the_parameters_of_its_training():
    case = Case("kinks", width=4, n=12, t=4, steps=200, ridge=3.0)
    (X, Y), _, _, K0, k0, fit = prepare(case)
    assert X.shape == (12, 64) and Y.shape == (12, 1) and K0.shape == (12, 12)
    theta, (first,) = fit([()], fit.start)
    net = ended(case, fit, theta)
    f = net(fit.X_te).detach().numpy().ravel()
    np.testing.assert_allclose(f, np.ravel(first["f"]), rtol=1e-12)
    start = ended(case, fit, {k: v[None] for k, v in fit.start.items()})  # control: it is centred
    np.testing.assert_allclose(start(fit.X_te).detach(), 0, atol=1e-12)
