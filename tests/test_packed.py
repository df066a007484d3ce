"""The packed inverse against the dense one, through every interruption; streaming against all."""

import functools
import re
import shutil
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
from lib.journal import OtherSetting
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


# by hand: tiles of 30, 30, 30 and 10 rows, and while it works three tiles of 30 by 30, and seven
# arrays of 100 by 500 numbers in float64 for a block of test points
KEPT = 30 * 30 + 30 * 60 + 30 * 90 + 10 * 100
BESIDE = {"float64": 8 * 3 * 900 + 8 * 7 * 100 * 500, "float32": 4 * 3 * 900 + 8 * 7 * 100 * 500}
NEEDS = {
    "memory": {"float64": 8 * KEPT + BESIDE["float64"], "float32": 4 * KEPT + BESIDE["float32"]},
    "disk": {"float64": 8 * (KEPT + 900), "float32": 4 * (KEPT + 900)},  # a new tile beside the old
}


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("kind", ["memory", "memory beside a disk", "disk"])
def test_too_little_room_is_told_before_it_starts(X, tmp_path, monkeypatch, kind, dtype):
    folder, device = (None if kind == "memory" else tmp_path / "tiles"), " on cpu"
    need = BESIDE[dtype] if "beside" in kind else NEEDS[kind][dtype]
    error, words = {
        "memory": (MemoryError, f"in {dtype} needs .* GB of memory, but .* are free{device}; pass"),
        "memory beside a disk": (MemoryError, "beside its tiles .* GB of memory, but .*fewer poin"),
        "disk": (OSError, f"in {dtype} needs .* free in {re.escape(str(folder))}; choose a fold"),
    }[kind]
    usage = type("Usage", (), {"free": need if kind == "disk" else 10**12})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage)
    memory = [10**12 if kind == "disk" else need]
    monkeypatch.setattr(module, "free_memory", lambda: memory[0])
    assert tiles(X, folder, dtype=dtype).diagonal().min() > 0  # so much will do
    if folder:
        shutil.rmtree(folder)
    memory[0], usage.free = memory[0] - 1, usage.free - 1
    monkeypatch.setattr(PackedInverse, "_kernel", lambda *_: pytest.fail("it has started"))
    with pytest.raises(error, match=words):
        tiles(X, folder, dtype=dtype)
    assert not list(tmp_path.iterdir())  # not even a setting, which would refuse another one


def test_a_folder_without_a_tile_hinders_no_other_setting(X, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "tiles", tmp_path / "mine"):
        with monkeypatch.context() as patch:
            patch.setattr(PackedInverse, "_kernel", stop)
            with pytest.raises(KeyboardInterrupt):
                tiles(X, folder)
        assert folder.exists() == (folder.name == "mine")
        assert tiles(X, folder, lam=1.0).lam == 1


def test_a_folder_of_another_setting_is_refused(X, tmp_path):
    PackedInverse(ntk, X, LAM, folder=tmp_path, **QUIET)
    words = (
        f"^the tiles in {tmp_path} are of another setting: lam is 0.5 in the file and 1.0 here; "
    )
    with pytest.raises(OtherSetting, match=f"{words}choose another folder, or delete {tmp_path}$"):
        PackedInverse(ntk, X, 1.0, folder=tmp_path, **QUIET)
    words = "another setting: X differs, kernel differs; choose"
    with pytest.raises(OtherSetting, match=words):
        PackedInverse(ntk, X[::-1], LAM, folder=tmp_path, **QUIET)


def tiles(X, folder, **changes):
    given = {"kernel": ntk, "X": X, "lam": LAM, "tile": 30, "folder": folder} | QUIET
    return PackedInverse(**given | changes)


def test_a_folder_is_free_again_when_its_tiles_are_there(X, tmp_path, monkeypatch):
    first = tiles(X, tmp_path)
    near(tiles(X, tmp_path).diagonal(), first.diagonal(), 0.1)

    def busy(self, *task):
        with pytest.raises(BlockingIOError, match="another run is writing to it"):
            tiles(X, tmp_path / "new")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PackedInverse, "_kernel", busy)
        with pytest.raises(KeyboardInterrupt) as stopped:  # which keeps what it came through alive
            tiles(X, tmp_path / "new")
    assert tiles(X, tmp_path / "new") and stopped
    full = type("Usage", (), {"free": 100})
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda folder: full)
        with pytest.raises(OSError) as refused:
            tiles(X, tmp_path / "newer")
    assert tiles(X, tmp_path / "newer") and refused


