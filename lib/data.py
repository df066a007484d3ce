"""Real images as unit vectors with labels ±1: embedded digits, MNIST, CIFAR-10, or your own folder.

`load("mnist:4/9", n_train=1000, n_test=200, seed=0)` draws a balanced, seeded sample of two
classes (or two groups of classes, joined by "+"). Data live below the folder named by the
environment variable NTK_DATA, by default ~/.cache/ntk-influence.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lib import check

VARIABLE = "NTK_DATA"
DEFAULT_CLASSES = {"digits": "3/8", "mnist": "4/9", "cifar10": "airplane/automobile"}


@dataclass(frozen=True)
class Data:
    """A balanced draw of two classes: the first has label +1, the second −1.

    Attributes
    ----------
    name, classes : the data set and the two classes, as text
    X, X_te : (n, d), (t, d) float64 pixels, rows scaled to unit norm
    Y, Y_te : (n,), (t,) labels ±1
    images, images_te : (n, height, width) or (n, height, width, 3) pixels in [0, 1], for display
    index, index_te : (n,), (t,) position of each image in its source
    seed : of the draw
    """

    name: str
    classes: tuple[str, str]
    X: np.ndarray = field(repr=False)
    Y: np.ndarray = field(repr=False)
    X_te: np.ndarray = field(repr=False)
    Y_te: np.ndarray = field(repr=False)
    images: np.ndarray = field(repr=False)
    images_te: np.ndarray = field(repr=False)
    index: np.ndarray = field(repr=False)
    index_te: np.ndarray = field(repr=False)
    seed: int

    @property
    def label(self) -> str:
        """Name and classes, for instance "mnist 4/9"."""
        return f"{self.name} {'/'.join(self.classes)}"

    def __str__(self) -> str:
        return f"{self.label}, n = {len(self.Y)}, seed {self.seed}"


@dataclass(frozen=True)
class Pool:
    """Images to draw from: class numbers (N,) and a reader of the images at given positions."""

    targets: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]


def root() -> Path:
    """Folder where data sets live: the environment variable NTK_DATA or ~/.cache/ntk-influence."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "ntk-influence").expanduser()


