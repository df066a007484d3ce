"""Cases that several test files use: data, refits, small networks, and how near is near enough."""

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st

from lib.data import load
from lib.kernel import ntk
from lib.network import forward, initialise
from lib.problem import Problem
from lib.ridge import Ridge

EPS = np.finfo(float).eps
OUTPUTS = [None, 1, 2, 10]  # numbers of outputs; None is a label (n,) and not (n, 1)


# --- data -----------------------------------------------------------------------------------------


def unit_points(n: int, d: int, seed=0) -> np.ndarray:
    """n random unit vectors in d dimensions; `seed` may be a generator."""
    X = np.random.default_rng(seed).standard_normal((n, d))
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def digits(name: str = "digits:3/8", n: int = 150, t: int = 40, seed: int = 0) -> tuple:
    """K, Y, k and y_te of embedded images."""
    data = load(name, n_train=n, n_test=t, seed=seed)
    return ntk(data.X), data.Y, ntk(data.X, data.X_te), data.Y_te


def several(c: int, n: int = 150, t: int = 40) -> tuple:
    """The same with c outputs: the ten classes of digits, or random labels."""
    K, Y, k, y_te = digits("digits:all", n, t)
    if c == 10:
        return K, Y, k, y_te
    rng = np.random.default_rng(c)
    return K, labels(rng, n, c), k, labels(rng, t, c)


class Regression(NamedTuple):
    """A problem of kernel ridge regression, and test points."""

    K: np.ndarray
    Y: np.ndarray
    lam: float
    k: np.ndarray
    y_te: np.ndarray


def powers(low: float, high: float):
    """Numbers over so many decades."""
    return st.floats(low, high).map(lambda e: 10.0**e)


RIDGES, GAPS = powers(-6, 4), powers(-12, -1)


@st.composite
def regressions(draw, lams=RIDGES, gaps=GAPS, outputs=OUTPUTS):
    """Random unit points, some of them close, and labels of a size of at most 1."""
    n, d, t = draw(st.integers(2, 12)), draw(st.integers(2, 8)), 3
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    X = rng.standard_normal((n + t, d))
    for i in range(draw(st.integers(0, 3))):
        X[i + 1] = X[i] + draw(gaps) * rng.standard_normal(d)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    Y = labels(rng, n + t, draw(st.sampled_from(outputs)))
    return Regression(ntk(X[:n]), Y[:n], draw(lams), ntk(X[:n], X[n:]), Y[n:])


def labels(rng, n: int, c: int | None) -> np.ndarray:
    """Random labels of a size of at most 1, (n,) or (n, c)."""
    Y = np.clip(rng.standard_normal((n, c or 1)), -1, 1) / (c or 1) ** 0.5
    return Y[:, 0] if c is None else Y


# K = [[½, ¼], [¼, ½]], λ = ¼, Y = (1, −1), k = (½, ¼), y_te = 1.
#   A = [[¾, ¼], [¼, ¾]], det A = ½, so Q = [[3/2, −½], [−½, 3/2]], β = QY = (2, −2)
#   f = k·β = ½, r_te = −½, α = Qk = (5/8, 1/8), h_i = 1 − ¼·3/2 = 5/8, r = −¼β = (−½, ½)
#   without x_1: c = −1/¾ = −4/3, f = ¼c = −1/3, and at x_1 itself ¼c − 1 = −4/3 = ρ_1
#   without x_2: c = 4/3, f = ½c = 2/3, and ρ_2 = ¼c + 1 = 4/3
#   I = ½(−4/3)² − ½(−½)² = 55/72 and ½(−1/3)² − 1/8 = −5/72
#   T₁ = α r_te ρ = (5/12, −1/12), T₂ = ½(αρ)² = (25/72, 1/72), Î = α r_te r = (5/32, −1/32)
HAND = Ridge([[0.5, 0.25], [0.25, 0.5]], [1.0, -1.0], lam=0.25).influence([[0.5], [0.25]], [1.0])


# --- refits and losses ----------------------------------------------------------------------------


def refit(K, Y, lam: float, k, without=()) -> np.ndarray:
    """Predictions of the model trained without some points, from scratch (Eq 6)."""
    keep = np.setdiff1d(np.arange(len(Y)), without)
    A = K[np.ix_(keep, keep)] + lam * np.eye(len(keep))
    return k[keep].T @ np.linalg.solve(A, Y[keep])


