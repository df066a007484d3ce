"""The inverse Q = (K + λI)⁻¹ in half the memory, for tens of thousands of points.

A symmetric matrix needs n(n + 1)/2 numbers. Here its lower triangle is cut into square tiles, and
two passes over them, each in place, turn K + λI into its Cholesky factor L and into M = L⁻¹. Then
Q = MᵀM, and Qb = Mᵀ(Mb) costs no more than a product with Q itself, whose n³/3 operations are
saved. A pass writes every tile once, so a tile is in one of three stages, and work that was cut
short goes on with the first tile that is behind. The cost is 2n³/3 multiplications and additions,
nearly all of them in products of tiles.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lib import check
from lib.inverse import STEPS, KernelInverse, lanczos
from lib.journal import Journal, OtherSetting

ROUNDS = 10  # of refinement, at most
WORK = 3  # tiles beside those that are kept
BLOCK = 500  # columns that go through a product at a time, for instance of test points
ARRAYS = 7  # (n, BLOCK) in float64, at most, while `lib.stream.stream` takes a block: measured 6.5


class PackedInverse(KernelInverse):
    """The inverse of K + λI for K = kernel(X), as tiles in memory or in a folder.

    It has the methods of `lib.inverse.Inverse`, and `solve`, which refines. X (n, d) and
    `kernel(X, X2, dtype=...)`, for instance `lib.kernel.ntk`, take the place of K, which is made
    tile by tile, and again where K itself is needed. `dtype` is "float32" or "float64", `tile` the
    rows of a tile, `device` where they are computed and, without a `folder`, kept. In a `folder`
    every tile is a file, written in one step: the same call goes on after an interruption. Larger
    tiles are read less often, which a slow disk or a GPU may want.

    Memory or disk: n(n + tile)/2 numbers, 7.3 GB for n = 60,000 in float32. Beside these, memory
    holds a few tiles, and the n × 500 numbers of products with a block of test points, seven times.
    Raises `MemoryError` or `OSError` before it starts where that is not free, naming what is
    needed; `ValueError` if K + λI is not positive definite in this `dtype`, and for a folder of
    another setting. Source: left-looking tiled algorithms, as in Agullo et al. (2009).

    >>> from lib.kernel import ntk
    >>> Q = PackedInverse(ntk, np.eye(2), lam=0.5, dtype="float64", progress=False)
    >>> Q.diagonal().tolist(), (Q @ np.array([1.0, -1.0])).tolist(), Q.block([1]).tolist()
    ([1.0, 1.0], [1.0, -1.0], [[1.0]])
    """

    def __init__(
        self, kernel: Callable, X, lam: float, *, dtype: str = "float32", tile: int = 1000,
        folder: str | Path | None = None, device="cpu", progress: bool = True,
    ):  # fmt: skip
        super().__init__(kernel, X, lam)
        self.dtype, self.progress = dtype, progress
        self._float, self.device = check.precision(dtype), check.device(device)
        n, tile = len(self.X), check.integer("tile", tile)
        self.parts = [slice(i, min(i + tile, n)) for i in range(0, n, tile)]
        sizes = [part.stop - part.start for part in self.parts]
        kept = sum(a * sum(sizes[: i + 1]) for i, a in enumerate(sizes))
        size = self._float.itemsize
        work = WORK * size * sizes[0] ** 2 + 8 * ARRAYS * n * BLOCK
        self._tiles = _Folder(Path(folder), self._header(tile)) if folder else _Memory()
        with self._tiles.lock():
            try:
                self._tiles.room(size * kept, work, size * sizes[0] ** 2, dtype, self.device)
                self._make()
            except BaseException:
                self._tiles.leave()
                raise

    def _make(self) -> None:
        """Do all tasks, or those that are left."""
        tasks = list(self._tasks())
        behind = [task for task in tasks if self._tiles.stage(*task[1:3]) < task[0]]
        if behind != tasks[len(tasks) - len(behind) :]:
            folder = self._tiles.folder
            raise ValueError(f"a tile is missing; delete the folder {folder} and call again")
        total, left = (sum(cost for *_, cost in some) for some in (tasks, behind))
        with self._bar("inverse", total, initial=total - left) as bar:
            for stage, i, j, make, cost in behind:
                self._tiles.put(i, j, stage, make(i, j))
                bar.update(cost)

    def _bar(self, what: str, total: int, **how) -> tqdm:
        return tqdm(total=total, desc=what, disable=not self.progress, smoothing=0, **how)

    def _header(self, tile: int) -> dict:
        digest = sha256(self.X.tobytes()).hexdigest()[:16]
        values = self.kernel(self.X[:3], self.X[-3:])  # a name would not tell what a closure holds
        setting = {"X": f"{self.X.shape} {digest}", "kernel": np.round(values, 6).tolist()}
        setting |= {"lam": self.lam, "tile": tile, "dtype": self.dtype}
        return {"format": "lib.packed 2", **setting}

    def _tasks(self) -> Iterator[tuple[int, int, int, Callable, int]]:
        """Each tile at each stage, in an order in which a pass overwrites what it no longer needs.

        Given are the stage, the tile, what makes it, and the products of tiles that this takes.
        """
        count = len(self.parts)
        rows = [(i, j) for i in range(count) for j in range(i + 1)]
        yield from ((0, i, j, self._kernel, 1) for i, j in rows)
        columns = sorted(rows, key=lambda pair: pair[::-1])
        yield from ((1, i, j, self._factor, j + 1) for i, j in columns)
        yield from ((2, i, j, self._invert_factor, i - j + 1) for i, j in rows)

    def _kernel(self, i: int, j: int) -> torch.Tensor:
        """K_ij, and λ on the diagonal."""
        K = self._of(i, j, self.dtype)
        if i == j:
            K.diagonal().add_(self.lam)
        return K

    def _factor(self, i: int, j: int) -> torch.Tensor:
        """L_ij from A_ij = Σ_{k≤j} L_ik L_jkᵀ."""
        A, t = self._tile(i, j), self._tile
        least = 16 * torch.finfo(A.dtype).eps * float(A.diagonal().max())  # of a pivot
        for k in range(j):
            A.addmm_(t(i, k), t(j, k).T, alpha=-1)
        if i > j:
            return torch.linalg.solve_triangular(t(j, j), A.T, upper=False).T.contiguous()
        L, info = torch.linalg.cholesky_ex(A)
        lost = (L.diagonal() ** 2 < least).nonzero().flatten()
        if info or len(lost):
            point = self.parts[i].start + (int(info) - 1 if info else int(lost[0]))
            raise ValueError(
                f"K + lam I with lam = {self.lam:g} is not positive definite in {self.dtype}, as "
                f"training point {point} shows; choose dtype='float64', a larger lam, or remove "
                "duplicates"
            )
        return L

    def _invert_factor(self, i: int, j: int) -> torch.Tensor:
        """M_ij = −L_ii⁻¹ Σ_{j≤k<i} L_ik M_kj, and M_ii = L_ii⁻¹."""
        t, L = self._tile, self._tile(i, i)
        if i == j:
            return torch.linalg.solve_triangular(
                L, torch.eye(len(L), dtype=L.dtype, device=L.device), upper=False
            )
        total = t(i, j) @ t(j, j)
        for k in range(j + 1, i):
            total.addmm_(t(i, k), t(k, j))
        return -torch.linalg.solve_triangular(L, total, upper=False)

    def _tile(self, i: int, j: int) -> torch.Tensor:
        return self._tiles.get(i, j).to(self.device)

    def _each(self) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Rows, columns and the tile M_ij itself, of the lower triangle, row by row."""
        for i, rows in enumerate(self.parts):
            for j, columns in enumerate(self.parts[: i + 1]):
                yield rows, columns, self._tile(i, j)

    def __matmul__(self, b: np.ndarray) -> np.ndarray:
        B = torch.as_tensor(b.reshape(len(b), -1), dtype=self._float, device=self.device)
        out = torch.zeros(B.shape, dtype=torch.float64, device=self.device)
        for i in range(len(self.parts)):
            tiles = [(columns, self._tile(i, j)) for j, columns in enumerate(self.parts[: i + 1])]
            MB = sum((M @ B[columns]).double() for columns, M in tiles).to(self._float)
            for columns, M in tiles:
                out[columns] += M.T @ MB
        return out.cpu().numpy().reshape(b.shape)

    def solve(self, b: np.ndarray, tol: float = 1e-11) -> np.ndarray:
        """Return (K + λI)⁻¹b for b (n,) or (n, t), refined to a relative error of about `tol`.

        A round adds Q(b − (K + λI)x), with the residual in float64 from a kernel computed again. It
        divides the error by about 1/(ε κ), κ the condition number and ε the precision of `dtype`.
        The rounds end when the next would change x by less than `tol`, if it gains as much as the
        last one. Raises `RuntimeError` if that does not converge.
        """
        x = self @ b
        before = np.abs(x).max()
        for k in range(ROUNDS):
            with self._bar(f"refinement {k + 1}", len(self.parts) ** 2) as bar:
                change = self @ (b - self.times_kernel(x, bar.update) - self.lam * x)
            x += change
            size = np.abs(change).max()
            if size * min(size, before) <= tol * np.abs(x).max() * before:
                return x
            before = size
        raise RuntimeError(
            f"refinement in {self.dtype} does not converge with lam = {self.lam:g}; choose "
            "dtype='float64' or a larger lam"
        )

    def largest(self) -> float:
        with self._bar("largest eigenvalue", min(STEPS, len(self.X))) as bar:

            def times(v: np.ndarray) -> np.ndarray:
                bar.update()
                return self @ v

            return lanczos(times, len(self.X))

    def times_kernel(self, x: np.ndarray, done: Callable = lambda tiles: None) -> np.ndarray:
        """K x in float64, block by block, for x (n,) or (n, t); `done` hears of tiles of K."""
        B = torch.as_tensor(x.reshape(len(x), -1), dtype=torch.float64, device=self.device)
        out = torch.zeros_like(B)
        for i, rows in enumerate(self.parts):
            for j, columns in enumerate(self.parts[: i + 1]):
                K = self._of(i, j, "float64")
                out[rows] += K @ B[columns]
                if i != j:
                    out[columns] += K.T @ B[rows]
                done(1 + (i != j))
        return out.cpu().numpy().reshape(x.shape)

    def _of(self, i: int, j: int, dtype: str) -> torch.Tensor:
        """K_ij; a GPU makes it itself."""
        A, B = (self.X[self.parts[k]] for k in (i, j))
        if self.device.type != "cpu":
            A, B = (torch.as_tensor(x, device=self.device) for x in (A, B))
        K = self.kernel(A, dtype=dtype) if i == j else self.kernel(A, B, dtype=dtype)
        return torch.as_tensor(K, device=self.device)

    def diagonal(self) -> np.ndarray:
        squares = np.zeros(len(self.X))
        for _, columns, M in self._each():
            norms = torch.linalg.vector_norm(M, dim=0, dtype=torch.float64)
            squares[columns] += (norms**2).cpu().numpy()
        return squares

    def rows(self, index) -> np.ndarray:
        index = np.atleast_1d(index)
        unit = np.zeros((len(self.X), len(index)))
        unit[index, np.arange(len(index))] = 1
        return (self @ unit).T

    def block(self, index) -> np.ndarray:
        index = np.atleast_1d(index)
        C = np.zeros((len(self.X), len(index)))  # these columns of M
        for j, own in enumerate(self.parts):
            here = np.flatnonzero((index >= own.start) & (index < own.stop))
            for i in range(j, len(self.parts)) if len(here) else ():
                M = self._tile(i, j)[:, index[here] - own.start]
                C[self.parts[i], here] = M.double().cpu().numpy()
        return C.T @ C

    def off_diagonal(self) -> np.ndarray:
        """Σ_{j≠i} Q_ij², (n,), from tiles of Q that are made and dropped: n³/3 operations."""
        squares, count = np.zeros(len(self.X)), len(self.parts)
        for i, rows in enumerate(self.parts):
            for j, columns in enumerate(self.parts[: i + 1]):
                S = sum(self._tile(k, i).T @ self._tile(k, j) for k in range(i, count)).double()
                S **= 2
                if i == j:
                    S.fill_diagonal_(0)
                else:
                    squares[columns] += S.sum(dim=0).cpu().numpy()
                squares[rows] += S.sum(dim=1).cpu().numpy()
        return squares


