"""The inverse Q = (K + λI)⁻¹ behind the few things that anyone asks of it.

Everything outside this file uses these methods alone, so another class that has them, for instance
one that holds less than n² numbers, can take the place of `Inverse`:

    Q @ b               the product with b (n,) or (n, t)
    Q.diagonal()        Q_ii, (n,)
    Q.rows(index)       the rows of a group of points, (points, n)
    Q.block(index)      the rows and columns of a group, (points, points)
    Q.off_diagonal()    Σ_{j≠i} Q_ij², (n,)
    Q.largest()         the largest eigenvalue, from below
    Q.dtype             of its products, "float64" or "float32"
    np.asarray(Q)       all of it, which nothing in this package asks for
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.linalg import blas, eigh, eigvalsh_tridiagonal, lapack

from lib import check

TILE = 256  # rows and columns of a square that fits the cache
STEPS = 20  # products for the largest eigenvalue


class Inverse:
    """The inverse of K + λI as a dense float64 array, from one Cholesky factorisation.

    K is (n, n) and symmetric, λ ≥ 0; one copy of K is made. Raises `ValueError` if K + λI is
    singular to working precision, naming two training points that depend on each other.

    >>> Q = Inverse(np.array([[0.5, 0.0], [0.0, 0.5]]), lam=0.5)
    >>> (Q @ np.array([1.0, -1.0])).tolist(), Q.diagonal().tolist(), Q.block([1]).tolist()
    ([1.0, -1.0], [1.0, 1.0], [[1.0]])
    """

    dtype = "float64"

    def __init__(self, K: np.ndarray, lam: float):
        self._Q, self.lam = _invert(K, lam), lam

    def __repr__(self) -> str:
        return f"Inverse: n = {len(self._Q)}, lam = {self.lam:g}"

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self._Q, dtype=dtype, copy=copy)

    def __matmul__(self, b: np.ndarray) -> np.ndarray:
        return times(self._Q, b)

    solve = __matmul__

    def diagonal(self) -> np.ndarray:
        return self._Q.diagonal()

    def rows(self, index) -> np.ndarray:
        return self._Q[index]

    def block(self, index) -> np.ndarray:
        return self._Q[np.ix_(index, index)]

    def off_diagonal(self) -> np.ndarray:
        """Return Σ_{j≠i} Q_ij², (n,): the squares of each row without that of its diagonal."""
        Q, squares = self._Q, np.empty(len(self._Q))
        for i in range(0, len(Q), TILE):
            here = slice(i, i + TILE)
            square = Q[here, here].copy()
            np.fill_diagonal(square, 0)  # rather than subtract Q_ii², which is much larger
            parts = Q[here, :i], square, Q[here, i + TILE :]
            squares[here] = sum(np.einsum("ij,ij->i", part, part) for part in parts)
        return squares

    def largest(self) -> float:
        return lanczos(lambda v: blas.dsymv(1.0, self._Q.T, v), len(self._Q))


class KernelInverse:
    """What the inverses of K + λI have in common that make K = kernel(X) themselves, in parts.

    X is (n, d) and copied, `kernel(X, X2)` is for instance `lib.kernel.ntk`. Theirs are `@`,
    `diagonal`, `rows` and `off_diagonal`.
    """

    dtype = "float64"

    def __init__(self, kernel: Callable, X, lam: float):
        self.kernel, self.X = kernel, check.array("X", X, 2).copy()
        self.lam = check.number("lam", lam, at_least=0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: n = {len(self.X)}, lam = {self.lam:g}"

    def block(self, index) -> np.ndarray:
        return self.rows(index)[:, np.atleast_1d(index)]

    def largest(self) -> float:
        return lanczos(self.__matmul__, len(self.X))

    def kernel_diagonal(self) -> np.ndarray:
        """K_ii, (n,)."""
        parts = (self.X[i : i + TILE] for i in range(0, len(self.X), TILE))
        return np.concatenate([np.diagonal(self.kernel(part)) for part in parts])


def lanczos(times: Callable, n: int, steps: int = STEPS) -> float:
    """Return a lower bound of the largest eigenvalue of a symmetric A, given v ↦ Av, (n,).

    For a random start it lies below (1 − ε) times that eigenvalue with a probability of at most
    1.65 √n e^{−√ε (2·steps − 1)}. Source: Kuczyński and Woźniakowski (1992), Theorem 4.2.

    >>> round(lanczos(lambda v: np.array([1.0, 2.0, 4.0]) * v, 3), 12)
    4.0
    """
    v = np.random.default_rng(0).standard_normal(n)
    v, before, b = v / np.linalg.norm(v), np.zeros(n), 0.0
    main, side = [], []
    for _ in range(min(steps, n)):
        w = times(v) - b * before
        main.append(w @ v)
        w -= main[-1] * v
        b = np.linalg.norm(w)
        side.append(b)
        if b <= 1e-12 * main[0]:
            break
        before, v = v, w / b
    return float(eigvalsh_tridiagonal(main, side[:-1])[-1])


def times(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return A @ b for b (n,) or (n, t), by the BLAS of SciPy as the inverse by its LAPACK.

    NumPy brings a BLAS of its own. When both take turns, the idle threads of one wait actively for
    work and slow the other down, by a third on two cores.
    """
    if b.ndim == 1:  # column-major views, so that nothing is copied
        across = not A.flags.f_contiguous
        return blas.dgemv(1.0, A.T if across else A, b, trans=across)
    return blas.dgemm(1.0, b.T, A.T).T


