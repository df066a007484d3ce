"""Checks of what a caller passes in: each error names the argument, the value and the remedy.

Nothing is repaired silently. All functions return the argument in the form the library works with.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch


def array(name: str, x, ndim: int | tuple[int, ...], dtype=np.float64) -> np.ndarray:
    """Return `x` as a finite NumPy array with `ndim` axes.

    Raises `TypeError` for anything that is not numeric and `ValueError` for a wrong number of
    axes, an empty array, a masked entry or a value that is not finite.

    >>> array("Y", [1, -1], ndim=1)
    array([ 1., -1.])
    """
    given = plain(name, x)
    if given.dtype.kind not in "biuf":
        raise TypeError(_not_numeric(name, f"{type(x).__name__} of {given.dtype}"))
    x = given.astype(dtype, copy=False)
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if x.ndim not in allowed:
        axes = " or ".join(map(str, allowed))
        raise ValueError(f"{name} must have {axes} axes, but its shape is {x.shape}; reshape it")
    if x.size == 0:
        raise ValueError(f"{name} is empty: its shape is {x.shape}; pass at least one entry")
    finite(name, x)
    return x


def plain(name: str, x) -> np.ndarray:
    """Return `x`, an array or a tensor, as a NumPy array of its type with no entry masked."""
    if isinstance(x, torch.Tensor):
        if x.device.type != "cpu":
            raise TypeError(f"{name} is a tensor on {x.device}; pass {name}.cpu()")
        x = x.detach()
        x = x.double() if x.is_floating_point() else x  # NumPy has no bfloat16
    rows = x if isinstance(x, list | tuple) else [x]
    if masked := sum(np.ma.count_masked(row) for row in rows if np.ma.is_masked(row)):
        entries = "entry" if masked == 1 else "entries"
        raise ValueError(
            f"{name} has {masked} masked {entries}; remove such points, or pass "
            f"{name}.filled(value)"
        )
    try:
        found = np.asarray(x)
        return _nullable(x) if found.dtype == object and hasattr(x, "dtypes") else found
    except (TypeError, ValueError) as error:
        raise TypeError(_not_numeric(name, type(x).__name__)) from error


def _nullable(x) -> np.ndarray:
    """Return a table or a column of pandas whose types have a missing value, which is NaN here."""
    if not all(dtype.kind in "biuf" for dtype in np.atleast_1d(x.dtypes)):
        return np.asarray(x)
    return x.to_numpy(np.float64, na_value=np.nan)


def _not_numeric(name: str, kind: str) -> str:
    return f"{name} must be a real numeric array, not {kind}; pass a dense array of real numbers"


def finite(name: str, x) -> None:
    """Raise `ValueError` if `x` (array or tensor) holds NaN or infinity, naming the first."""
    x = x.detach() if isinstance(x, torch.Tensor) else x
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(x.sum())  # one pass, no temporary; it may overflow, so look closer if it does
    if np.isfinite(total):
        return
    bad = np.argwhere(~np.isfinite(np.asarray(x.cpu() if isinstance(x, torch.Tensor) else x)))
    if len(bad):
        first = tuple(int(i) for i in bad[0])
        values = "value that is" if len(bad) == 1 else "values that are"
        raise ValueError(
            f"{name} has {len(bad)} {values} not finite, the first at index {first}: "
            f"{float(x[first])}; remove or impute it"
        )


def unit(name: str, x: torch.Tensor) -> torch.Tensor:
    """Return the tensor `x` (rows, d) if every row has norm 1 to the precision of its dtype."""
    if x.ndim != 2:
        raise ValueError(
            f"{name} must have 2 axes (rows, d), but its shape is {tuple(x.shape)}; reshape it"
        )
    if x.numel() == 0:
        raise ValueError(f"{name} is empty: its shape is {tuple(x.shape)}; pass at least one row")
    tolerance = 100 * torch.finfo(x.dtype).eps * x.shape[1] ** 0.5
    norms = torch.linalg.vector_norm(x.detach(), dim=1)
    worst = int((norms - 1).abs().argmax())  # of the first that is not a number, if there is one
    if not abs(float(norms[worst]) - 1) <= tolerance:
        finite(name, x)
        raise ValueError(
            f"{name} must have rows of unit norm, but row {worst} has norm "
            f"{float(norms[worst]):.12g}; scale it with lib.data.unit_rows({name})"
        )
    return x


def tensor(name: str, X, dtype=np.float64) -> torch.Tensor:
    """Return `X` (rows, d) as a tensor: NumPy allows strides and locks that torch does not."""
    return torch.from_numpy(np.require(array(name, X, 2, dtype), requirements=["C", "W"]))


def precision(dtype: str) -> torch.dtype:
    """Return the torch dtype of "float64" or "float32"."""
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype must be 'float64' or 'float32', not {dtype!r}")
    return getattr(torch, dtype)


def device(name) -> torch.device:
    """Return the torch device of that name, if it is at hand."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device = {name!r} is not at hand; use 'cpu', or 'cuda' where torch sees a GPU"
        ) from error


