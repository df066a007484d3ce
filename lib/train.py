"""Training the network of Eq 1 to the minimum of Eq 2: gradient descent and Newton (Thm 1, Eq 10).

Everything happens in pre-activations. With W = W(0) + m^{-1/2} Xᵀ Cᵀ diag(a) the coefficients
C (m, n) and Z = (XW)ᵀ = Z(0) + m^{-1/2} diag(a) C G (m, n), G = XXᵀ, are the state; weights, hence
the input dimension, never appear. Both methods move by

    C ← (1 − s λ) C − s r ∘ S,    S = [Z > 0],

and differ in the residual r and the step s: gradient descent takes the present residual and
s < 2/(λ_max + λ), Newton the residual *after* the step, from one n×n solve, and larger s.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from tqdm import tqdm

from lib import check
from lib.network import active, neurons
from lib.product import Digits, overlap

BLOCK = 2**19  # pre-activations moved at once; a dozen temporaries of so many numbers
FLOW, SETTLE = 24, 3  # default numbers of Newton steps
END = 3  # the sum of the steps s along the flow, in 1/λ
RESTLESS = 0.02  # rms change of f in the last Newton step, above which it has not ended
PATIENCE = 4  # times the number of settling steps that may be taken until it has
REFRESH = 3  # Newton steps between two counts of the kernel


class Problem:
    """The loss of Eq 2 for a network of width m (Eq 1), its training and its test points.

    Eq 2:  L(W) = ½ Σ_i (f(x_i; W) − y_i)² + ½ λ ‖W − W(0)‖²_F, a sum over the points.

    X (n, d) and X_te (t, d) with unit rows, Y (n,) in [-1, 1], lam > 0, kappa > 0 the standard
    deviation of W(0), m ≥ 1 (even if antisymmetric), on a torch `device`. Holds m·(n + t) numbers
    of `dtype`; a training adds 2·m·n, with momentum 4·m·n, and some 75 MB for temporaries. Newton
    from W(0) follows the flow in float64, which takes another 2·m·n numbers of float32 meanwhile.

    Raises `ValueError` for arguments outside these ranges, shapes that do not match, non-finite
    values. Source: Zhang and Zhang (2022), Eq 1, 2.

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
        self.Y = torch.as_tensor(check.labels("Y", Y, self.n), device=device)
        like = {"dtype": check.precision(dtype), "device": device}
        A = torch.cat([X, X_te]).to(device)
        self.G64, self.G64_te = (A[: self.n] @ A.T).split([self.n, len(X_te)], dim=1)
        self.G, self.G_te = self.G64.to(**like), self.G64_te.to(**like)
        self.Z0 = torch.empty(self.m, self.n, **like)
        self.Z0_te = torch.empty(self.m, len(X_te), **like)
        self.a = torch.empty(self.m, dtype=torch.float64, device=device)
        for block, W, a in neurons(X.shape[1], m, kappa, seed, antisymmetric):
            Z = torch.as_tensor(W, device=device).double() @ A.T  # the same on any processor
            self.Z0[block], self.Z0_te[block] = Z[:, : self.n], Z[:, self.n :]
            self.a[block] = torch.as_tensor(a, device=device).double()
        self.a /= m**0.5  # the factor m^{-1/2} of Eq 1 goes with the signs

    def __repr__(self) -> str:
        t, settings = self.Z0_te.shape[1], f"lam = {self.lam:g}, kappa = {self.kappa:g}"
        return f"Problem: n = {self.n}, t = {t}, m = {self.m}, {settings}"

    def blocks(self) -> Iterable[slice]:
        """Blocks of neurons that are worked on together."""
        size = max(1, BLOCK // max(self.G_te.shape))
        return (slice(i, min(i + size, self.m)) for i in range(0, self.m, size))


@dataclass
class Trained:
    """A trained network: its predictions, how it got there, the state to start again from.

    f (n,), f_te (t,) : predictions on the training and test points
    Z, C (m, n) : pre-activations and coefficients; beta (n,) = −(f − Y)/λ, 0 where removed
    K (n, n) : K_m when it was last counted, on the way; `kernel` counts it at the end
    removed : training points that were left out
    iterations, seconds : cost; change : rms change of f in the last Newton step, or for gradient
    descent over the last period (see there)
    trajectory : {step: (f, f_te)} of the steps that were to be recorded
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
            for total, other in zip(counts, (S, active(self._test_points(b))), strict=True):
                total += overlap(other, S)
        kernels = (G * N.double() / p.m for G, N in zip((p.G64, p.G64_te.T), counts, strict=True))
        return tuple(K.cpu().numpy() for K in kernels)

    def _held(self, b: slice) -> torch.Tensor:
        """Which pairs of a block of neurons a kink holds, and no removed point."""
        a, beta = self.problem.a[b, None].to(self.Z), self.beta.to(self.Z)
        own = self.C[b] - self.Z[b] / a  # what holds Z at 0, between 0 and beta
        return (a * beta < 0) & (own * beta > 0) & (own.abs() < beta.abs())

    def _test_points(self, b: slice) -> torch.Tensor:
        """Pre-activations of the test points for a block of neurons."""
        p = self.problem
        return p.Z0_te[b].addcmul(self.C[b] @ p.G_te, p.a[b, None].to(self.C))


class _Path:
    """The moving state (Z, C) of one training, its predictions f and K_m when last counted."""

    def __init__(self, problem: Problem, start: Trained | None, remove, wide: bool = False):
        if start is not None and start.problem is not problem:
            raise ValueError("start belongs to another problem; pass the problem start.problem")
        self.p = problem
        before = np.array([], dtype=int) if start is None else start.removed
        drop = check.indices("remove", remove, problem.n) if np.size(remove) else before[:0]
        twice = np.intersect1d(before, drop)
        if twice.size:
            raise IndexError(f"remove names {twice[0]}, which start has removed; leave it out")
        self.removed = np.concatenate([before, drop])
        if len(self.removed) == problem.n:
            raise IndexError("remove names all the training points there are; keep at least one")
        self.keep = torch.ones(problem.n, dtype=torch.bool, device=problem.Y.device)
        self.keep[self.removed] = False
        self.Z = problem.Z0 if start is None else start.Z
        self.C = torch.zeros_like(self.Z) if start is None else start.C
        self.Z = self.Z.to(torch.float64, copy=True) if wide else self.Z
        self.owned = wide
        if start is None:
            self.beta = torch.zeros_like(problem.Y)
            self.look(count=True)
        else:
            self.beta, self.K = start.beta, start.K
            self.f = torch.as_tensor(start.f, device=problem.Y.device)

    def residual(self) -> torch.Tensor:
        return (self.f - self.p.Y) * self.keep

    def stiffness(self) -> float:
        """Return λ_max + λ of the kept points."""
        return largest_eigenvalue(self._kept(self.K)) + self.p.lam

    @cached_property
    def crowding(self) -> float:
        """Return λ_max(G)/n of the kept points: how much the pairs of a neuron push each other."""
        G = self._kept(self.p.G64)
        return largest_eigenvalue(G, steps=20) / len(G)

    def factor(self, s: float) -> torch.Tensor:
        """Return the Cholesky factor of I + s K_m over the points that are kept."""
        A = s * self._kept(self.K)
        A.diagonal().add_(1)
        return torch.linalg.cholesky(A)

    def solve(self, L: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return (I + s K_m)⁻¹ right over the points that are kept, 0 elsewhere."""
        out = torch.zeros_like(right)
        out[self.keep] = torch.cholesky_solve(right[self.keep, None], L)[:, 0]
        return out

    def look(self, count: bool = False) -> None:
        """Measure as `_sweep` does, and move nothing."""
        for _ in self._sweep(count):
            pass

    def leave(self) -> None:
        """Take the removed points out of C and Z."""
        gone, Z, C = self.removed, self.Z, self.C
        self._own()
        for b in self._sweep():
            move = C[b][:, gone] @ self.p.G[gone]
            torch.addcmul(Z[b], move, self.p.a[b, None].to(Z), value=-1, out=self.Z[b])
            self.C[b] = C[b]
            self.C[b][:, gone] = 0

    def descend(self, eta: float, pull: torch.Tensor) -> None:
        """C ← (1 − eta) C + pull ∘ S, Z to match."""
        self._advance(eta, pull, lambda S: (S * pull.to(S)) @ self.p.G)

    def flow(self, eta: float, pull: torch.Tensor, ahead: float, count: bool) -> None:
        """The same with Z in float64, and products as exact as it."""
        self._advance(eta, pull, Digits(pull[:, None] * self.p.G64).select, ahead, count)

    def _advance(self, eta: float, pull: torch.Tensor, product, ahead=0.0, count=False) -> None:
        p, Z, C = self.p, self.Z, self.C
        self._own()
        for b in self._sweep(count, ahead):
            S = active(Z[b])
            torch.lerp(Z[b], p.Z0[b].to(Z), eta, out=self.Z[b])
            self.Z[b].addcmul_(product(S), p.a[b, None].to(Z))
            torch.mul(C[b], 1 - eta, out=self.C[b]).add_(S.mul_(pull))

    def settle(self, delta: torch.Tensor, count: bool) -> None:
        """C ← C + delta ∘ S, and a share of the way to beta ∘ σ, removed columns 0; Z to match.

        σ in [0, 1] is the activation that a pair takes once its own effect on Z is counted: where
        a_r beta_i < 0 a kink attracts, and beta σ = C − Z / (m^{-1/2} a_r), cut to between 0 and
        beta, holds Z at 0; elsewhere σ = S. Pairs held by one neuron push each other, by a block of
        G whose largest eigenvalue is about their number times λ_max(G)/n: the share is below one
        over it, or the steps would grow.
        """
        p, delta, beta = self.p, delta.to(self.Z), self.beta.to(self.Z)
        low, high = beta.clamp(max=0), beta.clamp(min=0)
        attract = torch.stack([beta > 0, beta < 0])  # for a < 0 and a > 0
        Z, C, gone = self.Z, self.C, self.removed
        leaving = bool(len(gone)) and bool(C[:, gone].any())
        self._own()
        for b in self._sweep(count):
            a, z, c, S = p.a[b, None].to(Z), Z[b], C[b], active(Z[b])
            own = torch.addcdiv(c, z, a, value=-1)
            held = own.clamp(low, high)
            pairs = (own == held).sum(1, keepdim=True, dtype=z.dtype)
            goal = torch.where(attract[(p.a[b] > 0).long()], held, S * beta)
            step = S.mul_(delta)
            step.lerp_(goal.sub_(c), 1 / (1.5 + 1.2 * self.crowding * pairs))
            step[:, gone] = 0
            move = step @ p.G
            if leaving:
                move -= c[:, gone] @ p.G[gone]
            torch.addcmul(z, move, a, out=self.Z[b])
            torch.add(c, step, out=self.C[b])
            self.C[b][:, gone] = 0

    def extrapolate(self, Z: torch.Tensor, C: torch.Tensor, mu: float) -> tuple:
        """Move to (1 + mu) present − mu (Z, C) in the memory of (Z, C); return the present."""
        present = self.Z, self.C
        for old, new in ((Z, self.Z), (C, self.C)):
            old.mul_(-mu).add_(new, alpha=1 + mu)
        self.Z, self.C = Z, C
        self.look()
        return present

    def _kept(self, K: torch.Tensor) -> torch.Tensor:
        return K[self.keep][:, self.keep] if len(self.removed) else K

    def _own(self) -> None:
        """Write from now on into Z and C of its own."""
        if not self.owned:
            self.Z, self.C, self.owned = torch.empty_like(self.Z), torch.empty_like(self.C), True

    def _sweep(self, count: bool = False, ahead: float = 0.0) -> Iterable[slice]:
        """Yield blocks of neurons to be moved; measure f there and, if asked, K_m at the pattern.

        `ahead` > 0 is for (1 − ahead) W + ahead W(0) at the pattern of W, in place of W.
        """
        p, f = self.p, torch.zeros_like(self.p.Y)
        counts = torch.zeros(p.n, p.n, device=f.device) if count else None  # exact up to 2²⁴
        for b in p.blocks():
            yield b
            Z = self.Z[b]
            if count or ahead:
                S = active(Z)
            if count:
                counts += overlap(S, S)
            part = S.mul_(torch.lerp(Z, p.Z0[b].to(Z), ahead)) if ahead else Z.relu()
            f += p.a[b].to(Z) @ part
        self.f = f
        if count:
            self.K = p.G64 * counts.double() / p.m

    def finish(self, iterations: int, change: float, began: float) -> Trained:
        """Predict the test points and hand over the state."""
        state = self.p, self.Z, self.C, self.beta, self.K, self.removed
        done = Trained(*state, self.f.cpu().numpy(), iterations=iterations, change=change)
        done.f_te = sum(
            (self.p.a[b].to(self.C) @ done._test_points(b).relu()).double()
            for b in self.p.blocks()
        ).cpu().numpy()
        done.seconds = time.perf_counter() - began
        return done


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


def gradient_descent(
    problem: Problem, *, momentum: bool = False, step: float | None = None,
    steps: int | None = None, tol: float = 1e-4, start: Trained | None = None,
    remove: int | Sequence[int] = (), record: Iterable[int] = (), progress: bool = False,
) -> Trained:  # fmt: skip
    """Minimise Eq 2 by gradient descent, the discrete form of gradient flow (Eq 3).

    Eq 3:  dW/dt = −∇L, in steps W ← W − step ∇L(W). `momentum` adds Nesterov's, with the constant
    (1 − √q)/(1 + √q), q = step λ. The default step is ½/(λ_max + λ), λ_max of K_m at the start: a
    quarter of the largest stable one, since λ_max grows in training. Runs for exactly `steps`
    steps, or until the rms change of f over a period of 1/q steps (with momentum 3/√q) is ≤ `tol`;
    then the step is halved whenever the change no longer falls, because kinks chatter in
    proportion to it. `record` names steps (0 is the start) at which the predictions are kept in
    `trajectory`.

    Raises `RuntimeError` if it diverges, oscillates in a `step` of the caller's choice, or does not
    come to rest, naming the steps that
    are stable at the pattern where that was seen; `ValueError` for a step that is not stable at the
    start and other bad input; `IndexError` for indices out of range or removed twice.
    Source: Zhang and Zhang (2022), Eq 2, 3.

    >>> problem = Problem([[1.0]], [1.0], [[1.0]], lam=0.5, m=4000, kappa=0.1, seed=0,
    ...                   antisymmetric=True)
    >>> end = gradient_descent(problem, record=[0])
    >>> end.trajectory[0][0].round(1).tolist(), end.f.round(1).tolist()  # from 0 to K/(K + λ)
    ([0.0], [0.5])
    """
    began, lam = time.perf_counter(), problem.lam
    path = _Path(problem, start, remove)
    stable = 2 / path.stiffness()
    chosen = step is not None  # with the default step what swings are kinks, which chatter
    step = check.number("step", step, above=0) if chosen else stable / 4
    tol = check.number("tol", tol, at_least=0)
    if step >= stable:
        raise ValueError(
            f"step = {step:.3g} is not stable; choose one below 2/(λ_max + λ) = {stable:.3g}, "
            f"{stable / 4:.3g} for instance"
        )
    steps = steps if steps is None else check.integer("steps", steps, at_least=0)
    path.leave()  # its own copy, without the removed points
    before = (path.Z.clone(), path.C.clone()) if momentum else ()
    record = {check.integer("record", k, at_least=0) for k in record}
    trajectory, trouble = {}, ""
    bound, swings, d = 4 * float(path.residual().norm()) + 4, 0, None
    checked, due, changes, first = path.f, 0, [math.inf, math.inf], step
    for k in tqdm(itertools.count(), total=steps, disable=not progress, desc="gradient descent"):
        if k in record:
            trajectory[k] = path.f.cpu().numpy(), path.finish(k, changes[-1], began).f_te
        if k and k == due:
            changes.append(max(_rms(path.f - checked), _rms(d)))
            if steps is None and changes[-1] <= tol:
                break
            if steps is None and changes[-1] > 0.7 * max(changes[-3:-1]):
                step /= 2
                if step < first / 100:
                    trouble = f"did not come to rest (change {changes[-1]:.1e} > tol {tol:g})"
                    break
        if k == due:
            q = step * lam
            mu = max(0.0, (1 - q**0.5) / (1 + q**0.5)) if momentum else 0.0
            checked, due = path.f, k + math.ceil(3 / q**0.5 if momentum else 1 / q)
        if k == steps:
            break
        last, turned = path.f, d
        if momentum and k:
            before = path.extrapolate(*before, mu)
        path.descend(q, -step * path.residual())
        d = path.f - last
        swings += 1  # steps in a row that take back the one before
        if turned is None or _rms(d) < 0.02 or d @ turned > -0.9 * d.norm() * turned.norm():
            swings = 0
        if not path.residual().norm() < bound or (chosen and swings > 20):
            trouble = "oscillates" if swings else "diverged"
            break
    if trouble:
        path.look(count=True)
        stable = min(stable, 2 / path.stiffness())  # λ_max grows in training
        raise RuntimeError(
            f"gradient descent {trouble} after {k} steps of {step:.3g}; choose one well below "
            f"2/(λ_max + λ) = {stable:.3g}, {min(step / 2, stable / 4):.3g} for instance"
        )
    path.beta = -path.residual() / lam
    path.look(count=True)
    done = path.finish(k, changes[-1], began)
    done.trajectory = trajectory
    return done


def _rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def newton(
    problem: Problem, *, start: Trained | None = None, remove: int | Sequence[int] = (),
    flow: int = FLOW, settle: int = SETTLE, tol: float = 0.0,
) -> Trained:  # fmt: skip
    """Minimise Eq 2 by Newton steps on the activation pattern, along the flow of Eq 3.

    With J and K_m = JJᵀ of the present pattern S, W(0) + Jᵀ(K_m + λI)⁻¹(Y − JW(0)) would be the
    minimiser. A cold start first follows the flow in `flow` steps, each the minimiser of
    L(W) + ‖W − W_t‖²/2τ on the present S: the linearly implicit Euler step for Eq 3. It does so in
    float64, whatever the dtype. In float32, rounding puts a few pairs on the wrong side of their
    kinks. These pairs move others, and in the end the predictions differ.

    With s = τ/(1 + λτ), which grows evenly from s_0 = 1/(λ_max + λ), and K_m of every third step:

        (I + s K_m) r = f − Y − s λ (f − JW(0)),    C ← (1 − s λ) C − s r ∘ S.

    The s add up to 3/λ, if none need be above 1/(2λ), or below s_0, which is what many steps are.
    At most `settle` full steps for beta = −r/λ follow, until the rms change of f is ≤ tol; with 0
    all are taken, and up to 4 times as many while f changes by more than 0.02. A kink that attracts
    is held there, with a subgradient in [0, 1], so that nothing chatters. With `settle` = 0 the
    state is that of the flow, and none is checked.

    A warm start goes on from the state `start`, without flow. `remove` are training points to
    leave out, besides those that `start` has left out. Kinks that hold do not let go of what has
    become a worse place, so to compare trainings with and without a point let both start where
    the flow ends: begin = newton(problem, settle=0), then newton(problem, start=begin, remove=i).

    Raises `RuntimeError` if f still changes by more than 0.02 (rms), as it does where κ√m is too
    small and many pairs are on kinks; `IndexError` for indices out of range or removed twice,
    `ValueError` for a start of another problem and bad numbers.
    Source: ours, for Eq 2, 3 and 10 of Zhang and Zhang (2022).

    >>> X = torch.eye(3, dtype=torch.float64).numpy()
    >>> problem = Problem(X, [1, -1, 1], X, lam=0.5, m=4000, kappa=0.1, seed=0, antisymmetric=True)
    >>> begin = newton(problem, settle=0)
    >>> newton(problem, start=begin).f.round(1).tolist()  # (K∞ + λI)⁻¹ halves the labels
    [0.5, -0.5, 0.5]
    >>> abs(newton(problem, start=begin, remove=1).f).round(1).tolist()
    [0.5, 0.0, 0.5]
    """
    began, lam = time.perf_counter(), problem.lam
    flow = check.integer("flow", flow) if start is None else 0
    path = _Path(problem, start, remove, wide=flow > 0)
    change, taken, tol = math.inf, 0, check.number("tol", tol, at_least=0)
    settle = check.integer("settle", settle, at_least=0 if start is None else 1)
    if flow:
        q = lam / path.stiffness()
        damping = [*np.linspace(q, max(q, min(0.5, 2 * END / flow - q)), flow), 0]
    for k in range(flow):
        s = damping[k] / lam
        pull = -s * path.solve(path.factor(s), path.residual())
        path.beta = (1 - damping[k]) * path.beta + pull
        count = k % REFRESH == REFRESH - 1 or k + 1 == flow
        path.flow(damping[k], pull, damping[k + 1], count)
    path.Z = path.Z.to(problem.Z0)
    L, gone = path.factor(1 / lam), path.beta * ~path.keep  # points removed just now
    for taken in range(1, PATIENCE * settle + 1):
        count = flow > 0 if taken == settle else taken % REFRESH == 0
        f = path.f
        path.beta = path.beta - gone
        left = path.K @ gone - path.residual() - lam * path.beta
        delta, gone = path.solve(L, left) / lam, gone * 0
        path.beta = path.beta + delta
        path.settle(delta, count)
        L = path.factor(1 / lam) if count else L
        change = _rms(path.f - f)
        if change <= (tol if taken < settle else max(tol, RESTLESS)):
            break
    if taken and not change <= RESTLESS:
        raise RuntimeError(
            f"Newton did not come to rest (change {change:.1e} > {RESTLESS}): m = {problem.m} is "
            f"too narrow, or with κ√m = {problem.kappa * problem.m**0.5:.3g} too many pairs are on "
            "kinks; raise m or kappa, take more steps to settle, or use gradient_descent"
        )
    return path.finish(flow + taken, change, began)
