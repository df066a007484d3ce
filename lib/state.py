"""The moving state of one training: pre-activations and coefficients, and how a step moves them.

Gradient descent and Newton both move the state (Z, C) of `lib.problem` by

    C ← (1 − s λ) C − s r ∘ S,    S = [Z > 0],

and differ in the residual r and the step s. Gradient descent takes the present residual and
s < 2/(λ_max + λ). Newton takes the residual *after* the step, from one n×n solve, and larger s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch

from lib import check
from lib.network import active
from lib.problem import Problem, Trained
from lib.product import Digits, overlap


class State:
    """(Z, C) of one training, its predictions f, and K_m when it was last counted.

    It begins at W(0), or where the trained network `start` is. `remove` are points to leave out,
    besides those that `start` has left out; `wide` keeps Z in float64. Raises `ValueError` for a
    start of another problem, `IndexError` for points out of range, removed twice, or all points,
    `TypeError` for a problem or a start that is none.
    """

    def __init__(self, problem: Problem, start: Trained | None, remove, wide: bool = False):
        check.made("problem", problem, Problem, "make one with Problem(X, Y, X_te, lam=1, ...)")
        if start is not None:
            check.made("start", start, Trained, "pass what newton or gradient_descent returned")
            if start.problem is not problem:
                raise ValueError("start belongs to another problem; pass the problem start.problem")
        self.problem = problem
        before = np.array([], dtype=int) if start is None else start.removed
        drop = check.indices("remove", remove, problem.n) if np.size(remove) else before[:0]
        twice = np.intersect1d(before, drop)
        if twice.size:
            raise IndexError(f"remove names {twice[0]}, which start has removed; leave it out")
        self.removed = np.concatenate([before, drop])
        if len(self.removed) == problem.n:
            raise IndexError("remove names all the training points there are; keep at least one")
        self.kept = torch.ones(problem.n, dtype=torch.bool, device=problem.Y.device)
        self.kept[self.removed] = False
        self.Z = problem.Z0 if start is None else start.Z
        self.C = torch.zeros_like(self.Z) if start is None else start.C
        self.Z = self.Z.to(torch.float64, copy=True) if wide else self.Z
        self._own = wide  # whether Z and C are ours to write to, and not those of the start
        if start is None:
            self.beta = torch.zeros_like(problem.Y)
            self.measure(count=True)
        else:
            self.beta, self.K = start.beta, start.K
            self.f = torch.as_tensor(start.f, device=problem.Y.device)

    def residual(self) -> torch.Tensor:
        """Return f − Y, 0 where removed."""
        return (self.f - self.problem.Y) * self.kept

    def stiffness(self) -> float:
        """Return λ_max + λ of the kept points."""
        return largest_eigenvalue(self._of_kept(self.K)) + self.problem.lam

    @cached_property
    def crowding(self) -> float:
        """Return λ_max(G)/n of the kept points: how much the pairs of a neuron push each other."""
        G = self._of_kept(self.problem.G64)
        return largest_eigenvalue(G, steps=20) / len(G)

    def factor(self, s: float) -> torch.Tensor:
        """Return the Cholesky factor of I + s K_m over the kept points."""
        A = s * self._of_kept(self.K)
        A.diagonal().add_(1)
        return torch.linalg.cholesky(A)

    def solve(self, L: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return (I + s K_m)⁻¹ right over the kept points, 0 elsewhere, for a factor L."""
        out = torch.zeros_like(right)
        out[self.kept] = torch.cholesky_solve(right[self.kept, None], L)[:, 0]
        return out

    def measure(self, count: bool = False) -> None:
        """Measure f and, if asked, count K_m at the present pattern."""
        self._move(None, count)

    def leave(self) -> None:
        """Take the removed points out of C and Z."""
        p, gone = self.problem, self.removed

        def move(b, Z, C):
            part = self.C[b][:, gone] @ p.G[gone]
            torch.addcmul(self.Z[b], part, p.a[b, None].to(Z), value=-1, out=Z)
            C.copy_(self.C[b])
            C[:, gone] = 0

        self._move(move)

    def descent_step(self, shrink: float, pull: torch.Tensor) -> None:
        """C ← (1 − shrink) C + pull ∘ S, and Z to match."""
        self._step(shrink, pull, lambda S: (S * pull.to(S)) @ self.problem.G)

    def flow_step(self, shrink: float, pull: torch.Tensor, ahead: float, count: bool) -> None:
        """The same with Z in float64, and with products that are as exact.

        f is measured at (1 − ahead) W + ahead W(0), with the pattern of W.
        """
        product = Digits(pull[:, None] * self.problem.G64).select
        self._step(shrink, pull, product, ahead, count)

    def settle_step(self, delta: torch.Tensor, count: bool) -> None:
        """C ← C + delta ∘ S, then a share of the way to beta ∘ σ; removed columns 0; Z to match.

        A pair's own part of Z depends on its activation σ. Where a_r beta_i < 0, a kink attracts
        the pair: it is at rest with Z = 0, where beta σ = C − Z / (m^{-1/2} a_r), cut to between 0
        and beta. Elsewhere σ = S. The pairs that one neuron holds push each other, by a block of G
        whose largest eigenvalue is about their number times λ_max(G)/n. The share is less than one
        over that eigenvalue: with a larger one the steps would grow.
        """
        p, delta, beta = self.problem, delta.to(self.Z), self.beta.to(self.Z)
        low, high = beta.clamp(max=0), beta.clamp(min=0)
        attract = torch.stack([beta > 0, beta < 0])  # for a < 0 and a > 0
        gone = self.removed
        leaving = bool(len(gone)) and bool(self.C[:, gone].any())

        def move(b, Z, C):
            a, z, c = p.a[b, None].to(Z), self.Z[b], self.C[b]
            S = active(z)
            own = torch.addcdiv(c, z, a, value=-1)
            held = own.clamp(low, high)
            pairs = (own == held).sum(1, keepdim=True, dtype=z.dtype)
            goal = torch.where(attract[(p.a[b] > 0).long()], held, S * beta)
            step = S.mul_(delta)
            step.lerp_(goal.sub_(c), 1 / (1.5 + 1.2 * self.crowding * pairs))
            step[:, gone] = 0
            change = step @ p.G
            if leaving:
                change -= c[:, gone] @ p.G[gone]
            torch.addcmul(z, change, a, out=Z)
            torch.add(c, step, out=C)
            C[:, gone] = 0

        self._move(move, count)

    def extrapolate(self, Z: torch.Tensor, C: torch.Tensor, mu: float) -> tuple:
        """Move to (1 + mu) present − mu (Z, C) in the memory of (Z, C); return the present."""
        present = self.Z, self.C
        for old, new in ((Z, self.Z), (C, self.C)):
            old.mul_(-mu).add_(new, alpha=1 + mu)
        self.Z, self.C = Z, C
        self.measure()
        return present

    def finish(self, iterations: int, change: float, began: float) -> Trained:
        """Predict the test points and hand over the state."""
        p = self.problem
        state = p, self.Z, self.C, self.beta, self.K, self.removed
        done = Trained(*state, self.f.cpu().numpy(), iterations=iterations, change=change)
        done.f_te = (
            sum((p.a[b].to(self.C) @ done.at_test_points(b).relu()).double() for b in p.blocks())
            .cpu()
            .numpy()
        )
        done.seconds = time.perf_counter() - began
        return done

    def _step(self, shrink: float, pull: torch.Tensor, product, ahead=0.0, count=False) -> None:
        p = self.problem

        def move(b, Z, C):
            S = active(self.Z[b])
            torch.lerp(self.Z[b], p.Z0[b].to(Z), shrink, out=Z)
            Z.addcmul_(product(S), p.a[b, None].to(Z))
            torch.mul(self.C[b], 1 - shrink, out=C).add_(S.mul_(pull))

        self._move(move, count, ahead)

    def _move(self, move: Callable | None, count: bool = False, ahead: float = 0.0) -> None:
        """Move block by block, and measure f there and, if asked, K_m.

        `move(b, Z, C)` reads block b of the state and writes the moved block to Z and C.
        """
        p, f = self.problem, torch.zeros_like(self.problem.Y)
        counts = torch.zeros(p.n, p.n, device=f.device) if count else None  # exact up to 2²⁴
        Z, C = self.Z, self.C
        if move and not self._own:
            Z, C, self._own = torch.empty_like(Z), torch.empty_like(C), True
        for b in p.blocks():
            if move:
                move(b, Z[b], C[b])
            S = active(Z[b]) if count or ahead else None
            if count:
                counts += overlap(S, S)
            part = S.mul_(torch.lerp(Z[b], p.Z0[b].to(Z), ahead)) if ahead else Z[b].relu()
            f += p.a[b].to(Z) @ part
        self.Z, self.C, self.f = Z, C, f
        if count:
            self.K = p.G64 * counts.double() / p.m

    def _of_kept(self, K: torch.Tensor) -> torch.Tensor:
        return K[self.kept][:, self.kept] if len(self.removed) else K


def largest_eigenvalue(K: torch.Tensor, steps: int = 100) -> float:
    """Return λ_max of a positive semi-definite K by power iteration, from below.

    >>> K = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    >>> round(largest_eigenvalue(K), 6), largest_eigenvalue(0 * K)
    (2.0, 0.0)
    """
    v = 1 + torch.rand(len(K), generator=torch.Generator().manual_seed(0), dtype=K.dtype)
    v = v.to(K.device)
    for _ in range(steps):
        v = K @ (v / v.norm().clamp(min=torch.finfo(K.dtype).tiny))
    return float(v.norm())


def rms(x: torch.Tensor) -> float:
    """Return the root of the mean square."""
    return float(x.square().mean().sqrt())
