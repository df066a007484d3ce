"""Retraining without some training points: what the actual influence (Eq 7) is measured by.

`retrain` trains the network of Eq 1, `retrain_modules` any small torch module. Of the first every
training is a joblib task, so the caller chooses where they run: `workers` processes here, or
any backend that returns results as they come, for instance a Dask cluster that has `lib`, with
`joblib.parallel_config(backend="dask")` around the call. Each process makes the problem and its
warm start once, from the same seed and on the same number of threads, so that results depend
neither on their order nor on the number of workers.
"""

from __future__ import annotations

import copy
import inspect
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import nn
from torch.func import grad, vmap
from tqdm import tqdm

from lib import check
from lib.descent import gradient_descent
from lib.influence import Influence
from lib.journal import Journal
from lib.losses import SQUARED, Loss, loss_of
from lib.module import Function, Labelled, empirical_ntk
from lib.newton import newton
from lib.problem import Problem

METHODS = {"newton": newton, "gradient descent": gradient_descent}
TRAINS = ("network", "problem", "product", "state", "newton", "descent")  # the code that trains
TRAINS_MODULES = ("retrain", "module", "losses")
OURS = {"problem", "start", "remove", "keep", "progress"}  # of a method, not among its options

_cache: dict = {}  # the last problem and warm start of this process, by setting
_lock = threading.Lock()  # tasks that are threads of one process make them once


@dataclass(frozen=True)
class Retrained:
    """Predictions of the network trained on everything, and without each group.

    - groups: the removed points of each retraining, sorted
    - f: (t,) predictions of the full model; f_without: (g, t) those without each group
    - seconds, iterations, change: (g,) cost of each retraining and its last change, as in `Trained`
    - loss: what was minimised
    """

    groups: list[tuple[int, ...]]
    f: np.ndarray
    f_without: np.ndarray
    seconds: np.ndarray
    iterations: np.ndarray
    change: np.ndarray
    loss: Loss = SQUARED

    def influence(self, y_te) -> Influence:
        """Return the actual influence of every group on every test point, (g, t).

        Eq 7:  I = ½(f^{∖i} − y_te)² − ½(f − y_te)², positive where removing the group hurts.

        Another `loss` takes the place of ½(f − y)². `y_te` are the test labels, shaped like f,
        which may be (t, c), and f_without (g, t, c); for softmax the numbers of the classes, too.
        Source: Zhang and Zhang (2022), Eq 7.

        >>> one = np.zeros(1)
        >>> result = Retrained([(3,)], np.array([0.5]), np.array([[-0.5]]), one, one, one)
        >>> result.influence([1.0]).exact.tolist()  # ½ 1.5² − ½ 0.5²
        [[1.0]]
        """
        y_te = self.loss.beside("y_te", y_te, self.f)
        return Influence(self.f, y_te, self.f_without - self.f, self.loss)