def test_other_files_in_the_folder_stay_and_matter_not(X, tmp_path):
    other = ["notes-x-y.npy", "1-2-3.npy", "0-0-2-old.npy", "a-b-c-d.npy"]
    for name in other:
        (tmp_path / name).write_text("mine")
    first, again = tiles(X, tmp_path), tiles(X, tmp_path)
    np.testing.assert_array_equal(first.diagonal(), again.diagonal())
    assert all((tmp_path / name).read_text() == "mine" for name in other)


def test_a_tile_of_an_earlier_stage_does_not_stay(X, tmp_path):
    first, old = tiles(X, tmp_path), [tmp_path / name for name in ("0-0-0.npy", "1-0-1.npy")]
    files = sorted(tmp_path.iterdir())
    for file in old:  # as if it had been killed before it removed them
        shutil.copy(tmp_path / f"{file.stem[:3]}-2.npy", file)
    np.testing.assert_array_equal(tiles(X, tmp_path).diagonal(), first.diagonal())
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize("left", [0, 1, 60, 150, -1])
def test_a_damaged_tile_is_named(X, tmp_path, left):
    Q = tiles(X, tmp_path)
    file = tmp_path / "1-0-2.npy"
    file.write_bytes(file.read_bytes()[:left])
    for use in (lambda: tiles(X, tmp_path), Q.diagonal):
        with pytest.raises(OSError, match=f"tile {file} cannot be read .*; delete the folder"):
            use()
    file.unlink()
    with pytest.raises(OSError, match=f"tile {file} cannot be read .*; delete the folder"):
        Q.diagonal()
    with pytest.raises(ValueError, match=f"a tile is missing; delete the folder {tmp_path}"):
        tiles(X, tmp_path)  # made again it would not be that of the others, which have moved on


def scaled(A, B=None, dtype="float64", by=0.5):
    return by * ntk(A, B, dtype=dtype)


def test_a_kernel_is_known_by_its_values(X, tmp_path):
    half = functools.partial(scaled, by=0.5)
    first = tiles(X, tmp_path, kernel=half)
    again = tiles(X, tmp_path, kernel=lambda *A, dtype="float64": half(*A, dtype=dtype))
    np.testing.assert_array_equal(first.diagonal(), again.diagonal())
    with pytest.raises(ValueError, match="another setting: kernel differs"):
        tiles(X, tmp_path, kernel=functools.partial(scaled, by=0.6))


@pytest.mark.parametrize(
    ("cgroup", "files", "free"),
    [
        (None, {}, 8e6),
        ("0::/a/b", {"a/b/memory.max": "max"}, 8e6),
        ("0::/a/b", {"a/b/memory.max": 5e6, "a/b/memory.current": 1e6}, 4e6),
        ("0::/a/b", {"a/memory.max": 5e6, "a/memory.current": 2e6, "a/b/memory.max": "max"}, 3e6),
        ("0::/", {"memory.max": 5e6, "memory.current": 6e6}, 0),
        ("0::/a", {"a/memory.max": 9e6, "a/memory.current": 0}, 8e6),
        ("0::/a", {"a/memory.max": 5e6, "a/memory.current": 4e6, "cache": 3e6}, 4e6),
        ("4:memory:/a\n1:cpu:/b", {"memory/memory.limit_in_bytes": 5e6,
                                   "memory/memory.usage_in_bytes": 1e6}, 4e6),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": 2**63 - 4096,
                         "memory/a/memory.usage_in_bytes": 1e6}, 8e6),
    ],
)  # fmt: skip
def test_free_memory_is_what_the_control_groups_leave(tmp_path, cgroup, files, free):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 7812.5 kB\n".replace(".5", ""))
    if cgroup:
        (proc / "self" / "cgroup").write_text(cgroup + "\n")
    cache = files.pop("cache", 0) if files else 0
    for name, value in files.items():
        file = groups / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value if isinstance(value, str) else f"{int(value)}\n")
        stat = f"anon 7\ninactive_file {cache:.0f}\ntotal_inactive_file {cache:.0f}\n"
        (file.parent / "memory.stat").write_text(stat)
    assert module.free_memory(proc, groups) == pytest.approx(free, rel=1e-3)


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
        stages = {}  # of each tile; for a moment there are two files of one
        for name in sorted(file.stem for file in folder.glob("?-?-?.npy")):
            stages[name[:3]] = 1 + int(name[-1])
        return sum(stages.values())

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


