"""Newton's method on the activation pattern: along the flow of Eq 3, then to the minimum of Eq 2.

With J and K_m = JJᵀ of the present pattern S, W(0) + Jᵀ(K_m + λI)⁻¹(Y − JW(0)) would be the
minimiser, if the pattern did not change. `newton` follows the gradient flow in large implicit
steps, so that the pattern changes as it does in training, and then settles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from lib import check
from lib.problem import Problem, Trained
from lib.state import State, rms

FLOW, SETTLE = 24, 3  # default numbers of steps: along the flow, and to settle
END = 3  # the sum of the steps s along the flow, in 1/λ
RESTLESS = 0.02  # a training whose last step changes f by more than this (rms) has not ended
PATIENCE = 4  # while f changes by more than that, up to this many times `settle_steps` are taken
REFRESH = 3  # steps from one count of the kernel to the next


def newton(
    problem: Problem, *, start: Trained | None = None, remove: int | Sequence[int] = (),
    flow_steps: int = FLOW, settle_steps: int = SETTLE, tol: float = 0.0,
) -> Trained:  # fmt: skip
    """Minimise Eq 2 by Newton steps on the activation pattern, along the flow of Eq 3 (Thm 1).

    A cold start first follows the flow in `flow_steps` steps (see `_follow_flow`), in float64
    whatever the dtype of the problem. In float32, rounding puts a few pairs on the wrong side of
    their kinks; these pairs move others, and in the end the predictions differ. Then it takes
    `settle_steps` full steps (see `_settle`). It takes fewer once a step changes f by no more than
    `tol` (rms), and up to 4 times as many while a step changes f by more than 0.02. With
    `settle_steps` = 0 the state is that of the flow.

    A warm start goes on from the state `start`, without flow. `remove` are training points to
    leave out, besides those that `start` has left out. A kink that holds a pair keeps it, even
    where another place has become better. So compare two trainings, with a point and without it,
    only if both start where the flow ends: begin = newton(problem, settle_steps=0), then
    newton(problem, start=begin) and newton(problem, start=begin, remove=i).

    Raises `RuntimeError` if f still changes by more than 0.02 (rms), as it does where κ√m is too
    small and many pairs are on kinks; `IndexError` for indices out of range or removed twice,
    `ValueError` for a start of another problem and bad numbers, `TypeError` for a start that is no
    trained network.
    Source: ours, for Eq 2, 3 and 10 of Zhang and Zhang (2022).

    >>> X = np.eye(3)
    >>> problem = Problem(X, [1, -1, 1], X, lam=0.5, m=4000, kappa=0.1, seed=0, antisymmetric=True)
    >>> begin = newton(problem, settle_steps=0)
    >>> newton(problem, start=begin).f.round(1).tolist()  # (K∞ + λI)⁻¹ halves the labels
    [0.5, -0.5, 0.5]
    >>> abs(newton(problem, start=begin, remove=1).f).round(1).tolist()
    [0.5, 0.0, 0.5]
    """
    began = time.perf_counter()
    flowed = check.integer("flow_steps", flow_steps) if start is None else 0
    state = State(problem, start, remove, wide=flowed > 0)
    tol = check.number("tol", tol, at_least=0)
    planned = check.integer("settle_steps", settle_steps, at_least=0 if start is None else 1)
    if flowed:
        _follow_flow(state, flowed)
    settled, change = _settle(state, planned, tol, recount=flowed > 0)
    return state.finish(flowed + settled, change, began)


def _follow_flow(state: State, steps: int) -> None:
    """Follow the gradient flow from W(0) by the linearly implicit Euler method.

    Each step minimises L(W) + ‖W − W_t‖²/2τ on the present pattern. With s = τ/(1 + λτ), which
    grows evenly from s_0 = 1/(λ_max + λ), and K_m of every third step:

        (I + s K_m) r = f − Y − s λ (f − JW(0)),    C ← (1 − s λ) C − s r ∘ S.

    The s add up to 3/λ where they can: none is above 1/(2λ), and none below s_0. With many steps
    all are s_0, and their sum is larger.
    """
    lam = state.problem.lam
    q = lam / state.stiffness()
    shrink = [*np.linspace(q, max(q, min(0.5, 2 * END / steps - q)), steps), 0]  # s λ
    for k in range(steps):
        s = shrink[k] / lam
        pull = -s * state.solve(state.factor(s), state.residual())
        state.beta = (1 - shrink[k]) * state.beta + pull
        count = k % REFRESH == REFRESH - 1 or k + 1 == steps
        state.flow_step(shrink[k], pull, shrink[k + 1], count)
    state.Z = state.Z.to(state.problem.Z0)


def _settle(state: State, steps: int, tol: float, recount: bool) -> tuple[int, float]:
    """Take full Newton steps for beta = −r/λ; return how many, and the change of f in the last.

    A kink that attracts a pair holds it there, with a subgradient in [0, 1], so nothing chatters.
    K_m is counted at every third step, and with `recount` at the last of the planned ones.
    """
    problem, change, taken = state.problem, math.inf, 0
    lam = problem.lam
    L, gone = state.factor(1 / lam), state.beta * ~state.kept  # points removed just now
    for taken in range(1, PATIENCE * steps + 1):
        count = recount if taken == steps else taken % REFRESH == 0
        f = state.f
        state.beta = state.beta - gone
        left = state.K @ gone - state.residual() - lam * state.beta
        delta, gone = state.solve(L, left) / lam, gone * 0
        state.beta = state.beta + delta
        state.settle_step(delta, count)
        L = state.factor(1 / lam) if count else L
        change = rms(state.f - f)
        if change <= (tol if taken < steps else max(tol, RESTLESS)):
            break
    if taken and not change <= RESTLESS:
        raise RuntimeError(
            f"Newton did not come to rest (change {change:.1e} > {RESTLESS}): m = {problem.m} is "
            f"too narrow, or with κ√m = {problem.kappa * problem.m**0.5:.3g} too many pairs are on "
            "kinks; raise m or kappa, take more steps to settle, or use gradient_descent"
        )
    return taken, change
