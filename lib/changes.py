"""What other changes of the training set do to a loss, exactly and without a refit.

`lib.ridge.Ridge.influence` removes one point at a time. Here groups of points leave together, a
point gets another label, and new points come in. Each change is a row of an `Influence`: its
`exact` is positive where the change raises the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from lib import check
from lib.influence import Influence
from lib.ridge import Ridge, products


class Removal(Influence):
    """Influence of removing groups of training points (rows) on t test points (columns).

    f^{∖G} − f = α_Gᵀ ρ_G,  ρ_G = −(Q_GG)⁻¹ β_G: Eq 9 for a group G, whose points leave together.

    `groups` are as for `Ridge.remove`, `k` is (n, t) and `y_te` the test labels, (t,) or (t, c).
    Source: the block form of Zhang and Zhang (2022), Eq 9.

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> both = Removal(model, [[0, 1]], [[0.5], [0.25]], [1.0])
    >>> both.exact.tolist(), both.ihvp.tolist(), both.bound(k_xx=0.5).round(6).tolist()
    ([[0.21875]], [[0.09375]], [[0.515165]])
    """

    def __init__(self, model: Ridge, groups: Iterable, k, y_te):
        self.lam = check.made("model", model, Ridge, "pass Ridge(K, Y, lam)").lam
        k = check.columns(k, len(model.Y))
        shift, self.ihvp, pairs = [], [], []
        f = model.predict(k)
        super().__init__(f, y_te, None)
        for G in check.groups(groups, len(model.Y)):
            alpha, rho, r = model.Q.rows(G) @ k, model.without(G), model.r[G]
            shift.append(alpha.T @ rho)
            self.ihvp.append((alpha * products(r, self.r_te)).sum(axis=0))
            pairs.append([_norm(model, G, rho), _norm(model, G, rho - r)])
        self._shift, self.ihvp, self._norms = np.array(shift), np.array(self.ihvp), np.array(pairs)

    def __repr__(self) -> str:
        groups, t = len(self.shift), len(self.f)
        return f"Removal: groups = {groups}, t = {t}, lam = {self.lam:g}"

    def bound(self, k_xx: float) -> np.ndarray:
        """Return a bound on abs(I − Î) for each group and test point, (groups, t).

        abs(I − Î) ≤ √(k_xx q(ρ_G − r_G)) ‖r_te‖ + ½ k_xx q(ρ_G),  q(v) = tr vᵀ [QKQ]_GG v,

        since I − Î = ⟨α_Gᵀ(ρ_G − r_G), r_te⟩ + ½ ‖α_Gᵀ ρ_G‖² and ‖α_Gᵀ v‖² ≤ k(x, x) q(v). Of the
        test point it needs the residual alone. For one point it is `lib.bounds.worst_case` with the
        residual in place of its bound R. `k_xx` is the largest k(x, x) there is,
        `lib.kernel.DIAGONAL` for the NTK. Source: this project, by Cauchy and Schwarz.
        """
        second, first = check.number("k_xx", k_xx, above=0) * self._norms.T[:, :, None]
        size = np.linalg.norm(self.r_te.reshape(len(self.f), -1), axis=1)
        return np.sqrt(first) * size + 0.5 * second


def relabelling(model: Ridge, points, labels, k, y_te) -> Influence:
    """Return the influence of giving each of some training points another label, one at a time.

    f(x_te) moves by α_i Δ exactly, Δ = label − y_i, and the loss by α_i ⟨Δ, r_te⟩ + ½ α_i² ‖Δ‖².

    `points` are p distinct training points, `labels` (p,) or (p, c) what they get, `k` is (n, t)
    and `y_te` the test labels. Raises `IndexError` for points that are not there and
    `ValueError` for labels of another shape.

    >>> model = Ridge([[0.5, 0.0], [0.0, 0.5]], [1.0, -1.0], lam=0.5)
    >>> relabelling(model, [1], [1.0], [[0.5], [0.25]], [1.0]).exact.tolist()
    [[-0.25]]
    """
    check.made("model", model, Ridge, "pass Ridge(K, Y, lam)")
    k = check.columns(k, len(model.Y))
    points = check.indices("points", points, len(model.Y))
    delta = _like("labels", labels, len(points), model) - model.Y[points]
    return Influence(model.predict(k), y_te, _outer(model.Q.rows(points) @ k, delta))


def addition(
    model: Ridge, kernel: Callable, X, X_new, y_new, X_te, y_te, groups: Iterable | None = None
) -> Influence:
    """Return the influence of training on new points as well, one at a time or in groups.

    f⁺ − f = (k_A(x) − K_Aᵀ Q k(x))ᵀ (K_AA + λI − K_Aᵀ Q K_A)⁻¹ (y_A − f(x_A)): the removal of Eq 9
    the other way round, for a group A of new points.

    X (n, d) and `kernel(X, X2)` are those of the model, X_new (a, d) and y_new (a,) or (a, c) the
    new points, X_te (t, d) and y_te the test points. Without `groups` each new point is one.
    Raises `ValueError` for points of other dimensions, labels of another shape, and where no model
    fits the new points beside the others: λ = 0, and an input that is there already.

    >>> from lib.kernel import ntk
    >>> X, model = np.eye(2), Ridge(ntk(np.eye(2)), [1.0, -1.0], lam=0.5)
    >>> addition(model, ntk, X, X[:1], [1.0], X[:1], [1.0]).exact.round(6).tolist()  # seen twice
    [[-0.069444]]
    """
    check.made("model", model, Ridge, "pass Ridge(K, Y, lam)")
    new = check.columns(kernel(X, check.array("X_new", X_new, 2)), len(model.Y))
    y_new = _like("y_new", y_new, new.shape[1], model)
    groups = range(len(y_new)) if groups is None else groups
    k, alpha = kernel(X, check.array("X_te", X_te, 2)), model.Q.solve(new)
    own = kernel(X_new) - new.T @ alpha
    lift, wrong = kernel(X_new, X_te) - alpha.T @ k, y_new - model.predict(new)
    eps = max(len(new) * np.finfo(float).eps, 1e-11 if model.Q.dtype == "float32" else 0)
    rounding, shift = eps * (model.diagonal.sum() + len(new) * model.lam), []
    for A in check.groups(groups, len(y_new)):
        S = own[np.ix_(A, A)] + model.lam * np.eye(len(A))
        if np.linalg.eigvalsh(S)[0] <= rounding * (alpha[:, A] ** 2).sum(axis=0).max(initial=1):
            raise ValueError(_twice(new[:, A], kernel(X_new[A]), model, A))
        shift.append(lift[A].T @ np.linalg.solve(S, wrong[A]))
    return Influence(model.predict(k), y_te, np.array(shift))


def _twice(new: np.ndarray, own: np.ndarray, model: Ridge, A) -> str:
    """Say which new point, of the group A, is like another one, from its kernel with the others."""
    size = own.diagonal() ** 0.5
    beside = np.abs(np.tril(own, -1)) / np.outer(size, size)
    old = np.abs(new) / np.outer(model.diagonal**0.5, size)
    if beside.max() > old.max():
        pair = "new points {} and {}".format(
            *(A[i] for i in np.unravel_index(beside.argmax(), beside.shape))
        )
    else:
        i, j = np.unravel_index(old.argmax(), old.shape)
        pair = f"new point {A[j]} and training point {i}"
    return (
        f"with lam = {model.lam:g} no model fits {pair} to working precision: their inputs are the "
        "same, or nearly so, or depend on the others; leave one out or choose a larger lam"
    )


def _like(name: str, y, points: int, model: Ridge) -> np.ndarray:
    """Labels of so many points, with as many outputs as the model has."""
    y = check.targets(name, y, points)
    if y.shape[1:] != model.Y.shape[1:]:
        raise ValueError(
            f"{name} has shape {y.shape}, but the training labels have {model.Y.shape}; "
            "pass as many labels a point"
        )
    return y


def _outer(alpha: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """α_i Δ_i for each pair, (p, t) or (p, t, c)."""
    return alpha * delta[:, None] if delta.ndim == 1 else alpha[:, :, None] * delta[:, None]


def _norm(model: Ridge, G: np.ndarray, v: np.ndarray) -> float:
    """tr vᵀ [QKQ]_GG v, from [QKQ]_GG = Q_GG(I − λQ_GG) − λ Q_G,out Q_out,G, which keeps digits."""
    rows = model.Q.rows(G)
    block, out = rows[:, G], np.delete(rows, G, axis=1)
    v = v.reshape(len(G), -1)
    Qv = block @ v
    inside = np.sum(Qv * (v - model.lam * Qv))
    return max(0.0, inside - model.lam * np.sum((out.T @ v) ** 2))
