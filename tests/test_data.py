"""Images to unit vectors: embedded digits, IDX files, CIFAR batches, folders, and damaged data."""

import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from lib import data
from lib.data import load, load_all, unit_rows


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


def write_photos(folder, size=(4, 5)):
    for c, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", size, (10 * c + 20, i, 7)).save(folder / name / f"{i:02}.png")


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
        content = {"data": pixels, "labels": [i % 10 for i in range(20)]}
        (folder / batch).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    cifar = data._import_datasets().CIFAR10
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
    for part in ("train", "test"):
        write_photos(root / "own" / part)
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
        ("photos", {}, "name = 'photos:' must name two classes as 'photos:ant/cat'; there are ant"),
        ("digits:3", {}, "name = 'digits:3' must name two classes as 'digits:0/9'; there are 0, 1"),
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
        ("digits", {"n_train": 7}, "n_train = 7 is odd; half of each label needs an even"),
        ("digits", {"n_test": 7}, "n_test = 7 is odd"),
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

        def __init__(self, root, train=None, download=False):
            asked.append((root, train, download))
            if not download:
                raise RuntimeError("Dataset not found. You can use download=True to download it")

    monkeypatch.setattr(data._import_datasets(), "MNIST", Mnist)
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
    with pytest.raises(OSError, match=f"image {path} cannot be read .*; replace it"):
        load("photos:ant/bee", n_train=12, n_test=12)


def test_images_of_different_size(photos):
    Image.new("RGB", (9, 9), (1, 2, 3)).save(photos / "bee" / "03.png")
    with pytest.raises(
        ValueError, match=r"photos differ in size: \[\(5, 4, 3\), \(9, 9, 3\)\]; pass"
    ):
        load("photos:ant/bee", n_train=22, n_test=2)
    assert load("photos:ant/bee", n_train=22, n_test=2, size=4).X.shape == (22, 48)


def test_blank_image(photos):
    Image.new("RGB", (4, 5), (0, 0, 0)).save(photos / "bee" / "03.png")
    with pytest.raises(ValueError, match=r"image \d+ of .photos. is all zeros .*; remove it from"):
        load("photos:ant/bee", n_train=22, n_test=2)


def test_folder_without_images(photos):
    (photos / "dog").mkdir()
    with pytest.raises(
        ValueError, match="photos needs one sub-folder of images for each class: .*dog"
    ):
        load("photos:ant/bee")
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