def retrain(
    X, Y, X_te, groups: Iterable[int | Sequence[int]], *, method: str = "newton",
    warm: bool = True, file: str | Path | None = None, workers: int | None = None,
    threads: int = 1, options: Mapping = {}, progress: bool = True, **settings,
) -> Retrained:  # fmt: skip
    """Train on all points, then again without each group (an index or several), see `Retrained`.

    X (n, d), Y (n,), X_te (t, d) and `settings` (lam, m, kappa, seed, ...) are those of `Problem`;
    `method` is "newton" or "gradient descent", `options` its keywords. With `warm` each training
    starts from a state of the training on all points: from its end for gradient descent, and from
    the end of its flow for Newton. Otherwise it starts from W(0). `workers` is joblib's n_jobs
    (None: as configured around the call). Each training runs on `threads` threads of torch,
    whatever is set outside: their number decides the order of sums, and so the last digits. A
    process holds one problem and one warm start, m·(3n + t) numbers, and each running task 2·m·n
    more, or 4·m·n while Newton follows the flow from a cold start.

    Results go to `file` as they come, see `lib.journal.Journal`. The same call goes on with it
    after an interruption, also for more groups: what is there is not trained again.

    Raises `IndexError` for a point out of range or removed twice, a group that is empty, has every
    point or is named twice; `ValueError` for a file of another setting, version of torch or of this
    code (naming it), for other options and for what `Problem` refuses; `OSError` for a full disk or
    a file in use. What was written before stays.

    Source: Zhang and Zhang (2022), Eq 7; Thm 2 with Eq 11, Fig 1 and Table 1 compare it with Eq 8.

    >>> X, Y = np.eye(3), [1.0, -1.0, 1.0]
    >>> result = retrain(X, Y, X[:1], [0, 1, [1, 2]], lam=0.5, m=2000, kappa=0.1, seed=0,
    ...                  antisymmetric=True, progress=False)
    >>> result.f.round(1).tolist(), abs(result.f_without).round(1).tolist()
    ([0.5], [[0.0], [0.5], [0.5]])
    """
    data = [check.array(k, v, d) for k, v, d in (("X", X, 2), ("Y", Y, 1), ("X_te", X_te, 2))]
    check.labels("Y", Y, len(data[0]))
    groups = _groups(groups, len(data[0]))
    workers = workers if workers is None else check.integer("workers", workers, at_least=-np.inf)
    if workers == 0:  # joblib counts negative ones from the number of cores
        raise ValueError("workers = 0 trains nothing; pass a number, or -1 for every core")
    if method not in METHODS:
        raise ValueError(f"method must be {' or '.join(map(repr, METHODS))}, not {method!r}")
    warm = check.flag("warm", warm)
    options = _options(method, options)
    how = {"method": method, "warm": warm, "threads": check.integer("threads", threads)}
    header = _header(data, settings, how | {"options": options})

    def train(todo, done):
        parallel = Parallel(n_jobs=workers, batch_size=1, return_as="generator_unordered")
        return parallel(delayed(_train)(g, *data, header) for g in todo)

    before = torch.get_num_threads()
    try:
        return _collect(groups, train, file, header, progress)[0]
    finally:
        torch.set_num_threads(before)
        _cache.clear()


def _collect(groups, train: Callable, file, header: dict, progress: bool, loss=SQUARED) -> tuple:
    """Train what the file lacks: all points, (), and without each group; and the result of ().

    `train(todo, done)` is a generator of results, each of which is in `done` when it goes on.
    """
    with Journal(file, header) if file else nullcontext() as journal:
        done = {tuple(r["without"]): r for r in journal.results} if journal else {}
        todo = [g for g in ((), *groups) if g not in done]
        n, left = len(groups) + 1, len(todo)
        bar = tqdm(desc="retraining", total=n, initial=n - left, disable=not progress)
        with closing(train(todo, done)) as results, bar:
            for result in results:
                if journal:
                    journal.append(result)
                done[tuple(result["without"])] = result
                bar.update()
    columns = ([done[g][k] for g in groups] for k in ("f", "seconds", "iterations", "change"))
    return Retrained(groups, np.array(done[()]["f"]), *map(np.array, columns), loss), done[()]


def _train(group: tuple, X, Y, X_te, header: dict) -> dict:
    """The task: train without a group and return what came out, in any process or thread."""
    torch.set_num_threads(header["threads"])
    train, key = METHODS[header["method"]], json.dumps(header)
    warm, options = header["warm"], header["options"]
    with _lock:
        if key not in _cache:
            _cache.clear()  # frees the last problem before the next one is made
            settings = {k: header[k] for k in list(inspect.signature(Problem).parameters)[3:]}
            problem = Problem(*map(np.array, (X, Y, X_te)), **settings)
            first = options | ({"settle_steps": 0} if header["method"] == "newton" else {})
            _cache[key] = problem, train(problem, **first) if warm else None
        problem, begin = _cache[key]
    try:
        done = train(problem, start=begin, remove=group, **options)
        if not np.isfinite(done.f_te).all():
            raise RuntimeError(f"{header['method']} ended in predictions that are not finite")
    except Exception as error:
        error.add_note(f"in the training without the points {list(group)}")
        raise
    cost = {"seconds": done.seconds, "iterations": int(done.iterations), "change": done.change}
    return {"without": group, "f": done.f_te.tolist(), **cost}


