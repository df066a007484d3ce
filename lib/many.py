"""Retraining of small torch modules without some training points, many side by side."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import log_softmax, softplus
from tqdm import tqdm

from lib import check
from lib.journal import Journal
from lib.module import empirical_ntk, labels_like, outputs
from lib.retrain import Retrained, _groups

LOSSES = {  # those of `lib.losses`, in torch: outputs and labels (n, c) to (n,)
    "Squared": lambda f, y: 0.5 * ((f - y) ** 2).sum(1),
    "Logistic": lambda f, y: softplus(-y * f).sum(1),
    "Softmax": lambda f, y: -(y * log_softmax(f, 1)).sum(1),
}


def retrain_modules(
    model: nn.Module, loss, train: tuple, X_te, groups: Iterable[int | Sequence[int]], *,
    lam: float, steps: int, step: float | None = None, decay: bool = False, warm: bool = True,
    together: int = 16, file: str | Path | None = None, progress: bool = True,
) -> tuple[nn.Module, Retrained]:  # fmt: skip
    """Train a module on all points, then again without each group (an index or several).

    The loss is Σ_i ℓ(f(x_i), y_i) + ½ λ ‖θ − θ₀‖², θ₀ the parameters of `model`, or 0 with `decay`.
    `loss` is an object of `lib.losses`, `train` = (X, Y), and the module is in evaluation mode, see
    `lib.module.empirical_ntk`; its parameters that require a gradient are trained. Each training
    takes `steps` steps of gradient descent with Nesterov's momentum (1 − √q)/(1 + √q), q = step λ.
    The default step is ½/(λ_max + λ), λ_max of the kernel at the start; in the second half it falls
    linearly to 0, which settles what chatters at kinks. Trainings begin at the end of that on all
    points if `warm`, else at θ₀. `together` of them run as one, with as many times the memory.

    Returns the module trained on all points and the predictions without each group, `iterations`
    being `steps` and `change` the rms of the last tenth's change of f(X_te). Results go to `file`
    as in `lib.retrain.retrain`, and are not trained again.

    Raises `ValueError` for labels that do not match the outputs and a file of another setting,
    `IndexError` for groups as `retrain` does, and `RuntimeError` for a training that diverges or
    ends where ‖∇‖ > ½ λ ‖θ − θ₀‖: λ_max may have grown in training, so choose a smaller step.

    >>> from lib.losses import Squared
    >>> line = nn.Linear(2, 1, bias=False).double().eval()
    >>> _ = line.weight.data.zero_()
    >>> trained, result = retrain_modules(line, Squared(), (np.eye(2), [[1.0], [-1.0]]), np.eye(2),
    ...     [0], lam=0.5, steps=100, progress=False)
    >>> result.f.round(6).tolist(), abs(result.f_without[0]).round(6).tolist()
    ([[0.666667], [-0.666667]], [[0.0], [0.666667]])
    """
    X, Y = train
    steps, together = check.integer("steps", steps, 2), check.integer("together", together)
    fit = Fit(model, loss, X, Y, X_te, check.number("lam", lam, above=0), steps, step, decay)
    groups = _groups(groups, len(fit.X))
    header = {"format": "lib.many 1", "model": str(model), "loss": fit.name, "lam": fit.lam}
    header |= {"steps": steps, "step": fit.step, "decay": decay, "warm": warm, "data": fit.digest()}
    header |= {"torch": torch.__version__}
    full, (first,) = fit([()], fit.start)
    begin = {k: v[0] for k, v in full.items()} if warm else fit.start
    with Journal(file, header) if file else nullcontext() as journal:
        done = {tuple(r["without"]): r for r in journal.results} if journal else {}
        todo = [group for group in groups if group not in done]
        for at in tqdm(range(0, len(todo), together), desc="retraining", disable=not progress):
            for result in fit(todo[at : at + together], begin)[1]:
                if journal:
                    journal.append(result)
                done[tuple(result["without"])] = result
    trained = copy.deepcopy(model)
    trained.load_state_dict({k: v[0] for k, v in full.items()}, strict=False)
    columns = ([done[g][k] for g in groups] for k in ("f", "seconds", "iterations", "change"))
    return trained, Retrained(groups, np.array(first["f"]), *map(np.array, columns))


class Fit:
    """Trainings of one setting, side by side; `retrain_modules` says what they minimise.

    Call it with groups of points to leave out, and the parameters to begin at, {name: tensor}. It
    returns those of the ends, {name: (g, ...)}, and the results, a dict for each group.
    """

    def __init__(self, model, loss, X, Y, X_te, lam, steps, step, decay):
        self.model, self.lam, self.steps = model, lam, steps
        self.name = type(loss).__name__
        if self.name not in LOSSES:
            raise TypeError(f"loss must be one of lib.losses, not {self.name}; pass Squared()")
        self.value, f = LOSSES[self.name], outputs(model, X)
        self.start = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
        like = next(iter(self.start.values()))
        self.X, self.X_te = (torch.as_tensor(np.array(x)).to(like) for x in (X, X_te))
        self.Y = torch.as_tensor(labels_like(loss, "Y", Y, f)).to(like)
        self.anchor = {k: torch.zeros_like(v) if decay else v for k, v in self.start.items()}
        if step is None:  # to three digits, which do not depend on the order of sums
            step = float(f"{0.5 / (np.linalg.eigvalsh(empirical_ntk(model, X))[-1] + lam):.3g}")
        self.step = check.number("step", step, above=0)

    def __call__(self, groups: list[tuple], begin: dict) -> tuple[dict, list[dict]]:
        """Train without each of the groups; return parameters (g, ...) and the results."""
        began, g = time.perf_counter(), len(groups)
        keep = torch.ones(g, len(self.X), dtype=self.Y.dtype, device=self.Y.device)
        for row, group in zip(keep, groups, strict=True):
            row[list(group)] = 0
        theta = {k: v.expand(g, *v.shape).clone() for k, v in begin.items()}
        ahead = {k: v.clone() for k, v in theta.items()}
        slope = vmap(grad(self._objective))
        q = (self.step * self.lam) ** 0.5
        momentum, late = (1 - q) / (1 + q), self.steps - max(1, self.steps // 10)
        for k in range(self.steps):
            if k == late:
                before = self._predict(theta)
            size = self.step * min(1.0, 2 * (1 - k / self.steps))
            for name, G in slope(ahead, keep).items():
                new = ahead[name] - size * G
                ahead[name] = new + momentum * (new - theta[name])
                theta[name] = new
        f, G = self._predict(theta), _size(slope(theta, keep))
        pull = self.lam * _size({k: v - self.anchor[k] for k, v in theta.items()})
        if not (torch.isfinite(f).all() and (G <= pull / 2).all()):
            raise RuntimeError(
                f"training came to no rest in {self.steps} steps of {self.step:.3g}: the gradient "
                f"is {float((G / pull).max()):.2g} of the pull; choose a smaller step or more steps"
            )
        change = ((f - before) ** 2).flatten(1).mean(1).sqrt()
        cost = {"seconds": (time.perf_counter() - began) / g, "iterations": self.steps}
        results = [
            {"without": list(group), "f": row.tolist(), **cost, "change": float(moved)}
            for group, row, moved in zip(groups, f, change, strict=True)
        ]
        return theta, results

    def digest(self) -> str:
        """Digest of data and start, and outputs at other parameters, which tell the function."""
        every = [self.X, self.Y, self.X_te, *self.model.state_dict().values()]
        data = sha256(b"".join(x.detach().cpu().numpy().tobytes() for x in every)).hexdigest()
        probe = self._predict({k: 1.5 * v[None] + 0.1 for k, v in self.start.items()})
        return f"{data[:16]} {float(probe.norm()):.4g}"

    def _objective(self, theta: dict, keep: torch.Tensor) -> torch.Tensor:
        f = functional_call(self.model, theta, (self.X,)).reshape(self.Y.shape)
        pull = sum(((v - self.anchor[k]) ** 2).sum() for k, v in theta.items())
        return (keep * self.value(f, self.Y)).sum() + 0.5 * self.lam * pull

    def _predict(self, theta: dict) -> torch.Tensor:
        with torch.no_grad():
            return vmap(lambda one: functional_call(self.model, one, (self.X_te,)))(theta)


def _size(theta: dict) -> torch.Tensor:
    """Norm of the parameters of each model, (g,)."""
    return sum((v**2).flatten(1).sum(1) for v in theta.values()).sqrt()
