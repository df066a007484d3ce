"""Real images as unit vectors with labels: embedded digits, MNIST, CIFAR-10, or your own folder.

`load("mnist:4/9", n_train=1000, n_test=200, seed=0)` draws a balanced, seeded sample of two
classes (or two groups of classes, joined by "+") with labels ±1; `load("mnist:all", ...)` one of
all classes, with a label of several outputs. Data live below the folder named by the environment
variable NTK_DATA, by default ~/.cache/ntk-influence.

A photo becomes what a viewer shows: turned as its EXIF data say, its first frame if it has several,
and on white where it is transparent. Only colour profiles are ignored: numbers are taken as sRGB.
Grey of 8 and of 16 bits keeps its range, floating-point grey has to lie in [0, 1], and grey has
three equal colours, so that it mixes with colour.
"""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from lib import check, packed

VARIABLE = "NTK_DATA"
CLASSES = {
    "digits": list("0123456789"),
    "mnist": list("0123456789"),
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck".split(),
}
LAYOUT = "; test images belong into test or val beside train, or name {}/train to draw both from it"
ALL = "all"  # in place of the classes: each of them
DEFAULT_CLASSES = {"digits": "3/8", "mnist": "4/9", "cifar10": "airplane/automobile"}
IMAGES = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
OTHERS = (".avif", ".heic", ".heif", ".jxl")  # images that are not read
TRAINS = ("train", "training")  # names of the folder of training images, and of that beside it
TESTS = ("test", "testing", "val", "valid", "validation")
SYSTEMS = {  # folders that systems and programs leave behind
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found",
    "__pycache__",
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """A balanced draw of classes.

    Of two classes the first has the label +1 and the second −1. With c > 2 classes a label is the
    one-hot row of its class, less 1/c, so that the labels of all classes sum to 0.

    - name, classes: the data set and the classes, as text
    - X, X_te: (n, d), (t, d) float64 pixels, rows scaled to unit norm
    - Y, Y_te: (n,), (t,) labels ±1, or (n, c), (t, c)
    - images, images_te: (n, height, width) or (n, height, width, 3) pixels in [0, 1], for display
    - index, index_te, files, files_te: position of each image in its source, and its path or ""
    """

    name: str
    classes: tuple[str, ...]
    X: np.ndarray = field(repr=False)
    Y: np.ndarray = field(repr=False)
    X_te: np.ndarray = field(repr=False)
    Y_te: np.ndarray = field(repr=False)
    images: np.ndarray = field(repr=False)
    images_te: np.ndarray = field(repr=False)
    index: np.ndarray = field(repr=False)
    index_te: np.ndarray = field(repr=False)
    files: np.ndarray = field(repr=False)
    files_te: np.ndarray = field(repr=False)
    seed: int

    @property
    def label(self) -> str:
        """Name and classes, for instance "mnist 4/9"."""
        return f"{self.name} {'/'.join(self.classes)}"

    @property
    def copies(self) -> list[tuple[int, int]]:
        """Training and test images of equal pixels: (row of X, row of X_te) of each pair."""
        rows = {image.tobytes(): i for i, image in enumerate(self.images)}
        pixels = [image.tobytes() for image in self.images_te]
        return [(rows[p], j) for j, p in enumerate(pixels) if p in rows]

    def __str__(self) -> str:
        return f"{self.label}, n = {len(self.Y)}, seed {self.seed}"


@dataclass(frozen=True)
class Pool:
    """Images to draw from: class numbers (N,), pixels from 0 to `white` or None, and files (N,)."""

    targets: np.ndarray
    images: np.ndarray | None
    white: float
    files: np.ndarray


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


def different(what: str, X: np.ndarray) -> None:
    """Raise `ValueError` if all rows of unit norm are equal, and so teach nothing."""
    if np.ptp(X, axis=0).max() < 1e-12:
        raise ValueError(
            f"all {len(X)} {what} are equal once they have unit norm, as shades of one colour are: "
            "there is nothing to learn from them; add some that differ"
        )


def unread(name: str) -> ValueError:
    """Return the error for a class without an image of a format that is read."""
    return ValueError(
        f"class {name!r} has only images of a format that is not read ({', '.join(OTHERS)}); save "
        "them as .png or .jpg"
    )


def load(
    name: str, n_train: int = 200, n_test: int = 100, seed: int = 0, size: int | None = None
) -> Data:
    """Draw training and test images, as many of each class, as unit vectors with their labels.

    `name` is "digits" (1,797 scans of 8×8 pixels, embedded in scikit-learn), "mnist", "cifar10", or
    a folder of images with one sub-folder a class, absolute or below `root()`. Or these are inside
    of "train" or "training" and of one of "test", "testing", "val", "valid" and "validation", the
    first that is there, in capitals or not.
    After a colon come the classes of label +1 and −1: "mnist:4/9", "cifar10:airplane+ship/cat+dog",
    "/path/to/photos:cats/dogs"; or more of them, "mnist:1/2/3", or every class there is,
    "mnist:all". The folder is the longest that is there, and a class the longest name that is
    there, so both may contain ":", "," and "+". A class is a sub-folder with an image in it, and
    its name the NFC form without spaces at its ends. Hidden files and folders, and those of
    systems, are left out. Warns of images of a format that is not read.
    torchvision downloads MNIST and CIFAR-10, and verifies their checksums.

    Training and test images are disjoint, `n_train` and `n_test` of them. For a folder, `size` is
    the height and width: the shorter side is brought to it, and what the longer side has more is
    cut off at both ends. Warns if test images are exact copies of training images, see
    `Data.copies`.

    Raises `ValueError` for an unknown data set or class, naming those there are, for a number of
    images that is too large or no multiple of the number of labels, a blank image, images that
    differ in size, a class whose images are not read, and training images that are all equal once
    they have unit norm; `OSError` for data that are neither on disk nor to be downloaded, and for
    damaged files, naming all of them; `MemoryError` before it reads what memory does not hold.

    >>> data = load("digits:3/8", n_train=20, n_test=10)
    >>> print(data, data.X.shape, data.Y_te.sum())
    digits 3/8, n = 20, seed 0 (20, 64) 0.0
    >>> load("digits:all", n_train=20, n_test=10).Y[0].round(1).tolist()
    [-0.1, -0.1, -0.1, -0.1, 0.9, -0.1, -0.1, -0.1, -0.1, -0.1]
    """
    size = None if size is None else check.integer("size", size)
    seed = check.integer("seed", seed, at_least=0)
    source, there, groups = _parse(text("name", name))
    c = len(groups)
    each, each_te = _of_each("n_train", n_train, c), _of_each("n_test", n_test, c)
    train, test = _pools(source, there, size)
    rng = np.random.default_rng(seed)
    index, index_te = [], []
    for group in groups:
        names = "+".join(there[c] for c in group)
        members = rng.permutation(np.flatnonzero(np.isin(train.targets, group)))
        index.append(_take("n_train", members, each, names, c))
        if test is None:
            rest = members[each:]
        else:
            rest = rng.permutation(np.flatnonzero(np.isin(test.targets, group)))
        index_te.append(_take("n_test", rest, each_te, names, c, left=test is None))
    order, order_te = rng.permutation(c * each), rng.permutation(c * each_te)
    index, index_te = np.concatenate(index)[order], np.concatenate(index_te)[order_te]
    images, images_te = _read([(train, index), (test or train, index_te)], sum(groups, []), size)
    X = _unit("training", images, train, index)
    different(f"training images of {source!r}", X)
    label = np.array([1.0, -1.0]) if c == 2 else np.eye(c) - 1 / c
    data = Data(
        name=Path(source).name if Path(source).is_absolute() else source,
        classes=tuple("+".join(there[c] for c in group) for group in groups),
        X=X,
        Y=np.repeat(label, each, axis=0)[order],
        X_te=_unit("test", images_te, test or train, index_te),
        Y_te=np.repeat(label, each_te, axis=0)[order_te],
        images=images,
        images_te=images_te,
        index=index,
        index_te=index_te,
        files=train.files[index],
        files_te=(test or train).files[index_te],
        seed=seed,
    )
    if pairs := [
        f"{data.files_te[j] or f'test image {index_te[j]}'} of "
        f"{data.files[i] or f'training image {index[i]}'}"
        for i, j in data.copies
    ]:
        warnings.warn(
            f"{len(pairs)} of {n_test} test images of {source!r} are exact copies of training "
            f"images: {_few(pairs)}; remove one of each pair, or the test tells little",
            stacklevel=2,
        )
    return data


def pools(name: str, size: int | None = None) -> tuple[list[str], list[str], list[Pool]]:
    """Return all classes there are, those that `name` lists or all, and the images to `read`.

    The images are one pool, or two, of training and of test images. `name`, `size` and errors are
    those of `load`, but one class will do, and none are joined.

    >>> classes, wanted, (pool,) = pools("digits:3/8")
    >>> len(classes), wanted, read(pool, [0, 1])[1].shape
    (10, ['3', '8'], (2, 64))
    """
    size = None if size is None else check.integer("size", size)
    source, there, groups = _parse(text("name", name), ALL, least=1)
    if joined := [group for group in groups if len(group) > 1]:
        names = "+".join(there[k] for k in joined[0])
        raise ValueError(f"{name!r} joins {names}; name each class by itself, as in a/b/c")
    train, test = _pools(source, there, size)
    return there, [there[k] for k in sum(groups, [])], [train] if test is None else [train, test]


def read(
    pool: Pool, index, size: int | None = None, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return images of a pool, as in `Data`, and their pixels as rows of unit norm."""
    index = np.asarray(index)
    (images,) = _read([(pool, index)], np.unique(pool.targets[index]).tolist(), size, progress)
    return images, _unit("the", images, pool, index)


def text(argument: str, name) -> str:
    """Return a name as text; a whole number, as a parameter of a notebook may be, is a folder's."""
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if not isinstance(name, str):
        raise TypeError(
            f"{argument} must be text such as 'digits:3/8', not {name!r}; write it in quotes, or "
            "pass str(path)"
        )
    return name


def is_name(name: str) -> bool:
    """Whether `load` knows a data set, and classes, of that name."""
    try:
        return bool(_parse(name))
    except ValueError:
        return False


def _parse(name: str, default: str = "", least: int = 2) -> tuple[str, list[str], list[list[int]]]:
    """Return the data set of "photos:cats+dogs/birds", its classes, and those of each label."""
    colons = [i for i, letter in enumerate(name) if letter == ":"]
    for end in (len(name), *reversed(colons)):
        source, wanted = name[:end].strip(), name[end + 1 :].strip() or default
        if source in CLASSES or _folder(source):
            there = CLASSES.get(source) or _sub_folders(_folder(source))
            return source, there, _groups(source, wanted, there, least)
    raise ValueError(
        f"name = {name.partition(':')[0]!r} is no data set: choose 'digits', 'mnist', 'cifar10' or "
        f"a folder of images, absolute or below {root()} (set {VARIABLE} to change that)"
    )


def _groups(source: str, wanted: str, there: list[str], least: int) -> list[list[int]]:
    """Turn "4+5/9" into class numbers for each label."""
    if (not wanted and len(there) == 2) or (wanted == ALL and len(there) >= least):
        return [[k] for k in range(len(there))]
    if len(there) < least:
        raise ValueError(
            f"{source!r} has images of one class only, {there[0]!r}; put those of another into a "
            "sub-folder beside it" + LAYOUT.format(source) * (there[0].casefold() in TRAINS)
        )
    wanted = _plain(wanted or DEFAULT_CLASSES.get(source, ""))
    sides = wanted.split("/")
    if len(sides) < least:
        raise ValueError(
            f"name = {source + ':' + wanted!r} must name two classes or more as "
            f"'{source}:{there[0]}/{there[-1]}', or '{source}:{ALL}'; there are {', '.join(there)}"
        )
    groups = [_members(side, there) for side in sides]
    for side, group in zip(sides, groups, strict=True):
        if group is None:
            parts = [part.strip() for part in side.split("+")]
            unknown = next((part for part in parts if part not in there), side)
            raise ValueError(
                f"class {unknown!r} is not in {source!r}; choose from {', '.join(there)}"
            )
    flat = sum(groups, [])
    for c in flat:
        if flat.count(c) > 1:
            raise ValueError(
                f"class {there[c]!r} is named twice in {wanted!r}; name each class once"
            )
    return groups


def _members(side: str, there: list[str]) -> list[int] | None:
    """Return the numbers of the classes that "+" joins, each the longest name that fits."""
    for c in sorted(there, key=len, reverse=True):
        if found := re.fullmatch(rf"\s*{re.escape(c)}\s*(?:\+(.*))?", side):
            rest = [] if found[1] is None else _members(found[1], there)
            if rest is not None:
                return [there.index(c), *rest]
    return None


def _of_each(argument: str, count, labels: int) -> int:
    """How many images of each label make `count`."""
    count = check.integer(argument, count, at_least=labels)
    if count % labels:
        raise ValueError(
            f"{argument} = {count} does not give as many images of each of {labels} labels; use a "
            f"multiple of {labels}, {count - count % labels} for instance"
        )
    return count // labels


def _take(
    argument: str, members: np.ndarray, count: int, names: str, labels: int, left: bool = False
):
    if count <= len(members):
        return members[:count]
    if not len(members) and not left:
        raise unread(names)
    remedy = (
        f"use {argument} <= {labels * len(members)}" if len(members) else "choose a smaller n_train"
    )
    raise ValueError(
        f"{argument} = {labels * count} needs {count} images of {names}, but only {len(members)} "
        f"are {'left' if left else 'there'}; {remedy}"
    )


def _unit(kind: str, images: np.ndarray, pool: Pool, index: np.ndarray) -> np.ndarray:
    blank = index[~images.reshape(len(images), -1).any(axis=1)]
    if len(blank):
        names = [pool.files[i] or f"{kind} image {i}" for i in blank]
        raise ValueError(
            f"{_few(names)}: all zeros ({len(blank)} such images), so without a direction; "
            "remove them from the data"
        )
    return unit_rows(images)


def _few(names: list[str], most: int = 5) -> str:
    """Join the first names, and say how many more there are."""
    more = f", and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _pools(source: str, there: list[str], size: int | None) -> tuple[Pool, Pool | None]:
    """Return training and test pool (None: draw both from the first)."""
    if source not in CLASSES:
        folder = _folder(source)
        parts = _parts(folder)
        train, *test = (_files(part, there) for part in parts or [folder])
        return train, (test or [None])[0]
    if size is not None:
        raise ValueError(f"size = {size} is for folders of images; {source} has one size, omit it")
    if source == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return _pool(digits.target, digits.images, 16), None
    train, test = (_torchvision(source, train=part) for part in (True, False))
    return tuple(_pool(part.targets, np.asarray(part.data), 255) for part in (train, test))


def _pool(targets, images: np.ndarray, white: float) -> Pool:
    return Pool(np.asarray(targets), images, white, np.full(len(images), ""))


def _folder(source: str) -> Path | None:
    """Return the folder of that name, absolute or below `root()`, if there is one."""
    forms = [source, *(unicodedata.normalize(form, source) for form in ("NFC", "NFD"))]
    places = [place for form in forms for place in (os.path.expanduser(form), root() / form)]
    return next((Path(place) for place in places if source and os.path.isdir(place)), None)


def _parts(folder: Path) -> list[Path]:
    """Return the folders of training and of test images, if there are both."""
    there = {x.name.casefold(): Path(x.path) for x in os.scandir(folder) if x.is_dir()}
    found = [[there[name] for name in names if name in there] for names in (TRAINS, TESTS)]
    return [places[0] for places in found] if all(found) else []


def _sub_folders(folder: Path) -> list[str]:
    """Return the classes of a folder of images, the same in its parts if it has two."""
    parts = _parts(folder) or [folder]
    found = [list(_classes(part)) for part in parts]
    if found[0] != found[-1]:
        raise ValueError(
            f"{folder} has classes {found[0]} in {parts[0].name} but {found[-1]} in "
            f"{parts[-1].name}; give both the same sub-folders"
        )
    if not found[0]:
        raise ValueError(f"folder {folder} needs one sub-folder of images for each class; add them")
    return found[0]


def _classes(folder: Path) -> dict[str, Path]:
    """Return the sub-folders that hold images, by the names of their classes, in their order."""
    found = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: _plain(entry.name)):
        if entry.is_dir() and _shown(entry.name) and any(_below(entry.path, IMAGES + OTHERS)):
            if other := found.get(_plain(entry.name)):
                raise ValueError(
                    f"{folder} has two sub-folders of one name, {other.name!r} and {entry.name!r}: "
                    "they differ in spaces, or in how letters are coded; rename one"
                )
            found[_plain(entry.name)] = Path(entry.path)
    return found


def _plain(name: str) -> str:
    """Return a name as one compares it: letters in their NFC form, no spaces at the ends."""
    return unicodedata.normalize("NFC", printable(name)).strip()


def printable(name: str) -> str:
    """Return the name of a file with a mark for each byte that is no text in UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _shown(name: str) -> bool:
    """Whether a file or folder is the user's: neither hidden nor one of a system."""
    return not name.startswith(".") and name.casefold() not in SYSTEMS


def _below(folder, endings: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Go through the files below a folder that have one of the endings: (place, name).

    A folder that links lead to again, as one to its parent does, is gone through once.
    """
    seen = set()
    for place, below, inside in os.walk(folder, onerror=_closed, followlinks=True):
        here = os.stat(place)
        again = (here.st_dev, here.st_ino) in seen
        below[:] = [] if again else sorted(filter(_shown, below))
        if again:
            continue
        seen.add((here.st_dev, here.st_ino))
        yield from ((place, x) for x in inside if _shown(x) and x.lower().endswith(endings))


def _closed(error: OSError) -> None:
    """Raise the error of a folder that cannot be read: its images would be left out in silence."""
    raise OSError(
        f"folder {error.filename} cannot be read ({error.strerror}); make it readable, or move it "
        "away"
    ) from error


def _files(folder: Path, there: list[str]) -> Pool:
    """Return the images below the sub-folders of a folder, in the order of ImageFolder."""
    files, targets, others, places = [], [], [], _classes(folder)
    for c, name in enumerate(there):
        found = sorted(_below(places[name], IMAGES))
        files += [os.path.join(*pair) for pair in found]
        targets += [c] * len(found)
        others += [os.path.join(*pair) for pair in sorted(_below(places[name], OTHERS))]
    if others:
        warnings.warn(
            f"images of a format that is not read are left out: {_few(others)}; save them as .png "
            "or .jpg",
            stacklevel=4,
        )
    return Pool(np.array(targets, dtype=int), None, 1, np.array(files, dtype=str))


def _room(draws: list[tuple[Pool, np.ndarray]], size: int | None) -> None:
    """Raise `MemoryError` if memory does not hold three arrays of float64 of so many images."""
    (pool, index), many = draws[0], sum(len(index) for _, index in draws)
    with suppress(OSError):  # all that cannot be read are named when they are read
        if size is not None:
            one = 3 * size**2
        else:
            one = (
                pixels(pool.files[index[0]], None) if pool.images is None else pool.images[0]
            ).size
        remedy = "choose a smaller size, n_train or n_test"
        packed.room(f"reading {many} images", 24 * many * one, remedy)


def _read(
    draws: list[tuple[Pool, np.ndarray]], classes: list[int], size: int | None, progress=False
) -> list[np.ndarray]:
    """Return the images at the given positions of each pool; all of one size."""
    _room(draws, size)
    if draws[0][0].images is not None:
        return [pool.images[index] / float(pool.white) for pool, index in draws]
    try:
        files = [tqdm(p.files[i], desc="images", disable=not progress) for p, i in draws]
        images = [[pixels(file, size) for file in part] for part in files]
    except OSError:
        files = {f for pool, _ in draws for f in pool.files[np.isin(pool.targets, classes)]}
        damaged = []
        for file in sorted(files):
            try:
                pixels(file, size)
            except OSError as error:
                damaged.append(str(error))
        raise OSError(
            f"{len(damaged)} of {len(files)} images cannot be read: {_few(damaged)}; "
            "replace or remove them"
        ) from None
    shapes = {}
    for (pool, index), part in zip(draws, images, strict=True):
        for i, image in zip(index, part, strict=True):
            shapes.setdefault(image.shape[:2], pool.files[i])
    if len(shapes) > 1:
        sizes = [f"{file} has {h} by {w}" for (h, w), file in sorted(shapes.items())]
        raise ValueError(f"images differ in size: {_few(sizes)}; pass size=32 to resize them")
    return [np.stack(part) for part in images]


def pixels(file: str, size: int | None) -> np.ndarray:
    """Return an image as (height, width, 3) in [0, 1]; `OSError` names a file that has none."""
    try:
        with Image.open(str(file)) as image:
            image = _opaque(ImageOps.exif_transpose(image))
        if size is not None:
            image = ImageOps.fit(image, (size, size))
        pixels = np.asarray(image, dtype=np.float64)
    except Exception as error:  # what a decoder raises depends on the damage
        raise OSError(f"{file} ({str(error) or type(error).__name__})") from error
    if image.mode == "F":
        return np.repeat(pixels.clip(0, 1)[:, :, None], 3, axis=2)
    return pixels / 255


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image on white: RGB of 8 bits, or "F", grey in [0, 1], for what has more."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        grey, white = np.asarray(image, dtype=np.float64), 1 if image.mode == "F" else 65535
        if not 0 <= grey.min() <= grey.max() <= white:  # nor for NaN
            raise ValueError(
                f"values from {grey.min():g} to {grey.max():g}; scale them to 0 to {white}"
            )
        grey = np.where(grey == image.info.get("transparency"), white, grey)
        return Image.fromarray((grey / white).astype(np.float32))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _torchvision(source: str, train: bool):
    """Return MNIST or CIFAR-10 from `root()`, downloading it with checksums if it is not there."""
    datasets = import_datasets()
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


def import_datasets():
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