def targets(name: str, y, n: int) -> np.ndarray:
    """Return a copy of `y`, the labels of `n` points: (n,), or (n, c) with c outputs, any size.

    Raises `ValueError` for another number of points, for booleans, and for a vector in which 0 and
    1 are all the values there are: those are names of two classes. 0 without 1, or beside another
    value, is an ordinary target; rows such as [0, 1, 0] are one-hot and fine.
    """
    boolean = plain(name, y).dtype.kind == "b"
    y = array(name, y, ndim=(1, 2)).copy()
    if len(y) != n:
        raise ValueError(f"{name} has {len(y)} entries, but there are {n} points; pass one a point")
    if boolean or (y.size == len(y) and set(np.unique(y)) == {0, 1}):
        raise ValueError(
            f"{name} has labels {'False and True' if boolean else '0 and 1'}, but the two classes "
            f"are -1 and +1; pass 2.0 * np.array({name}) - 1"
        )
    return y


def labels(name: str, y, n: int) -> np.ndarray:
    """Return a copy of `y`, `n` labels in [-1, 1], as the paper's theorems ask for."""
    y = targets(name, y, n)
    if y.ndim != 1:
        raise ValueError(f"{name} must be one label a point, but its shape is {y.shape}; pass (n,)")
    worst = int(np.abs(y).argmax())
    if abs(y[worst]) > 1:
        raise ValueError(
            f"{name} must lie in [-1, 1], but {name}[{worst}] = {y[worst]:g}; "
            "use -1 and +1 for the two classes, or scale the targets"
        )
    return y


def symmetric(name: str, K) -> np.ndarray:
    """Return `K` as a finite, symmetric (n, n) array."""
    K = array(name, K, ndim=2)
    n, scale = len(K), np.abs(K.diagonal()).max()
    if n != K.shape[1]:
        raise ValueError(f"{name} must be square, but its shape is {K.shape}; pass {name} = ntk(X)")
    for i in range(0, n, 256):  # by squares that fit the cache
        for j in range(0, i + 1, 256):
            here, there = K[i : i + 256, j : j + 256], K[j : j + 256, i : i + 256].T
            if np.array_equal(here, there):
                continue
            gap = np.abs(here - there).max()
            if gap > 1e-10 * scale:
                raise ValueError(
                    f"{name} must be symmetric, but {name} and {name}ᵀ differ by {gap:.3g}; "
                    f"pass {name} = ntk(X)"
                )
    return K


def semidefinite(lowest: float, tolerance: float) -> None:
    """Raise `ValueError` if K has an eigenvalue `lowest` that is negative beyond a tolerance."""
    if lowest < -tolerance:
        raise ValueError(
            f"K is not positive semidefinite (it has an eigenvalue <= {lowest:.3g}); "
            "pass K = ntk(X)"
        )


