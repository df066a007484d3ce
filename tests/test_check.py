"""What is said of bad input: the argument, the value and the remedy."""

import tomllib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import lib
from lib import check


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: check.array("Y", "no", 1), TypeError, "numeric array, not str .*; pass a dense"),
        (lambda: check.array("K", torch.eye(2).to_sparse(), 2), TypeError, "not Tensor; pass a d"),
        (
            lambda: check.array("K", None, 2),
            TypeError,
            "K must be .* not NoneType .*; pass a dense",
        ),
        (lambda: check.array("Y", [[1], [2, 3]], 2), TypeError, "Y must be a real numeric array"),
        (lambda: check.array("Y", [[1.0]], 1), ValueError, r"Y must have 1 axes.*\(1, 1\); resh"),
        (lambda: check.array("k", 1.0, (1, 2)), ValueError, "k must have 1 or 2 axes"),
        (lambda: check.array("Y", [], 1), ValueError, "Y is empty.*pass at least one"),
        (lambda: check.array("Y", [0, np.inf], 1), ValueError, r"Y has 1 value.*\(1,\): inf; rem"),
        (
            lambda: check.array("K", [[np.nan, 0], [0, -np.inf]], 2),
            ValueError,
            r"K has 2 values that are not finite, the first at index \(0, 0\): nan; remove",
        ),
        (lambda: check.finite("X", torch.tensor([0, -torch.inf])), ValueError, r"\(1,\): -inf"),
        (lambda: check.array("Y", torch.empty(2, device="meta"), 1), TypeError, r"pass Y\.cpu\(\)"),
        (
            lambda: check.labels("Y", [0.5, -1.5], 2),
            ValueError,
            r"\[-1, 1\], but Y\[1\] = -1.5; use",
        ),
        (
            lambda: check.labels("Y", [1.0], 2),
            ValueError,
            "Y has 1 entries, but there are 2 points",
        ),
        (
            lambda: check.number("lam", -2.0, at_least=0),
            ValueError,
            "number >= 0, not -2.0; choose",
        ),
        (
            lambda: check.number("kappa", 0, above=0),
            ValueError,
            "number > 0, not 0; choose a larger",
        ),
        (
            lambda: check.number("lam", np.nan),
            ValueError,
            "lam must be a finite number, not nan; pass",
        ),
        (lambda: check.number("lam", np.inf, at_least=0), ValueError, "not inf; pass a finite"),
        (lambda: check.number("lam", "1"), TypeError, "lam must be a number, not '1'; pass one"),
        (lambda: check.number("lam", [1.0]), TypeError, r"lam must be a number, not \[1.0\]; pass"),
        (lambda: check.number("lam", np.ones(1)), TypeError, "lam must be a number, not array"),
        (lambda: check.number("lam", None), TypeError, "lam must be a number, not None"),
        (
            lambda: check.integer("m", 1.5),
            ValueError,
            "m must be an integer, not 1.5; pass a whole",
        ),
        (lambda: check.integer("m", np.True_), ValueError, "m must be an integer, not .*True"),
        (lambda: check.integer("m", True), ValueError, "m must be an integer, not True"),
        (lambda: check.integer("m", 0), ValueError, "m must be at least 1, not 0; choose a larger"),
        (lambda: check.indices("i", 3, 3), IndexError, "i = 3 is out of range; use 0 to 2"),
        (lambda: check.indices("i", -1, 3), IndexError, "i = -1 is out of range; use 0 to 2"),
        (
            lambda: check.indices("i", [1, 0, 1], 3),
            IndexError,
            "i names 1 more than once; name each",
        ),
        (lambda: check.indices("i", [0.0], 3), IndexError, r"several integers, .*; pass a list"),
        (lambda: check.indices("i", [True], 3), IndexError, "i must be one or several integers"),
        (lambda: check.indices("i", [], 3), IndexError, "i must be one or several integers"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_good_input_passes_unchanged():
    big = np.array([1e308, 1e308])  # the sum overflows, the values do not
    with warnings.catch_warnings(action="error"):
        assert check.array("x", big, 1) is big
    assert check.array("x", torch.ones(2, requires_grad=True), 1).tolist() == [1, 1]
    assert check.labels("Y", [1, -1, 0], 3).tolist() == [1, -1, 0]
    assert check.number("lam", np.float32(0.5), at_least=0) == 0.5
    assert check.integer("n", np.int64(3)) == 3
    assert check.indices("i", 2, 3).tolist() == [2]
    assert check.indices("i", np.array([2, 0]), 3).tolist() == [2, 0]


def test_labels_end_at_one_exactly():
    assert check.labels("Y", [1.0, -1.0], 2).tolist() == [1, -1]
    for y in (np.nextafter(1, 2), -np.nextafter(1, 2)):
        with pytest.raises(ValueError, match=r"Y must lie in \[-1, 1\], but Y\[1\] = -?1; use"):
            check.labels("Y", [1.0, y], 2)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("i", "j"), [(1, 0), (299, 3), (3, 299), (299, 298), (256, 255)])