def _invert(K: np.ndarray, lam: float) -> np.ndarray:
    n = len(K)
    A = np.array(K, order="C").T  # symmetric, so the transpose is what LAPACK wants: column-major
    A[np.diag_indices(n)] += lam
    trace = A.trace()
    factor, info = lapack.dpotrf(A, lower=True, clean=False, overwrite_a=True)
    if info == 0:
        Q, info = lapack.dpotri(factor, lower=True, overwrite_c=True)
    # tr A tr Q is no smaller than the condition number, and takes no pass over the matrices
    rcond = 1 / (trace * Q.trace()) if info == 0 else 0.0
    if not rcond >= n * np.finfo(float).eps:
        raise ValueError(_singular(K, lam, rcond))
    above = np.triu(np.ones((TILE, TILE), dtype=bool), 1)
    for i in range(0, n, TILE):  # dpotri fills one triangle: mirror it, by squares
        for j in range(0, i, TILE):
            Q[j : j + TILE, i : i + TILE] = Q[i : i + TILE, j : j + TILE].T
        square = Q[i : i + TILE, i : i + TILE]
        np.copyto(square, square.T, where=above[: len(square), : len(square)])
    return Q.T  # the same matrix, stored row by row


def _singular(K: np.ndarray, lam: float, rcond: float) -> str:
    """Say why K + λI has no inverse, naming two points that depend on each other."""
    (lowest,), vector = eigh(K, subset_by_index=[0, 0])
    check.semidefinite(lowest, 1e-6 * K.diagonal().max())
    scale = np.maximum(np.abs(K.diagonal()), np.finfo(float).tiny) ** 0.5
    correlation = np.tril(np.abs(K) / np.outer(scale, scale), -1)
    j, i = np.unravel_index(correlation.argmax(), K.shape)
    if abs(correlation[j, i] - 1) < 1e-6:
        cause = (
            f"training points {i} and {j} are duplicates (or nearly so: their kernel correlation "
            f"is {correlation[j, i]:.12g})"
        )
    else:
        i, j = sorted(np.abs(vector[:, 0]).argsort()[-2:].tolist())
        cause = (
            f"training points {i} and {j} depend on the others (more than d antipodal pairs do "
            "that)"
        )
    return (
        f"K + lam I with lam = {lam:g} is singular to working precision (reciprocal condition "
        f"{rcond:.1e}): {cause}; remove one of them or choose lam > {lam:g}"
    )