def regression(K, Y, lam) -> tuple[np.ndarray, np.ndarray, float]:
    """Return a symmetric K (n, n), a copy of the labels Y (n,) or (n, c), and λ ≥ 0."""
    K = symmetric("K", K)
    return K, targets("Y", Y, len(K)), number("lam", lam, at_least=0)


def columns(k, n: int) -> np.ndarray:
    """Return the kernel `k` of n training points against the test points as (n, t)."""
    k = array("k", k, ndim=(1, 2))
    if len(k) != n:
        raise ValueError(
            f"k has shape {k.shape}, but there are {n} training points; "
            "pass k = ntk(X, X_te) with one row a training point"
        )
    return k.reshape(n, -1)


def number(name: str, x, *, above: float | None = None, at_least: float | None = None) -> float:
    """Return `x` as a finite float, strictly greater than `above` or not less than `at_least`."""
    try:
        if np.ndim(x) or isinstance(x, bool | np.bool_):
            raise TypeError("an array, or a truth")
        value = float(x + 0)  # which refuses text
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, not {x!r}; pass one, such as 20") from error
    small = (above is not None and value <= above) or (at_least is not None and value < at_least)
    if not np.isfinite(value) or small:
        bound = f" > {above:g}" if above is not None else ""
        bound = f" >= {at_least:g}" if at_least is not None else bound
        remedy = "choose a larger one" if small else "pass a finite value"
        raise ValueError(f"{name} must be a finite number{bound}, not {x!r}; {remedy}")
    return value


def integer(name: str, x, at_least: float = 1) -> int:
    """Return `x`, a whole number such as 20 or 2e1, as an int not less than `at_least`.

    >>> integer("m", 1e3)
    1000
    """
    if isinstance(x, bool | np.bool_) or number(name, x) % 1:
        raise ValueError(f"{name} must be an integer, not {x!r}; pass a whole number")
    if x < at_least:
        raise ValueError(f"{name} must be at least {at_least}, not {x!r}; choose a larger one")
    return int(x)


def indices(name: str, index, n: int) -> np.ndarray:
    """Return `index` (one or several) as distinct integers in 0 .. n - 1."""
    found = np.atleast_1d(plain(name, index))
    if found.ndim != 1 or found.size == 0 or not np.issubdtype(found.dtype, np.integer):
        raise IndexError(
            f"{name} must be one or several integers, not {index!r}; "
            "pass a list of points, such as [0, 3]"
        )
    outside = found[(found < 0) | (found >= n)]
    if outside.size:
        raise IndexError(f"{name} = {outside[0]} is out of range; use 0 to {n - 1}")
    values, counts = np.unique(found, return_counts=True)
    if counts.max() > 1:
        twice = values[counts.argmax()]
        raise IndexError(f"{name} names {twice} more than once; name each point once")
    return found


def flag(name: str, x) -> bool:
    """Return `x` if it is True or False: any text is true, "no" as well."""
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, not {short(x)}; pass one of them")
    return bool(x)


def made(name: str, x, kind: type, remedy: str):
    """Return `x` if it is an object of the library, of that kind."""
    if not isinstance(x, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        what = f"{name} must be {article} {kind.__module__}.{kind.__name__}"
        raise TypeError(f"{what}, not {short(x)}; {remedy}")
    return x


def short(x) -> str:
    """Return a value as text on one line, or its type where that is long."""
    text = repr(x)
    return text if len(text) <= 60 and "\n" not in text else f"of type {type(x).__name__}"


def several(name: str, values, of: str) -> Iterable:
    """Return `values` if one can go through them, as through a list."""
    try:
        iter(values)
    except TypeError as error:
        found = f"{name} must be a list of {of}, not {values!r}"
        raise TypeError(f"{found}; pass [{values!r}]") from error
    return values


def groups(groups, n: int) -> list[np.ndarray]:
    """Return each of the groups, an index or several, as distinct integers in 0 .. n - 1."""
    groups = several("groups", groups, "groups")
    found = [indices(f"groups[{k}]", group, n) for k, group in enumerate(groups)]
    if not found:
        raise IndexError("groups is empty; name at least one point to remove")
    return found