def _header(data: list[np.ndarray], settings: Mapping, how: dict) -> dict:
    """What a file of results is of: a digest of the data, the settings, and the code."""
    try:
        bound = inspect.signature(Problem).bind(*data, **settings)
    except TypeError as error:
        names = ", ".join(list(inspect.signature(Problem).parameters)[3:])
        raise TypeError(f"settings: {error}; pass those of Problem: {names}") from None
    bound.apply_defaults()
    for name, x in zip(("X", "Y", "X_te"), data, strict=True):
        bound.arguments[name] = f"{x.shape} {sha256(x.tobytes()).hexdigest()[:16]}"
    header = {"format": "lib.retrain 4", **bound.arguments, **how, "code": code_version()}
    return json.loads(json.dumps(header, default=_plain))


def _groups(groups, n: int) -> list[tuple[int, ...]]:
    found: dict = {}
    for k, group in enumerate(check.groups(groups, n)):
        points = tuple(sorted(group.tolist()))
        if len(points) == n:
            raise IndexError(f"groups[{k}] has every training point; keep at least one")
        if points in found:
            raise IndexError(f"groups[{k}] is groups[{found[points]}] again; name each group once")
        found[points] = k
    return list(found)


def _options(method: str, options: Mapping) -> dict:
    takes = [name for name in inspect.signature(METHODS[method]).parameters if name not in OURS]
    if unknown := sorted(set(options) - set(takes)):
        raise ValueError(f"options has {unknown[0]!r}; {method} takes {', '.join(takes)}")
    return dict(options)


def _plain(x):
    """A NumPy number as a plain one, a device of torch as its name."""
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, torch.device):
        return str(x)
    raise ValueError(f"settings and options must be plain numbers and names, not {x!r}")


@cache
def code_version(names: tuple[str, ...] = TRAINS) -> str:
    """Digest of the code that trains, and the version of torch: its results are of these."""
    files = [Path(__file__).with_name(f"{name}.py") for name in names]
    digest = sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    return f"{digest}, torch {torch.__version__}"


def retrain_modules(
    model: nn.Module, loss, train, X_te, groups: Iterable[int | Sequence[int]], *, lam: float,
    steps: int, step: float | None = None, decay: bool = False, warm: bool = True,
    together: int = 16, file: str | Path | None = None, progress: bool = True,
) -> tuple[nn.Module, Retrained]:  # fmt: skip
    """Train a module on all points, then again without each group (an index or several).

    The loss is Σ_i ℓ(f(x_i), y_i) + ½ λ ‖θ − θ₀‖², θ₀ the parameters of `model`, or 0 with `decay`.
    `loss` and `train` are those of `lib.torch_influence.influence`, and the module is in evaluation
    mode; its parameters that require a gradient are trained. Each training takes `steps` steps of
    gradient descent with Nesterov's momentum (1 − √q)/(1 + √q), q = step λ. The default step is
    ½/(λ_max + λ), λ_max of the kernel at the start; in the second half it falls linearly to 0,
    which settles what chatters at kinks. Trainings begin at the end of that on all points if
    `warm`, else at θ₀. `together` of them run as one, with as many times the memory.

    Returns the module trained on all points and the predictions without each group, `iterations`
    being `steps` and `change` the rms of the last tenth's change of f(X_te). Results go to `file`
    as in `retrain`, and are not trained again.

    Raises `ValueError` for labels that do not match the outputs and a file of another setting or
    code, `IndexError` for groups as `retrain` does, and `RuntimeError` for a training that diverges
    or ends where ‖∇‖ > ½ λ ‖θ − θ₀‖: λ_max may have grown in training, so choose a smaller step.

    >>> from lib.losses import Squared
    >>> line = nn.Linear(2, 1, bias=False).double().eval()
    >>> _ = line.weight.data.zero_()
    >>> trained, result = retrain_modules(line, Squared(), (np.eye(2), [[1.0], [-1.0]]), np.eye(2),
    ...     [0], lam=0.5, steps=100, progress=False)
    >>> result.f.round(6).tolist(), abs(result.f_without[0]).round(6).tolist()
    ([[0.666667], [-0.666667]], [[0.0], [0.666667]])
    """
    steps, together = check.integer("steps", steps, 2), check.integer("together", together)
    decay, warm = check.flag("decay", decay), check.flag("warm", warm)
    fit = Fit(model, loss, train, X_te, check.number("lam", lam, above=0), steps, step, decay)
    groups = _groups(groups, len(fit.train.y))
    header = {"format": "lib.retrain.modules 1", "model": str(model), "lam": fit.lam}
    header |= {"loss": type(fit.train.loss).__name__, "steps": steps, "step": fit.step}
    header |= {"decay": decay, "warm": warm, "data": fit.digest()}
    header |= {"code": code_version(TRAINS_MODULES)}

    def end(full):
        return fit.at.split(fit.at.vector.new_tensor(full["theta"]))

    def trainings(todo, done):
        if () in todo:
            ends, (full,) = fit([todo.pop(0)], fit.start)
            yield full | {"theta": torch.cat([v.flatten() for v in ends.values()]).tolist()}
        begin = end(done[()]) if warm else fit.start
        for at in range(0, len(todo), together):
            yield from fit(todo[at : at + together], begin)[1]

    result, full = _collect(groups, trainings, file, header, progress, fit.train.loss)
    trained = copy.deepcopy(model)
    trained.load_state_dict(end(full), strict=False)
    return trained, result


