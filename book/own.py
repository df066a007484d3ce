"""Networks pretrained on other photos and trained on a few: what "Your own torch model" records.

    python -m book.own WORK RECORDS [--cifar10 cifar10]

A network learns eight classes of CIFAR-10, and then a part of it learns 300 photos of the other
two. Influence is estimated, and judged by real retraining of photos over the range of leverages.
What is done is kept in WORK, so that a run that was cut short goes on. Tables and a picture go to
RECORDS.
"""

from __future__ import annotations

import copy
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from book.chapters import draw, provenance, recorder, store
from book.scale import picture
from lib import data
from lib.journal import Journal
from lib.module import Function, kernels, outputs
from lib.torch_influence import ModuleInfluence, influence, trust

PAIR = "airplane/automobile"
POINTS = {"last layer": (10, 10), "last block, pulled to its start": (7, 3), "last block": (7, 3)}
"""What learns, and how many photos are left out: training goes on, or begins at its start."""
N, TESTS = 300, 100  # photos to train and to test on
JUDGED, SHOWN = 20, 2  # test photos whose influences are kept, and those on the picture
DECAY, SEED, EPOCHS = 5e-3, 0, 20


class Small(nn.Module):
    """A small convolutional network with a smooth activation: stem, one residual block, head."""

    def __init__(self, channels: int, classes: int, widths=(16, 32, 48)):
        super().__init__()
        sizes, last = zip((channels, *widths[:-1]), widths, strict=True), widths[-1]
        layers = [(nn.Conv2d(a, b, 3, padding=1), nn.GELU(), nn.AvgPool2d(2)) for a, b in sizes]
        self.stem = nn.Sequential(*sum(layers, ()))
        self.block = nn.Sequential(nn.Conv2d(last, last, 3, padding=1), nn.GELU())
        self.head = nn.Linear(last, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.top(self.stem(x))

    def top(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs from those of the stem."""
        return self.head((x + self.block(x)).mean((2, 3)))


class Top(nn.Module):
    """Block and head of a `Small` alone, on outputs of its stem."""

    def __init__(self, net: Small):
        super().__init__()
        self.block, self.head = copy.deepcopy(net.block), copy.deepcopy(net.head)

    forward = Small.top


def fit(
    net: nn.Module, X, Y, decay: float, without=(), *, start: nn.Module | None = None, steps=1000
) -> nn.Module:
    """Return a trained copy of a network: the mean loss over all photos, and a penalty.

    The loss is (1/n) Σ_i ℓ_i + ½ w ‖θ − θ₀‖², without the ℓ_i of the points that are left out; n
    stays. θ₀ are the parameters of `start`, or 0: weight decay. L-BFGS over all points ends where
    no derivative exceeds 1e-6, or after so many steps.
    """
    net, keep = copy.deepcopy(net).train(), np.setdiff1d(np.arange(len(X)), without)
    X, Y, n = X[keep], Y[keep], len(X)
    moved = [p for p in net.parameters() if p.requires_grad]
    there = (
        [p.detach() for p in start.parameters() if p.requires_grad] if start else [0] * len(moved)
    )
    descent = torch.optim.LBFGS(
        moved, max_iter=steps, tolerance_grad=1e-6, tolerance_change=0, history_size=30,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        descent.zero_grad()
        value = nn.functional.cross_entropy(net(X), Y, reduction="sum") / n
        pull = sum(((p - q) ** 2).sum() for p, q in zip(moved, there, strict=True))
        value = value + decay / 2 * pull
        value.backward()
        return value

    descent.step(loss)
    return net.eval()


def photos(images: np.ndarray, dtype=torch.float64) -> torch.Tensor:
    """Images (n, h, w) or (n, h, w, 3) in [0, 1] as a tensor (n, channels, h, w) around 0."""
    images = images[..., None] if images.ndim == 3 else images
    return torch.as_tensor(4 * images - 2, dtype=dtype).movedim(3, 1).contiguous()


def classes(Y: np.ndarray) -> torch.Tensor:
    """Numbers of the classes, from labels ±1 or one-hot rows less a constant."""
    return torch.as_tensor((Y < 0).astype(int) if Y.ndim == 1 else Y.argmax(axis=1))


def pretrained(source: str, file: Path) -> tuple[Small, float]:
    """Return a network that learned the other classes, and its accuracy there; kept in `file`."""
    others = "/".join(c for c in data.load(f"{source}:all", 10, 10).classes if c not in PAIR)
    d = data.load(f"{source}:{others}", n_train=8 * 475, n_test=8 * 80, seed=SEED)
    torch.manual_seed(SEED)
    net = Small(3, 8)
    if file.is_file():
        net.load_state_dict(torch.load(file, weights_only=True))
    else:
        X, Y, batch = photos(d.images, torch.float32), classes(d.Y), 64
        descent = torch.optim.Adam(net.parameters())
        rate = torch.optim.lr_scheduler.OneCycleLR(
            descent, 5e-3, epochs=EPOCHS, steps_per_epoch=-(-len(X) // batch)
        )
        for _ in range(EPOCHS):
            for some in torch.randperm(len(X)).split(batch):
                flip = torch.rand(len(some), 1, 1, 1) < 0.5
                x = torch.where(flip, X[some].flip(3), X[some])
                descent.zero_grad()
                nn.functional.cross_entropy(net(x), Y[some]).backward()
                descent.step()
                rate.step()
        torch.save(net.state_dict(), file)
    found = outputs(net.eval(), photos(d.images_te, torch.float32)).argmax(axis=1)
    return net.double(), float((found == classes(d.Y_te).numpy()).mean())


def compare(
    net: nn.Module, train, test, decay: float, k: int, cold: int, pulled: bool = False
) -> tuple:
    """Train a network, estimate, retrain without k points over the range of leverages.

    The penalty is weight decay, or pulls to the parameters of `net` if `pulled`.

    Returns the trained network, its estimate, that for λ = w, and a table with a row for each
    training point (`row`, its leverage `h`) and test point (`test`). `warm` is the influence where
    training begins at the trained network, and `actual` where it begins at `net`, as it did: for
    `cold` of the points. Controls are Newton steps with the kernel at the start
    ("start") and with λ = w ("wrong λ"), and IHVP over 1 − h of another point ("shuffled").
    """
    (X, Y), loss, tests = train, nn.CrossEntropyLoss(), len(test[0])
    start = net if pulled else None
    trained = fit(net, X, Y, decay, start=start)
    one = influence(trained, loss, train, test, len(X) * decay, start=start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not at rest for this λ
        wrong = influence(trained, loss, train, test, decay, start=start)
    at = Function(net.eval())
    K = kernels(at, at.points("X", X), at.points("X_te", test[0]))
    hot, f = np.eye(one.f.shape[1])[Y], outputs(trained, X)
    lazy = ModuleInfluence(K, f, hot, one.f, one.y_te, len(X) * decay, one.loss)
    warm = trust(one, lambda without: fit(trained, X, Y, decay, without, start=start), k=k)
    found = {i: np.full(tests, np.nan) for i in warm.points}
    if cold:
        seen = trust(one, lambda without: fit(net, X, Y, decay, without, start=start), k=cold)
        found |= dict(zip(seen.points, seen.actual, strict=True))
    other = np.random.default_rng(SEED).permutation(one.h)
    columns = {"actual": np.array([found[i] for i in warm.points]), "warm": warm.actual}
    controls = {"start": lazy.newton, "wrong λ": wrong.newton}
    controls["shuffled"] = one.ihvp / (1 - other)[:, None]
    columns |= warm.estimates | {name: x[warm.points] for name, x in controls.items()}
    table = {"row": np.repeat(warm.points, tests), "h": np.repeat(warm.h, tests)}
    table |= {"test": np.tile(np.arange(tests), k)} | {n: x.ravel() for n, x in columns.items()}
    return trained, one, wrong, pd.DataFrame(table)


def measure(source: str, part: str, work: Path) -> dict:
    """Everything about one part of a network that learns the pair, as plain values."""
    net, others = pretrained(source, work / f"{source}-{PAIR.replace('/', '-')}.pt")
    d = data.load(f"{source}:{PAIR}", n_train=N, n_test=TESTS, seed=SEED)
    with torch.no_grad():
        X, X_te = (net.stem(photos(x)) for x in (d.images, d.images_te))
    Y, y_te = classes(d.Y), classes(d.Y_te)
    torch.manual_seed(SEED)
    net.head = nn.Linear(net.head.in_features, 2).double()
    top = Top(net)
    for p in top.block.parameters():
        p.requires_grad = part != "last layer"
    began = time.perf_counter()
    given = (X, Y), (X_te[:JUDGED], y_te[:JUDGED]), DECAY
    trained, one, wrong, table = compare(top, *given, *POINTS[part], "pulled" in part)
    row = {
        "parameters": sum(p.numel() for p in trained.parameters() if p.requires_grad),
        "accuracy on the others": others,
        "accuracy": float((outputs(trained, X_te).argmax(axis=1) == y_te.numpy()).mean()),
        "mean leverage": float(one.h.mean()), "rest": one.rest, "rest, wrong λ": wrong.rest,
        "seconds": time.perf_counter() - began,
    }  # fmt: skip
    best = one.newton[:, :SHOWN].argsort(axis=0)
    row |= {"helpful": best[::-1][:4].T.tolist(), "harmful": best[:4].T.tolist()}
    head = {"data": f"{source} {PAIR}", "part": part, "n": N, "w": DECAY}
    label = {"label": np.array(d.classes)[Y.numpy()][table.row].tolist()}
    return {"head": head, "row": row, "table": table.to_dict("list") | label} | provenance()


def strips(results: list[dict], source: str) -> dict:
    """Rows for `plots.images`: test photos, and what helped and hurt them most."""
    rows = {}
    for one in results:
        if one["head"]["part"] != "last block, pulled to its start":
            continue
        d = data.load(f"{source}:{PAIR}", n_train=N, n_test=TESTS, seed=SEED)
        names, names_te = (np.array(d.classes)[classes(y).numpy()] for y in (d.Y, d.Y_te))
        for j in range(SHOWN):
            some = one["row"]["helpful"][j][:3] + one["row"]["harmful"][j][:2]
            pictures = np.concatenate([d.images_te[[j]], d.images[some]])
            did = ["tested", "helped", "helped", "helped", "hurt", "hurt"]
            words = [f"{a}\n{b}" for a, b in zip(did, [names_te[j], *names[some]], strict=True)]
            rows[f"a test photo of class {names_te[j]}" + " " * len(rows)] = pictures, words
    return rows


def main() -> None:
    args = recorder(__doc__).parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    header = {"format": "book.own 1", "data": args.cifar10, "n": N, "w": DECAY, "seed": SEED}
    header |= {"epochs": EPOCHS}
    with Journal(args.work / "own.jsonl", header) as journal:
        for part in POINTS:
            if part not in {one["head"]["part"] for one in journal.results}:
                print(part, flush=True)
                journal.append(measure(args.cifar10, part, args.work))
        results = journal.results
    pairs, cases = [], []
    for one in results:
        where = {name: one[name] for name in provenance()} | {"seconds": one["row"].pop("seconds")}
        pairs.append(pd.DataFrame(one["head"] | one["table"] | where))
        row = {k: v for k, v in one["row"].items() if not isinstance(v, list)}
        cases.append(one["head"] | row | where)
    store(pd.concat(pairs), args.records / "torch.csv", float_format="%.5g")
    store(pd.DataFrame(cases), args.records / "torch-cases.csv", float_format="%.6g")
    source = f"{args.cifar10.split('/')[-1]} · {cases[-1]['date']} · {cases[-1]['machine']}"
    draw(picture(strips(results, args.cifar10)), args.records / "torch-photos.png", source)


if __name__ == "__main__":
    main()
