"""Influence of the training points of a trained torch module, and a check by retraining.

The dual route: with Jacobians J of the c outputs at the n training points, K = JJᵀ (nc × nc) and
the Hessian Λ of the loss in the outputs, the Gauss-Newton Hessian H = JᵀΛJ + λI has

    C = J H⁻¹ Jᵀ = (λI + KΛ)⁻¹K,

so that nc solves give every pair, without a stochastic estimate and whatever the number p of
parameters. What it leaves out is ∇²f, which is 0 for a network that is linear in its parameters.
`full_influence` has it, by products with vectors, for a few training points at a time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import orth
from scipy.sparse.linalg import LinearOperator, cg
from torch import nn
from torch.func import grad, jvp

from lib import check
from lib.losses import loss_of
from lib.module import Function, Labelled, kernels, outputs
from lib.packed import free_memory
from lib.regression import Estimates, repair

NO_GRADIENT = (
    "the gradients of all points are 0, and so is every influence: outputs do not depend on the "
    "chosen parameters (no_grad, detach or sign in forward?), or no loss does on the outputs"
)


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

    def __init__(self, K, f, Y, f_te, y_te, lam: float, loss, pull=None):
        (n, c), t = f.shape, len(f_te)
        self.f, self.y_te, self.loss = f_te, y_te, loss
        g, (d, v) = loss.gradient(f, Y), loss.curvature(f)
        hessian = d[:, :, None] * np.eye(c) - v[:, :, None] * v[:, None, :]
        own = K[:, : n * c].reshape(n * c, n, c)  # beside it in K are the test points
        A = np.einsum("ria,iab->rib", own, hessian).reshape(n * c, n * c)
        A[np.diag_indices(n * c)] += lam
        C = np.linalg.solve(A, K)
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

    and with `reduction="sum"` λ = w, w and ½·w. That is the decay of SGD and Adam. AdamW decays
    parameters beside the loss, and comes to rest at no such minimum.

    `loss` is such a loss or an object of `lib.losses`. `train` and `test` are (X, Y), a data set of
    torch, or a `DataLoader`, whose data set is read in its own order and as it collates. Labels are
    what the loss asks for; for softmax also the numbers of the classes. The module is in evaluation
    mode, on any device. `parameters` and `memory` are those of `lib.module.empirical_ntk`: K is
    that of the chosen parameters, which are taken to be all that training moves.

    Warns where `rest` exceeds 0.1: the model is no minimum for this λ. The curvature ∇²f of the
    network is left out, and so are kinks of its activations: `trust` tells how much that matters.
    Needs 8·nc·(5nc + 3tc) bytes, whatever the number of parameters.

    Raises `ValueError` for labels that do not match the outputs, λ ≤ 0, outputs that are not
    finite, data that are drawn at random, a sampler that may leave points out, another `start`,
    gradients that are all 0 and what `empirical_ntk` refuses, `TypeError` for other losses and
    data, and `MemoryError` before it starts where nc is too large, with what to do then.
    Source: Zhang and Zhang (2022), Eq 12; Koh and Liang (2017).

    >>> line = nn.Linear(2, 1, bias=False).double().eval()  # the minimum for λ = ½: (1 + ½) w = ±1
    >>> line.weight.data = torch.tensor([[2 / 3, -2 / 3]], dtype=torch.float64)
    >>> train, test = (np.eye(2), [[1.0], [-1.0]]), ([[0.6, 0.8]], [[1.0]])
    >>> one = influence(line, nn.MSELoss(), train, test, lam=0.5)
    >>> one.h.round(6).tolist(), one.ihvp.round(6).tolist(), one.newton.round(6).tolist()
    ([0.666667, 0.666667], [[0.151111], [-0.201481]], [[0.533333], [-0.462222]])
    >>> round(one.rest, 6)
    0.0
    """
    lam, loss, at = check.number("lam", lam, above=0), loss_of(loss), Function(model, parameters)
    one, two = Labelled(at, loss, "train", train), Labelled(at, loss, "test", test)
    _room(one.y.size, two.y.size)
    K = kernels(at, one.X, two.X, memory=memory)
    v = at.theta if start is None else at.since(start)
    pull = [at.along(v, x) for x in (one.X, two.X)]
    found = ModuleInfluence(K, one.f, one.y, two.f, two.y, lam, loss, pull)
    found.X_te = two.X
    if np.isnan(found.rest):
        raise ValueError(f"{NO_GRADIENT}; check model and labels")
    if found.rest > 0.1:
        warnings.warn(
            f"model is not at rest: one more step on all points moves its outputs {found.rest:.2g} "
            "times as much as the removal of one. Is lam n times the weight decay of SGD or Adam "
            "(AdamW has another minimum), and has the training come to its end?",
            stacklevel=2,
        )
    return found


