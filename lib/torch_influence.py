"""Influence of the training points of a trained torch module, and a check by retraining.

The dual route: with Jacobians J of the c outputs at the n training points, K = JJᵀ (nc × nc) and
the Hessian Λ of the loss in the outputs, the Gauss-Newton Hessian H = JᵀΛJ + λI has

    C = J H⁻¹ Jᵀ = (λI + KΛ)⁻¹K,

so that nc solves give every pair, without a stochastic estimate and whatever the number p of
parameters. What it leaves out is ∇²f, which is 0 for a network that is linear in its parameters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lib import check
from lib.losses import Logistic, Loss, Softmax, Squared
from lib.module import _Module, empirical_ntk, labels_like, outputs
from lib.packed import _free_memory
from lib.regression import Estimates, repair

LOSSES = {nn.MSELoss: Squared(), nn.BCEWithLogitsLoss: Logistic(), nn.CrossEntropyLoss: Softmax()}


class ModuleInfluence(Estimates):
    """Estimates of what the removal of each training point does to each test loss, see `influence`.

    - ihvp, rescaled, newton: (n, t), positive where removing the point hurts
    - h: leverage of each training point, (n,), the relative error of IHVP to first order: with one
      output C_ii Λ_i, else the effective 1 − ‖g_i‖²/⟨g_i, ω_i⟩, ω_i = (I − Λ_i C_ii)⁻¹ g_i
    - blocks: Λ_i C_ii, (n, c, c)
    - first, step: the shifts C_te,i g_i and C_te,i ω_i of f(x_te), (n, t, c); `step` is that of one
      Newton step without the point
    - rest: how far the model is from its minimum, 0 if it is there: the rms over test outputs of
      the shift C_te,· (ΛJv − g) − J_te v by one Newton step on all points, v = θ − θ₀, over that of
      `first`. At 1, more training moves f(x_te) as much as IHVP expects of removing a point
    - f, y_te, loss, X_te: outputs, labels and loss at the test points, (t, c), and these points
    """

    def __init__(self, K, k, f, Y, f_te, y_te, lam: float, loss, pull=None):
        (n, c), t = f.shape, len(f_te)
        self.f, self.y_te, self.loss = f_te, y_te, loss
        g, (d, v) = loss.gradient(f, Y), loss.curvature(f)
        hessian = d[:, :, None] * np.eye(c) - v[:, :, None] * v[:, None, :]
        A = np.einsum("ria,iab->rib", K.reshape(n * c, n, c), hessian).reshape(n * c, n * c)
        A[np.diag_indices(n * c)] += lam
        C = np.linalg.solve(A, np.hstack([K, k]))
        own = C[:, : n * c].reshape(n, c, n, c)[np.arange(n), :, np.arange(n)]
        across = C[:, n * c :].reshape(n, c, t, c)
        self.blocks = hessian @ own
        omega, self.h = repair(g, self.blocks)
        self.first, self.step = (np.einsum("iatb,ia->itb", across, s) for s in (g, omega))
        self.rest = np.nan
        if pull is not None:
            s = (hessian @ pull[0].reshape(n, c, 1))[:, :, 0] - g
            left = np.einsum("iatb,ia->tb", across, s) - pull[1].reshape(t, c)
            with np.errstate(all="ignore"):  # a model that is sure has no influence
                self.rest = float(np.sqrt(np.mean(left**2) / np.mean(self.first**2)))

    def __repr__(self) -> str:
        n, t, c = self.step.shape
        return f"{type(self).__name__}: n = {n}, t = {t}, c = {c}, rest {self.rest:.2g}"


def influence(
    model: nn.Module, loss, train, test, lam: float, *, parameters: Iterable[str] | None = None,
    start: nn.Module | None = None, memory: float = 1e9,
) -> ModuleInfluence:  # fmt: skip
    """Return the estimated influence of each training point of a trained module on each test loss.

    Eq 12:  Î = ⟨g_te, C_te,i g_i⟩,  C = (λI + KΛ)⁻¹K,  g = ∂ℓ/∂f,  Λ = ∂²ℓ/∂f².

    `model` has been trained to a minimum of Σ_i ℓ(f(x_i), y_i) + ½ λ ‖θ − θ₀‖²: a *sum* over n
    points. θ₀ is 0, or the parameters of a module `start`. Weight decay w on a *mean* loss is

    - λ = n·w for `torch.nn.CrossEntropyLoss`
    - λ = n·c·w for `torch.nn.BCEWithLogitsLoss`, which is a mean over the outputs, too
    - λ = ½·n·c·w for `torch.nn.MSELoss`, which has no half besides

    `loss` is such a loss or an object of `lib.losses`. `train` and `test` are (X, Y), a data set of
    torch, or a `DataLoader`, whose data set is read in its own order. Labels are what the loss asks
    for; for softmax also the numbers of the classes. The module is in evaluation mode, on any
    device. `parameters` and `memory` are those of `lib.module.empirical_ntk`: K is that of the
    chosen parameters, which are taken to be all that training moves.

    Warns where `rest` exceeds 0.1: the model is no minimum for this λ. The curvature ∇²f of the
    network is left out, and so are kinks of its activations: `trust` tells how much that matters.
    Needs 8·nc·(5nc + 3tc) bytes, whatever the number of parameters.

    Raises `ValueError` for labels that do not match the outputs, λ ≤ 0, outputs that are not
    finite, data that are drawn at random and what `empirical_ntk` refuses, `TypeError` for other
    losses, and `MemoryError` before it starts where nc is too large, with what to do then.
    Source: Zhang and Zhang (2022), Eq 12; Koh and Liang (2017).

    >>> line = nn.Linear(2, 1, bias=False).double().eval()
    >>> with torch.no_grad():  # the minimum for λ = ½: (1 + ½) w = ±1
    ...     _ = line.weight.copy_(torch.tensor([[2 / 3, -2 / 3]]))
    >>> train, test = (np.eye(2), [[1.0], [-1.0]]), ([[0.6, 0.8]], [[1.0]])
    >>> one = influence(line, Squared(), train, test, lam=0.5)
    >>> one.h.round(6).tolist(), one.ihvp.round(6).tolist(), one.newton.round(6).tolist()
    ([0.666667, 0.666667], [[0.151111], [-0.201481]], [[0.533333], [-0.462222]])
    >>> round(one.rest, 6)
    0.0
    """
    lam, (X, Y), (X_te, y_te) = check.number("lam", lam, above=0), _read(train), _read(test)
    f, f_te, given, loss = outputs(model, X), outputs(model, X_te), loss, _loss(loss)
    y, y_te = _labels(given, "Y", Y, f), _labels(given, "y_te", y_te, f_te)
    _room(f.size, f_te.size)
    kernel = partial(empirical_ntk, model, parameters=parameters, memory=memory)
    K, k, here = kernel(X), kernel(X, X_te), _Module(model, parameters)
    there = dict(start.named_parameters()) if start is not None else {}
    v = {name: p - there[name].to(p) if there else p for name, p in here.theta.items()}
    pull = [here.along(v, here.points("X", x)) for x in (X, X_te)]
    f, f_te = f.reshape(y.shape), f_te.reshape(y_te.shape)
    found = ModuleInfluence(K, k, f, y, f_te, y_te, lam, loss, pull)
    found.X_te = X_te
    if found.rest > 0.1:
        warnings.warn(
            f"model is not at rest: one more step on all points moves its outputs {found.rest:.2g} "
            "times as much as the removal of one. Is lam n times the weight decay, and has the "
            "training come to its end?",
            stacklevel=2,
        )
    return found


def _read(data) -> tuple:
    """Return the points and labels of (X, Y), a data set or a loader."""
    data = data.dataset if isinstance(data, DataLoader) else data
    if not isinstance(data, Dataset):
        X, Y = data
    else:
        first, again = data[0][0], data[0][0]
        if not torch.equal(torch.as_tensor(first), torch.as_tensor(again)):
            raise ValueError(
                "train or test gives another point each time that it is read; switch off random "
                "augmentation"
            )
        X, Y = (torch.cat(parts) for parts in zip(*DataLoader(data, 256), strict=True))
    return X, Y.detach().cpu() if isinstance(Y, torch.Tensor) else Y


def _loss(loss) -> Loss:
    """Return the loss of `lib.losses` that a loss of torch is."""
    same = loss if isinstance(loss, Loss) else LOSSES.get(type(loss))
    other = [k for k in ("weight", "pos_weight") if getattr(loss, k, None) is not None]
    other += ["label_smoothing"] if getattr(loss, "label_smoothing", 0) else []
    if same is None or other:
        raise TypeError(
            f"loss must be an object of lib.losses, or nn.CrossEntropyLoss(), nn.MSELoss() or "
            f"nn.BCEWithLogitsLoss() without {' and '.join(other) or 'weights'}, not {loss!r}"
        )
    return same


def _labels(loss, name: str, y, f: np.ndarray) -> np.ndarray:
    """Return the labels as the loss of `lib.losses` has them, (n, c)."""
    if isinstance(loss, nn.BCEWithLogitsLoss):  # its classes are 0 and 1
        y = check.array(name, y, (1, 2))
        if (bad := y[(y != 0) & (y != 1)]).size:
            raise ValueError(f"{name} must be 0 or 1 for {loss}, not {bad[0]:g}; recode it")
        y = 2 * y - 1
    return labels_like(_loss(loss), name, y, f)


def _room(size: int, tests: int) -> None:
    """Raise `MemoryError` unless matrices of nc rows fit in the memory that is free."""
    need, free = 8 * size * (5 * size + 3 * tests), _free_memory()
    if need > free:
        raise MemoryError(
            f"n·c = {size} outputs of the training points need {need / 1e9:.1f} GB of memory, but "
            f"{free / 1e9:.1f} are free, whatever parameters are chosen; train on fewer "
            "points, with one output in place of two, or for squared loss and one output make the "
            "kernel by tiles: "
            "lib.packed.PackedInverse(functools.partial(empirical_ntk, model), X, lam)"
        )


@dataclass(frozen=True)
class Trust:
    """Estimates beside retraining, for a few points over the whole range of leverages.

    - points, h: (k,) training points and their leverages, in increasing order
    - actual: (k, t) rise of each test loss when the point is left out and the model is trained anew
    - estimates: "ihvp", "rescaled" and "newton", (k, t) each
    - again: (t,) what training on all points anew does to the test loss: the noise of retraining
    """

    points: np.ndarray
    h: np.ndarray
    actual: np.ndarray
    estimates: dict[str, np.ndarray]
    again: np.ndarray

    def error(self, name: str) -> float:
        """Relative error Σ|I − Î|/Σ|I| of an estimate, over the points and all test points."""
        return float(abs(self.actual - self.estimates[name]).sum() / abs(self.actual).sum())

    def correlation(self, name: str) -> float:
        """Correlation of an estimate with the actual influence."""
        return float(np.corrcoef(self.actual.ravel(), self.estimates[name].ravel())[0, 1])

    @property
    def noise(self) -> float:
        """Size of `again` relative to an actual influence: below it no estimate can be judged."""
        return float(abs(self.again).mean() / abs(self.actual).mean())

    def __str__(self) -> str:
        low, high = self.h[[0, -1]]
        lines = [f"{len(self.h)} points retrained, leverage {low:.3f} to {high:.3f}"]
        for name in self.estimates:
            r, error = self.correlation(name), self.error(name)
            lines.append(f"{name:10} correlation {r:.3f}  relative error {error:.3f}")
        return "\n".join([*lines, f"{'noise':10} {self.noise:.3f} of an influence"])


def trust(
    estimate: ModuleInfluence, train: Callable[[list[int]], nn.Module], *, k: int = 8
) -> Trust:
    """Retrain without each of k points, over the range of leverages, and say how estimates agree.

    `train(without)` is the training function that made the model: it trains on all points but
    those, the empty list included, and returns the module. It decides where a training begins; if
    its end depends on that, begin at the parameters of the trained model. It keeps λ, so that with
    weight decay w the loss stays Σ_i ℓ_i / n, with n that of all points. Costs k + 1 trainings.

    Raises `ValueError` for k below 2 or above the number of points.
    """
    n = len(estimate.h)
    if (k := check.integer("k", k, at_least=2)) > n:
        raise ValueError(f"k = {k} exceeds the {n} training points; choose a smaller one")
    order = np.argsort(estimate.h, kind="stable")
    points = order[np.linspace(0, n - 1, k).round().astype(int)]

    def losses(without):
        f = outputs(train(without).eval(), estimate.X_te).reshape(estimate.f.shape)
        return estimate.loss.value(f, estimate.y_te)

    begin = losses([])
    actual = np.array([losses([int(i)]) - begin for i in points])
    given = {name: getattr(estimate, name)[points] for name in ("ihvp", "rescaled", "newton")}
    again = begin - estimate.loss.value(estimate.f, estimate.y_te)
    return Trust(points, estimate.h[points], actual, given, again)