def unit_rows(X) -> np.ndarray:
    """Return the rows of X (n, ...) flattened to (n, d) and scaled to unit norm, in float64.

    Raises `ValueError` for a row of zeros (a blank image) and for values that are not finite.

    >>> unit_rows([[3.0, 4.0]]).tolist()
    [[0.6, 0.8]]
    """
    X = check.array("X", X, ndim=(2, 3, 4))
    X = X.reshape(len(X), -1)
    largest = np.abs(X).max(axis=1, keepdims=True)
    blank = np.flatnonzero(largest == 0)
    if len(blank):
        raise ValueError(
            f"X[{blank[0]}] is all zeros and has no direction; remove it ({len(blank)} such rows)"
        )
    X = X / largest  # so that no square over- or underflows
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def load(
    name: str, n_train: int = 200, n_test: int = 100, seed: int = 0, size: int | None = None
) -> Data:
    """Draw training and test images of two classes, balanced, as unit vectors with labels ±1.

    MNIST and CIFAR-10 are downloaded by torchvision, which verifies their checksums.

    Parameters
    ----------
    name : "digits" (1,797 scans of 8×8 pixels, embedded in scikit-learn), "mnist", "cifar10", or a
        folder of images with one sub-folder a class (or "train" and "test" with these inside),
        absolute or below `root()`. After a colon, the classes of label +1 and −1:
        "mnist:4/9", "cifar10:airplane+ship/cat+dog", "/path/to/photos:cats/dogs"
    n_train, n_test : even numbers of images, half of each label
    seed : of the draw; training and test images are disjoint
    size : height and width to resize the images of a folder to, if they differ

    Raises
    ------
    ValueError
        for an unknown data set or class (naming those there are), an odd or too large number of
        images, a blank image, images of different sizes
    OSError
        for data that are neither on disk nor to be downloaded, and for a damaged file

    Examples
    --------
    >>> data = load("digits:3/8", n_train=20, n_test=10)
    >>> print(data, data.X.shape, data.Y_te.sum())
    digits 3/8, n = 20, seed 0 (20, 64) 0.0
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be text such as 'digits:3/8', not {name!r}; pass str(path)")
    if size is not None:
        check.integer("size", size)
    for argument, value in (("n_train", n_train), ("n_test", n_test)):
        if check.integer(argument, value, at_least=2) % 2:
            raise ValueError(f"{argument} = {value} is odd; half of each label needs an even one")
    source, _, wanted = name.partition(":") if not Path(name).is_dir() else (name, "", "")
    there, train, test = _source(source, size)
    groups = _classes(source, wanted, there)
    rng = np.random.default_rng(check.integer("seed", seed, at_least=0))
    index, index_te = [], []
    for group in groups:
        members = rng.permutation(np.flatnonzero(np.isin(train.targets, group)))
        index.append(_take("n_train", members, n_train // 2, group, there))
        if test is None:
            rest = members[n_train // 2 :]
        else:
            rest = rng.permutation(np.flatnonzero(np.isin(test.targets, group)))
        index_te.append(_take("n_test", rest, n_test // 2, group, there))
    order, order_te = rng.permutation(n_train), rng.permutation(n_test)
    index, index_te = np.concatenate(index)[order], np.concatenate(index_te)[order_te]
    images, images_te = train.read(index), (test or train).read(index_te)
    for kind, where, pictures in (("training", index, images), ("test", index_te, images_te)):
        blank = ~pictures.reshape(len(pictures), -1).any(axis=1)
        if blank.any():
            raise ValueError(
                f"{kind} image {where[blank][0]} of {source!r} is all zeros and has no direction; "
                "remove it from the data"
            )
    return Data(
        name=Path(source).name if Path(source).is_absolute() else source,
        classes=tuple("+".join(there[c] for c in group) for group in groups),
        X=unit_rows(images),
        Y=np.repeat([1.0, -1.0], n_train // 2)[order],
        X_te=unit_rows(images_te),
        Y_te=np.repeat([1.0, -1.0], n_test // 2)[order_te],
        images=images,
        images_te=images_te,
        index=index,
        index_te=index_te,
        seed=seed,
    )


def load_all(names: str, **settings) -> list[Data]:
    """Load several data sets named in one text, separated by commas: "mnist:4/9, cifar10".

    >>> [data.label for data in load_all("digits:3/8, digits:4/9", n_train=20, n_test=10)]
    ['digits 3/8', 'digits 4/9']
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise ValueError(f"names = {names!r} names no data set; write 'digits:3/8, mnist:4/9'")
    return [load(name, **settings) for name in wanted]


def _classes(source: str, wanted: str, there: list[str]) -> list[list[int]]:
    """Turn "4+5/9" into class numbers for the labels +1 and −1."""
    wanted = wanted or DEFAULT_CLASSES.get(source) or ("/".join(there) if len(there) == 2 else "")
    groups = [[part.strip() for part in side.split("+")] for side in wanted.split("/")]
    if len(groups) != 2:
        raise ValueError(
            f"name = {source + ':' + wanted!r} must name two classes as '{source}:{there[0]}/"
            f"{there[-1]}'; there are {', '.join(there)}"
        )
    flat = [c for group in groups for c in group]
    for c in flat:
        if c not in there:
            raise ValueError(f"class {c!r} is not in {source!r}; choose from {', '.join(there)}")
        if flat.count(c) > 1:
            raise ValueError(f"class {c!r} is named twice in {wanted!r}; name each class once")
    return [[there.index(c) for c in group] for group in groups]


def _take(argument: str, members: np.ndarray, count: int, group: list[int], there: list[str]):
    if count > len(members):
        names = "+".join(there[c] for c in group)
        raise ValueError(
            f"{argument} = {2 * count} needs {count} images of {names}, but only {len(members)} "
            f"are there (or left); use {argument} <= {2 * len(members)}"
        )
    return members[:count]