def test_symmetric_to_ten_digits_of_the_diagonal(scale, i, j):
    K = scale * np.eye(300)
    K[i, j] = 0.99e-10 * scale
    assert check.symmetric("K", K) is K
    K[i, j] = 1.01e-10 * scale
    with pytest.raises(ValueError, match="K and Kᵀ differ by (1.01e-|0.000101)"):
        check.symmetric("K", K)


def test_symmetric_to_ten_digits_of_the_diagonal_whatever_is_beside_it():
    K = np.array([[1.0, 1e4], [1e4 + 5e-8, 1.0]])
    with pytest.raises(ValueError, match="K must be symmetric, but K and Kᵀ differ by 5"):
        check.symmetric("K", K)


def test_a_tensor_with_a_gradient_is_searched_for_nan():
    x = torch.tensor([1.0, float("nan")], requires_grad=True)
    with pytest.raises(ValueError, match="x has 1 value that is not finite, the first at index"):
        check.finite("x", x)


def test_semidefinite_but_for_a_tolerance():
    for lowest in (1.0, 0.0, -1e-12):
        check.semidefinite(lowest, 1e-12)
    with pytest.raises(ValueError, match=r"K is not .* eigenvalue <= -1.01e-12\); pass K = ntk\(X"):
        check.semidefinite(-1.01e-12, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_rows_to_the_precision_of_their_dtype(dtype):
    x = torch.nn.functional.normalize(torch.randn(50, 784, dtype=dtype), dim=1)
    assert check.unit("X", x) is x
    with pytest.raises(ValueError, match=r"row 7 has norm 1\.00\d+; scale it with lib.data"):
        x[7] *= 1.001
        check.unit("X", x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [1, -1])
def test_unit_rows_to_a_hundred_eps_times_the_root_of_the_columns(dtype, side):
    x, eps = torch.eye(3, 16, dtype=dtype), torch.finfo(dtype).eps
    x[1, 1] = 1 + side * 398 * eps
    assert check.unit("X", x) is x
    x[1, 1] = 1 + side * 402 * eps
    with pytest.raises(ValueError, match="X must have rows of unit norm, but row 1 has norm"):
        check.unit("X", x)


def test_bounds_of_numbers_may_be_reached_where_they_are_inclusive():
    assert check.number("lam", 0, at_least=0) == 0 and check.integer("m", 1) == 1
    assert check.integer("settle", 0, at_least=0) == 0
    assert check.number("tol", 5e-324, above=0) == 5e-324
    assert check.indices("i", [0, 2], 3).tolist() == [0, 2]
    assert type(check.number("lam", 1)) is float and type(check.integer("m", 1.0)) is int


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[1.0, 0.0], [0.6, torch.nan]]), r"X has 1 value .* \(1, 1\): nan; remove"),
        (torch.empty(0, 3), r"X is empty: its shape is \(0, 3\); pass at least one row"),
        (torch.ones(1), r"X must have 2 axes \(rows, d\), but its shape is \(1,\); reshape it"),
    ],
)
def test_rows_that_have_no_norm(x, message):
    with pytest.raises(ValueError, match=message):
        check.unit("X", x)


def test_regression_takes_its_three_arguments_together():
    K, Y, lam = check.regression([[0.5, 0.1], [0.1, 0.5]], [1, -1], 0)
    assert K.tolist() == [[0.5, 0.1], [0.1, 0.5]] and Y.tolist() == [1, -1] and lam == 0
    for bad, message in (
        (([[0.5, 0.1]], [1], 1), r"K must be square, but its shape is \(1, 2\)"),
        (([[0.5]], [1, 1], 1), "Y has 2 entries, but there are 1 points"),
        (([[0.5]], [1], -5e-324), "lam must be a finite number >= 0, not -5e-324"),
    ):
        with pytest.raises(ValueError, match=message):
            check.regression(*bad)


def test_groups_are_points_or_lists_of_them():
    assert [g.tolist() for g in check.groups([0, [2, 1]], 3)] == [[0], [2, 1]]
    for bad, message in (
        ([], "groups is empty; name at least one point"),
        ([0, 3], r"groups\[1\] = 3 is out of range; use 0 to 2"),
        ([np.array([], dtype=int)], r"groups\[0\] must be one or several integers, not array"),
    ):
        with pytest.raises(IndexError, match=message):
            check.groups(bad, 3)


