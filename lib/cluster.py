"""The inverse Q = (K + λI)⁻¹ on the machines of a Dask cluster, for what one machine cannot hold.

It needs Dask: pip install 'ntk-influence[cluster]'. The workers need this package, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import dask.array as da
import numpy as np
from dask import delayed
from dask.distributed import Client, wait

from lib import check
from lib.inverse import KernelInverse

MATRICES = 3  # of n² numbers that the workers hold at a time; measured 2.5
FILLED = 60  # per cent of its memory that a worker fills before it writes to disk, as Dask is set


class ClusterInverse(KernelInverse):
    """The inverse of K + λI for K = kernel(X), in square tiles on the workers of `client`.

    It takes the place of `lib.packed.PackedInverse`: Ridge.packed(ClusterInverse(...), Y) is the
    usual model. All is float64 and Dask's own: the tiles of K come from the workers, `cholesky`
    gives L and `solve_triangular` M = L⁻¹, which stays: Q = MᵀM. The tiles that a lost worker held
    are computed again by the others. `tile` is about the rows of a tile.

    The workers together hold up to three matrices: 24 n² bytes, 86 GB for n = 60,000. Dask's
    workers write to disk beyond 60 % of their memory, so together they need 144 GB for that. Raises
    `MemoryError` before it starts where their limits are below, and `ValueError` if K + λI is
    singular to working precision.

    >>> from dask.distributed import Client
    >>> from lib.kernel import ntk
    >>> with Client(processes=False, dashboard_address=None) as client:
    ...     Q = ClusterInverse(ntk, np.eye(2), 0.5, client)
    ...     Q.diagonal().tolist(), (Q @ np.array([1.0, -1.0])).tolist()
    ([1.0, 1.0], [1.0, -1.0])
    """

    def __init__(self, kernel: Callable, X, lam: float, client: Client, *, tile: int = 2000):
        super().__init__(kernel, X, lam)
        self.client, n = client, len(self.X)
        _room(client, n)
        count = math.ceil(n / check.integer("tile", tile))
        size = math.ceil(n / count)  # Dask wants tiles of one size: the last has points that
        parts = [delayed(self.X[i * size : (i + 1) * size]) for i in range(count)]  # do not exist
        make = delayed(_tile, pure=True)

        def block(i: int, j: int) -> da.Array:
            tile = make(kernel, parts[i], parts[j], i == j, self.lam, size)
            return da.from_delayed(tile, (size, size), float)

        A = da.block([[block(i, j) for j in range(count)] for i in range(count)])
        L = self._keep(da.linalg.cholesky(A, lower=True))
        M = da.linalg.solve_triangular(L, da.eye(len(A), chunks=size), lower=True)
        self._M = self._keep(M)[:n, :n]
        traces = (self.kernel_diagonal().sum() + n * self.lam) * self.diagonal().sum()
        if not n * np.finfo(float).eps * traces <= 1:  # their product is above the condition number
            raise ValueError(self._singular)

    @property
    def _singular(self) -> str:
        return (
            f"K + lam I with lam = {self.lam:g} is singular to working precision; choose a larger "
            "lam, or remove duplicates"
        )

    def _keep(self, x: da.Array) -> da.Array:
        """Return x as tiles that are there, on the workers."""
        x = self.client.persist(x)
        wait(x)
        try:
            self._get(x[-1:, -1:])  # which depends on every other, and raises their errors
        except np.linalg.LinAlgError as error:
            raise ValueError(self._singular) from error
        return x

    def _get(self, x: da.Array) -> np.ndarray:
        return self.client.compute(x, sync=True)

    def __matmul__(self, b: np.ndarray) -> np.ndarray:
        chunks = (self._M.chunks[1], *b.shape[1:])
        return self._get(self._M.T @ (self._M @ da.from_array(b, chunks=chunks)))

    solve = __matmul__

    def diagonal(self) -> np.ndarray:
        return self._get((self._M**2).sum(axis=0))

    def rows(self, index) -> np.ndarray:
        return self._get(self._M[:, np.atleast_1d(index)].T @ self._M)

    def off_diagonal(self) -> np.ndarray:
        Q = self._M.T @ self._M  # tile by tile, and only while it is summed
        outside = (1 - da.eye(len(Q), chunks=Q.chunks[0][0])).rechunk(Q.chunks)
        return self._get(((Q * outside) ** 2).sum(axis=1))


def _tile(kernel, A: np.ndarray, B: np.ndarray, own: bool, lam: float, size: int) -> np.ndarray:
    """One tile of K + λI; rows and columns of points that do not exist are those of I."""
    tile = np.eye(size) if own else np.zeros((size, size))
    K = kernel(A) if own else kernel(A, B)
    tile[: len(A), : len(B)] = K + lam * np.eye(len(A)) if own else K
    return tile


def reach(memory: float) -> int:
    """Return the most points whose inverse workers of so many bytes together hold in memory.

    >>> reach(144e9)
    60000
    """
    return math.isqrt(int(memory) * FILLED // (100 * 8 * MATRICES))


def _room(client: Client, n: int) -> None:
    """Raise `MemoryError` if the workers together may not hold what n points need."""
    limits = client.run(lambda dask_worker: dask_worker.memory_manager.memory_limit)
    if not limits:
        raise ValueError("client has no workers; start them, or call client.wait_for_workers(1)")
    if None in limits.values():
        return
    total = sum(limits.values())
    if n > reach(total):
        raise MemoryError(
            f"the inverse of {n} points needs {8e-9 * MATRICES * n * n:.1f} GB, but the "
            f"{len(limits)} workers hold {1e-11 * FILLED * total:.1f} together before they write "
            f"to disk, at {FILLED} % of their memory; add workers, or pass a folder to "
            "lib.packed.PackedInverse"
        )
