"""What more than one page measures with, and how pages draw their images and train networks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import stats

from lib import data
from lib.bounds import extremes


def load_all(names: str | Iterable[str], **settings) -> list[data.Data]:
    """Load several data sets: a list of names, or one text in which commas separate them.

    A comma inside a name that is there, of a folder or a class, does not separate. `settings` are
    those of `lib.data.load`, which raises the errors.

    >>> [d.label for d in load_all("digits:3/8, digits:4/9", n_train=20, n_test=10)]
    ['digits 3/8', 'digits 4/9']
    """
    if isinstance(names, list | tuple):
        wanted = list(names)
    else:
        wanted, parts = [], data.text("names", names).split(",")
        while parts:  # the fewest parts that together name a data set, or else one
            ends = (k for k in range(1, len(parts) + 1) if data.is_name(",".join(parts[:k])))
            end = next(ends, 1)
            wanted.append(",".join(parts[:end]).strip())
            parts = parts[end:]
        wanted = [name for name in wanted if name]
    if not wanted:
        raise ValueError(f"names = {names!r} names no data set; write 'digits:3/8, mnist:4/9'")
    return [data.load(name, **settings) for name in wanted]


def load_pairs(datasets: str, **settings) -> list[data.Data]:
    """Load several data sets of two classes, see `load_all`.

    Raises `ValueError` for one of more classes: the paper, and so its pages, speak of two.
    """
    draws = load_all(datasets, **settings)
    for d in draws:
        if d.Y.ndim != 1:
            raise ValueError(
                f"datasets names {len(d.classes)} classes of {d.name}, but the pages are about "
                f"two; write '{d.name}:{d.classes[0]}/{d.classes[1]}'"
            )
    return draws


def first_of_each_class(d: data.Data) -> list[int]:
    """The first test image of label +1 in the draw, and the first of −1: our usual test images."""
    return [int(np.flatnonzero(d.Y_te == y)[0]) for y in (1, -1)]


def class_names(d: data.Data, labels) -> list[str]:
    """The name of the class that each label ±1 stands for."""
    return [d.classes[int(y < 0)] for y in labels]


def rms(x) -> float:
    """Root of the mean square.

    >>> rms([3.0, -3.0])
    3.0
    """
    return float(np.sqrt(np.mean(np.square(x))))


def in_errors(sample, value: float = 0.0) -> float:
    """Distance of the mean of a sample from a value, in standard errors; NaN for a single entry.

    >>> in_errors([1.0, 2.0, 3.0], 2.0)
    0.0
    """
    sample = np.asarray(sample)
    if sample.size < 2:
        return np.nan
    return float((sample.mean() - value) / max(sample.std(ddof=1) / sample.size**0.5, 1e-9))


def error(influence) -> np.ndarray:
    """The error of IHVP for each pair, abs(I − Î)."""
    return np.abs(influence.exact - influence.ihvp)


def rounding(K, lam: float) -> str:
    """What rounding may come to, as the bound of a claim: "<= 1e-11" or more.

    n ε times the condition number of K + λI.
    """
    low, high = np.array(extremes(K)) + lam
    return f"<= {max(1e-11, len(K) * np.finfo(float).eps * high / low):.0e}"


def slopes(x, y) -> tuple[np.ndarray, float]:
    """Slopes of log y (k, networks) in log x (k,) of each column, and half of the 95 % interval.

    The interval is that of the mean slope, by a t test over the columns.

    >>> fits, half = slopes([1, 10], [[1, 1], [100, 100]])
    >>> fits.round(9).tolist(), half
    ([2.0, 2.0], 0.0)
    """
    fits = np.polyfit(np.log(x), np.log(y), 1)[0]
    n = len(fits)
    return fits, float(stats.t.ppf(0.975, n - 1) * fits.std(ddof=1) / n**0.5)


def at_rest(train, *args, **how):
    """What training returns; None, and a line that says so, where it finds no end."""
    try:
        return train(*args, **how)
    except RuntimeError as error:
        print("no rest:", error, *getattr(error, "__notes__", ()))


SHORT = {  # names of groups of classes, and of data sets, in few words
    "0+1+2+3+4": "0–4", "5+6+7+8+9": "5–9", "0+2+4+6+8": "even", "1+3+5+7+9": "odd",
    "airplane+automobile+ship+truck": "vehicle", "bird+cat+deer+dog+frog+horse": "animal",
    "mnist": "MNIST", "cifar10-subset": "CIFAR-10", "cifar10-subset/train": "CIFAR-10",
}  # fmt: skip


def plain(label: str) -> str:
    """Data set and classes in few words, for titles.

    >>> plain("mnist 4/9"), plain("digits 0+2+4+6+8/1+3+5+7+9"), plain("photos cat/dog")
    ('MNIST 4/9', 'digits even/odd', 'photos cat/dog')
    """
    source, classes = label.split(" ", 1)
    words = "/".join(SHORT.get(name, name) for name in classes.split("/"))
    return f"{SHORT.get(source, source)} {words}"


def two_lines(label: str) -> str:
    """Data set above its classes, in few words, to fit over a panel.

    >>> two_lines("mnist 4/9")
    'MNIST\\n4/9'
    """
    return plain(label).replace(" ", "\n", 1) if " " in label else label


def distinct(X) -> np.ndarray:
    """Rows of X, in order, that repeat no row before them: with repeated points K has no inverse.

    >>> distinct([[0.6, 0.8], [1.0, 0.0], [0.6, 0.8]]).tolist()
    [0, 1]
    """
    return np.sort(np.unique(np.round(X, 9), axis=0, return_index=True)[1])


def slope(x, y):
    """Slope of log y in log x by least squares: a number, or one for each column of y.

    >>> float(slope([1, 10], [2, 200]).round(9))
    2.0
    """
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def high_water() -> int:
    """Return the high-water mark of this process's resident memory in bytes (Linux)."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
