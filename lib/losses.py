"""Losses of one point: squared, logistic and softmax. Training and influence share them.

A loss ℓ(f, y) is convex in the outputs f of a model, which are the last axis, also if there is one.
Its Hessian is Λ = diag(d) − v vᵀ: two vectors hold it, and nobody has to divide by it.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import expit, log_expit, log_softmax, softmax
from torch import nn

from lib import check


class Loss:
    """What training and influence ask of a loss ℓ(f, y), for f and y of shape (..., c).

    - labels(name, y, n): a copy of the labels of n points, or `ValueError` if they are of another
    - beside(name, y, f): labels as users of torch write them, beside outputs f, and shaped like f
    - value(f, y): ℓ, (...,); in_torch(f, y): the same for tensors
    - gradient(f, y): ∂ℓ/∂f, (..., c)
    - curvature(f): d and v of the Hessian ∂²ℓ/∂f² = diag(d) − v vᵀ, both (..., c)
    - bend(f, y, shift): ℓ(f + shift, y) − ℓ(f, y) − ⟨∂ℓ/∂f, shift⟩ ≥ 0, (...,)
    """

    labels = staticmethod(check.targets)

    def beside(self, name, y, f):
        y = self.labels(name, y, len(f))
        if y.shape != f.shape:
            column = f"{name}[:, None]" if y.ndim == 1 else f"{name}[:, 0]"
            remedy = column if y.size == f.size else "as many labels a point as outputs"
            raise ValueError(
                f"{name} has shape {y.shape}, but the outputs have {f.shape}; pass {remedy}"
            )
        return y

    def bend(self, f, y, shift):
        change = self.value(f + shift, y) - self.value(f, y)
        return change - (self.gradient(f, y) * shift).sum(axis=-1)


class Squared(Loss):
    """ℓ = ½ ‖f − y‖², for labels of any finite size."""

    def value(self, f, y):
        return 0.5 * ((f - y) ** 2).sum(axis=-1)

    in_torch = value

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

    def in_torch(self, f, y):
        return -nn.functional.logsigmoid(y * f).sum(-1)

    def gradient(self, f, y):
        return -y * expit(-y * f)

    def curvature(self, f):
        return expit(f) * expit(-f), np.zeros_like(f)


class Binary(Logistic):
    """Logistic loss of `torch.nn.BCEWithLogitsLoss`: `beside` takes labels 0 and 1, and gives ±1.

    >>> Binary().beside("Y", [0, 1], np.zeros(2)).tolist()
    [-1.0, 1.0]
    """

    def beside(self, name, y, f):
        y = check.array(name, y, (1, 2))
        if (bad := y[(y != 0) & (y != 1)]).size:
            raise ValueError(
                f"{name} must be 0 or 1 for BCEWithLogitsLoss, not {bad[0]:g}; recode it"
            )
        return super().beside(name, 2 * y - 1, f)


class Softmax(Loss):
    """ℓ = log Σ_a e^{f_a} − f_y for c ≥ 2 classes: minus the logarithm of softmax(f) at class y.

    A label is the one-hot row of its class, also less a constant, such as `lib.data.load` gives it.
    `beside` takes the numbers of the classes, 0 to c − 1, too.

    >>> Softmax().gradient(np.zeros(4), np.eye(4)[0]).tolist()
    [-0.75, 0.25, 0.25, 0.25]
    >>> Softmax().beside("Y", [2, 0], np.zeros((2, 3))).tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    """

    def beside(self, name, y, f):
        c = f.shape[1] if f.ndim == 2 else 1
        if c == 1:
            raise ValueError(
                f"the outputs have shape {f.shape}, but softmax loss needs one for each class; for "
                "one output and two classes use nn.BCEWithLogitsLoss() with labels 0 and 1"
            )
        if np.ndim(y) == 2 and np.shape(y)[1] == 1:
            raise ValueError(
                f"{name} has shape {tuple(np.shape(y))}; pass {name}.flatten(), classes (n,)"
            )
        if np.ndim(y) == 1:
            y = check.array(name, y, 1)
            if (bad := y[~np.isin(y, np.arange(c))]).size:
                raise ValueError(
                    f"{name} has the class {bad[0]:g}, but the model has {c} outputs; number the "
                    f"classes 0 to {c - 1}, and leave out points that have none"
                )
            y = np.eye(c)[y.astype(int)]
        return super().beside(name, y, f)

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

    def in_torch(self, f, y):
        return -(y * torch.log_softmax(f, -1)).sum(-1)

    def gradient(self, f, y):
        others = softmax(f, axis=-1) * (1 - y)  # at class y p − 1 would lose the digits of 1 − p
        return others - y * others.sum(axis=-1, keepdims=True)

    def curvature(self, f):
        p = softmax(f, axis=-1)
        return p, p


SQUARED = Squared()
TORCH = {nn.MSELoss: SQUARED, nn.BCEWithLogitsLoss: Binary(), nn.CrossEntropyLoss: Softmax()}


def loss_of(loss) -> Loss:
    """Return a loss of this module, or the one that a loss of torch is, but for a factor.

    Raises `TypeError` for other losses, and for settings by which points no longer count alike.

    >>> type(loss_of(nn.CrossEntropyLoss())).__name__
    'Softmax'
    """
    same = loss if isinstance(loss, Loss) else TORCH.get(type(loss))
    other = [k for k in ("weight", "pos_weight") if getattr(loss, k, None) is not None]
    other += ["label_smoothing"] if getattr(loss, "label_smoothing", 0) else []
    other += ["ignore_index"] if getattr(loss, "ignore_index", -100) >= 0 else []
    other += ["reduction='none'"] if getattr(loss, "reduction", None) == "none" else []
    if same is None or other:
        raise TypeError(
            "loss must be an object of lib.losses, or nn.CrossEntropyLoss(), nn.MSELoss() or "
            f"nn.BCEWithLogitsLoss() without {' and '.join(other) or 'weights'}, not {loss!r}; "
            "pass one of them, and train with it"
        )
    return same