@pytest.mark.parametrize("progress", [True, False])
def test_every_step_of_a_fit_has_a_bar(X, capsys, progress):
    Ridge.packed(PackedInverse(ntk, X, LAM, tile=30, progress=progress), np.ones(N))
    told = capsys.readouterr().err
    for step in ("inverse", "largest eigenvalue", "refinement 1"):
        assert (f"{step}: 100%" in told) == progress
    assert progress or not told


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
    for ihvp, rows in ((kept.helps_ihvp, kept.helpful), (kept.harms_ihvp, kept.harmful)):
        near(ihvp, np.take_along_axis(influence.ihvp, rows.T, axis=0).T, 1e-12)
    near(kept.mean, I.mean(axis=1), 1e-12)
    near(kept.f, influence.f, 1e-12)
    near(np.load(file, mmap_mode="r"), I, 1e-6)
    assert list(tmp_path.iterdir()) == [file]
    every = stream(
        model, ntk, X, X_te, y_te, top=N + 1, block=block, **QUIET
    )  # more than there are
    np.testing.assert_array_equal(every.helpful, np.argsort(-I, axis=0).T)


def test_a_stream_needs_a_model():
    with pytest.raises(TypeError, match="model must be a lib.ridge.Ridge, not .*; pass Ridge"):
        stream(np.eye(2), ntk, np.eye(2), np.eye(2), np.ones(2), **QUIET)


def test_the_file_of_all_influences_is_there_when_it_is_whole(X, tmp_path):
    model, file, calls = Ridge(ntk(X), np.ones(N), LAM), tmp_path / "all.npy", []

    def stopped(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return ntk(*given)

    file.write_text("of an earlier call")
    for _ in range(2):  # what the first leaves is no hindrance to the second
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            stream(model, stopped, X, X[:4], np.ones(4), block=2, top=1, file=file, **QUIET)
        assert file.read_text() == "of an earlier call"
    stream(model, ntk, X, X[:4], np.ones(4), block=2, top=1, file=file, **QUIET)
    near(np.load(file), model.influence(ntk(X, X[:4]), np.ones(4)).exact, 1e-6)
    assert list(tmp_path.iterdir()) == [file]


def test_the_file_of_all_influences_is_checked_before_the_work(X, tmp_path, monkeypatch):
    model = Ridge(ntk(X), np.ones(N), LAM)

    def started(*_):
        pytest.fail("it has started")

    def into(file):
        return stream(model, started, X, X[:3], np.ones(3), file=file, **QUIET)

    for name in ("all.txt", "all", ""):
        with pytest.raises(ValueError, match=f"file = .*{name}' must end in .npy"):
            into(tmp_path / name if name else "")
    with pytest.raises(FileNotFoundError, match="there is no such folder; make it"):
        into(tmp_path / "no" / "all.npy")
    need = 7 * 8 * N * 3
    monkeypatch.setattr(module, "free_memory", lambda: need - 1)
    with pytest.raises(MemoryError, match="the influence on 3 test points at a time needs .*block"):
        into(None)
    monkeypatch.setattr(module, "free_memory", lambda: need)
    full = type("Usage", (), {"free": 1199})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    (tmp_path / "all.npy.part").write_text("what an earlier call left")
    with pytest.raises(OSError, match=r"need 0.0 GB, but 0.0 are free in .*; choose a file on"):
        into(tmp_path / "all.npy")
    assert not list(tmp_path.iterdir())
    full.free = 1200
    with pytest.raises(pytest.fail.Exception):
        into(tmp_path / "all.npy")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", PRECISE)
def test_on_a_gpu(X, dense, dtype):
    Q = PackedInverse(ntk, X, LAM, tile=30, dtype=dtype, device="cuda", **QUIET)
    near(Q.diagonal(), dense.diagonal(), PRECISE[dtype])
    near(Q.solve(np.ones(N)), dense @ np.ones(N), 1e-10)


def test_rounding_to_float32_makes_no_kernel_of_duplicates_indefinite():
    X = np.repeat(unit_points(1000, 3), 2, axis=0)
    y = np.where(X[:, 0] > 0, 1.0, -1.0)
    packed = Ridge.packed(PackedInverse(ntk, X, 3e-5, progress=False), y)
    np.testing.assert_allclose(packed.h, Ridge(ntk(X), y, 3e-5).h, atol=2e-2)


def test_an_indefinite_kernel_is_refused_in_float32():
    def kernel(A, B=None, dtype="float64"):
        B = A if B is None else B
        return ((A @ B.T) - 0.5 * (np.abs(A - B.T) < 1e-9)).astype(dtype)  # −½ on the diagonal

    X = np.arange(1.0, 401)[:, None] / 400
    with pytest.raises(ValueError, match="K is not positive semidefinite"):
        Ridge.packed(PackedInverse(kernel, X, 0.6, progress=False), X[:, 0])