class _Memory:
    """Tiles in memory, each with its stage; in one piece, so that work leaves no gaps between."""

    lock = nullcontext

    def __init__(self):
        self._kept: dict = {}
        self._end = 0

    def room(self, kept: int, work: int, tile: int, dtype: str, device: torch.device) -> None:
        remedy = "pass a folder on a disk, or fewer points"
        room(f"the inverse in {dtype}", kept + work, remedy, device)
        dtype = getattr(torch, dtype)
        self._all = torch.empty(kept // dtype.itemsize, dtype=dtype, device=device)

    def leave(self) -> None:
        """Give nothing back: there is no folder."""

    def stage(self, i: int, j: int) -> int:
        return self._kept.get((i, j), (-1, None))[0]

    def put(self, i: int, j: int, stage: int, tile: torch.Tensor) -> None:
        if (i, j) in self._kept:
            place = self.get(i, j)
        else:
            begin, self._end = self._end, self._end + tile.numel()
            place = self._all[begin : self._end].view(tile.shape)
        self._kept[i, j] = stage, place.copy_(tile)

    def get(self, i: int, j: int) -> torch.Tensor:
        return self._kept[i, j][1]


class _Folder:
    """Tiles in a folder, the file i-j-stage.npy each; a journal says of which setting they are."""

    def __init__(self, folder: Path, header: dict):
        self.folder, self.header, self.found, self.new = folder, header, {}, not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)

    def lock(self) -> Journal:
        """Return what keeps other processes, and other settings, out of the folder."""
        try:
            journal = Journal(self.folder / "setting.jsonl", self.header)
        except OtherSetting as error:
            words = [
                f"{k} is {there!r} in the file and {here!r} here" if len(f"{there}{here}") < 40
                else f"{k} differs"  # digests, and values of the kernel
                for k, (there, here) in error.differ.items()
            ]  # fmt: skip
            raise OtherSetting(
                f"the tiles in {self.folder} are of another setting: {', '.join(words)}; choose "
                f"another folder, or delete {self.folder}",
                error.differ,
            ) from error
        except ValueError as error:
            raise ValueError(f"{error}, or delete the folder {self.folder}") from error
        if not journal.results:
            journal.append({"tiles": "i-j-stage.npy"})
        return journal

    def room(self, kept: int, work: int, tile: int, dtype: str, device: torch.device) -> None:
        for file in self.folder.glob("*-*-*.npy"):
            if re.fullmatch(r"\d+-\d+-[012]", file.stem):  # all others are not ours
                i, j, stage = map(int, file.stem.split("-"))
                self.found[i, j] = max(stage, self.stage(i, j))
        for tiles, stage in self.found.items():
            self.get(*tiles)
            for old in range(stage):  # it may have been stopped before it removed this
                self._file(*tiles, old).unlink(missing_ok=True)
        there = sum(self._file(*ij, k).stat().st_size for ij, k in self.found.items())
        need, free = kept + tile, shutil.disk_usage(self.folder).free + there
        if need > free:
            raise OSError(
                f"the inverse in {dtype} needs {need / 1e9:.1f} GB, but {free / 1e9:.1f} GB are "
                f"free in {self.folder}; choose a folder on another disk, or fewer points"
            )
        what = "the inverse, beside its tiles on the disk,"
        room(what, work, "choose fewer points or a smaller tile", device)

    def leave(self) -> None:
        """Remove the folder if it has no tile yet, so that it hinders no other setting."""
        if not list(self.folder.glob("*-*-[012].npy")):
            (self.folder / "tile.part").unlink(missing_ok=True)
            (self.folder / "setting.jsonl").unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir() if self.new else None

    def stage(self, i: int, j: int) -> int:
        return self.found.get((i, j), -1)

    def put(self, i: int, j: int, stage: int, tile: torch.Tensor) -> None:
        part = self.folder / "tile.part"
        with part.open("wb") as file:
            np.save(file, tile.contiguous().cpu().numpy())
            os.fsync(file.fileno())
        part.replace(self._file(i, j, stage))
        self._file(i, j, self.stage(i, j)).unlink(missing_ok=True)
        self.found[i, j] = stage

    def get(self, i: int, j: int) -> torch.Tensor:
        file = self._file(i, j, self.stage(i, j))
        try:
            return torch.from_numpy(np.load(file, mmap_mode="c"))  # changes stay in memory
        except (OSError, ValueError, EOFError) as error:
            raise OSError(
                f"the tile {file} cannot be read ({error}), and the others need it; delete the "
                f"folder {self.folder} and make the inverse again"
            ) from error

    def _file(self, i: int, j: int, stage: int) -> Path:
        return self.folder / f"{i}-{j}-{stage}.npy"


def room(what: str, need: float, remedy: str, device: torch.device | None = None) -> None:
    """Raise `MemoryError` if so many bytes of memory are not free."""
    on_gpu = device is not None and device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else free_memory()
    if need > free:
        where = f" on {device}" if device else ""
        raise MemoryError(
            f"{what} needs {need / 1e9:.1f} GB of memory, but {free / 1e9:.1f} are free{where}; "
            f"{remedy}"
        )


def free_memory(proc=Path("/proc"), groups=Path("/sys/fs/cgroup")) -> int:
    """Return how much memory is free, or taken by what the system drops when it is needed.

    It is no more than what the control groups of this process leave, of either version.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        free = 1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    own = proc / "self" / "cgroup"
    names = {
        "": ("memory.max", "memory.current", "inactive_file"),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    for _, kind, path in re.findall("(.*?):(.*?):(.*)", own.read_text() if own.is_file() else ""):
        group = groups / kind / path.lstrip("/")
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError, KeyError):  # no such file, or no limit
                limit, used, cache = names[kind]
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
                rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                free = min(free, most - taken + int(dict(rows)[cache]))
    return max(0, free)
