"""Losses of one point: squared, logistic and softmax. Training and influence share them.

A loss ℓ(f, y) is convex in the outputs f of a model, which are the last axis, also if there is one.
Its Hessian is Λ = diag(d) − v vᵀ: two vectors hold it, and nobody has to divide by it.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax

from lib import check


class Loss:
    """What training and influence ask of a loss ℓ(f, y), for f and y of shape (..., c).

    - labels(name, y, n): a copy of the labels of n points, or `ValueError` if they are of another
    - value(f, y): ℓ, (...,)
    - gradient(f, y): ∂ℓ/∂f, (..., c)
    - curvature(f): d and v of the Hessian ∂²ℓ/∂f² = diag(d) − v vᵀ, both (..., c)
    - bend(f, y, shift): ℓ(f + shift, y) − ℓ(f, y) − ⟨∂ℓ/∂f, shift⟩ ≥ 0, (...,)
    """

    labels = staticmethod(check.targets)

    def bend(self, f, y, shift):
        change = self.value(f + shift, y) - self.value(f, y)
        return change - (self.gradient(f, y) * shift).sum(axis=-1)


class Squared(Loss):
    """ℓ = ½ ‖f − y‖², for labels of any finite size."""

    def value(self, f, y):
        return 0.5 * ((f - y) ** 2).sum(axis=-1)

    def gradient(self, f, y):
        return f - y

    def curvature(self, f):
        return np.ones_like(f), np.zeros_like(f)

    def bend(self, f, y, shift):
        return 0.5 * (shift**2).sum(axis=-1)  # no difference of two squares


class Logistic(Loss):
    """ℓ = Σ log(1 + e^{−y f}) over outputs, for labels ±1.

    >>> Logistic().gradient(np.array([0.0]), np.array([1.0])).tolist()
    [-0.5]
    """

    def labels(self, name, y, n):
        y = check.targets(name, y, n)
        if (bad := y[np.abs(y) != 1]).size:
            raise ValueError(f"{name} must be -1 or 1 for logistic loss, not {bad[0]:g}; recode it")
        return y

    def value(self, f, y):
        return -log_expit(y * f).sum(axis=-1)

    def gradient(self, f, y):
        return -y * expit(-y * f)

    def curvature(self, f):
        return expit(f) * expit(-f), np.zeros_like(f)


class Softmax(Loss):
    """ℓ = log Σ_a e^{f_a} − f_y for c ≥ 2 classes: minus the logarithm of softmax(f) at class y.

    A label is the one-hot row of its class, also less a constant, such as `lib.data.load` gives it.

    >>> Softmax().gradient(np.zeros(4), np.eye(4)[0]).tolist()
    [-0.75, 0.25, 0.25, 0.25]
    """

    def labels(self, name, y, n):
        y = check.targets(name, y, n)
        hot = np.eye(y.shape[-1])[y.argmax(axis=-1)] if y.ndim == 2 else 0 * y
        if y.ndim == 1 or y.shape[1] < 2 or np.abs(y - y.min(1, keepdims=True) - hot).max() > 1e-9:
            raise ValueError(
                f"{name} must have one-hot rows (n, c) for softmax loss, which may be less a "
                "constant; pass np.eye(c)[classes]"
            )
        return hot

    def value(self, f, y):
        return -(y * log_softmax(f, axis=-1)).sum(axis=-1)

    def gradient(self, f, y):
        others = softmax(f, axis=-1) * (1 - y)  # at class y p − 1 would lose the digits of 1 − p
        return others - y * others.sum(axis=-1, keepdims=True)

    def curvature(self, f):
        p = softmax(f, axis=-1)
        return p, p


SQUARED = Squared()
