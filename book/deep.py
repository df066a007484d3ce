"""Deep networks, trained and trained again: the numbers behind "Where the lazy theory ends".

python -m book.deep WORK RECORDS [--cifar10 NAME]

Fully connected and convolutional networks, each trained on all points and again without a few of
them, beside every estimate of what that does. Each network is a result in WORK, so that a run that
was cut short goes on; tables go to RECORDS: lazy.csv and kinks.csv, a row for each network, and
kinks-points.csv, a row for each removed point. Seconds are those of the processor, on one thread.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from book.chapters import provenance, recorder, store
from book.oracles import Centred, Deep
from book.scale import plain
from lib import data
from lib.influence import Influence
from lib.journal import Journal
from lib.kernel import deep_ntk
from lib.losses import Softmax, Squared
from lib.module import directions, empirical_ntk, kinks, on_kink, parameters, relu_inputs
from lib.regression import Regression
from lib.retrain import Fit
from lib.torch_influence import full_influence, influence

# Our choices. Ridge, steps and points were fixed with seed 0. The list of cases was cut twice for
# time, got GELU at ridge 3, and later its widths above 256 and the other seeds of all but the
# first, after a part of the record had been seen. Its last part, `further`, was fixed before
# any of it was trained. λ is `ridge` times the
# mean of K(x, x) at the start. Points are at equal steps of the order of leverage by the kernel at
# the start. The step is `step` times ½/(λ_max + λ) at the start.
SEEDS = (1, 2, 3)
N, T, POINTS, STEPS = 60, 50, 6, 400
SOFTPLUS = (3, 10, 30, 100)


@dataclass(frozen=True)
class Case:
    """A network, its data and its training."""

    page: str  # "lazy", "kinks" or "both"
    data: str = "digits:3/8"
    seed: int = 1
    kind: str = "full"  # fully connected, or "conv"
    width: int = 32  # or channels
    depth: int = 2
    activation: str = "relu"
    ridge: float = 0.3
    steps: int = STEPS
    step: float = 1.0
    n: int = N
    t: int = T
    hessian: bool = True

    def __str__(self):
        return (
            f"{self.data}, {self.kind}, width {self.width}, depth {self.depth}, {self.activation}, "
            f"ridge {self.ridge:g}, {self.steps} steps, n = {self.n}, seed {self.seed}"
        )


# a convolutional network comes to rest in these steps with either activation, and these alone were
# chosen by looking whether it does, before an estimate was computed
CONV = {"kind": "conv", "width": 6, "depth": 3, "steps": 500, "step": 0.3}


def cases(cifar10: str = "cifar10-subset") -> list[Case]:
    """All networks of the record, in the order in which they are trained."""

    def each(seeds=SEEDS, **how):
        return [Case(seed=seed, **how) for seed in seeds]

    both, found = ("relu", "gelu"), []
    for width in (16, 64):
        for name in both:
            found += each(page="lazy", width=width, activation=name)
    for name in ("relu", "gelu", *map(str, SOFTPLUS)):
        found += each(page="kinks", activation=name, ridge=1.0)
    for name in both:
        found += each(page="kinks", activation=name, ridge=1.0, steps=60)
        found += each(page="both", activation=name, **CONV)
    for ridge in (0.3, 3.0):
        found += each(page="kinks", ridge=ridge)
    found += each(page="kinks", activation="gelu", ridge=3.0)
    found += each(SEEDS[:1], page="kinks", ridge=1.0, steps=4 * STEPS)
    wide = {"page": "lazy", "hessian": False}
    for name in both:
        for width in (256, 512):
            found += each(width=width, activation=name, **wide)
        found += each(data="digits:3/5/8", t=48, width=64, activation=name, **wide)
    for source in ("mnist:4/9", f"{cifar10}:airplane/automobile", f"{cifar10}:cat/dog"):
        found += each(data=source, width=64, **wide)
    for depth in (3, 4, 5):
        found += each(width=64, depth=depth, **wide)
    for name in both:
        found += each(width=1024, activation=name, **wide)  # they take longest
    return found + further(each, cifar10)


def further(each, cifar10: str) -> list[Case]:
    """Networks that were added when the others had been seen: other widths of deep networks,
    wider convolutions, photos with GELU, by convolutions and in three classes."""
    both, found, wide = ("relu", "gelu"), [], {"page": "lazy", "hessian": False}
    mnist, photos = "mnist:4/9", f"{cifar10}:airplane/automobile"
    for depth in (3, 4, 5):
        for name in both:
            found += each(width=16, depth=depth, activation=name, **wide)
        found += each(width=64, depth=depth, activation="gelu", **wide)
    for name in both:
        found += each(data="mnist:3/5/8", t=48, width=64, activation=name, **wide)
    for source in (mnist, photos):
        found += each(data=source, width=64, activation="gelu", **wide)
    for name in both:
        found += each(SEEDS[:2], activation=name, **CONV | wide | {"width": 12})
    for depth in (3, 4, 5):
        for name in both:
            found += each(SEEDS[:1], width=256, depth=depth, activation=name, **wide)
    for source in (mnist, photos):
        for name in both:
            found += each(SEEDS[:1], data=source, activation=name, **CONV | wide)
    return found


class Softplus(nn.Module):
    """log(1 + e^{βz})/β, which is ReLU for β → ∞."""

    def __init__(self, beta: float):
        super().__init__()
        self.beta = beta

    def forward(self, z):
        return nn.functional.softplus(z, beta=self.beta, threshold=1e9)


def activation(name: str) -> nn.Module:
    """ReLU, GELU, or softplus of a β that the name spells."""
    return {"relu": nn.ReLU, "gelu": nn.GELU}.get(name, lambda: Softplus(float(name)))()


class Convolutional(nn.Sequential):
    """Three layers of 3×3 convolutions with pooling, of images that are vectors, (n, d).

    Outputs are 16 times those of He's initialisation: so the kernel at the start is large enough
    for a training that is not far from lazy.
    """

    def __init__(self, d: int, *, width: int, outputs: int, activation, seed: int):
        colours = 1 if round(d**0.5) ** 2 == d else 3
        side, draw = round((d / colours) ** 0.5), torch.Generator().manual_seed(seed)
        one, two, three = (nn.Conv2d(a, width, 3, padding=1) for a in (colours, width, width))
        super().__init__(
            nn.Unflatten(1, (colours, side, side)), one, activation(), two, activation(),
            nn.AvgPool2d(2), three, activation(), nn.AvgPool2d(side // 2), nn.Flatten(),
            nn.Linear(width, outputs),
        )  # fmt: skip
        self.double()
        self.colours = colours
        for layer in self:
            if hasattr(layer, "weight"):
                nn.init.kaiming_normal_(layer.weight, generator=draw)
                nn.init.zeros_(layer.bias)

    def forward(self, x):
        planes = x.unflatten(1, (-1, self.colours)).transpose(1, 2).flatten(1)
        return 16 * super().forward(8 * planes)


def network(case: Case, d: int, outputs: int) -> nn.Module:
    """The network of a case at its start, less its outputs there."""
    how = {"width": case.width, "outputs": outputs, "seed": case.seed}
    if case.kind == "conv":
        net = Convolutional(d, activation=partial(activation, case.activation), **how)
    else:
        net = Deep(d, depth=case.depth, activation=activation(case.activation), **how)
    return Centred(net.eval())


@dataclass
class Run:
    """A network trained on all points and without some, and what the estimates ask for."""

    case: Case
    loss: object
    train: tuple
    test: tuple
    lam: float
    K0: np.ndarray  # kernel at the start: (n, n), the mean over outputs
    k0: np.ndarray  # (n, t)
    start: nn.Module
    net: nn.Module
    points: list
    ends: dict  # parameters without each point
    f: np.ndarray
    shift: np.ndarray  # (k, t, c)
    cold: np.ndarray  # that of every second point, in trainings that begin at the start
    seconds: float

    @property
    def actual(self) -> np.ndarray:
        """Eq 7 by retraining, (k, t)."""
        return Influence(self.f, self.test[1], self.shift, self.loss).exact


def prepare(case: Case) -> tuple:
    """Return training and test data, the loss, the kernels at the start and a `Fit` of a case."""
    d = data.load(case.data, n_train=case.n, n_test=case.t, seed=case.seed)
    Y, y_te = (
        y[:, None] if y.ndim == 1 else np.eye(y.shape[1])[y.argmax(1)] for y in (d.Y, d.Y_te)
    )
    loss, c = (Squared() if Y.shape[1] == 1 else Softmax()), Y.shape[1]
    net = network(case, d.X.shape[1], c)
    K0 = empirical_ntk(net, d.X, trace=True) / c
    k0 = empirical_ntk(net, d.X, d.X_te, trace=True) / c
    lam, top = case.ridge * np.trace(K0) / case.n, np.linalg.eigvalsh(K0)[-1]
    step = case.step * 0.5 / (top + lam)
    fit = Fit(net, loss, (d.X, Y), d.X_te, lam, case.steps, step, False)
    return (d.X, Y), (d.X_te, y_te), loss, K0, k0, fit


def ended(case: Case, fit: Fit, theta: dict) -> nn.Module:
    """The network of a case with the parameters of the first of these trainings."""
    net = network(case, fit.train.X.shape[1], fit.train.y.shape[1])
    net.load_state_dict({k: v[0] for k, v in theta.items()}, strict=False)
    return net


def train(case: Case) -> Run:
    """Train the network of a case on all points, and without each of a few."""
    began = process_time()
    (X, Y), (X_te, y_te), loss, K0, k0, fit = prepare(case)
    order = np.argsort(Regression(K0, Y, fit.lam, loss).h, kind="stable")
    points = order[np.linspace(0, case.n - 1, POINTS).round().astype(int)].tolist()
    full, (first,) = fit([()], fit.start)
    ends, results = fit([(i,) for i in points], {k: v[0] for k, v in full.items()})
    f = np.array(first["f"]).reshape(case.t, -1)
    shift = np.array([r["f"] for r in results]).reshape(POINTS, *f.shape) - f
    cold = np.array([r["f"] for r in fit([(i,) for i in points[1::2]], fit.start)[1]])
    cold = cold.reshape(-1, *f.shape) - f
    return Run(
        case, loss, (X, Y), (X_te, y_te), fit.lam, K0, k0, fit.at.model, ended(case, fit, full),
        points, ends, f, shift, cold, process_time() - began,
    )  # fmt: skip


def estimates(run: Run) -> tuple[dict, dict]:
    """Estimates of the actual influence by name, (k, t), and the leverages that belong to them."""
    case, rows = run.case, run.points
    X, Y = run.train
    X_te, y_te = run.test
    found, h = {}, {}

    def lazy(K, k):
        return Regression(K, Y, run.lam, run.loss).influence(k, y_te).exact[rows]

    if case.kind == "full" and case.activation == "relu":
        deep = partial(deep_ntk, depth=case.depth)
        found["infinite width"] = lazy(deep(X), deep(X, X_te))
    found["start"] = lazy(run.K0, run.k0)
    end = influence(run.net, run.loss, run.train, run.test, run.lam)
    found["ihvp"], found["rescaled"], found["newton"] = (
        getattr(end, name)[rows] for name in ("ihvp", "rescaled", "newton")
    )
    h["ihvp"] = end.h[rows]
    h["3λ"] = influence(run.net, run.loss, run.train, run.test, 3 * run.lam).h[rows]
    found["ihvp of the start"] = ihvp_at_start(run, end.f)[rows]
    if case.hessian:
        ways = {"full": None}
        if case.activation == "relu":
            ways["held"] = kinks(run.net, X)
            if case.page == "kinks":
                ways["random"] = at_random(run, len(ways["held"]))
        for name, hold in ways.items():
            try:
                one = full_influence(
                    run.net, run.loss, run.train, run.test, run.lam, rows, hold=hold, tol=1e-4
                )
            except RuntimeError:  # no minimum of what derivatives see
                continue
            found[f"{name} ihvp"], found[f"{name} rescaled"] = one.ihvp, one.rescaled
            found[f"{name} newton"], h[f"{name} ihvp"] = one.newton, one.h
    return found, h


def at_random(run: Run, count: int) -> np.ndarray:
    """Control: as many directions that keep the inputs of ReLUs anywhere, (q, p)."""
    chosen = torch.zeros_like(on_kink(run.net, run.train[0]))
    where = np.random.default_rng(run.case.seed).choice(chosen.numel(), count, replace=False)
    chosen.view(-1)[torch.as_tensor(where)] = True
    return directions(run.net, run.train[0], chosen)


def ihvp_at_start(run: Run, f_te) -> np.ndarray:
    """Control: IHVP with the slopes of the end and the kernel of the start, (n, t)."""
    f = predicted(run.net, run.train[0], run.train[1].shape)
    g, g_te = run.loss.gradient(f, run.train[1]), run.loss.gradient(f_te, run.test[1])
    C = np.linalg.solve(run.K0 + run.lam * np.eye(run.case.n), run.k0)
    return C * (g @ g_te.T)


def predicted(net, X, shape) -> np.ndarray:
    with torch.no_grad():
        return net(torch.as_tensor(X)).numpy().reshape(shape)


def error(actual, estimate) -> float:
    """Σ|I − Î| over Σ|I|."""
    return float(np.abs(actual - estimate).sum() / np.abs(actual).sum())


def share(actual, estimate) -> np.ndarray:
    """The same for each removed point, (k,)."""
    return np.abs(actual - estimate).sum(axis=1) / np.abs(actual).sum(axis=1)


def measure(case: Case) -> dict:
    """A row for the network, and one for each removed point, as plain values."""
    run = train(case)
    found, h = estimates(run)
    actual, began = run.actual, process_time()
    K1 = empirical_ntk(run.net, run.train[0], trace=True) / run.train[1].shape[1]
    fit = predicted(run.net, run.train[0], run.train[1].shape)
    cold = Influence(run.f, run.test[1], run.cold, run.loss).exact
    rest, away = at_rest(run)
    row = asdict(case) | {
        "p": len(parameters(run.net)[1]), "lam": run.lam, "rest": rest, "away": away,
        "kernel change": np.linalg.norm(K1 - run.K0) / np.linalg.norm(run.K0),
        "training loss": run.loss.value(fit, run.train[1]).mean(),
        "noise": error(actual[1::2], cold), "seconds": run.seconds,
    }  # fmt: skip
    row |= {f"error, {name}": error(actual, one) for name, one in found.items()}
    row |= {
        f"R, {name}": np.corrcoef(actual.ravel(), one.ravel())[0, 1] for name, one in found.items()
    }
    points = pd.DataFrame({"point": run.points} | {f"h, {k}": v for k, v in h.items()})
    for name in found:
        points[f"error, {name}"] = share(actual, found[name])
    if case.kind == "full" or case.activation == "relu":
        row |= crossings(run, points)
    for name in set(h) - {"3λ"}:
        ratio = points[f"error, {name}"] / points[f"h, {name}"]
        row[f"error / h, {name}"] = ratio.median()
    row["seconds"] += process_time() - began
    return plain({"row": row, "points": points.to_dict("records"), "source": provenance()})


def at_rest(run: Run) -> tuple[float, float]:
    """The norm of the gradient over that of the pull λ(θ − θ₀), and ‖θ − θ₀‖/‖θ₀‖."""
    X, Y = map(torch.as_tensor, run.train)
    loss = run.loss.in_torch(run.net(X).reshape(Y.shape), Y).sum()
    slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(run.net.parameters()))])
    (_, end), (_, start) = parameters(run.net), parameters(run.start)
    pull = run.lam * (end - start)
    return float((slope + pull).norm() / pull.norm()), float((end - start).norm() / start.norm())


def activations(run: Run, theta: dict, X) -> torch.Tensor:
    """Inputs of all activations at given parameters, (n, number)."""
    kinds = (nn.ReLU, nn.GELU, Softplus)
    with torch.no_grad():
        return relu_inputs(run.net, theta, torch.as_tensor(X), kinds=kinds)


def crossings(run: Run, points: pd.DataFrame) -> dict:
    """Which share of activations a removal makes cross zero, and how many lie on their kink."""
    X, split = run.train[0], parameters(run.net)
    z = activations(run, split[0](split[1]), X)
    after = [activations(run, {k: v[j] for k, v in run.ends.items()}, X) for j in range(POINTS)]
    points["crossed"] = [float(((a > 0) != (z > 0)).double().mean()) for a in after]
    row = {"crossed": points.crossed.mean(), "activations": z.numel()}
    if run.case.activation == "relu":
        near, c = on_kink(run.net, X), bends(run)
        far = 10 * z[near].abs().max() if near.any() else 0
        points["stay"] = [float((a[near].abs() < far).double().mean()) for a in after]
        row |= {"on kinks": int(near.sum()), "convex": int((near & (c > 0)).sum())}
        row |= {"concave": int((near & (c < 0)).sum()), "stay": points.stay.mean()}
    return row


def bends(run: Run) -> torch.Tensor:
    """The slope of the loss in the output of each ReLU, (n, number): positive where its kink is
    convex, as the objective's slope in the input of the ReLU rises by it at 0."""
    X, Y = map(torch.as_tensor, run.train)
    seen = []
    hooks = [
        module.register_forward_hook(lambda *parts: seen.append(parts[2]))
        for module in run.net.modules() if isinstance(module, nn.ReLU)
    ]  # fmt: skip
    loss = run.loss.in_torch(run.net(X).reshape(Y.shape), Y).sum()
    for hook in hooks:
        hook.remove()
    return torch.cat([g.flatten(1) for g in torch.autograd.grad(loss, seen)], 1)


