"""Images to unit vectors: embedded digits, IDX files, CIFAR batches, folders, and damaged data."""

import os
import pickle
import shutil
import struct
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from book.measures import load_all
from lib import data, packed
from lib.data import load, unit_rows


def idx(path, array):
    """Write MNIST's format: two zero bytes, type (8: unsigned byte), axes, sizes, values."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def root(tmp_path, monkeypatch, no_network):
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def mnist(root):
    """A small MNIST: image i of the class c has first pixel i + 1 and second c + 1."""
    for part, count in (("train", 200), ("t10k", 100)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28))
        labels = np.arange(count) % 10
        images[:, 0, 0], images[:, 0, 1] = np.arange(count) + 1, labels + 1
        idx(root / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", images)
        idx(root / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", labels)
    return root / "MNIST" / "raw"


@pytest.fixture
def photos(root):
    """A folder of three classes with 12 images each: red value 10 c + 20, green value the image."""
    write_photos(root / "photos")
    return root / "photos"


def write_photos(folder, size=(4, 5), blue=7):
    for c, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", size, (10 * c + 20, i, blue)).save(folder / name / f"{i:02}.png")


def test_default_is_embedded_and_needs_no_network(root, no_network):
    from sklearn.datasets import load_digits

    drawn, digits = load("digits", n_train=60, n_test=40), load_digits()
    assert (
        drawn.label == "digits 3/8" and drawn.X.shape == (60, 64) and drawn.X_te.shape == (40, 64)
    )
    for images, X, Y, index in (
        (drawn.images, drawn.X, drawn.Y, drawn.index),
        (drawn.images_te, drawn.X_te, drawn.Y_te, drawn.index_te),
    ):
        np.testing.assert_array_equal(images * 16, digits.images[index])
        np.testing.assert_array_equal(np.where(digits.target[index] == 3, 1.0, -1.0), Y)
        assert set(digits.target[index]) == {3, 8}
        np.testing.assert_allclose(np.linalg.norm(X, axis=1), 1, rtol=4e-16)
        np.testing.assert_allclose(X, unit_rows(images), rtol=0)
    assert no_network == []


@pytest.mark.parametrize("seed", [0, 7])
def test_draw_is_balanced_seeded_and_disjoint(seed):
    draws = [load("digits:3/8", n_train=300, n_test=40, seed=s) for s in (seed, seed, seed + 1)]
    for drawn in draws:
        assert drawn.Y.sum() == drawn.Y_te.sum() == 0
        assert len(set(drawn.index) | set(drawn.index_te)) == 340
        assert np.abs(drawn.Y[:100].sum()) < 60  # the labels are mixed, not sorted
    np.testing.assert_array_equal(draws[0].X, draws[1].X)
    np.testing.assert_array_equal(draws[0].index_te, draws[1].index_te)
    assert set(draws[0].index) != set(draws[2].index)
    assert set(draws[0].index_te) != set(draws[2].index_te)
    assert str(draws[2]) == f"digits 3/8, n = 300, seed {seed + 1}"
    assert "digits" in repr(draws[2]) and "array" not in repr(draws[2])


def test_groups_of_classes():
    from sklearn.datasets import load_digits

    drawn = load("digits:0+2+4+6+8/1+3+5+7+9", n_train=400, n_test=200)
    even = load_digits().target[drawn.index] % 2 == 0
    np.testing.assert_array_equal(even, drawn.Y == 1)
    assert drawn.classes == ("0+2+4+6+8", "1+3+5+7+9")


def test_mnist_in_its_original_files(mnist, no_network):
    drawn = load("mnist:4/9", n_train=20, n_test=10)
    assert drawn.X.shape == (20, 784) and drawn.images_te.shape == (10, 28, 28)
    for images, index, Y in (
        (drawn.images, drawn.index, drawn.Y),
        (drawn.images_te, drawn.index_te, drawn.Y_te),
    ):
        np.testing.assert_allclose(images[:, 0, 0] * 255, index + 1)
        np.testing.assert_allclose(images[:, 0, 1] * 255, np.where(Y == 1, 5, 10))
        assert (index % 10 == np.where(Y == 1, 4, 9)).all()
    assert [d.label for d in load_all("mnist, mnist:0/1", n_train=4, n_test=2)] == [
        "mnist 4/9",
        "mnist 0/1",
    ]
    assert no_network == []


def test_cifar10_in_its_original_files(root, monkeypatch):
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for batch in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        pixels = np.repeat(np.arange(1, 21, dtype=np.uint8)[:, None], 3072, axis=1)
        pixels[:, 0] = 100 + len(list(folder.iterdir()))  # no image is a copy of another
        content = {"data": pixels, "labels": [i % 10 for i in range(20)]}
        (folder / batch).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    cifar = data.import_datasets().CIFAR10
    monkeypatch.setattr(cifar, "_check_integrity", lambda self: True)  # the checksums are not ours
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    drawn = load("cifar10:ship+truck/cat+dog", n_train=20, n_test=4)
    assert drawn.images.shape == (20, 32, 32, 3) and drawn.X.shape == (20, 3072)
    assert all((i % 10 in (8, 9)) == (y == 1) for i, y in zip(drawn.index, drawn.Y, strict=True))
    assert load("cifar10", n_train=2, n_test=2).label == "cifar10 airplane/automobile"


def test_folder_of_images(photos):
    for name in ("photos:cat/ant", f"{photos}:cat/ant"):
        drawn = load(name, n_train=12, n_test=8)
        assert drawn.label == "photos cat/ant" and drawn.images.shape == (12, 5, 4, 3)
        assert len(set(drawn.index) | set(drawn.index_te)) == 20
        for images, index, Y in (
            (drawn.images, drawn.index, drawn.Y),
            (drawn.images_te, drawn.index_te, drawn.Y_te),
        ):
            np.testing.assert_allclose(images[:, 2, 2, 0] * 255, np.where(Y == 1, 40, 20))
            np.testing.assert_allclose(images[:, 2, 2, 1] * 255, index % 12)
    assert load("photos:cat/ant", n_train=4, n_test=2, size=3).X.shape == (4, 27)


def test_folder_of_images_with_train_and_test(root):
    for blue, part in enumerate(("train", "test")):
        write_photos(root / "own" / part, blue=blue)
    drawn = load("own:ant+bee/cat", n_train=24, n_test=24)  # all there are, in each part
    assert sorted(drawn.index[drawn.Y == -1]) == sorted(drawn.index_te[drawn.Y_te == -1])
    (root / "own" / "test" / "ant").rename(root / "own" / "test" / "fly")
    with pytest.raises(ValueError, match="has classes .*'ant'.* in train but .*'fly'.* in test"):
        load("own:ant/cat", n_train=4, n_test=4)


def test_folder_of_two_classes_needs_no_names(photos):
    for image in (photos / "cat").iterdir():
        image.unlink()
    (photos / "cat").rmdir()
    assert load(str(photos), n_train=4, n_test=4).label == "photos ant/bee"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "mnits:4/9",
            {},
            "'mnits' is no data set: choose 'digits', 'mnist', 'cifar10' or a folder",
        ),
        ("", {}, "name = '' is no data set"),
        (
            "digits:3/x",
            {},
            "class 'x' is not in 'digits'; choose from 0, 1, 2, 3, 4, 5, 6, 7, 8, 9$",
        ),
        ("photos:ant/dog", {}, "class 'dog' is not in 'photos'; choose from ant, bee, cat"),
        (
            "photos",
            {},
            "name = 'photos:' must name two .* as 'photos:ant/cat', or 'photos:all'; there are ant",
        ),
        (
            "digits:3",
            {},
            "name = 'digits:3' must name two .* as 'digits:0/9', or 'digits:all'; there are 0, 1",
        ),
        ("digits:3/3", {}, "class '3' is named twice in '3/3'; name each class once"),
        (
            "digits:3/8",
            {"n_train": 400},
            "n_train = 400 needs 200 images of 3, but only 183 .* <= 366",
        ),
        (
            "digits:3/8",
            {"n_train": 300, "n_test": 80},
            "n_test = 80 needs 40 images of 3, but only 33",
        ),
        ("photos:ant/bee+cat", {"n_train": 26}, "n_train = 26 needs 13 images of ant, but only 12"),
        (
            "digits",
            {"n_train": 7},
            "n_train = 7 does not give .* 2 labels; use a multiple of 2, 6 for instance",
        ),
        ("digits", {"n_test": 7}, "n_test = 7 does not give as many"),
        ("digits", {"n_test": 0}, "n_test must be at least 2, not 0; choose a larger one"),
        ("digits", {"n_train": 2.5}, "n_train must be an integer, not 2.5"),
        ("digits", {"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_bad_request(photos, name, settings, message):
    with pytest.raises(ValueError, match=message):
        load(name, **settings)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_no_network_and_no_data(root, no_network, name):
    with pytest.raises(
        OSError,
        match=rf"{name} is not below {root} and could not be downloaded(.|\n)*unreachable(.|\n)*"
        "set NTK_DATA to the folder that holds it, or use 'digits', which is embedded",
    ):
        load(name)
    assert no_network  # a download was tried, and only then


def test_what_is_missing_is_downloaded_below_the_root(tmp_path, monkeypatch):
    asked, where = [], tmp_path / "not" / "there"

    class Mnist:
        targets, data = np.arange(40) % 10, np.ones((40, 28, 28), dtype=np.uint8)
        data[:, 0, 0] = np.arange(40)

        def __init__(self, root, train=None, download=False):
            asked.append((root, train, download))
            if not download:
                raise RuntimeError("Dataset not found. You can use download=True to download it")

    monkeypatch.setattr(data.import_datasets(), "MNIST", Mnist)
    monkeypatch.setenv(data.VARIABLE, str(where))
    assert load("mnist", n_train=4, n_test=2).X_te.shape == (2, 784) and where.is_dir()
    assert asked == [(str(where), part, get) for part in (True, False) for get in (False, True)]


@pytest.mark.parametrize("kept", [5000, 16, 3, 0])
@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_truncated_mnist(mnist, no_network, file, kept):
    path = mnist / file
    path.write_bytes(path.read_bytes()[: min(kept, path.stat().st_size - 1)])
    with pytest.raises(
        OSError, match="a file of mnist below .* is damaged .* delete it to download"
    ):
        load("mnist:4/9", n_train=4, n_test=4)
    assert no_network == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b.replace(b"IDAT", b"IDAT\0"),
        lambda b: b[: b.index(b"IDAT") + 6] + b"\0\0" + b[b.index(b"IDAT") + 8 :],
    ],
)
def test_damaged_image(photos, damage):
    path = photos / "bee" / "03.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        OSError, match=rf"1 of 24 images cannot be read: {path} \(.+\); replace or remove them"
    ):
        load("photos:ant/bee", n_train=12, n_test=12)


def test_images_of_different_size(photos):
    Image.new("RGB", (9, 9), (1, 2, 3)).save(photos / "bee" / "03.png")
    with pytest.raises(
        ValueError, match=r"differ in size: .*photos.*png has 5 by 4, .*03.png has 9 by 9; pass"
    ):
        load("photos:ant/bee", n_train=22, n_test=2)
    assert load("photos:ant/bee", n_train=22, n_test=2, size=4).X.shape == (22, 48)


def test_blank_image(photos):
    Image.new("RGB", (4, 5), (0, 0, 0)).save(photos / "bee" / "03.png")
    with pytest.raises(ValueError, match=r"photos/bee/03.png: all zeros \(1 such .*; remove them"):
        load("photos:ant/bee", n_train=22, n_test=2)


def test_folder_without_images(photos):
    (photos / "dog" / "none").mkdir(parents=True)
    (photos / "dog" / "none" / "notes.txt").write_text("no image")
    assert load("photos:ant/bee", n_train=4, n_test=2).classes == ("ant", "bee")
    with pytest.raises(ValueError, match="class 'dog' is not in 'photos'; choose from ant, bee, c"):
        load("photos:ant/dog", n_train=4, n_test=2)
    (photos.parent / "empty").mkdir()
    with pytest.raises(ValueError, match="empty needs one sub-folder of images for each class"):
        load("empty")


def test_unit_rows():
    np.testing.assert_array_equal(unit_rows([[[3, 0], [0, 4]]]), [[0.6, 0, 0, 0.8]])
    with pytest.raises(ValueError, match=r"X\[1\] is all zeros .*\(2 such rows\)"):
        unit_rows([[1.0, 0], [0, 0], [0, 0]])
    with pytest.raises(ValueError, match=r"X has 1 value that is not finite, .* \(0, 1\): nan"):
        unit_rows([[1.0, np.nan]])


def test_root_has_a_default(monkeypatch):
    monkeypatch.delenv(data.VARIABLE, raising=False)
    assert data.root().parts[-2:] == (".cache", "ntk-influence")
    monkeypatch.setenv(data.VARIABLE, "~/scans")
    assert data.root().is_absolute() and data.root().name == "scans"


def test_rows_of_any_scale_become_unit_rows():
    X = unit_rows([[1e200, 1e200], [1e-200, 0.0]])
    assert np.allclose(np.linalg.norm(X, axis=1), 1, atol=1e-15)


def test_name_that_is_not_text():
    with pytest.raises(TypeError, match="name must be text such as 'digits:3/8', not None"):
        load(None)


def test_no_data_set_named():
    with pytest.raises(ValueError, match="names = ' , ' names no data set; write 'digits:3/8"):
        load_all(" , ")


def test_size_of_a_data_set_that_has_one():
    with pytest.raises(ValueError, match="size = 4 is for folders of images; digits has one size"):
        load("digits", size=4)


def test_damaged_cifar10_is_not_said_to_be_missing(tmp_path, monkeypatch, no_network):
    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    with pytest.raises(OSError, match="a file of cifar10 below .* is damaged .* delete it"):
        load("cifar10", n_train=2, n_test=2)
    assert no_network == []


# --- more than two classes ------------------------------------------------------------------------


def test_all_classes_are_one_hot_rows_less_their_mean():
    from sklearn.datasets import load_digits

    drawn, target = load("digits:all", n_train=300, n_test=100, seed=3), load_digits().target
    assert drawn.classes == tuple("0123456789")
    assert str(drawn) == "digits 0/1/2/3/4/5/6/7/8/9, n = 300, seed 3"
    for Y, index, each in ((drawn.Y, drawn.index, 30), (drawn.Y_te, drawn.index_te, 10)):
        assert Y.shape == (10 * each, 10) and Y.dtype == np.float64
        np.testing.assert_array_equal(Y.argmax(axis=1), target[index])
        np.testing.assert_array_equal(Y, np.eye(10)[target[index]] - 0.1)
        np.testing.assert_allclose(Y.sum(axis=1), 0, atol=1e-15)
        np.testing.assert_allclose(Y.sum(axis=0), 0, atol=1e-13)  # as many of each class
        np.testing.assert_array_equal(np.bincount(target[index]), each)
        assert len(set(target[index][:10])) < 10  # mixed, and not one of each in turn
    assert len(set(drawn.index) | set(drawn.index_te)) == 400
    again, other = (load("digits:all", n_train=300, n_test=100, seed=s) for s in (3, 4))
    np.testing.assert_array_equal(drawn.Y, again.Y)
    assert set(drawn.index) != set(other.index)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("digits:1/2/3", ("1", "2", "3")),
        ("digits:0+1/2+3/4", ("0+1", "2+3", "4")),
        ("photos:all", ("ant", "bee", "cat")),
        ("photos: cat / ant / bee", ("cat", "ant", "bee")),
    ],
)
def test_several_classes_and_groups_of_them(photos, name, classes):
    from sklearn.datasets import load_digits

    drawn, target = load(name, n_train=18, n_test=6), load_digits().target
    assert drawn.classes == classes and drawn.Y.shape == (18, 3) and drawn.Y_te.shape == (6, 3)
    np.testing.assert_allclose(drawn.Y.sum(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(np.unique(drawn.Y), [-1 / 3, 2 / 3])
    for row, index, file in zip(drawn.Y, drawn.index, drawn.files, strict=True):
        group = classes[row.argmax()].split("+")
        assert (Path(file).parent.name if file else str(target[index])) in group


def test_two_classes_keep_their_signs_however_they_are_named(photos):
    shutil.rmtree(photos / "cat")
    drawn, named = (load(f"photos:{c}", n_train=8, n_test=4) for c in ("all", "ant/bee"))
    assert drawn.classes == named.classes == ("ant", "bee")
    np.testing.assert_array_equal(drawn.Y, named.Y)
    np.testing.assert_array_equal(drawn.files, named.files)
    assert drawn.Y.shape == (8,) and set(drawn.Y) == {-1, 1}


def test_all_classes_of_mnist(mnist):
    drawn = load("mnist:all", n_train=40, n_test=20)
    np.testing.assert_array_equal(drawn.Y.argmax(axis=1), drawn.index % 10)
    np.testing.assert_allclose(drawn.images[:, 0, 1] * 255, drawn.Y.argmax(axis=1) + 1)
    assert [d.Y.ndim for d in load_all("mnist:all, mnist:4/9", n_train=20, n_test=20)] == [2, 1]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("digits:all", {"n_train": 55}, "n_train = 55 does not give as many .* each of 10 labels; "
         "use a multiple of 10"),
        ("digits:all", {"n_train": 50, "n_test": 15}, "n_test = 15 does not give .* of 10 labels"),
        ("digits:all", {"n_train": 5}, "n_train must be at least 10, not 5; choose a larger one"),
        ("digits:1/2/3", {"n_train": 20}, "n_train = 20 does not give .* of 3 labels; .* of 3"),
        ("digits:1/2/3", {"n_train": 600, "n_test": 3}, "n_train = 600 needs 200 images of 1, but "
         "only 182 are there; use n_train <= 546"),
        ("digits:all", {"n_train": 1740, "n_test": 10}, "n_test = 10 needs 1 images of 8, but only "
         "0 are left; choose a smaller n_train"),
        ("digits:1/2/1", {}, "class '1' is named twice in '1/2/1'; name each class once"),
        ("digits:1/2/x", {}, "class 'x' is not in 'digits'; choose from 0, 1, 2"),
        ("digits:all/1", {}, "class 'all' is not in 'digits'"),
    ],
)  # fmt: skip
def test_bad_request_of_several_classes(name, settings, message):
    with pytest.raises(ValueError, match=message):
        load(name, **settings)


def test_a_class_named_all_is_a_class(root):
    for c, name in enumerate(("all", "none")):
        (root / "own" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (4, 5), (10 * c + 20, i, 7)).save(root / "own" / name / f"{i}.png")
    assert load("own:all/none", n_train=4, n_test=2).classes == ("all", "none")


# --- photos of other people -------------------------------------------------------------------


@pytest.fixture
def two(root):
    """The function (image, suffix) → its pixels: a folder in which every image but one is grey."""

    def pixels(image, suffix="png", **settings):
        folder = root / "own"
        shutil.rmtree(folder, ignore_errors=True)
        for name in ("odd", "grey"):
            (folder / name).mkdir(parents=True)
        image.save(folder / "odd" / f"1.{suffix}", **settings.pop("save", {}))
        shape = np.asarray(image).shape[:2]
        for name, i in (("odd", 2), ("grey", 1), ("grey", 2)):
            Image.new("RGB", shape[::-1], (90 + i, 90, 90)).save(folder / name / f"{i}.png")
        drawn = load("own:odd/grey", n_train=2, n_test=2, **settings)
        every = zip([*drawn.files, *drawn.files_te], [*drawn.images, *drawn.images_te], strict=True)
        return next(x for file, x in every if file.endswith(f"odd/1.{suffix}"))

    return pixels


GREY16 = (np.arange(1, 21) * 3000).reshape(4, 5).astype(np.uint16)


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("png", "<u2"), ("png", ">u2"), ("tif", "<u2"), ("tif", ">u2"), ("tif", "i4")],
)
def test_grey_of_16_bits_keeps_its_range(two, suffix, kind):
    image = Image.fromarray(GREY16.astype(kind))
    x = two(image, suffix)
    expected = np.repeat(GREY16[:, :, None] / 65535, 3, axis=2)
    np.testing.assert_allclose(x, expected, rtol=1e-6)  # single precision, and not 8 bits


def test_grey_of_more_than_16_bits_has_no_range(two):
    for value in (70_000, -1):
        image = Image.fromarray(np.where(GREY16 == 3000, np.int32(value), GREY16.astype(np.int32)))
        with pytest.raises(OSError, match=r"odd/1.tif \(values from .*; scale them to 0 to 65535"):
            two(image, "tif")


def test_floating_point_images_lie_in_0_to_1(two):
    grey = (GREY16 / 65535).astype(np.float32)
    np.testing.assert_allclose(two(Image.fromarray(grey), "tif")[:, :, 1], grey, rtol=1e-6)
    for value in (255.0, -0.1, np.nan):
        with pytest.raises(OSError, match=r"odd/1.tif \(values from .*; scale them to 0 to 1\)"):
            two(Image.fromarray(np.where(GREY16 == 3000, value, grey).astype(np.float32)), "tif")


def test_transparency_shows_white(two):
    colours = np.zeros((4, 5, 4), dtype=np.uint8)  # black, and seen by its transparency alone
    colours[..., 3] = np.arange(20).reshape(4, 5) * 12
    expected = np.repeat(1 - colours[..., 3:] / 255, 3, axis=2)
    np.testing.assert_allclose(two(Image.fromarray(colours)), expected, atol=1 / 255)
    grey = Image.fromarray(colours).convert("LA")
    np.testing.assert_allclose(two(grey), expected, atol=1 / 255)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "I;16"])
def test_one_transparent_colour_shows_white(two, mode):
    grey = np.full((4, 5), 30, dtype=np.uint16 if mode == "I;16" else np.uint8)
    grey[1, 2] = 10
    image = Image.fromarray(grey)
    image = image if mode == "I;16" else image.convert(mode)
    if mode == "P":
        image.putpalette([c // 3 for c in range(768)])
    key = (10, 10, 10) if mode == "RGB" else image.getpixel((2, 1))
    x = two(image, save={"transparency": key})
    assert (x[1, 2] == 1).all() and (x < 1).all(axis=2).sum() == 19


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_exif(two, orientation):
    upright = np.arange(20, dtype=np.uint8).reshape(4, 5) * 10 + 5
    stored = {  # what a camera stores, so that the viewer's turn or mirror gives the upright image
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright), 7: upright[::-1, ::-1].T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    x = two(image, size=None if stored.shape == (4, 5) else 4, save={"exif": exif})
    if stored.shape == (4, 5):
        np.testing.assert_array_equal(x[:, :, 0] * 255, upright)
    else:  # of the other shape than the grey ones: the longer side loses its ends
        square = np.asarray(two(Image.fromarray(upright), size=4))
        np.testing.assert_allclose(x, square, atol=1 / 255)


def test_modes_of_colour(two):
    shades = np.arange(20, dtype=np.uint8).reshape(4, 5) * 10 + 5
    plain = Image.merge("RGB", [Image.fromarray(shades)] * 3)
    expected = np.asarray(plain) / 255
    for mode, suffix in (("L", "png"), ("P", "png"), ("CMYK", "tif"), ("RGB", "bmp"), ("1", "png")):
        image = plain.convert(mode)
        want = np.asarray(image.convert("RGB")) / 255
        np.testing.assert_array_equal(two(image, suffix), want)
        if mode in ("L", "CMYK"):
            np.testing.assert_allclose(want, expected, atol=1 / 255)


def test_grey_and_colour_in_one_folder(photos):
    Image.new("L", (4, 5), 77).save(photos / "bee" / "03.png")
    Image.fromarray(np.full((5, 4), 7000, np.uint16)).save(photos / "bee" / "04.png")
    drawn = load("photos:ant/bee", n_train=22, n_test=2)
    assert drawn.images.shape == (22, 5, 4, 3) and np.isfinite(drawn.X).all()


def test_a_photo_keeps_its_shape_when_it_is_resized(two):
    wide = np.zeros((20, 60), dtype=np.uint8) + 9
    wide[:, 20:40] = 200  # the square in the middle
    x = two(Image.fromarray(wide), size=10)
    assert x.shape == (10, 10, 3) and (x[:, 1:-1] > 0.75).all()
    tall = two(Image.fromarray(np.ascontiguousarray(wide.T)), size=10)
    np.testing.assert_allclose(tall, x.transpose(1, 0, 2), atol=2 / 255)
    deep = two(Image.fromarray(wide.astype(np.uint16) * 257), size=10)
    np.testing.assert_allclose(deep, x, atol=2 / 255)


def test_every_damaged_file_is_named_in_one_run(photos):
    def damaged(*paths):
        with pytest.raises(OSError) as caught:
            load("photos:ant/bee", n_train=2, n_test=22)
        message = str(caught.value)
        assert all(str(path) in message for path in paths)
        return message

    broken = photos / "ant" / "00.png", photos / "ant" / "07.png", photos / "bee" / "01.png"
    for path in broken:
        path.write_bytes(path.read_bytes()[:50])
    assert damaged(*broken).startswith("3 of 24 images cannot be read: ")
    for i in range(4, 12):
        (photos / "bee" / f"{i:02}.png").write_bytes(b"no image")
    assert ", and 6 more; replace or remove them" in damaged(photos / "bee" / "05.png")
    (photos / "cat" / "00.png").write_bytes(b"")  # of a class that nobody asked for
    assert damaged().startswith("11 of 24 images")


@pytest.mark.parametrize(
    "error",
    [SyntaxError("broken PNG"), Image.DecompressionBombError("bomb"), EOFError(), OSError("disk")],
)
def test_whatever_a_decoder_raises_names_the_file(photos, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(data.ImageOps, "exif_transpose", fail)
    says = str(error) or "EOFError"
    with pytest.raises(OSError, match=rf"24 of 24 images .* {photos}/ant/00.png \({says}\), "):
        load("photos:ant/bee", n_train=4, n_test=2)


def test_hidden_files_and_folders_are_no_data(photos):
    systems = "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"
    for name in (".ipynb_checkpoints", "__MACOSX", ".git", *systems):
        (photos / name).mkdir()
        Image.new("RGB", (4, 5), "red").save(photos / name / "x.png")
        (photos / "ant" / name).mkdir()
        Image.new("RGB", (4, 5), "red").save(photos / "ant" / name / "x.png")
    for name in ("._00.png", ".hidden.png"):
        (photos / "ant" / name).write_bytes(b"no image")
    (photos / "ant" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="there are ant, bee, cat$"):
        load("photos")
    drawn = load("photos:ant/bee", n_train=12, n_test=12)
    assert {Path(file).name for file in [*drawn.files, *drawn.files_te]} == {
        f"{i:02}.png" for i in range(12)
    }


def test_every_ending_of_a_jpeg_is_read(photos):
    for ending in ("jpeg", "jfif", "jpe", "JPE"):
        folder = photos / ending.swapcase()
        folder.mkdir()
        for i in range(3):
            Image.new("RGB", (4, 5), (200, 20 * i, 9)).save(folder / f"{i}.{ending}", "JPEG")
        assert load(f"photos:ant/{folder.name}", n_train=4, n_test=2).X.shape == (4, 60)


def test_images_of_a_format_that_is_not_read_are_named(photos):
    for i, ending in enumerate(("heic", "AVIF")):
        (photos / "ant" / f"{i}.{ending}").write_bytes(b"no image")
    words = "not read are left out: .*ant/0.heic, .*ant/1.AVIF; save them as .png or .jpg"
    with pytest.warns(UserWarning, match=words):
        assert load("photos:ant/bee", n_train=12, n_test=12).X.shape == (12, 60)
    (photos / "dog").mkdir()
    (photos / "dog" / "0.heif").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="not read are left out: .*0.heif; save"):
        words = r"'dog' has only images of a format that is not read \(.*\); save them as .png or"
        with pytest.raises(ValueError, match=words):
            load("photos:ant/dog", n_train=4, n_test=2)


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_names_of_the_folder_of_test_images(root, test):
    for blue, part in enumerate(("train", test)):
        write_photos(root / "own" / part, blue=blue)
    drawn = load("own:ant/cat", n_train=24, n_test=24)
    assert all("/train/" in file for file in drawn.files)
    assert all(f"/{test}/" in file for file in drawn.files_te)
    write_photos(root / "own" / "later", blue=5)
    (root / "own" / "later").rename(root / "own" / "validation2")  # no part of the layout
    assert load("own:ant/cat", n_train=24, n_test=24).files.tolist() == drawn.files.tolist()


def test_test_comes_before_val(root):
    for blue, part in enumerate(("train", "val", "test")):
        write_photos(root / "own" / part, blue=blue)
    assert all("/test/" in file for file in load("own:ant/cat", n_train=4, n_test=4).files_te)


def test_train_alone_names_remedies_that_work(root):
    write_photos(root / "own" / "train")
    words = "'own' has images of one class only, 'train'; put .* name own/train to draw both"
    for name in ("own", "own:ant/cat", "own:train/train"):
        with pytest.raises(ValueError, match=words):
            load(name, n_train=4, n_test=4)
    assert load("own/train:ant/cat", n_train=4, n_test=4).classes == ("ant", "cat")
    write_photos(root / "own" / "val", blue=8)
    assert load("own:ant/cat", n_train=4, n_test=4).classes == ("ant", "cat")


@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("there", ["NFC", "NFD"])
def test_accents_and_spaces_of_names_do_not_matter(root, typed, there):
    first, second = (unicodedata.normalize(there, name) for name in ("café", " lead"))
    folder = unicodedata.normalize(there, "Bücher")
    for c, name in enumerate((first, second)):
        (root / folder / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (4, 5), (10 * c + 20, i, 7)).save(root / folder / name / f"{i}.png")
    name = unicodedata.normalize(typed, "Bücher:café / lead")
    drawn = load(name, n_train=4, n_test=2)
    assert drawn.classes == ("café", "lead")
    assert set(drawn.images[drawn.Y == 1][:, 0, 0, 0] * 255) == {20}


def test_two_folders_of_one_name_are_refused(photos):
    for name in ("café", unicodedata.normalize("NFD", "café")):
        (photos / name).mkdir()
        Image.new("RGB", (4, 5), "red").save(photos / name / "x.png")
    with pytest.raises(ValueError, match="two sub-folders of one name, .*caf.*; .*rename one"):
        load("photos:ant/bee", n_train=4, n_test=2)


def test_training_images_that_are_all_equal_are_refused(root):
    for c, name in enumerate(("dark", "light", "other")):
        (root / "grey" / name).mkdir(parents=True)
        for i in range(6):
            shade = (60 + 90 * c + i,) * 3 if name != "other" else (0, 0, 50 + i)
            Image.new("RGB", (4, 5), shade).save(root / "grey" / name / f"{i}.png")
    words = "all 8 training images of 'grey' are equal once .*: there is nothing to learn from them"
    with pytest.raises(ValueError, match=words):
        load("grey:dark/light", n_train=8, n_test=4)
    drawn = load("grey:dark/other", n_train=8, n_test=4)  # equal within each class, and no further
    assert len(np.unique(drawn.X.round(12), axis=0)) == 2


def test_files_tell_where_a_point_is_from(photos):
    drawn = load("photos:cat/ant", n_train=12, n_test=8)
    for files, images, Y in (
        (drawn.files, drawn.images, drawn.Y), (drawn.files_te, drawn.images_te, drawn.Y_te)
    ):  # fmt: skip
        for file, image, y in zip(files, images, Y, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(file)) / 255, image)
            assert ("/cat/" in file) == (y == 1)
    assert set(load("digits", n_train=4, n_test=2).files) == {""}


def test_files_in_folders_of_a_class_come_in_the_order_of_torchvision(photos):
    for below in ("z", "b"):
        (photos / "ant" / below).mkdir()
        Image.new("RGB", (4, 5), "red").save(photos / "ant" / below / "x.JPG")
    (photos / "ant" / "c.webp").write_bytes(b"")
    folder = data.import_datasets().ImageFolder(str(photos))
    pool = data._files(photos, folder.classes)
    assert [(str(f), int(c)) for f, c in zip(pool.files, pool.targets, strict=True)] == [
        (f, c) for f, c in folder.samples
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("c++", "c"), ("c", "c++"), ("a+b", "a"), ("a:b", "c,d"), ("it's", "that's"),
        ("a, b", "c"), ("1", "2"), ("new york", "b(c)"), ("c+", "c++"), ("[x]", "*"),
    ],
)  # fmt: skip
def test_names_of_classes(root, first, second):
    for folder in ("own", "o,w:n+'s"):
        for c, name in enumerate((first, second, "x")):
            (root / folder / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (4, 5), (10 * c + 20, i, 7)).save(
                    root / folder / name / f"{i}.png"
                )
        for name, classes in (
            (f"{folder}:{first}/{second}", (first, second)),
            (f"{root / folder}: {first} / {second}", (first, second)),
            (f"{folder}:{second}+x/{first}", (f"{second}+x", first)),
        ):
            one, other = load_all(f"{name}, digits", n_train=4, n_test=2)
            assert one.classes == classes and other.name == "digits"
            assert set(one.images[one.Y == 1][:, 0, 0, 0] * 255 // 10) <= {2, 3, 4}
            assert load_all([name], n_train=4, n_test=2)[0].classes == classes


def test_names_of_classes_that_are_not_there(photos):
    (photos / "c++").mkdir()
    Image.new("RGB", (4, 5), "red").save(photos / "c++" / "x.png")
    with pytest.raises(ValueError, match=r"class 'c' is not in 'photos'; choose from ant, .*c\+\+"):
        load("photos:c/ant")
    with pytest.raises(ValueError, match="class 'dog' is not in 'photos'"):
        load("photos:ant+dog/bee")
    with pytest.raises(ValueError, match="'mnits' is no data set"):
        load_all("photos:ant/bee, mnits:4/9", n_train=4, n_test=2)
    with pytest.raises(ValueError, match="class '10' is not in 'digits'"):
        load_all("digits:3/10, digits:3/8", n_train=4, n_test=2)


def test_a_number_is_the_name_of_a_folder(root):
    write_photos(root / "2024")
    write_photos(root / "2024:10")
    for name in (2024, "2024"):
        with pytest.raises(ValueError, match="name = '2024:' must name two classes"):
            load_all(name, n_train=4, n_test=2)
    assert load("2024:ant/bee", n_train=4, n_test=2).name == "2024"
    assert load("2024:10:ant/bee", n_train=4, n_test=2).name == "2024:10"  # the longest
    with pytest.raises(ValueError, match="'2023' is no data set"):
        load_all(2023)
    for wrong in (2024.1, True, None):
        with pytest.raises(TypeError, match="names must be text .* not .*; write it in quotes"):
            load_all(wrong)


def test_copies_between_training_and_test_are_named(photos):
    for folder in photos.iterdir():
        for i in range(6):
            (folder / f"{i + 6:02}.png").write_bytes((folder / f"{i:02}.png").read_bytes())
    with pytest.warns(
        UserWarning, match=r"\d+ of 12 test images of 'photos' are exact copies of tr"
    ) as w:
        drawn = load("photos:ant/bee", n_train=12, n_test=12)
    assert drawn.copies and f"{len(drawn.copies)} of 12" in str(w[0].message)
    for i, j in drawn.copies:
        np.testing.assert_array_equal(drawn.X[i], drawn.X_te[j])
    i, j = drawn.copies[0]
    assert f"{drawn.files_te[j]} of {drawn.files[i]}" in str(w[0].message)


def test_no_copies_no_warning(photos, recwarn):
    assert load("photos:ant/bee", n_train=12, n_test=12).copies == []
    assert load("digits", n_train=200, n_test=100).copies == []
    assert not recwarn.list


def test_nothing_left_for_the_test(photos):
    with pytest.raises(
        ValueError, match="n_test = 2 needs 1 .* only 0 are left; choose a smaller n_t"
    ):
        load("photos:ant/bee", n_train=24, n_test=2)
    with pytest.raises(ValueError, match="only 2 are left; use n_test <= 4"):
        load("photos:ant/bee", n_train=20, n_test=6)


def test_whole_floats_count(photos):
    one = load("photos:ant/bee", n_train=20.0, n_test=np.float64(4), seed=1e0, size=3.0)
    two = load("photos:ant/bee", n_train=20, n_test=4, seed=1, size=3)
    np.testing.assert_array_equal(one.X, two.X)


@pytest.mark.parametrize("size", [None, 7])
def test_too_little_memory_is_told_before_images_are_read(photos, monkeypatch, size):
    need = 24 * 6 * 3 * (7 * 7 if size else 4 * 5)  # three arrays of float64
    monkeypatch.setattr(packed, "free_memory", lambda: need)
    load("photos:ant/bee", n_train=4, n_test=2, size=size)
    monkeypatch.setattr(packed, "free_memory", lambda: need - 1)
    monkeypatch.setattr(data, "tqdm", pytest.fail)
    with pytest.raises(MemoryError, match="reading 6 images needs .* choose a smaller size, n_tr"):
        load("photos:ant/bee", n_train=4, n_test=2, size=size)


def test_a_size_that_no_memory_holds_makes_no_image(photos, monkeypatch):
    monkeypatch.setattr(data, "pixels", pytest.fail)
    with pytest.raises(MemoryError, match="reading 6 images needs .* choose a smaller size"):
        load("photos:ant/bee", n_train=4, n_test=2, size=10**6)


def test_links_that_lead_round_give_no_image_twice(photos):
    count = len(data.pools("photos:ant/bee")[2][0].files)
    (photos / "ant" / "deep").mkdir()
    (photos / "ant" / "deep" / "up").symlink_to(photos / "ant")
    (photos / "ant" / "again").symlink_to(photos / "ant" / "deep")
    (photos / "bee" / "self").symlink_to(photos / "bee")
    elsewhere = photos.parent / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (4, 5), "red").save(elsewhere / "x.png")
    (photos / "bee" / "link").symlink_to(elsewhere)  # which is followed
    files = data.pools("photos:ant/bee")[2][0].files
    assert len(files) == count + 1 and str(photos / "bee" / "link" / "x.png") in files


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "VAL"), ("Training", "Testing")])
def test_capitals_and_endings_of_the_folders_of_training_and_test_images(root, names):
    for blue, part in enumerate(names):
        write_photos(root / "own" / part, blue=blue)
    drawn = load("own:ant/cat", n_train=24, n_test=24)
    assert all(f"/{names[0]}/" in file for file in drawn.files)
    assert all(f"/{names[1]}/" in file for file in drawn.files_te)


def test_a_folder_that_cannot_be_read_is_named(photos, monkeypatch):
    scan = os.scandir

    def closed(place):
        if str(place).endswith("bee"):
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", closed)
    words = r"folder .*/bee cannot be read \(Permission denied\); make it readable, or move it away"
    with pytest.raises(OSError, match=words):
        load("photos:ant/bee", n_train=4, n_test=2)


def test_an_unknown_class_among_several_is_named_without_spaces():
    with pytest.raises(ValueError, match="class 'x' is not in 'digits'; choose from 0, 1"):
        load("digits:3 + x / 8", n_train=4, n_test=2)