def _room(size: int, tests: int) -> None:
    """Raise `MemoryError` unless matrices of nc rows fit in the memory that is free."""
    need, free = 8 * size * (5 * size + 3 * tests), free_memory()
    if need > free:
        raise MemoryError(
            f"n·c = {size} outputs of the training points need {need / 1e9:.1f} GB of memory, but "
            f"{free / 1e9:.1f} are free, whatever parameters are chosen; train on fewer points, "
            "for two classes give the model one output, or for squared loss and one output make "
            "the kernel by tiles: "
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
        lines.append(f"{'noise':10} {self.noise:.3f} of an influence")
        return "\n".join([*lines, "true if train(without) divides by all n, and so keeps lam"])


def trust(
    estimate: ModuleInfluence, train: Callable[[list[int]], nn.Module], *, k: int = 8
) -> Trust:
    """Retrain without each of k points, over the range of leverages, and say how estimates agree.

    `train(without)` is the training function that made the model: it trains on all points but
    those, the empty list included, and returns the module. It decides where a training begins; if
    its end depends on that, begin at the parameters of the trained model. It has to keep λ: with
    weight decay w the loss stays Σ_i ℓ_i / n, n that of all points. A mean over the points that
    are kept divides by n − 1, and so trains with another λ, which moves a model as much as a
    removal does: take the sum, and divide by n. Costs k + 1 trainings.

    Raises `ValueError` for k below 2 or above the number of points and for a module with other
    outputs, and `TypeError` for a `train` that is no function or returns no module.
    """
    remedy = "pass what influence returned"
    n = len(check.made("estimate", estimate, ModuleInfluence, remedy).h)
    if not callable(train):
        raise TypeError(
            f"train must be a function of the points to leave out, not {train!r}; pass it"
        )
    if (k := check.integer("k", k, at_least=2)) > n:
        raise ValueError(f"k = {k} exceeds the {n} training points; choose a smaller one")
    order = np.argsort(estimate.h, kind="stable")
    points = order[np.linspace(0, n - 1, k).round().astype(int)]

    def losses(without):
        net = train(without)
        if not isinstance(net, nn.Module):
            name = type(net).__name__
            raise TypeError(f"train({without}) returned {name}; let it return the trained module")
        f = outputs(net.eval(), estimate.X_te)
        if f.size != estimate.f.size:
            raise ValueError(
                f"train({without}) returned a module with outputs {f.shape}, but the estimate has "
                f"{estimate.f.shape}; train the same module"
            )
        f = f.reshape(estimate.f.shape)
        return estimate.loss.value(f, estimate.y_te)

    begin = losses([])
    actual = np.array([losses([int(i)]) - begin for i in points])
    given = {name: getattr(estimate, name)[points] for name in ("ihvp", "rescaled", "newton")}
    again = begin - estimate.loss.value(estimate.f, estimate.y_te)
    return Trust(points, estimate.h[points], actual, given, again)


@dataclass(frozen=True)
class FullInfluence:
    """Estimates for k training points on t test points, see `full_influence`.

    - points, h: (k,) the points, and their leverages 1 − ⟨g_i, s_i⟩/⟨g_i, d_i⟩, NaN where g_i = 0
    - ihvp: ⟨g_te, s_i⟩, (k, t); rescaled: ⟨g_te, d_i⟩, (k, t)
    - newton: ℓ_te(θ + d_i) − ℓ_te(θ), the network evaluated after the Newton step, (k, t)
    """

    points: np.ndarray
    h: np.ndarray
    ihvp: np.ndarray
    rescaled: np.ndarray
    newton: np.ndarray


def full_influence(
    model: nn.Module, loss, train, test, lam: float, points, *,
    parameters: Iterable[str] | None = None, hold=None, tol: float = 1e-6, steps: int = 2000,
) -> FullInfluence:  # fmt: skip
    """Return influence estimates of training points with the full Hessian of a trained module.

    s_i = H⁻¹ g_i,  d_i = (H − ∇²ℓ_i)⁻¹ g_i,  H = Σ_j ∇²ℓ_j + λI,  g_i = ∇ℓ_i, all in θ.

    Arguments are those of `influence`, and `points` the indices of the training points, one or
    several. d_i is one exact Newton step of the objective without the point: for a network that is
    linear in θ it is the whole way, and the leverage is h_i. Conjugate gradients take products of H
    with vectors until the residual is `tol` of g_i; each costs a few gradients on all n points.
    `hold` (q, p) are directions in θ along which nothing moves, such as `lib.module.kinks`.

    Raises `ValueError` as `influence` does and for `hold` of another shape, `IndexError` for a
    point out of range, and `RuntimeError` where H is not positive, so that θ is no minimum, or
    `steps` steps are too few.
    Source: Koh and Liang (2017) for s_i; Zhang and Zhang (2022), Eq 12, is its Gauss-Newton part.

    >>> line = nn.Linear(2, 1, bias=False).double().eval()  # the minimum for λ = ½: (1 + ½) w = ±1
    >>> line.weight.data = torch.tensor([[2 / 3, -2 / 3]], dtype=torch.float64)
    >>> train, test = (np.eye(2), [[1.0], [-1.0]]), ([[0.6, 0.8]], [[1.0]])
    >>> one = full_influence(line, nn.MSELoss(), train, test, lam=0.5, points=[0, 1])
    >>> one.h.round(6).tolist(), one.ihvp.round(6).tolist(), one.newton.round(6).tolist()
    ([0.666667, 0.666667], [[0.151111], [-0.201481]], [[0.533333], [-0.462222]])
    """
    lam, loss, at = check.number("lam", lam, above=0), loss_of(loss), Function(model, parameters)
    one, two = Labelled(at, loss, "train", train), Labelled(at, loss, "test", test)
    tol, steps = check.number("tol", tol, above=0), check.integer("steps", steps)
    if tol >= 1:
        raise ValueError(f"tol = {tol:g} asks for no step; choose one below 1, such as 1e-6")
    n, theta, free = len(one.y), at.vector, _free(hold, at.vector)
    tests, slope = two.losses, grad(lambda v, keep: keep @ one.losses(v))

    def solve(keep, g, start):
        def product(v):
            v = free(torch.as_tensor(v).to(theta).flatten())
            Hv = jvp(lambda u: slope(u, keep), (theta,), (v,))[1] + lam * v
            if v @ Hv < 0:
                raise RuntimeError(
                    "the Hessian is not positive: the module is not at a minimum of this loss and "
                    "λ; train it longer, or take the Gauss-Newton part, influence"
                )
            return free(Hv).cpu().numpy()

        b, x = g.cpu().numpy(), start.cpu().numpy()
        A = LinearOperator((len(b), len(b)), matvec=product, dtype=b.dtype)
        x, left = cg(A, b, x0=x, rtol=tol, maxiter=steps)
        if left:
            raise RuntimeError(f"conjugate gradients took {steps} steps in vain; allow more steps")
        return torch.as_tensor(x).to(g)

    points, rows = check.indices("points", points, n), []
    for only in torch.eye(n).to(theta)[points]:
        g = free(slope(theta, only))
        s = solve(torch.ones_like(only), g, g / lam)
        d = solve(1 - only, g, s)
        along = [jvp(tests, (theta,), (x,))[1] for x in (s, d)]
        with torch.no_grad():
            moved = tests(theta + d) - tests(theta)
        rows.append((1 - (g @ s) / (g @ d), *along, moved))
    found = FullInfluence(points, *(torch.stack(x).cpu().numpy() for x in zip(*rows, strict=True)))
    if np.isnan(found.h).all():
        raise ValueError(f"{NO_GRADIENT}; choose other ones")
    return found


def _free(hold, theta: torch.Tensor) -> Callable:
    """Return what takes the part along the rows of `hold` out of vectors of size p."""
    if hold is None or not len(hold):
        return lambda v: v
    hold = hold.cpu() if isinstance(hold, torch.Tensor) else hold
    hold = torch.as_tensor(check.array("hold", hold, (1, 2)))
    if hold.ndim != 2 or hold.shape[1] != len(theta):
        raise ValueError(
            f"hold has shape {tuple(hold.shape)}, but θ has {len(theta)} numbers; "
            f"pass (q, {len(theta)})"
        )
    Q = torch.as_tensor(orth(hold.double().cpu().numpy().T, rcond=1e-9)).to(theta)
    return lambda v: v - Q @ (Q.T @ v)