def test_columns_are_test_points():
    assert check.columns([1.0, 2.0], 2).shape == (2, 1)
    assert check.columns(np.ones((2, 3)), 2).shape == (2, 3)
    for k in (np.ones((3, 2)), np.ones(3), np.ones((2, 2, 1)), 1.0):
        with pytest.raises(ValueError, match="k has shape|k must have 1 or 2 axes"):
            check.columns(k, 2)


@pytest.mark.parametrize("x", [[[1j, 0]], [["1", "2"]], [[1.0], [1.0, 2.0]], "abc", None])
def test_array_that_is_not_real_numbers(x):
    with pytest.raises(TypeError, match="X must be a real numeric array, not"):
        check.array("X", x, ndim=2)


def test_precision_names_the_two():
    assert check.precision("float32") is torch.float32
    with pytest.raises(ValueError, match="dtype must be 'float64' or 'float32', not 'half'"):
        check.precision("half")


@pytest.mark.parametrize("whole", [20, 20.0, 2e1, np.float64(20), np.int32(20), torch.tensor(20.0)])
def test_whole_numbers_become_integers(whole):
    assert check.integer("m", whole) == 20 and type(check.integer("m", whole)) is int


@pytest.mark.parametrize("y", [[0, 1, 1], [0.0, 1.0, 0.0], torch.tensor([1, 0, 1]), [1, 0, True]])
def test_labels_0_and_1_are_refused(y):
    with pytest.raises(
        ValueError, match=r"Y has labels 0 and 1, but .* -1 and \+1; pass 2.0 \* np.array\(Y\) - 1"
    ):
        check.labels("Y", y, 3)


@pytest.mark.parametrize("y", [[True, False], np.array([True, True]), torch.tensor([True, False])])
def test_labels_that_are_booleans_are_refused(y):
    with pytest.raises(ValueError, match="Y has labels False and True, .* 2.0 . np.array"):
        check.labels("Y", y, 2)
    mapped = check.labels("Y", 2.0 * np.asarray(y) - 1, 2)
    assert mapped.tolist() == [1, 1 if bool(y[1]) else -1]


@pytest.mark.parametrize("y", [[1, 1], [-1, 1], [0, 0], [0, 0.5], [0, -1], [0.0, 1 - 1e-12]])
def test_labels_and_targets_that_are_right(y):
    assert check.labels("Y", y, 2).tolist() == y


@pytest.mark.parametrize("call", [check.labels, check.targets])
def test_labels_are_a_copy(call):
    y = np.array([1.0, -1.0])
    call("Y", y, 2)[0] = 0
    assert y.tolist() == [1, -1]


@pytest.mark.parametrize(
    "y",
    [
        [1e3, -1e300], [0, 7], [0, 0], [1, 1], [[0, 1, 0], [1, 0, 0]], [[0], [2]], np.eye(2),
        np.eye(2) - 0.5, [[1e3], [-5e-324]], np.zeros((2, 1)), torch.eye(2), np.float32([2, 3]),
    ],
)  # fmt: skip
def test_targets_are_of_any_size_and_number_of_outputs(y):
    found = check.targets("Y", y, 2)
    assert found.dtype == np.float64 and found.tolist() == np.asarray(y, dtype=float).tolist()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1], r"Y has labels 0 and 1, but the two classes are -1 and \+1; pass 2.0 \* np.array"),
        (np.array([[True, False], [False, True]]), "Y has labels False and True, but the two"),
        ([True, True], "Y has labels False and True"),
        ([1.0], "Y has 1 entries, but there are 2 points; pass one a point"),
        (np.ones((3, 2)), "Y has 3 entries, but there are 2 points"),
        (np.ones((2, 2, 1)), r"Y must have 1 or 2 axes, but its shape is \(2, 2, 1\); reshape it"),
        (1.0, r"Y must have 1 or 2 axes, but its shape is \(\)"),
        (np.ones((2, 0)), r"Y is empty: its shape is \(2, 0\); pass at least one entry"),
        ([[1.0, np.inf], [0.0, 0.0]], r"Y has 1 value that is not finite, .* \(0, 1\): inf; rem"),
        (np.ma.array(np.ones((2, 2)), mask=[[0, 0], [0, 1]]), "Y has 1 masked entry; remove such"),
    ],
)
def test_bad_targets(y, message):
    with pytest.raises(ValueError, match=message):
        check.targets("Y", y, 2)


def test_a_column_of_labels_0_and_1_is_refused_as_a_vector_is():
    with pytest.raises(ValueError, match="Y has labels 0 and 1"):
        check.targets("Y", [[0], [1], [1]], 3)


@pytest.mark.parametrize("y", [["a", "b"], [1j, 1], None])
def test_targets_that_are_no_numbers(y):
    with pytest.raises(TypeError, match="Y must be a real numeric array, not"):
        check.targets("Y", y, 2)


