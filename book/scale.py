"""Ten classes, up to all 60,000 images of MNIST: the numbers behind "What MNIST remembers".

python -m book.scale WORK RECORDS [--data mnist] [--n 1000 2000 ...] [--folder TILES] [--audit]

For the first n images of a seeded order, the model, the influence of all training images on all
test images, what removals would mend, and how far the float32 of the inverse can be trusted. Each
n is a process of its own and a result in WORK, so that a run that was cut short goes on. With
--folder the two largest inverses are tiles on a disk, and they go on as well. Tables and pictures
of the largest n go to RECORDS. With --audit `lib.audit` then does what its command does: all
images, a ridge of its own choice, its own report, in WORK/audit.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from book import plots
from book.chapters import draw, provenance, store
from book.measures import error, high_water, rms
from book.run import end_with_parent
from lib import data
from lib.audit import audit
from lib.inverse import Inverse
from lib.journal import Journal
from lib.kernel import ntk
from lib.labels import margins
from lib.packed import PackedInverse
from lib.ridge import Ridge, RidgeInfluence
from lib.stream import stream

SIZES = [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000]
LAM, SEED, TOP = 1.0, 0, 10
PAIRS = 200  # test points on which all pairs are looked at
FLOAT64, DENSE = 16_000, 4000  # the largest n that is computed again in float64, and densely
GROUPS, SAMPLE = 10, 64  # removals that are fitted again, of each kind; leverages that are refined
LISTED = 40  # training points in a table
SHOWN = {"label": 20, "harmful": 10}  # and on a picture
WORDS = {
    "label": "most like a wrong label", "harmful": "most harmful on average",
    "audit": "most suspicious",
}  # fmt: skip


@dataclass(frozen=True)
class Images:
    """Unit vectors X (n, d), class numbers and places in the source; of training and test images.

    The labels Y (n, c) are the one-hot rows of the classes less 1/c.
    """

    name: str
    X: np.ndarray
    target: np.ndarray
    index: np.ndarray
    X_te: np.ndarray
    target_te: np.ndarray
    index_te: np.ndarray

    @property
    def Y(self) -> np.ndarray:
        return _labels(self.target)

    @property
    def Y_te(self) -> np.ndarray:
        return _labels(self.target_te)

    def first(self, n: int) -> Images:
        """The same with the first n training images."""
        return replace(self, X=self.X[:n], target=self.target[:n], index=self.index[:n])


def images(name: str, seed: int = SEED) -> Images:
    """Return all images of a data set in a seeded order; without a test set a third is for tests.

    >>> images("digits").X.shape, images("digits").X_te.shape
    ((1198, 64), (599, 64))
    """
    (X, target), *test = whole(name)
    rng = np.random.default_rng(seed)
    index = rng.permutation(len(X))
    if test:
        ((X_te, target_te),) = test
        index_te = rng.permutation(len(X_te))
    else:
        X_te, target_te = X, target
        index, index_te = np.split(index, [len(X) * 2 // 3])
    rest = X_te[index_te], target_te[index_te], index_te
    return Images(name, X[index], target[index], index, *rest)


def whole(name: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return all images of a data set in their order, as (X, class numbers): training, then test.

    >>> [(X, target)] = whole("digits")
    >>> X.shape, target[:5].tolist()
    ((1797, 64), [0, 1, 2, 3, 4])
    """
    pools = data.pools(name)[2]
    return [(data.read(pool, np.arange(len(pool.targets)))[1], pool.targets) for pool in pools]


def _labels(target: np.ndarray) -> np.ndarray:
    return np.eye(10)[target] - 0.1


