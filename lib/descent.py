"""Gradient descent to the minimum of Eq 2 (Eq 3): the yardstick of Newton's method."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence

import torch
from tqdm import tqdm

from lib import check
from lib.problem import Problem, Trained
from lib.state import State, rms


def gradient_descent(
    problem: Problem, *, momentum: bool = False, step: float | None = None,
    steps: int | None = None, tol: float = 1e-4, start: Trained | None = None,
    remove: int | Sequence[int] = (), keep: Iterable[int] = (), progress: bool = False,
) -> Trained:  # fmt: skip
    """Minimise Eq 2 by gradient descent, the discrete form of gradient flow (Eq 3).

    Eq 3:  dW/dt = −∇L, in steps W ← W − step ∇L(W). `momentum` adds Nesterov's, with the constant
    (1 − √q)/(1 + √q), q = step λ. The default step is ½/(λ_max + λ), λ_max of K_m at the start: a
    quarter of the largest stable one, since λ_max grows in training. It takes exactly `steps`
    steps. Without `steps` it goes on until the rms change of f over a period of 1/q steps (with
    momentum 3/√q) is ≤ `tol`, and halves the step whenever that change no longer falls: f chatters
    at kinks, in proportion to the step. `keep` names steps (0 is the start) whose predictions are
    kept in `trajectory`.

    Raises `RuntimeError` if it diverges, oscillates in a `step` of the caller's choice, or does not
    come to rest, naming a step that is stable at the pattern where that was seen; `ValueError` for
    a step that is not stable at the start and other bad input; `IndexError` for indices out of
    range or removed twice; `TypeError` for a `keep` that is no list and a `start` that is no
    trained network.
    Source: Zhang and Zhang (2022), Eq 2, 3.

    >>> problem = Problem([[1.0]], [1.0], [[1.0]], lam=0.5, m=4000, kappa=0.1, seed=0,
    ...                   antisymmetric=True)
    >>> end = gradient_descent(problem, keep=[0])
    >>> end.trajectory[0][0].round(1).tolist(), end.f.round(1).tolist()  # from 0 to K/(K + λ)
    ([0.0], [0.5])
    """
    began, momentum = time.perf_counter(), check.flag("momentum", momentum)
    state = State(problem, start, remove)
    stable, chosen = 2 / state.stiffness(), step is not None
    step = check.number("step", step, above=0) if chosen else stable / 4
    tol = check.number("tol", tol, at_least=0)
    if step >= stable:
        raise ValueError(
            f"step = {step:.3g} is not stable; choose one below 2/(λ_max + λ) = {stable:.3g}, "
            f"{stable / 4:.3g} for instance"
        )
    steps = steps if steps is None else check.integer("steps", steps, at_least=0)
    state.leave()  # its own copy, without the removed points
    before = (state.Z.clone(), state.C.clone()) if momentum else ()
    keep = {check.integer("keep", k, at_least=0) for k in check.several("keep", keep, "steps")}
    trajectory, bound = {}, 4 * float(state.residual().norm()) + 4
    pace, swings = _Pace(step, problem.lam, momentum, state.f), _Swings()
    for k in tqdm(itertools.count(), total=steps, disable=not progress, desc="gradient descent"):
        if k in keep:
            trajectory[k] = state.f.cpu().numpy(), state.finish(k, pace.change, began).f_te
        if k == pace.due:
            pace.look(state.f, swings.last)
            if steps is None and pace.change <= tol:
                break
            if steps is None and not pace.slow_down():
                why = f"did not come to rest (change {pace.change:.1e} > tol {tol:g})"
                raise _trouble(why, state, k, pace.step, stable)
            pace.begin(k, state.f)
        if k == steps:
            break
        f = state.f
        if momentum and k:
            before = state.extrapolate(*before, pace.mu)
        state.descent_step(pace.shrink, -pace.step * state.residual())
        swings.see(state.f - f)
        # with the default step what swings are kinks, and they only chatter
        if not state.residual().norm() < bound or (chosen and swings.count > 20):
            why = "oscillates" if swings.count else "diverged"
            raise _trouble(why, state, k, pace.step, stable)
    state.beta = -state.residual() / problem.lam
    state.measure(count=True)
    done = state.finish(k, pace.change, began)
    done.trajectory = trajectory
    return done


class _Pace:
    """The step and the momentum of descent, and how much f changed in each period of it."""

    def __init__(self, step: float, lam: float, momentum: bool, f: torch.Tensor):
        self.step, self.first, self.lam, self.momentum = step, step, lam, momentum
        self.changes = [math.inf, math.inf]
        self.begin(0, f)

    @property
    def change(self) -> float:
        return self.changes[-1]

    def begin(self, k: int, f: torch.Tensor) -> None:
        """Begin a period at step k."""
        q = self.shrink = self.step * self.lam
        self.mu = max(0.0, (1 - q**0.5) / (1 + q**0.5)) if self.momentum else 0.0
        self.before, self.due = f, k + math.ceil(3 / q**0.5 if self.momentum else 1 / q)

    def look(self, f: torch.Tensor, last: torch.Tensor) -> None:
        """At the end of a period: how much f changed in it, or in its last step if that is more."""
        self.changes.append(max(rms(f - self.before), rms(last)))

    def slow_down(self) -> bool:
        """Halve the step if the change no longer falls; False once it has become too small."""
        if self.change > 0.7 * max(self.changes[-3:-1]):
            self.step /= 2
        return self.step >= self.first / 100


class _Swings:
    """How many steps in a row take back the one before."""

    def __init__(self):
        self.count, self.last = 0, None

    def see(self, d: torch.Tensor) -> None:
        """Take note of the change d of f in a step."""
        turned, self.last = self.last, d
        small = turned is None or rms(d) < 0.02
        back = not small and d @ turned <= -0.9 * d.norm() * turned.norm()
        self.count = self.count + 1 if back else 0


def _trouble(why: str, state: State, k: int, step: float, stable: float) -> RuntimeError:
    """Say what went wrong at step k, and which step is stable at the present pattern."""
    state.measure(count=True)
    stable = min(stable, 2 / state.stiffness())  # λ_max grows in training
    return RuntimeError(
        f"gradient descent {why} after {k} steps of {step:.3g}; choose one well below "
        f"2/(λ_max + λ) = {stable:.3g}, {min(step / 2, stable / 4):.3g} for instance"
    )