def record(work: Path, records: Path, cifar10: str) -> None:
    """Train what is not yet in `work`, and write the tables."""
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with Journal(
        work / "deep.jsonl", {"format": "book.deep 1", "torch": torch.__version__}
    ) as file:
        done = {json.dumps(one["case"]): one["found"] for one in file.results}
        for case in tqdm(cases(cifar10), desc="networks"):
            key = json.dumps(asdict(case))
            if key not in done:
                try:
                    done[key] = measure(case)
                except RuntimeError as error:  # it came to no rest
                    row = asdict(case) | {"failed": str(error).split(":")[0]}
                    done[key] = {"row": row, "points": [], "source": provenance()}
                file.append({"case": asdict(case), "found": done[key]})
    tables(done, records)


def tables(done: dict, records: Path) -> None:
    """Write lazy.csv, kinks.csv and kinks-points.csv."""
    rows, points = [], []
    for one in done.values():
        row = dict(one["row"])
        if one["points"]:  # control: the error of IHVP over the leverage of another λ
            found = pd.DataFrame(one["points"])
            row["error / h, 3λ"] = (found["error, ihvp"] / found["h, 3λ"]).median()
        rows.append(row | one["source"])
        points += [
            {k: one["row"][k] for k in NAMED} | point | one["source"]
            for point in one["points"] if one["row"]["page"] != "lazy"
        ]  # fmt: skip
    frame = pd.DataFrame(rows)
    for page in ("lazy", "kinks"):
        part = frame[frame.page.isin([page, "both"])].dropna(axis=1, how="all")
        store(part, records / f"{page}.csv", float_format="%.5g")
    store(pd.DataFrame(points), records / "kinks-points.csv", float_format="%.5g")


NAMED = ["data", "seed", "kind", "width", "activation", "ridge", "steps"]


def main() -> None:
    args = recorder(__doc__).parse_args()
    record(args.work, args.records, args.cifar10)


if __name__ == "__main__":
    main()