def mending(influence: RidgeInfluence, target, harmful) -> pd.DataFrame:
    """What removals do to the margins of t test points, a row each.

    `one` is the training point whose removal leaves the largest margin, of all n, and `alone` that
    margin. The others are of the most harmful points, `harmful` (t, top): `worst` is the margin
    without the first, `all` without all of them, and `fewest` how many have to go, in that order,
    until the margin is positive, or 0. Groups leave at once, by the block form of Eq 9.
    """
    model, rows = influence.model, []
    for f, alpha, own, I in zip(influence.f, influence.alpha.T, target, harmful, strict=True):
        alone = margins(f + alpha[:, None] * model.rho, own)
        Q, path = model.Q.block(I), []
        for size in range(1, len(I) + 1):
            lost = np.linalg.solve(Q[:size, :size], model.beta[I[:size]])
            path.append(float(margins(f - alpha[I[:size]] @ lost, own)))
        mended = np.flatnonzero(np.array(path) > 0)
        rows.append({
            "one": int(alone.argmax()), "alone": alone.max(), "worst": path[0], "all": path[-1],
            "fewest": int(mended[0]) + 1 if len(mended) else 0,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["one", "alone", "worst", "all", "fewest"])


def refitted(model: Ridge, groups: Sequence, sample=()) -> tuple[np.ndarray, float, np.ndarray]:
    """Coefficients of the model without each group, their residual, and Q_ii of a sample.

    Without the group I they are β − Q_·I (Q_II)⁻¹ β_I, (groups, n, c), from refined columns of Q.
    The residual is the largest of (K + λI)β − Y outside of I, in float64 with a K computed again:
    where it is 0 the coefficients are those of a refit, whatever Q is.
    """
    Q, n = model.Q, len(model.Y)
    points = np.unique(np.concatenate([*groups, sample]).astype(int))
    unit = np.zeros((n, len(points)))
    unit[points, np.arange(len(points))] = 1
    C = Q.solve(unit)
    found = []
    for I in groups:
        I = np.array(I, dtype=int)
        own = np.searchsorted(points, I)
        beta = model.beta - C[:, own] @ np.linalg.solve(C[np.ix_(I, own)], model.beta[I])
        beta[I] = 0
        found.append(beta)
    B = np.hstack(found)
    rest = Q.times_kernel(B) + model.lam * B - np.tile(model.Y, len(groups))
    for I, part in zip(groups, np.split(rest, len(groups), axis=1), strict=True):
        part[I] = 0
    exact = C[sample, np.searchsorted(points, sample)]
    return np.array(found), float(np.abs(rest).max()), exact


def measure(name: str, n: int, lam: float = LAM, folder: Path | None = None) -> dict:
    """Everything about the first n images, as plain values."""
    d, clock = images(name).first(n), time.perf_counter
    resumed = folder is not None and folder.exists()
    times = [clock()]
    Q = PackedInverse(ntk, d.X, lam, folder=folder)
    times.append(clock())
    model = Ridge.packed(Q, d.Y)
    times.append(clock())
    kept = stream(model, ntk, d.X, d.X_te, d.Y_te, top=TOP)
    times.append(clock())
    peak = high_water()
    out, seconds = (
        d.Y + model.rho,
        dict(zip(("inverse", "fit", "pairs"), np.diff(times), strict=True)),
    )
    if resumed:
        seconds["inverse"] = None  # a part of it was there
    row = {
        "data": name, "n": n, "t": len(d.X_te), "lam": lam,
        "accuracy": (kept.f.argmax(axis=1) == d.target_te).mean(),
        "loo_accuracy": (out.argmax(axis=1) == d.target).mean(),
        "mean_leverage": model.h.mean(), "dof": model.dof,
        **{f"h_{q}": np.quantile(model.h, q / 100) for q in (1, 50, 99)},
        **{f"seconds_{k}": v for k, v in seconds.items()}, "peak_gb": peak / 1e9,
    }  # fmt: skip
    row |= rates(model, d)
    mended, checks = mend(model, kept, d)
    row |= checks | precision(model, d)
    return plain({"row": row, "points": points(model, kept, d), "errors": mended} | provenance())


def audited(name: str, folder: Path) -> dict:
    """What an audit of a data set with all its images finds first, and what it took."""
    found = audit(name, out=folder)
    first = found.table.head(LISTED)[["label", "suggested", "margin", "leverage"]]
    places = first.reset_index(names="image").assign(place=range(1, len(first) + 1))
    took = {
        "seconds": max(found.seconds.values()), "cpu_seconds": time.process_time(),
        "peak_gb": high_water() / 1e9,
    }  # fmt: skip
    rows = places.assign(
        data=name, n=len(found.table), lam=found.model.lam,
        contradicted=(found.table.margin > 0).mean(), mean_leverage=found.model.h.mean(), **took,
    )  # fmt: skip
    return {"rows": plain(rows.to_dict("records"))} | provenance()


def rates(model: Ridge, d: Images) -> dict:
    """The error rate of IHVP, abs(I − Î)/abs(I): its median, and as a ratio of sums."""
    influence = model.influence(ntk(d.X, d.X_te[:PAIRS]), d.Y_te[:PAIRS])
    wrong, size = error(influence), np.abs(influence.exact)
    return {"error_rate": np.median(wrong / size), "ratio_of_sums": wrong.sum() / size.sum()}


def points(model: Ridge, kept, d: Images) -> list[dict]:
    """The training images that hurt most, and those that most resemble a wrong label."""
    out = d.Y + model.rho
    margin, other = margins(out, d.target), out.argmax(axis=1)
    rows = []
    for kind, order in (("harmful", kept.mean.argsort()), ("label", margin.argsort())):
        rows += [
            {
                "kind": kind, "place": place, "row": i, "image": d.index[i], "label": d.target[i],
                "suggested": other[i], "margin": margin[i], "mean": kept.mean[i], "h": model.h[i],
            }
            for place, i in enumerate(order[:LISTED], 1)
        ]  # fmt: skip
    return rows


def mend(model: Ridge, kept, d: Images) -> tuple[list[dict], dict]:
    """Which test errors removals mend, and some removals fitted again: that mend, and that do not.

    Of each there are `GROUPS` of single images, and as many of ten.
    """
    wrong = np.flatnonzero(kept.f.argmax(axis=1) != d.target_te)
    k, target = ntk(d.X, d.X_te[wrong]), d.target_te[wrong]
    found = mending(model.influence(k, d.Y_te[wrong]), target, kept.harmful[wrong])
    removed = {"alone": found.one.to_numpy()[:, None], "all": kept.harmful[wrong]}
    mends = {name: found[name].to_numpy() > 0 for name in removed}
    which = [
        (name, j) for mend in (True, False) for name in removed
        for j in np.flatnonzero(mends[name] == mend)[:GROUPS]
    ]  # fmt: skip
    groups = [[], *(removed[name][j] for name, j in which)]  # first none
    sample = np.random.default_rng(SEED).choice(len(d.X), min(SAMPLE, len(d.X)), replace=False)
    betas, residual, exact = refitted(model, groups, np.sort(sample))
    after = np.array([
        margins(k[:, j] @ beta, target[j]) for (_, j), beta in zip(which, betas[1:], strict=True)
    ])  # fmt: skip
    by_block = np.array([found[name][j] for name, j in which])
    mend = by_block > 0
    gap = model.lam * (model.Q.diagonal()[np.sort(sample)] - exact)
    checks = {
        "errors": len(wrong), "mended_by_one": (found.alone > 0).mean(),
        "mended_by_worst": (found.worst > 0).mean(), "mended_by_ten": (found["all"] > 0).mean(),
        "mended_within_ten": (found.fewest > 0).mean(),
        "refits": mend.sum(), "refits_that_mend": (after[mend] > 0).sum(),
        "refits_of_others": (~mend).sum(), "others_that_mend": (after[~mend] > 0).sum(),
        "refit_gap": np.abs(after - by_block).max(initial=0),
        "refit_residual": residual,
        "leverage_refined_max": np.abs(gap).max(), "leverage_refined_rms": rms(gap),
    }  # fmt: skip
    return found.assign(
        test=d.index_te[wrong], label=target, predicted=kept.f[wrong].argmax(axis=1),
        margin=margins(kept.f[wrong], target), one=d.index[found.one],
        one_label=d.target[found.one], harmful=d.index[kept.harmful[wrong, 0]],
    ).to_dict("records"), checks  # fmt: skip


def precision(model: Ridge, d: Images) -> dict:
    """How far the leverages are from those in float64, and these from the dense inverse's."""
    found, lam = {}, model.lam
    if len(d.X) <= FLOAT64:
        h = 1 - lam * PackedInverse(ntk, d.X, lam, dtype="float64").diagonal()
        found |= {"leverage_float64_max": np.abs(model.h - h).max()}
        found |= {"leverage_float64_rms": rms(model.h - h)}
    if len(d.X) <= DENSE:
        dense = 1 - lam * Inverse(ntk(d.X), lam).diagonal()
        found |= {"dense_float64_max": np.abs(h - dense).max()}
    return found


def plain(value):
    """Numbers of NumPy as those of Python, for JSON."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def tables(results: list[dict]) -> dict[str, pd.DataFrame]:
    """The records: a row for each n, and of the largest n training points and test errors."""
    results = sorted(results, key=lambda one: one["row"]["n"])
    sources = [{name: one[name] for name in provenance()} for one in results]
    rows = [one["row"] | source for one, source in zip(results, sources, strict=True)]
    parts = {name: pd.DataFrame(results[-1][name]) for name in ("points", "errors")}
    parts = {f"scale-{name}": part.assign(**sources[-1]) for name, part in parts.items()}
    return {"scale": pd.DataFrame(rows)} | parts


def pictures(name: str, test: bool = False) -> np.ndarray:
    """All training images of a data set, or all test images, (N, side, side) in [0, 1]."""
    X, _ = whole(name)[-1 if test else 0]
    side = round(X.shape[1] ** 0.5)
    return (X / X.max(axis=1, keepdims=True)).reshape(-1, side, side)


def strips(points: pd.DataFrame, name: str, shown: dict = SHOWN) -> dict:
    """Rows for `plots.images`: the first images of each kind, with label and suggestion."""
    rows, there = {}, pictures(name)
    for kind, count in shown.items():
        part, title = points[points.kind == kind].head(count), WORDS[kind]
        pairs = zip(part.label, part.suggested, strict=True)
        captions = [f"{a} → {b}?" if a != b else f"{a}" for a, b in pairs]
        for start in range(0, len(part), 5):
            some = part.image[start : start + 5], captions[start : start + 5]
            rows[title if start == 0 else " " * len(rows)] = there[some[0]], some[1]
    return rows


def pairs(errors: pd.DataFrame, name: str, shown: int = 6) -> dict:
    """Rows for `plots.images`: test errors, and below each the image without which it is right."""
    part = errors[errors.alone > 0].head(shown)
    seen = [f"{a} seen as {b}" for a, b in zip(part.label, part.predicted, strict=True)]
    return {
        "test images": (pictures(name, test=True)[part.test], seen),
        "right without this training image": (pictures(name)[part.one], part.one_label.astype(str)),
    }


def picture(rows: dict) -> bytes:
    """Draw rows of images as a PNG."""
    plots.style()
    plots.images(rows)
    buffer = io.BytesIO()
    plt.gcf().savefig(buffer, format="png")
    plt.close()
    return plots.quantise(buffer.getvalue(), 32)


def alone(work: Callable, *args) -> dict:
    """Return what `work` finds in a fresh process, whose peak of memory is its own."""
    how = {"mp_context": get_context("spawn"), "initializer": _begin, "initargs": [os.getpid()]}
    with ProcessPoolExecutor(1, **how) as pool:
        return pool.submit(work, *args).result()


def _begin(parent: int) -> None:
    """End with the parent, also if it was gone before this process had started."""
    end_with_parent()
    if os.getppid() != parent:
        os._exit(1)


def clusters(name: str, n: int) -> pd.DataFrame:
    """Seconds of the inverse on one and on two workers of this machine, beside the dense one.

    `gap` is that of the diagonals. A worker has one thread, the dense inverse as many as there are.
    """
    from dask.distributed import Client, LocalCluster

    from lib.cluster import ClusterInverse

    X, rows = images(name).X[:n], []
    begin = time.perf_counter()
    dense = Inverse(ntk(X), LAM).diagonal()
    alone = time.perf_counter() - begin
    for workers in (1, 2):
        how = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        with LocalCluster(**how) as local, Client(local) as client:
            client.wait_for_workers(workers)
            begin = time.perf_counter()
            Q = ClusterInverse(ntk, X, LAM, client, tile=1000)
            seconds = time.perf_counter() - begin
            gap = np.abs(Q.diagonal() - dense).max()
        rows.append({"data": name, "n": n, "lam": LAM, "workers": workers, "seconds": seconds})
        rows[-1] |= {"seconds_dense": alone, "gap": gap}
    return pd.DataFrame(rows).assign(**provenance())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--data", default="mnist", choices=data.CLASSES)
    parser.add_argument("--n", type=int, nargs="+", default=SIZES)
    parser.add_argument("--folder", type=Path, help="for the tiles of the two largest n")
    parser.add_argument("--audit", action="store_true", help="and an audit of all images")
    parser.add_argument(
        "--cluster", type=int, default=6000, help="n of the timing on a cluster, or 0"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.records.mkdir(parents=True, exist_ok=True)
    header = {"format": "book.scale 1", "data": args.data, "lam": LAM, "seed": SEED}
    with Journal(args.work / f"scale-{args.data}.jsonl", header) as journal:
        for n in sorted(args.n):
            if n not in {one["row"]["n"] for one in journal.results}:
                print(f"n = {n}", flush=True)
                on_disk = args.folder and n in sorted(args.n)[-2:]
                folder = args.folder / f"{args.data}-{n}" if on_disk else None
                journal.append(alone(measure, args.data, n, LAM, folder))
                if folder:
                    shutil.rmtree(folder)
            frames = tables(journal.results)
            for name, frame in frames.items():
                store(frame, args.records / f"{name}.csv", float_format="%.6g")
            source = frames["scale-points"].iloc[0]
            for name, rows in (("points", strips), ("errors", pairs)):
                png = picture(rows(frames[f"scale-{name}"], args.data))
                file = args.records / f"scale-{name}.png"
                draw(png, file, f"{source.date} · {source.machine}")
    if args.audit:
        header = {"format": "book.scale.audited 1", "data": args.data}
        with Journal(args.work / f"audit-{args.data}.jsonl", header) as journal:
            if not journal.results:
                journal.append(alone(audited, args.data, args.work / "audit"))
            one = journal.results[0]
        source = {name: one[name] for name in provenance()}
        first = pd.DataFrame(one["rows"]).assign(kind="audit", **source)
        store(first.drop(columns="kind"), args.records / "audit.csv", float_format="%.6g")
        png = picture(strips(first, args.data, {"audit": 20}))
        draw(png, args.records / "audit.png", f"{source['date']} · {source['machine']}")
    if args.cluster:
        store(clusters(args.data, args.cluster), args.records / "cluster.csv", float_format="%.6g")


if __name__ == "__main__":
    main()
