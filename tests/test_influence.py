"""What a removal does to a loss (Eq 7, 8, 14): by hand, and the difference of two losses."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.influence import Influence
from tests.cases import EPS, OUTPUTS, loss, near

NAMES = ("exact", "T1", "T2")


def test_eq_7_eq_14_of_one_output_by_hand():
    # f = ½, y_te = 1, r_te = −½; f^{∖i} = −½ and ¾: I = ½ (9/4 − ¼) = 1, ½ (1/16 − ¼) = −3/32
    inf = Influence(np.array([0.5]), [1.0], np.array([[-1.0], [0.25]]))
    assert inf.r_te.tolist() == [-0.5] and inf.loo.tolist() == [[-0.5], [0.75]]
    assert inf.T1.tolist() == [[0.5], [-0.125]] and inf.T2.tolist() == [[0.5], [0.03125]]
    assert inf.exact.tolist() == [[1.0], [-0.09375]]


def test_eq_7_eq_14_of_two_outputs_by_hand():
    # two removals, two test points. f = (½, 0) and (0, 1), y_te = (1, 0) twice:
    # r_te = (−½, 0) and (−1, 1). Losses ⅛ and 1.
    f, y_te = np.array([[0.5, 0.0], [0.0, 1.0]]), [[1.0, 0.0], [1.0, 0.0]]
    shift = np.array([[[-1.0, 2.0], [0.0, -1.0]], [[0.25, 0.0], [3.0, 0.5]]])
    inf = Influence(f, y_te, shift)
    # f^{∖1} = (−½, 2) and (0, 0): ½ (9/4 + 4) − ⅛ = 3, ½ − 1 = −½. f^{∖2} = (¾, 0), (3, 3/2):
    # 1/32 − ⅛ = −3/32, ½ (4 + 9/4) − 1 = 17/8
    assert inf.loo.tolist() == [[[-0.5, 2.0], [0.0, 0.0]], [[0.75, 0.0], [3.0, 1.5]]]
    assert inf.T1.tolist() == [[0.5, -1.0], [-0.125, -2.5]]
    assert inf.T2.tolist() == [[2.5, 0.5], [0.03125, 4.625]]
    assert inf.exact.tolist() == [[3.0, -0.5], [-0.09375, 2.125]]
    # control: sums over the removals, the test points and of the products of sums, of this shape
    r = inf.r_te
    for wrong in (
        np.einsum("itc,tc->ic", shift, r),
        np.einsum("itc,tc->tc", shift, r),
        shift.sum(axis=2) * r.sum(axis=1),
        np.einsum("itc,ct->it", shift, r),
    ):
        assert wrong.shape == inf.T1.shape and not np.allclose(wrong, inf.T1)


@st.composite
def predictions(draw):
    """f, y_te and shifts of many sizes, with c outputs."""
    n, t, c = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.sampled_from(OUTPUTS))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    shape = (t,) if c is None else (t, c)
    size, smaller = 10.0 ** draw(st.floats(-3, 4)), 10.0 ** draw(st.floats(-6, 2))
    f, y_te = (size * rng.standard_normal(shape) for _ in range(2))
    return f, y_te, size * smaller * rng.standard_normal((n, *shape))


@given(predictions())
def test_eq_7_is_the_difference_of_two_losses(case):
    f, y_te, shift = case
    inf = Influence(f, y_te, shift)
    n, t = len(shift), len(f)
    without = loss(f + shift, y_te)
    # losses are sums of c terms, each with a few roundings of numbers of the size of f, y and shift
    terms = (np.abs(f) + np.abs(y_te) + np.abs(shift)) ** 2
    size = (terms if f.ndim == 1 else terms.sum(axis=-1)) * (f.size // t + 8) * EPS
    near(inf.exact, without - loss(f, y_te), size)
    near(inf.T1 + inf.T2, inf.exact, size)
    assert all(getattr(inf, name).shape == (n, t) for name in NAMES) and (inf.T2 >= 0).all()
    np.testing.assert_array_equal(inf.loo, f + shift)
    np.testing.assert_array_equal(inf.shift, shift)


@given(predictions())
def test_several_outputs_are_the_sum_over_single_ones(case):
    f, y_te, shift = case
    if f.ndim == 1:
        f, y_te, shift = f[:, None], y_te[:, None], shift[:, :, None]
    inf = Influence(f, y_te, shift)
    for name in NAMES:
        parts = [
            getattr(Influence(f[:, c], y_te[:, c], shift[:, :, c]), name) for c in range(f.shape[1])
        ]
        room = 8 * EPS * np.abs(parts).sum(axis=0) + np.finfo(float).tiny
        near(getattr(inf, name), np.sum(parts, axis=0), (len(parts) + 1) * room)


@pytest.mark.parametrize("outputs", [False, True])
def test_eq_7_keeps_its_digits_where_the_influence_is_tiny(outputs):
    f, y, shift = 0.1, -0.7, 1e-12
    now, before = (Fraction(v) - Fraction(y) for v in (Fraction(f) + Fraction(shift), f))
    exact = float((now**2 - before**2) / 2)
    if outputs:
        inf = Influence(np.array([[f, 0.0]]), [[y, 0.0]], np.array([[[shift, 0.0]]]))
    else:
        inf = Influence(np.array([f]), [y], np.array([[shift]]))
    assert abs(inf.exact[0, 0] / exact - 1) < 8 * EPS
    squares = 0.5 * (f + shift - y) ** 2 - 0.5 * (f - y) ** 2
    assert abs(squares / exact - 1) > 1e-6  # what the difference of the squares would lose


def test_nothing_changes_where_nothing_moves():
    inf = Influence(np.array([[1.0, 2.0]]), [[3.0, 4.0]], np.zeros((3, 1, 2)))
    assert not inf.exact.any() and inf.loo.tolist() == [[[1, 2]]] * 3


def test_influences_are_fresh_arrays():
    inf = Influence(np.array([0.5]), [1.0], np.array([[-1.0], [0.25]]))
    inf.exact[:] = inf.T1[:] = inf.T2[:] = inf.loo[:] = 7
    assert inf.exact.tolist() == [[1.0], [-0.09375]] and inf.shift.tolist() == [[-1], [0.25]]


def test_it_shares_no_array_with_its_caller():
    f, y_te, shift = np.array([0.5]), np.array([1.0]), np.array([[-1.0]])
    inf = Influence(f, y_te, shift)
    for given_ in (f, y_te, shift):
        given_[:] = 7
    assert inf.exact.tolist() == [[1.0]] and inf.loo.tolist() == [[-0.5]]


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_arithmetic_is_that_of_float64(kind):
    inf = Influence(np.array([1, 0], kind), [1.0, -1.0], 255 * np.ones((3, 2), kind))
    assert inf.loo.dtype == np.float64 and inf.loo.tolist() == [[256, 255]] * 3
    assert inf.exact.tolist() == [[255**2 / 2, 256**2 / 2 - 0.5]] * 3


def test_it_says_its_shape():
    assert str(Influence(np.zeros(3), np.ones(3), np.zeros((2, 3)))) == "Influence: n = 2, t = 3"
    several = Influence(np.zeros((3, 4)), np.ones((3, 4)), np.zeros((2, 3, 4)))
    assert repr(several) == "Influence: n = 2, t = 3"


@pytest.mark.parametrize(
    ("f", "y_te", "shift", "message"),
    [
        ((2,), np.ones(2), (3, 1), r"shift has shape \(3, 1\), but f has \(2,\); pass one row"),
        ((2,), np.ones(2), (2,), r"shift has shape \(2,\), but f has \(2,\)"),
        ((2, 3), np.ones((2, 3)), (4, 2), r"shift has shape \(4, 2\), but f has \(2, 3\)"),
        ((2, 3), np.ones((2, 3)), (4, 3, 2), r"shift has shape \(4, 3, 2\), but f has \(2, 3\)"),
        ((2,), np.ones(3), (1, 2), "y_te has 3 entries, but there are 2 points"),
        ((2,), np.ones((2, 1)), (1, 2), r"y_te has shape \(2, 1\), but the predictions have \(2"),
        ((2, 3), np.ones(2), (1, 2, 3), r"y_te has shape \(2,\), but the predictions have \(2, 3"),
        ((2, 3), np.ones((2, 2)), (1, 2, 3), r"y_te has shape \(2, 2\), .* as many labels a point"),
        ((2,), [1.0, np.nan], (1, 2), "y_te has 1 value that is not finite"),
        ((2,), [0, 1], (1, 2), "y_te has labels 0 and 1"),
        ((2, 2), np.ones((2, 2), dtype=bool), (1, 2, 2), "y_te has labels False and True"),
    ],
)
def test_bad_input(f, y_te, shift, message):
    with pytest.raises(ValueError, match=message):
        Influence(np.zeros(f), y_te, np.zeros(shift))


def test_predictions_that_are_not_finite_or_no_numbers():
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="f has 1 value that is not finite"):
            Influence([bad, 0.0], [1.0, -1.0], np.zeros((1, 2)))
        with pytest.raises(ValueError, match="shift has 1 value that is not finite"):
            Influence([0.0, 0.0], [1.0, -1.0], [[bad, 0.0]])
    with pytest.raises(TypeError, match="f must be a real numeric array, not list"):
        Influence(["a", "b"], [1.0, -1.0], np.zeros((1, 2)))
    with pytest.raises(TypeError, match="shift must be a real numeric array, not list"):
        Influence([0.0, 0.0], [1.0, -1.0], [["a", "b"]])


def test_targets_of_any_size_are_welcome():
    assert Influence(np.zeros(1), [1e3], np.ones((1, 1))).exact.tolist() == [[-999.5]]