def refits(K, Y, lam: float, k) -> np.ndarray:
    """The same without each point in turn."""
    return np.array([refit(K, Y, lam, k, [i]) for i in range(len(Y))])


def loss(f, y) -> np.ndarray:
    """½ ‖f − y‖² at each test point, summed over the outputs if y has them."""
    squares = 0.5 * (f - y) ** 2
    return squares if y.ndim == 1 else squares.sum(axis=-1)


# --- how near -------------------------------------------------------------------------------------


def relative(K, lam: float) -> float:
    """Gap of two solutions of a system with K + λI, relative to their size, to first order.

    Each errs by (3n + 1) eps/2 times the condition number (Higham, Accuracy and Stability of
    Numerical Algorithms, Theorem 10.4) and its product with k or K by another n eps/2.
    """
    return (4 * len(K) + 1) * EPS * np.linalg.cond(K + lam * np.eye(len(K)))


def size(K, Y, lam: float, k) -> np.ndarray:
    """√(kᵀQk) √(YᵀQY), which bounds f, and each shift α_i β_i / Q_ii, by Cauchy-Schwarz."""
    Q = np.linalg.inv(K + lam * np.eye(len(K)))
    norms = np.sum(Y * (Q @ Y), axis=0)
    return np.sqrt(np.multiply.outer(np.einsum("it,ij,jt->t", k, Q, k), norms)) + EPS


def near(a, b, tolerance) -> None:
    """Fail, and say where, unless a and b differ by no more than the tolerance."""
    ratio = np.abs(np.asarray(a) - b) / tolerance
    worst = np.unravel_index(np.argmax(ratio), ratio.shape)
    assert ratio[worst] <= 1, f"at {worst}: {ratio[worst]:.3g} of the tolerance"


def rms(x) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x))))


# --- small networks -------------------------------------------------------------------------------


def sample(n: int = 8, t: int = 3, d: int = 4, seed: int = 0) -> tuple:
    """X (n, d), Y (n,) and X_te (t, d) of two classes on either side of a plane."""
    A = unit_points(n + t, d, seed)
    return A[:n], np.sign(A[:n, 0] + 0.3 * A[:n, 1]), A[n:]


def problem(
    m=64, lam=0.5, kappa=0.5, seed=1, dtype="float64", antisymmetric=False, **shape
) -> Problem:
    """The loss of Eq 2 on `sample(**shape)`; the seed is that of the network."""
    settings = {"lam": lam, "m": m, "kappa": kappa, "seed": seed}
    return Problem(*sample(**shape), **settings, antisymmetric=antisymmetric, dtype=dtype)


def weights(p: Problem, seed: int = 1, antisymmetric: bool = False, d: int = 4) -> tuple:
    """W(0) (d, m) and a (m,) of a problem of that seed, in torch."""
    drawn = initialise(d, p.m, p.kappa, seed, antisymmetric)
    return tuple(torch.as_tensor(v) for v in drawn)


def trained_weights(done, W0: torch.Tensor) -> torch.Tensor:
    """The weights W (d, m) of a trained network that began at W0."""
    p = done.problem
    X = torch.as_tensor(sample(p.n, d=len(W0))[0])
    return W0 + X.T @ done.C.T * p.a


def loss_of_weights(p: Problem, W0: torch.Tensor, a: torch.Tensor):
    """Eq 2 as it is written, as a function of the weights W (d, m)."""
    X = torch.as_tensor(sample(p.n, d=len(W0))[0])

    def loss(W):
        r = forward(X, W, a) - p.Y
        return 0.5 * (r**2).sum() + 0.5 * p.lam * ((W - W0) ** 2).sum()

    return loss


def two_neurons() -> Problem:
    """n = 2, m = 2, orthogonal points, λ = ½, so that the neurons see each point on its own.

    Neuron 1 (a = 1) is active on point 1 only, neuron 2 (a = −1) on point 2 only, at 0.1 each.
    There f_i = ±(0.1 + c_i/√2)/√2 with a pull of λc²/2, K_m = ½ I, and the minimum is a scalar
    problem.
    """
    p = Problem(np.eye(2), [1.0, -1.0], np.eye(2), lam=0.5, m=2, kappa=0.1, seed=0, dtype="float64")
    p.Z0[:] = p.Z0_te[:] = torch.tensor([[0.1, -0.1], [-0.1, 0.1]], dtype=torch.float64)
    p.a[:] = torch.tensor([1.0, -1.0], dtype=torch.float64) / 2**0.5
    return p