class Fit:
    """Trainings of one setting, side by side; `retrain_modules` says what they minimise.

    Call it with groups of points to leave out, and the parameters to begin at, {name: tensor}. It
    returns those of the ends, {name: (g, ...)}, and the results, a dict for each group.
    """

    def __init__(self, model, loss, train, X_te, lam, steps, step, decay):
        self.at, self.lam, self.steps = Function(model), lam, steps
        self.train, self.start = Labelled(self.at, loss_of(loss), "train", train), self.at.theta
        self.X_te = self.at.points("X_te", X_te)
        self.at.outputs("X_te", self.X_te)
        empirical_ntk(model, self.train.X[:16])  # which refuses what cannot be trained here
        self.anchor = {k: torch.zeros_like(v) if decay else v for k, v in self.start.items()}
        if step is None:  # to three digits, which do not depend on the order of sums
            top = np.linalg.eigvalsh(empirical_ntk(model, self.train.X))[-1]
            step = float(f"{0.5 / (top + lam):.3g}")
        self.step = check.number("step", step, above=0)

    def __call__(self, groups: list[tuple], begin: dict) -> tuple[dict, list[dict]]:
        """Train without each of the groups; return parameters (g, ...) and the results."""
        began, g = time.perf_counter(), len(groups)
        keep = torch.ones(g, len(self.train.y)).to(self.at.vector)
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
        state = [*self.at.theta.values(), *self.at.rest.values()]
        every = [self.train.X, torch.as_tensor(self.train.y), self.X_te, *state]
        data = sha256(b"".join(x.cpu().numpy().tobytes() for x in every)).hexdigest()
        probe = self._predict({k: 1.5 * v[None] + 0.1 for k, v in self.start.items()})
        return f"{data[:16]} {float(probe.norm()):.4g}"

    def _objective(self, theta: dict, keep: torch.Tensor) -> torch.Tensor:
        pull = sum(((v - self.anchor[k]) ** 2).sum() for k, v in theta.items())
        return (keep * self.train.losses(theta)).sum() + 0.5 * self.lam * pull

    def _predict(self, theta: dict) -> torch.Tensor:
        with torch.no_grad():
            return vmap(lambda one: self.at(one, self.X_te))(theta)


def _size(theta: dict) -> torch.Tensor:
    """Norm of the parameters of each model, (g,)."""
    return sum((v**2).flatten(1).sum(1) for v in theta.values()).sqrt()