@pytest.mark.parametrize("y", [np.eye(2), [[1.0], [-1.0]]])
def test_labels_are_one_a_point(y):
    with pytest.raises(ValueError, match=r"Y must be one label a point, but its shape is \(2, \d"):
        check.labels("Y", y, 2)


def test_a_device_is_one_that_is_at_hand():
    for name in ("cpu", torch.device("cpu"), "cpu:0"):
        assert check.device(name).type == "cpu"
    absent = "cuda" if not torch.cuda.is_available() else "cuda:99"
    for name in ("gpu", absent, "", 3.5, [], np.ones(1)):
        with pytest.raises(ValueError, match="is not at hand; use 'cpu', or 'cuda'") as error:
            check.device(name)
        assert str(error.value).startswith(f"device = {name!r} is not")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_at_hand():
    assert check.device("cuda").type == check.device("cuda:0").type == "cuda"


@pytest.mark.parametrize(
    "x",
    [
        np.ma.array([1.0, -1.0, 1.0], mask=[True, False, True]),
        [np.ma.masked, 1.0, np.ma.masked],
        [np.ma.array([1.0, 2.0], mask=True), np.ma.array([1.0, 2.0])],
    ],
)
def test_masked_entries_are_refused(x):
    with pytest.raises(ValueError, match="Y has 2 masked entries; remove such points, or pass Y.f"):
        check.array("Y", x, (1, 2))
    with pytest.raises(ValueError, match="i has 1 masked entry"):
        check.indices("i", np.ma.array([0, 1], mask=[True, False]), 3)
    full = np.ma.array([1.0, -1.0], mask=False)
    assert check.array("Y", full, 1).tolist() == [1, -1]


@pytest.mark.parametrize("dtype", ["Float64", "Float32", "Int64", "UInt8", "boolean"])
def test_columns_of_pandas_with_a_missing_value_of_their_own(dtype):
    column = pd.Series([1, 0, 1]).astype(dtype)
    frame = pd.DataFrame({"a": column, "b": [0.5, 2.0, 0.25]})
    assert check.array("Y", column, 1).tolist() == [1, 0, 1]
    assert check.array("X", frame, 2).tolist() == [[1, 0.5], [0, 2], [1, 0.25]]
    column[1] = pd.NA
    for x, first in ((column, r"\(1,\)"), (frame.assign(a=column), r"\(1, 0\)")):
        with pytest.raises(ValueError, match=f"x has 1 value that is not finite, .* {first}: nan;"):
            check.array("x", x, (1, 2))


def test_columns_of_pandas_that_hold_text_are_no_numbers():
    for x in (pd.Series(["1", "2"]), pd.DataFrame({"a": ["1", "2"], "b": [1.0, 2.0]})):
        for kind in (object, "string"):
            with pytest.raises(TypeError, match="X must be a real numeric array"):
                check.array("X", x.astype(kind), (1, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int8])
def test_tensors_of_every_precision(dtype):
    x = torch.tensor([[0.5, -1.0]]).to(dtype)
    got = check.array("X", x, 2)
    assert got.dtype == np.float64 and got.tolist() == x.double().tolist()


@pytest.mark.parametrize(
    "lay", [lambda x: x[::-1, ::-1], lambda x: x.T.copy().T, lambda x: np.broadcast_to(x, x.shape)]
)
def test_tensor_of_any_strides(recwarn, lay):
    x = lay(np.arange(6.0).reshape(2, 3))
    assert check.tensor("X", x).tolist() == x.tolist() and not recwarn.list


def test_version_is_that_of_the_package():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert lib.__version__ == project["version"]
    assert f"version: {lib.__version__}" in (root / "CITATION.cff").read_text(encoding="utf-8")


def test_an_object_of_another_kind_is_named_in_a_line():
    assert check.made("x", Path("/"), Path, "pass one") == Path("/")
    for value, shown in (
        (3, "3"), ("a" * 58, "'a+'"), ("a" * 59, "of type str"), (np.eye(2), "of type ndarray"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"^x must be a pathlib.Path, not {shown}; pass one$"):
            check.made("x", value, Path, "pass one")


def test_a_flag_is_true_or_false():
    assert check.flag("x", True) is check.flag("x", np.True_) is True
    assert check.flag("x", False) is check.flag("x", np.False_) is False
    for value in ("no", 0, 1, None, np.array([True])):
        with pytest.raises(TypeError, match="^x must be True or False, not .*; pass one of them$"):
            check.flag("x", value)


@pytest.mark.parametrize("value", [True, np.False_])
def test_a_truth_is_no_number(value):
    with pytest.raises(TypeError, match="lam must be a number, not .*; pass one, such as 20"):
        check.number("lam", value)
