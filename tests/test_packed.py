"""The packed inverse against the dense one, through every interruption; streaming against all."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import packed as module
from lib.inverse import Inverse
from lib.kernel import ntk
from lib.packed import PackedInverse
from lib.ridge import Ridge
from lib.stream import stream
from tests.cases import labels, near, unit_points

N, LAM = 100, 0.5
TILES = [1, 7, 33, 50, 99, 100, 101]  # one point a tile, uneven ends, one tile
QUIET = {"progress": False}
PRECISE = {"float64": 1e-13, "float32": 1e-5}


@pytest.fixture(scope="module")
def X():
    return unit_points(N, 9)


@pytest.fixture(scope="module")
def dense(X):
    return Inverse(ntk(X), LAM)


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("where", ["memory", "folder"])
def test_it_is_the_dense_inverse(X, dense, tile, dtype, where, tmp_path):
    if tile == 1 and where == "folder":
        pytest.skip("5050 files")
    folder = tmp_path / "tiles" if where == "folder" else None
    Q = PackedInverse(ntk, X, LAM, tile=tile, dtype=dtype, folder=folder, **QUIET)
    close = PRECISE[dtype]
    b = np.random.default_rng(0).standard_normal((N, 3))
    for given in (b, b[:, 0]):
        near(Q @ given, dense @ given, 10 * close)
        near(Q.solve(given), dense @ given, 1e-10)
    near(Q.diagonal(), dense.diagonal(), close)
    for group in ([0], [99, 3, 50], np.arange(N)):
        near(Q.rows(group), dense.rows(group), close)
        near(Q.block(group), dense.block(group), close)
    near(Q.off_diagonal(), dense.off_diagonal(), close)
    near(Q.largest(), dense.largest(), 10 * close)
    np.testing.assert_array_equal(Q.kernel_diagonal(), np.full(N, 0.5))


def test_every_tile_is_written_once_a_stage(X, monkeypatch):
    written = []
    put = module._Memory.put

    def count(self, i, j, stage, tile):
        written.append((i, j, stage))
        put(self, i, j, stage, tile)

    monkeypatch.setattr(module._Memory, "put", count)
    PackedInverse(ntk, X, LAM, tile=30, **QUIET)
    assert len(written) == len(set(written)) == 3 * 10  # three stages of the ten tiles


def test_refinement_mends_what_float32_loses(X, dense):
    Q = PackedInverse(ntk, X, LAM, tile=30, dtype="float32", **QUIET)
    b = np.ones(N)
    rough, fine = (np.abs(x - dense @ b).max() for x in (Q @ b, Q.solve(b)))
    assert rough > 1e-8 and fine < 1e-12


def test_a_matrix_that_is_not_positive_definite_is_named(X):
    twice = np.vstack([X, X[:1]])
    with pytest.raises(ValueError, match="lam = 0 is not positive definite in float32.*float64"):
        PackedInverse(ntk, twice, 0.0, tile=30, **QUIET)


def test_refinement_that_cannot_converge_says_so(X):
    Q = PackedInverse(ntk, X, LAM, tile=30, **QUIET)
    Q.lam = 50.0  # not that of the tiles
    with pytest.raises(RuntimeError, match="does not converge with lam = 50; choose"):
        Q.solve(np.ones(N))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"tile": 0}, ValueError, "tile"),
        ({"dtype": "float16"}, ValueError, "dtype must be"),
        ({"lam": -1.0}, ValueError, "lam"),
        ({"device": "abacus"}, ValueError, "device = 'abacus' is not at hand"),
    ],
)
def test_bad_input(X, change, error, match):
    with pytest.raises(error, match=match):
        PackedInverse(**({"kernel": ntk, "X": X, "lam": LAM} | QUIET | change))


def test_too_little_memory_is_told_before_it_starts(X, monkeypatch):
    monkeypatch.setattr(module, "_free_memory", lambda: 100)
    monkeypatch.setattr(PackedInverse, "_kernel", lambda *_: pytest.fail("it has started"))
    with pytest.raises(MemoryError, match="needs .* GB of memory, but .* are free on cpu; pass a"):
        PackedInverse(ntk, X, LAM, **QUIET)


def test_too_little_disk_is_told_before_it_starts(X, tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 100})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: full)
    monkeypatch.setattr(PackedInverse, "_kernel", lambda *_: pytest.fail("it has started"))
    with pytest.raises(OSError, match=f"free in {re.escape(str(tmp_path))}; choose a folder"):
        PackedInverse(ntk, X, LAM, folder=tmp_path, **QUIET)


def test_a_folder_of_another_setting_is_refused(X, tmp_path):
    PackedInverse(ntk, X, LAM, folder=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="lam is 0.5 in the file and 1.0 here"):
        PackedInverse(ntk, X, 1.0, folder=tmp_path, **QUIET)


SLOW = """
import sys, time
import numpy as np
from lib import packed as module
from lib.kernel import ntk