def _source(source: str, size: int | None) -> tuple[list[str], Pool, Pool | None]:
    """Return class names, training pool and test pool (None: draw both from the first)."""
    if size is not None and source in DEFAULT_CLASSES:
        raise ValueError(f"size = {size} is for folders of images; {source} has one size, omit it")
    if source == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return [str(c) for c in range(10)], _pool(digits.target, digits.images, 16), None
    if source in ("mnist", "cifar10"):
        train, test = (_torchvision(source, train=part) for part in (True, False))
        names = [str(c) for c in range(10)] if source == "mnist" else train.classes
        pools = (_pool(part.targets, np.asarray(part.data), 255) for part in (train, test))
        return names, *pools
    folder = next((p for p in (Path(source).expanduser(), root() / source) if p.is_dir()), None)
    if folder is None or not source:
        raise ValueError(
            f"name = {source!r} is no data set: choose 'digits', 'mnist', 'cifar10' or a folder of "
            f"images, absolute or below {root()} (set {VARIABLE} to change that)"
        )
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        names, train = _folder(folder / "train", size)
        names_test, test = _folder(folder / "test", size)
        if names != names_test:
            raise ValueError(f"{folder} has classes {names} in train but {names_test} in test")
        return names, train, test
    return *_folder(folder, size), None


def _pool(targets, images: np.ndarray, white: int) -> Pool:
    return Pool(np.asarray(targets), lambda index: images[index] / float(white))


def _torchvision(source: str, train: bool):
    """Return MNIST or CIFAR-10 from `root()`, downloading it with checksums if it is not there."""
    datasets = _import_datasets()
    kind = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[source]
    where = root()
    try:
        return kind(str(where), train=train, download=False)
    except Exception as error:
        there = (where / "cifar-10-batches-py").is_dir() and source == "cifar10"
        if there or "download=True" not in str(error):  # torchvision's advice: nothing is there
            raise OSError(
                f"a file of {source} below {where} is damaged ({error}); delete it to download it "
                "anew"
            ) from error
    try:
        where.mkdir(parents=True, exist_ok=True)
        return kind(str(where), train=train, download=True)
    except (RuntimeError, OSError) as error:
        raise OSError(
            f"{source} is not below {where} and could not be downloaded ({error}); set {VARIABLE} "
            "to the folder that holds it, or use 'digits', which is embedded and needs no network"
        ) from error


def _folder(folder: Path, size: int | None) -> tuple[list[str], Pool]:
    """Return the classes of a folder of images and the pool that reads them, by ImageFolder."""
    datasets = _import_datasets()
    try:
        dataset = datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise ValueError(
            f"folder {folder} needs one sub-folder of images for each class: {error}"
        ) from error

    def read(index: np.ndarray) -> np.ndarray:
        images = []
        for i in index:
            path = dataset.samples[i][0]
            try:
                image = dataset.loader(path)
            except OSError as error:
                raise OSError(f"image {path} cannot be read ({error}); replace it") from error
            image = image if size is None else image.resize((size, size))
            images.append(np.asarray(image, dtype=np.float64) / 255)
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            raise ValueError(
                f"images in {folder} differ in size: {sorted(shapes)[:4]}; pass size=32 to resize"
            )
        return np.stack(images)

    return dataset.classes, Pool(np.array(dataset.targets), read)


def _import_datasets():
    """Import torchvision.datasets, also beside a CPU build of torch that lacks its operators.

    Only the schemas of two compiled operators are missing then, and no data set uses them:
    declaring them lets the import succeed.
    """
    global _declared
    try:
        from torchvision import datasets
    except RuntimeError:
        _declared = torch.library.Library("torchvision", "FRAGMENT")
        _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from torchvision import datasets
    return datasets


_declared = None
