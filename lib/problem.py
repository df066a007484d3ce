"""The training problem: the network of Eq 1 with the loss of Eq 2, and what training returns.

The state of a training is the coefficients C (m, n), where W = W(0) + m^{-1/2} Xᵀ Cᵀ diag(a), and
the pre-activations Z = (XW)ᵀ = Z(0) + m^{-1/2} diag(a) C G (m, n), G = XXᵀ. Weights never appear,
and neither does the dimension of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch

from lib import check, packed
from lib.network import active, neurons
from lib.product import overlap

CHUNK = 2**19  # pre-activations that are worked on together; a dozen temporaries are of this size


class Problem:
    """The loss of Eq 2 for a network of width m (Eq 1), its training and its test points.

    Eq 2:  L(W) = ½ Σ_i (f(x_i; W) − y_i)² + ½ λ ‖W − W(0)‖²_F, a sum over the points.

    X (n, d) and X_te (t, d) with unit rows, Y (n,) in [-1, 1], lam > 0, kappa > 0 the standard
    deviation of W(0), m ≥ 1 (even if antisymmetric), on a torch `device`. It holds m·(n + t)
    numbers of `dtype`. A training adds 2·m·n, with momentum 4·m·n, and some 75 MB for temporaries.
    Newton from W(0) follows the flow in float64, which takes 2·m·n more numbers of float32.

    Raises `ValueError` for arguments outside these ranges, shapes that do not match, non-finite
    values, and `MemoryError` for a width that memory does not hold.
    Source: Zhang and Zhang (2022), Eq 1, 2.

    >>> Problem([[1.0, 0.0]], [1.0], [[0.0, 1.0]], lam=1, m=4, kappa=0.1, seed=0).Z0.shape
    torch.Size([4, 1])
    """

    def __init__(
        self, X, Y, X_te, *, lam: float, m: int, kappa: float, seed: int,
        antisymmetric: bool = False, dtype: str = "float32", device: str = "cpu",
    ):  # fmt: skip
        X, X_te = (check.unit(k, check.tensor(k, v)) for k, v in (("X", X), ("X_te", X_te)))
        if X.shape[1] != X_te.shape[1]:
            raise ValueError(f"X_te must have {X.shape[1]} columns as X has, not {X_te.shape[1]}")
        self.n, self.m = len(X), check.integer("m", m)
        self.lam = check.number("lam", lam, above=0)
        self.kappa = check.number("kappa", kappa, above=0)
        device, dtype = check.device(device), check.precision(dtype)
        held = self.m * (self.n + len(X_te)) * dtype.itemsize
        packed.room(f"the network of m = {self.m:,}", held, "choose a smaller m", device)
        self.Y = torch.as_tensor(check.labels("Y", Y, self.n), device=device)
        like = {"dtype": dtype, "device": device}
        A = torch.cat([X, X_te]).to(device)
        self.G64, self.G64_te = (A[: self.n] @ A.T).split([self.n, len(X_te)], dim=1)
        self.G, self.G_te = self.G64.to(**like), self.G64_te.to(**like)
        self.Z0 = torch.empty(self.m, self.n, **like)
        self.Z0_te = torch.empty(self.m, len(X_te), **like)
        self.a = torch.empty(self.m, dtype=torch.float64, device=device)
        for block, W, a in neurons(X.shape[1], self.m, self.kappa, seed, antisymmetric):
            Z = torch.as_tensor(W, device=device).double() @ A.T  # the same on any processor
            self.Z0[block], self.Z0_te[block] = Z[:, : self.n], Z[:, self.n :]
            self.a[block] = torch.as_tensor(a, device=device).double()
        self.a /= self.m**0.5  # the factor m^{-1/2} of Eq 1 goes with the signs

    def __repr__(self) -> str:
        t, settings = self.Z0_te.shape[1], f"lam = {self.lam:g}, kappa = {self.kappa:g}"
        return f"Problem: n = {self.n}, t = {t}, m = {self.m}, {settings}"

    def blocks(self) -> Iterable[slice]:
        """Blocks of neurons that are worked on together."""
        size = max(1, CHUNK // max(self.G_te.shape))
        return (slice(i, min(i + size, self.m)) for i in range(0, self.m, size))


@dataclass
class Trained:
    """A trained network: its predictions, how it got there, the state to start again from.

    - f (n,), f_te (t,): predictions on the training and test points
    - Z, C (m, n): pre-activations and coefficients; beta (n,) = −(f − Y)/λ, 0 where removed
    - K (n, n): K_m when it was last counted, on the way; `kernel` counts it at the end
    - removed: training points that were left out
    - iterations, seconds: the cost; change: rms change of f in the last Newton step, or in the last
      period of gradient descent
    - trajectory: {step: (f, f_te)} of the steps that were to be kept
    """

    problem: Problem = field(repr=False)
    Z: torch.Tensor = field(repr=False)
    C: torch.Tensor = field(repr=False)
    beta: torch.Tensor = field(repr=False)
    K: torch.Tensor = field(repr=False)
    removed: np.ndarray
    f: np.ndarray = field(repr=False)
    f_te: np.ndarray = field(default=None, repr=False)
    iterations: int = 0
    change: float = math.inf
    seconds: float = 0.0
    trajectory: dict = field(default_factory=dict, repr=False)

    @property
    def kinks(self) -> float:
        """Share of the (neuron, kept point) pairs that a kink holds at w_r·x_i = 0.

        There a_r beta_i < 0, and Z without the pair's own part lies between 0 and abs(beta_i)/√m.
        For small changes of W theory expects the mean of abs(beta_i) / (2 √(2π) kappa √m).
        """
        p, kept = self.problem, np.setdiff1d(np.arange(self.problem.n), self.removed)
        return sum(self._held(b).sum().item() for b in p.blocks()) / (p.m * len(kept))

    def kernel(self, at_kink: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return K_m (n, n) and K_m (t, n) at the trained pattern; removed points included.

        K_m(x, x') = x·x' · (1/m) #{r : w_r·x > 0 and w_r·x' > 0}, float64. Pairs that a kink holds
        (see `kinks`) have w_r·x near 0: `at_kink` 0 or 1 is relu'(0) for all of them,
        None takes the sign that training left. Raises `ValueError` for other values.
        """
        if at_kink not in (None, 0, 1):
            raise ValueError(f"at_kink must be 0, 1 or None, not {at_kink!r}")
        p = self.problem
        counts = [torch.zeros(k, p.n, device=p.Y.device) for k in (p.n, p.Z0_te.shape[1])]
        for b in p.blocks():
            S = active(self.Z[b])
            if at_kink is not None:
                S[self._held(b)] = at_kink
            for total, other in zip(counts, (S, active(self.at_test_points(b))), strict=True):
                total += overlap(other, S)
        kernels = (G * N.double() / p.m for G, N in zip((p.G64, p.G64_te.T), counts, strict=True))
        return tuple(K.cpu().numpy() for K in kernels)

    def at_test_points(self, b: slice) -> torch.Tensor:
        """Pre-activations of the test points for a block of neurons, (b, t)."""
        p = self.problem
        return p.Z0_te[b].addcmul(self.C[b] @ p.G_te, p.a[b, None].to(self.C))

    def _held(self, b: slice) -> torch.Tensor:
        """Which pairs of a block of neurons a kink holds, and no removed point."""
        a, beta = self.problem.a[b, None].to(self.Z), self.beta.to(self.Z)
        own = self.C[b] - self.Z[b] / a  # what holds Z at 0, between 0 and beta
        return (a * beta < 0) & (own * beta > 0) & (own.abs() < beta.abs())
