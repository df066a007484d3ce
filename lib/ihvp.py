"""The usual estimate of influence (IHVP) of a trained network of finite width, exactly (Eq 12).

A ReLU network is piecewise linear in its weights: ∇²f = 0 wherever there is a derivative, so the
Hessian of the loss (Eq 2) is H = JᵀJ + λI, with the d·m columns of J = ∂f(X)/∂W, and λ once. Push-
through, (JᵀJ + λI)⁻¹Jᵀ = Jᵀ(JJᵀ + λI)⁻¹, leaves an n×n inverse of the kernel K_m = JJᵀ at the end
of training. Nothing is estimated, and no width is too large.
"""

from __future__ import annotations

import numpy as np

from lib import check
from lib.inverse import Inverse
from lib.problem import Trained


def ihvp(trained: Trained, y_te, *, at_kink: int | None = None) -> np.ndarray:
    """Return the IHVP estimate of every training point's influence on every test point, (n, t).

    Eq 12:  Î = ∇ℓ(x_te)ᵀ H⁻¹ ∇ℓ(x_i) = r_te r_i [k_m(x_te, X) (K_m + λI)⁻¹]_i,

    ℓ = ½ r² without the penalty, r = f − y at the trained weights, K_m and k_m the kernel there.
    The sign is that of Eq 7: positive where removing the point hurts. For m → ∞ and f = 0 before
    training it becomes `lib.ridge.RidgeInfluence.ihvp` (Prop 1, Eq 13). `y_te` are the (t,) test
    labels; the result is in squared label units. `at_kink` chooses relu'(0), see
    `lib.problem.Trained.kernel`.

    Raises `ValueError` for other labels, another `at_kink`, and a network trained without some of
    its points. Source: Zhang and Zhang (2022), Eq 12, after Koh and Liang (2017).

    >>> from lib.newton import newton
    >>> from lib.problem import Problem
    >>> p = Problem([[1.0, 0.0]], [1.0], [[0.6, 0.8]], lam=0.5, m=20_000, kappa=0.5, seed=0,
    ...             antisymmetric=True)
    >>> ihvp(newton(p), [1.0]).round(3).tolist()  # the limit, Eq 13: 0.211 · 0.789 · 0.5
    [[0.084]]
    """
    check.made("trained", trained, Trained, "pass what newton or gradient_descent returned")
    if len(trained.removed):
        raise ValueError(
            f"trained lacks the training points {trained.removed[:5].tolist()}; "
            "pass the network that was trained on all of them"
        )
    p = trained.problem
    Y, y_te = p.Y.cpu().numpy(), check.targets("y_te", y_te, len(trained.f_te))
    if y_te.ndim != 1:
        raise ValueError("y_te has 2 axes, but the network of Eq 1 has one output; pass (t,)")
    K, k = trained.kernel(at_kink)
    alpha = Inverse(K, p.lam) @ k.T
    return alpha * (trained.f_te - y_te) * (trained.f - Y)[:, None]
