"""How suspicious each training label is, from one model that was trained on all of them.

A wrong label is one that the model would not give if it had not seen it. The leave-one-out output
f^{∖i}(x_i) = y_i + ρ_i asks exactly that, without training again. The usual estimates know the
residual r_i of the model that has seen the label, and expand in the leverage: ρ_i = r_i / (1 − h_i)
becomes (1 + h_i) r_i, and the self-influence h_i ‖r_i‖².
"""

from __future__ import annotations

import numpy as np

from lib import check
from lib.ridge import Ridge, squares


def scores(model: Ridge, *, ihvp: bool = False, clean=None) -> dict[str, np.ndarray]:
    """Return scores of all training labels by name, each (n,); larger is more suspicious.

    With r and ρ the residuals with and without the point, and h its leverage:

        residual         ‖r_i‖
        loss             ½ ‖ρ_i‖², the leave-one-out loss
        margin           max_{j≠c} f^{∖i}_j(x_i) − f^{∖i}_c(x_i), c the labelled class
        self-influence   I(x_i, x_i) = ½ ‖ρ_i‖² − ½ ‖r_i‖² (Eq 8)
        clean influence  minus `clean`, if it is given

    The labels name classes: ±1 in (n,) or (n, 1), where the margin is −y_i f^{∖i}(x_i), or one
    output a class in (n, c), where c is the largest. `model` is a `lib.ridge.Ridge`, or has its Y,
    r, rho and h, as `lib.dynamics.Flow` has at one time. With `ihvp` these are the estimates of
    first order: (1 + h_i) r_i in place of ρ_i, and h_i ‖r_i‖² for the self-influence (Eq 13).
    `clean` (n,) is the mean influence of each point on images whose labels are known to be right,
    for instance `Influence.exact.mean(axis=1)` or the mean of `lib.stream`: a point is suspicious
    if they are better off without it.

    Raises `ValueError` for labels that name no class and a `clean` of another shape.
    Source: Eq 8, 9, 13; self-influence as by Pruthi et al. (2020).

    >>> model = Ridge([[0.5, 0.25], [0.25, 0.5]], [1.0, -1.0], lam=0.25)
    >>> {name: score.round(4).tolist() for name, score in scores(model).items()}
    {'residual': [0.5, 0.5], 'loss': [0.8889, 0.8889], 'margin': [0.3333, 0.3333],
     'self-influence': [0.7639, 0.7639]}
    """
    Y, own = model.Y, _classes(model.Y)
    r, rho = model.r, model.rho
    if check.flag("ihvp", ihvp):
        rho = ((1 + model.h) * r.T).T
        of_itself = model.h * squares(r)
    else:
        of_itself = 0.5 * ((rho - r) * (rho + r)).reshape(len(Y), -1).sum(axis=1)
    found = {
        "residual": squares(r) ** 0.5,
        "loss": 0.5 * squares(rho),
        "margin": -margins(_outputs(Y + rho), own),
        "self-influence": of_itself,
    }
    if clean is not None:
        clean = check.array("clean", clean, 1)
        if len(clean) != len(Y):
            raise ValueError(
                f"clean has {len(clean)} entries, but there are {len(Y)} training points; pass the "
                "mean influence of each, influence.exact.mean(axis=1)"
            )
        found["clean influence"] = -clean
    return found


def suggested(model: Ridge) -> np.ndarray:
    """Return the number of the class with the largest leave-one-out output of each point, (n,).

    argmax_j f^{∖i}_j(x_i); with labels ±1 class 0 is +1 and class 1 is −1, as in `lib.data.load`.
    Labels and errors are those of `scores`. Source: Eq 9.

    >>> suggested(Ridge([[0.5, 0.25], [0.25, 0.5]], [1.0, -1.0], lam=0.25)).tolist()
    [1, 0]
    """
    _classes(model.Y)
    return _outputs(model.Y + model.rho).argmax(axis=1)


def margins(outputs: np.ndarray, own) -> np.ndarray:
    """Return the output of the own class less the largest other one, for outputs (..., c).

    Positive is right. The score "margin" is this of leave-one-out outputs with its sign turned.

    >>> margins(np.array([[0.5, 0.75, 0.0]]), [0]).tolist()
    [-0.25]
    """
    own = np.expand_dims(np.broadcast_to(own, outputs.shape[:-1]), -1)
    others = outputs.copy()
    np.put_along_axis(others, own, -np.inf, axis=-1)
    return np.take_along_axis(outputs, own, axis=-1)[..., 0] - others.max(axis=-1)


def _outputs(f: np.ndarray) -> np.ndarray:
    """Return one output a class, (n, c): for f (n,) or (n, 1) they are f and −f, halved."""
    f = f.reshape(len(f), -1)
    return np.hstack([f, -f]) / 2 if f.shape[1] == 1 else f


def _classes(Y: np.ndarray) -> np.ndarray:
    """Return the number of the class that each label names, (n,)."""
    if Y.size == len(Y):
        wrong = np.flatnonzero(np.abs(Y.ravel()) != 1)
        needs = "-1 or +1"
    else:
        wrong = np.flatnonzero((Y == Y.max(axis=1, keepdims=True)).sum(axis=1) > 1)
        needs = "one largest output, such as a one-hot row"
    if len(wrong):
        raise ValueError(
            f"Y[{wrong[0]}] = {Y[wrong[0]].tolist()} names no class ({len(wrong)} such labels); "
            f"each needs {needs}"
        )
    return _outputs(Y).argmax(axis=1)
