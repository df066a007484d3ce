"""What a change of the training set does to a loss, from predictions alone (Eq 7, 8, 14).

Ridge regression, the flow in time and retraining give `Influence` what it needs.
"""

from __future__ import annotations

import numpy as np

from lib import check
from lib.losses import SQUARED


class Influence:
    """Influence of n changes of the training set (rows) on the loss at t test points (columns).

    Eq 7, 8:  I = ½ ‖f^{∖i} − y_te‖² − ½ ‖f − y_te‖² = T₁ + T₂.

    A change is the removal of a training point or of a group. A positive influence says that the
    removal raises the loss: the point is helpful. `f` are the predictions f(x_te), (t,) or with c
    outputs (t, c), `y_te` the test labels, shaped like f and of any finite size, and `shift` what
    each removal does to f: f^{∖i} − f, (n, t) or (n, t, c). The norm is over the outputs, so an
    influence is always one number, in squared label units. Another `loss` of `lib.losses` takes the
    place of ½ ‖f − y‖²: then T₁ = ⟨∂ℓ/∂f, shift⟩ and T₂ is what its curvature adds. All three
    arrays are copied, as float64.

    Raises `ValueError` for labels or shifts whose shape does not match that of f, and for values
    that are not finite, `TypeError` for what is not numeric.
    Source: Zhang and Zhang (2022), Eq 7, 8, 14 and Prop 2.

    >>> influence = Influence(np.array([0.5]), [1.0], np.array([[-1.0], [0.25]]))
    >>> influence.loo.tolist(), influence.exact.tolist()  # ½ 1.5² − ½ 0.5², ½ 0.25² − ½ 0.5²
    ([[-0.5], [0.75]], [[1.0], [-0.09375]])
    """

    def __init__(self, f, y_te, shift, loss=SQUARED):
        self.f, self._shift, self.loss = check.array("f", f, (1, 2)).copy(), shift, loss
        self.y_te = loss.labels("y_te", y_te, len(self.f))
        if self.y_te.shape != self.f.shape:
            raise ValueError(
                f"y_te has shape {self.y_te.shape}, but the predictions have {self.f.shape}; "
                "pass as many labels a point as the model has outputs"
            )
        if shift is not None:  # a subclass may work it out when it is asked for
            shift = self._shift = check.array("shift", shift, (1, 2, 3)).copy()
            if shift.shape[1:] != self.f.shape:
                both = f"shift has shape {shift.shape}, but f has {self.f.shape}"
                raise ValueError(f"{both}; pass one row of predictions for each removal, less f")

    def __repr__(self) -> str:
        n, t = self.shift.shape[:2]
        return f"{type(self).__name__}: n = {n}, t = {t}"

    @property
    def shift(self) -> np.ndarray:
        """What each removal does to the predictions: f^{∖i} − f, (n, t) or (n, t, c)."""
        return self._shift

    @property
    def r_te(self) -> np.ndarray:
        """Test residuals r_te = f(x_te) − y_te, or the gradients ∂ℓ/∂f there, shaped like f."""
        return self.loss.gradient(self.f, self.y_te)

    @property
    def loo(self) -> np.ndarray:
        """Leave-one-out predictions f^{∖i}(x_te) = f(x_te) + shift (Eq 9), shaped like shift."""
        return self.f + self.shift

    @property
    def T1(self) -> np.ndarray:
        """First-order term T₁ = ⟨f^{∖i} − f, r_te⟩ of I = T₁ + T₂ (Eq 14, 15), (n, t)."""
        return self._along(self.r_te)

    @property
    def T2(self) -> np.ndarray:
        """Second-order term T₂ = ½ ‖f^{∖i} − f‖² ≥ 0 of I = T₁ + T₂ (Prop 2, Eq 14), (n, t)."""
        given = self.f, self.y_te, self.shift
        return self.loss.bend(*(given if self.f.ndim == 2 else (x[..., None] for x in given)))

    @property
    def exact(self) -> np.ndarray:
        """Exact influence I = T₁ + T₂ (Eq 7, 8), (n, t). It subtracts no two close squares."""
        influence = self.T1
        influence += self.T2
        return influence

    def _along(self, r: np.ndarray) -> np.ndarray:
        """Return ⟨shift, r⟩ for each pair, (n, t), for r shaped like f."""
        along = self.shift * r
        return along if along.ndim == 2 else along.sum(axis=2)