put = module._Folder.put

def slow(self, *tile):
    put(self, *tile)
    time.sleep(0.02)

module._Folder.put = slow
module.PackedInverse(ntk, np.load(sys.argv[1]), 0.5, tile=20, folder=sys.argv[2])
"""


@pytest.mark.parametrize("after", [3, 20, 35])  # tiles: in each of the three stages
def test_killed_at_any_stage_it_goes_on_and_ends_in_the_same_bits(X, tmp_path, after, monkeypatch):
    np.save(tmp_path / "X.npy", X)
    folder, calls = tmp_path / "tiles", []
    run = subprocess.Popen(
        [sys.executable, "-c", SLOW, tmp_path / "X.npy", folder],
        cwd=Path(module.__file__).parents[1], stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def done():
        return sum(1 + int(file.stem[-1]) for file in folder.glob("?-?-?.npy"))

    deadline = time.monotonic() + 60
    while not folder.exists() or done() < after:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    (folder / "tile.part").write_bytes(b"torn")
    put = module._Folder.put

    def count(self, *tile):
        calls.append(tile[:3])
        put(self, *tile)

    monkeypatch.setattr(module._Folder, "put", count)
    Q = PackedInverse(ntk, X, LAM, tile=20, folder=folder, **QUIET)
    assert 0 < len(calls) <= 45 - after
    straight = PackedInverse(ntk, X, LAM, tile=20, **QUIET)
    np.testing.assert_array_equal(Q.rows(np.arange(N)), straight.rows(np.arange(N)))


@pytest.mark.parametrize("c", [None, 3])
def test_ridge_regression_of_a_packed_inverse(X, c):
    rng = np.random.default_rng(0)
    Y, K, k = labels(rng, N, c), ntk(X), ntk(X, unit_points(5, 9, seed=1))
    y_te = labels(rng, 5, c)
    one = Ridge(K, Y, LAM)
    other = Ridge.packed(PackedInverse(ntk, X, LAM, tile=30, **QUIET), Y)
    near(other.beta, one.beta, 1e-10)
    near(other.h, one.h, 1e-5)
    near(other.influence(k, y_te).exact, one.influence(k, y_te).exact, 1e-4)
    near(other.remove([[0, 50], 7], k), one.remove([[0, 50], 7], k), 1e-4)


@pytest.mark.parametrize("block", [1, 3, 10, 100])
def test_streamed_influence_is_that_of_all_pairs(X, block, tmp_path):
    rng = np.random.default_rng(0)
    X_te, Y, y_te = unit_points(10, 9, seed=1), labels(rng, N, 3), labels(rng, 10, 3)
    model = Ridge(ntk(X), Y, LAM)
    influence = model.influence(ntk(X, X_te), y_te)
    I, file = influence.exact, tmp_path / "all.npy"
    kept = stream(model, ntk, X, X_te, y_te, top=4, block=block, file=file, **QUIET)
    np.testing.assert_array_equal(kept.helpful, np.argsort(-I, axis=0)[:4].T)
    np.testing.assert_array_equal(kept.harmful, np.argsort(I, axis=0)[:4].T)
    near(kept.helps, np.sort(-I, axis=0)[:4].T * -1, 1e-12)
    near(kept.harms, np.sort(I, axis=0)[:4].T, 1e-12)
    near(kept.mean, I.mean(axis=1), 1e-12)
    near(kept.f, influence.f, 1e-12)
    near(np.load(file, mmap_mode="r"), I, 1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", PRECISE)
def test_on_a_gpu(X, dense, dtype):
    Q = PackedInverse(ntk, X, LAM, tile=30, dtype=dtype, device="cuda", **QUIET)
    near(Q.diagonal(), dense.diagonal(), PRECISE[dtype])
    near(Q.solve(np.ones(N)), dense @ np.ones(N), 1e-10)
