"""Make labels wrong and find them again: the numbers behind the page "Which labels are wrong".

python -m book.labels WORK RECORDS [--cifar10 NAME]

Draws of MNIST, CIFAR-10 and digits, all ten classes, get wrong labels; every score of `lib.labels`
ranks them, for several ridges and along training, and so do cleanlab and pyDVL where they are
installed. What a draw gives is kept in WORK as it comes, so that a run that was cut short goes on;
tables go to RECORDS. Seconds are those of the processor, on one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import process_time
from types import SimpleNamespace

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

from lib import data
from lib.dynamics import Flow
from lib.influence import Influence
from lib.journal import Journal
from lib.kernel import ntk
from lib.labels import scores, suggested
from lib.ridge import Ridge

# our choices, made before a result was seen
SIZES = {"digits": 1000}  # training images of a draw; 2000 of the others
SEEDS = range(5)
SLOW_SEEDS = range(3)  # for what takes long
KINDS, SHARES = ("random", "next"), (0.05, 0.2, 0.4)
LAMS = (0.01, 0.1, 1.0, 10.0, 100.0)
TIMES = tuple(10 ** (k / 2) for k in range(-6, 7))
FLOW_LAM = 0.01  # the ridge along training: the smallest
CLEAN, FEW = 500, 100  # images whose labels are known to be right
NEIGHBOURS, BAGS, BUDGET = 10, 50, 60  # of pyDVL's values; the last in seconds


def flip(Y: np.ndarray, kind: str, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share is wrong, shaped like Y, and which are wrong, (n,) booleans.

    Y are the labels of `lib.data.load`: (n, c), or ±1 in (n,). A "random" label becomes that of any
    other class; the "next" one is that of the class plus 1, and after the last class comes the
    first. Raises `ValueError` for another kind, and for a share that is not in [0, 1].

    >>> Y, wrong = flip(np.eye(4) - 0.25, "next", 0.5, seed=0)
    >>> int(wrong.sum()), (Y[wrong].argmax(axis=1) - np.flatnonzero(wrong)).tolist()
    (2, [1, 1])
    """
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r} is not known; use {' or '.join(map(repr, KINDS))}")
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share!r} is no share of the labels; use 0 to 1")
    if Y.ndim == 1:
        label, own = np.array([1.0, -1.0]), (Y < 0).astype(int)
    else:
        label, own = np.eye(Y.shape[1]) - 1 / Y.shape[1], Y.argmax(axis=1)
    n, c = len(Y), len(label)
    rng = np.random.default_rng([seed, KINDS.index(kind), round(1000 * share)])
    chosen = rng.choice(n, round(share * n), replace=False)
    step = rng.integers(1, c, len(chosen)) if kind == "random" else 1
    own[chosen] = (own[chosen] + step) % c
    wrong = np.zeros(n, dtype=bool)
    wrong[chosen] = True
    return label[own], wrong


def quality(wrong: np.ndarray, found: dict[str, np.ndarray]) -> dict[str, float]:
    """Return for each score the area under its ROC curve, and its average precision as "NAME AP".

    >>> quality(np.array([True, False, True]), {"margin": np.array([3.0, 2.0, 1.0])})
    {'margin': 0.5, 'margin AP': 0.833}
    """
    result = {}
    for name, score in found.items():
        result[name] = round(float(roc_auc_score(wrong, score)), 5)
        result[f"{name} AP"] = round(float(average_precision_score(wrong, score)), 3)
    return result


@dataclass
class Case:
    """A draw with its kernels, and its labels made wrong in every way: (kind, share) → Y, wrong."""

    d: data.Data
    K: np.ndarray
    k: np.ndarray
    flipped: dict[tuple[str, float], tuple[np.ndarray, np.ndarray]]

    @classmethod
    def draw(cls, name: str, seed: int) -> Case:
        n = SIZES.get(name.split(":")[0], 2000)
        d = data.load(name, n_train=n, n_test=CLEAN, seed=seed)
        settings = [(kind, share) for kind in KINDS for share in SHARES]
        flipped = {setting: flip(d.Y, *setting, seed) for setting in settings}
        return cls(d, ntk(d.X), ntk(d.X, d.X_te), flipped)

    def rows(self):
        """Each setting: the start of its row, its labels and which are wrong."""
        for (kind, share), (Y, wrong) in self.flipped.items():
            start = {"data": self.d.name, "n": len(Y), "seed": self.d.seed}
            yield start | {"kind": kind, "share": share}, Y, wrong


# --- the scores of this book ----------------------------------------------------------------------


def ridges(case: Case) -> list[dict]:
    """Every score for several ridges, exact and by IHVP."""
    d, rows = case.d, []
    for start, Y, wrong in case.rows():
        for lam in LAMS:
            began = process_time()
            model = Ridge(case.K, Y, lam)
            plain = {False: scores(model), True: scores(model, ihvp=True)}
            fitted = process_time()
            influence = model.influence(case.k, d.Y_te)
            values = {False: influence.exact, True: influence.ihvp}
            seconds = {"seconds": fitted - began, "seconds clean": process_time() - began}
            right = suggested(model)[wrong] == d.Y.argmax(axis=1)[wrong]
            about = {
                "lam": lam, "dof": model.dof / len(Y), "loo loss": 0.5 * np.mean(model.rho**2),
                "accuracy": accuracy(influence.f, d.Y_te), "suggested right": np.mean(right),
            }  # fmt: skip
            for ihvp, I in values.items():
                found = dict(plain[ihvp])
                for m in (FEW, CLEAN):
                    found[f"clean influence {m}"] = -I[:, :m].mean(axis=1)
                    if not ihvp:
                        found[f"clean model {m}"] = clean_margin(case, Y, lam, m)
                if not ihvp:
                    found[f"margin with clean {CLEAN}"] = margin_with_clean(case, Y, lam)
                about["how"] = "IHVP" if ihvp else "exact"
                rows.append(start | about | quality(wrong, found) | seconds)
    return rows


def accuracy(f: np.ndarray, Y: np.ndarray) -> float:
    """Share of the predictions (t, c) that name the class of the label."""
    return float(np.mean(f.argmax(axis=1) == Y.argmax(axis=1)))


def clean_margin(case: Case, Y: np.ndarray, lam: float, m: int) -> np.ndarray:
    """The margin against each label of the model that was trained on m clean images alone."""
    d = case.d
    f = Ridge(ntk(d.X_te[:m]), d.Y_te[:m], lam).predict(case.k.T[:m])
    return scores(SimpleNamespace(Y=Y, r=f - Y, rho=f - Y, h=0))["margin"]


def margin_with_clean(case: Case, Y: np.ndarray, lam: float) -> np.ndarray:
    """The leave-one-out margin of the model that was trained on the clean images too."""
    d = case.d
    K = np.block([[case.K, case.k], [case.k.T, ntk(d.X_te)]])
    return scores(Ridge(K, np.concatenate([Y, d.Y_te]), lam))["margin"][: len(Y)]


def times(case: Case) -> list[dict]:
    """Every score at several moments of training; one decomposition serves all labels."""
    d, flips = case.d, list(case.rows())
    c, k, y_te = d.Y.shape[1], case.k[:, :FEW], d.Y_te[:FEW]
    flow = Flow(case.K, np.hstack([Y for _, Y, _ in flips]), FLOW_LAM)
    a, rows = flow.mu + FLOW_LAM, []
    for t in TIMES:
        r, rho = flow.r(t), flow.rho(t)
        together = flow.influence(k, np.tile(y_te, len(flips)), t)
        dof = float(np.mean(-np.expm1(-a * t) * flow.mu / a))
        alpha = flow.end.Q @ k
        for part, (start, Y, wrong) in enumerate(flips):
            of = slice(c * part, c * part + c)
            now = SimpleNamespace(Y=Y, r=r[:, of], rho=rho[:, of], h=flow.end.h)
            f = together.f[:, of]
            I = Influence(f, y_te, together.shift[:, :, of]).exact
            estimate = (alpha * (now.r @ (f - y_te).T)).mean(axis=1)
            found = scores(now, clean=I.mean(axis=1))
            estimated = scores(now, ihvp=True, clean=estimate)
            found |= {f"{name} by IHVP": score for name, score in estimated.items()}
            about = {"t": t, "dof": dof, "loo loss": 0.5 * np.mean(now.rho**2)}
            rows.append(start | about | {"accuracy": accuracy(f, y_te)} | quality(wrong, found))
    return rows


# --- others ---------------------------------------------------------------------------------------


def probabilities(f: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return softmax(f/T), (n, c), for the T that fits the given classes best.

    f (n, c) are leave-one-out outputs, so these are cross-validated probabilities with as many
    folds as points. T minimises their logarithmic loss. Source: Guo et al. (2017).
    """

    def loss(log_T):
        return -log_softmax(f / np.exp(log_T), axis=1)[np.arange(len(f)), own].mean()

    return softmax(f / np.exp(minimize_scalar(loss, bounds=(-7, 5), method="bounded").x), axis=1)


def cleanlab(case: Case) -> list[dict]:
    """The rankings of cleanlab on leave-one-out probabilities, and the labels that it finds.

    "confident learning" ranks those that it finds first, and then, as within them, by margin.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    rows = []
    for start, Y, wrong in case.rows():
        own, count = Y.argmax(axis=1), wrong.sum()
        for lam in LAMS:
            began = process_time()
            model = Ridge(case.K, Y, lam)
            fitted = process_time()
            p = probabilities(Y + model.rho, own)
            found = {}
            for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
                found[method.replace("_", " ")] = -get_label_quality_scores(own, p, method=method)
            adjusted = get_label_quality_scores(
                own, p, method="normalized_margin", adjust_pred_probs=True
            )
            found["adjusted margin"] = -adjusted
            issues = find_label_issues(own, p, n_jobs=1)
            found["confident learning"] = 2.0 * issues + found["normalized margin"]
            seconds = {"seconds": process_time() - began, "seconds fit": fitted - began}
            flagged = int(issues.sum())
            ours = np.argsort(-scores(model)["margin"])[:flagged]
            sets = {
                "flagged": flagged, "precision": wrong[issues].mean() if flagged else np.nan,
                "recall": (wrong & issues).sum() / count,
                "recall of our margin": wrong[ours].sum() / count,
            }  # fmt: skip
            rows.append(start | {"lam": lam} | quality(wrong, found) | sets | seconds)
    return rows


def pydvl(case: Case) -> list[dict]:
    """KNN-Shapley on the clean images; of few draws, Data-OOB and Banzhaf of our own model too."""
    from pydvl.valuation import Dataset, KNNShapleyValuation
    from sklearn.neighbors import KNeighborsClassifier

    d, rows = case.d, []
    clean = Dataset(d.X_te, d.Y_te.argmax(axis=1))
    for start, Y, wrong in case.rows():
        own, began = Y.argmax(axis=1), process_time()
        neighbours = KNeighborsClassifier(NEIGHBOURS)
        values = KNNShapleyValuation(neighbours, clean, progress=False).fit(Dataset(d.X, own))
        found = {"KNN-Shapley": (values.result.values, process_time() - began)}
        if d.seed in SLOW_SEEDS and start["share"] > 0.1:
            model = classifier(np.block([[case.K, case.k], [case.k.T, ntk(d.X_te)]]), 1.0)
            found |= slow_values(model, own, d.Y_te.argmax(axis=1), start["share"] == 0.2)
        for name, (value, seconds) in found.items():
            suspicion = -np.nan_to_num(value)  # a point that no part has, or all have, has no value
            of_value = quality(wrong, {"AUROC": suspicion})
            rows.append(start | {"method": name} | of_value | {"seconds": seconds})
    return rows


def slow_values(model, own: np.ndarray, own_te: np.ndarray, banzhaf: bool) -> dict[str, tuple]:
    """Data-OOB of bags of the model; Banzhaf on the clean images, as far as the budget goes."""
    from pydvl.valuation import (
        DataOOBValuation,
        Dataset,
        MaxTime,
        ModelUtility,
        MSRBanzhafValuation,
        SupervisedScorer,
    )
    from sklearn.ensemble import BaggingClassifier

    index = np.arange(len(own) + len(own_te), dtype=float)[:, None]
    train = Dataset(index[: len(own)], own)
    began = process_time()
    bags = BaggingClassifier(model, BAGS, random_state=0).fit(index[: len(own)], own)
    found = {"Data-OOB": (DataOOBValuation(bags).fit(train).result.values, process_time() - began)}
    if banzhaf:
        began = process_time()
        clean = Dataset(index[len(own) :], own_te)
        scorer = SupervisedScorer("accuracy", test_data=clean, default=0.1, range=(0, 1))
        done = MSRBanzhafValuation(ModelUtility(model, scorer), MaxTime(BUDGET), seed=0)
        found["Banzhaf"] = (done.fit(train).result.values, process_time() - began)
    return found


def classifier(K: np.ndarray, lam: float):
    """Kernel ridge regression for scikit-learn: its inputs (n, 1) are rows of K, its labels 0…9."""

    class Classifier(ClassifierMixin, BaseEstimator):
        def fit(self, x, y):
            self.classes_, own = np.unique(y, return_inverse=True)
            self.rows_ = x[:, 0].astype(int)
            A = K[np.ix_(self.rows_, self.rows_)]
            A[np.diag_indices(len(A))] += lam
            c = len(self.classes_)
            self.beta_ = np.linalg.solve(A, (np.eye(c) - 1 / c)[own])
            return self

        def predict(self, x):
            f = K[np.ix_(x[:, 0].astype(int), self.rows_)] @ self.beta_
            return self.classes_[f.argmax(axis=1)]

    return Classifier()


# --- records --------------------------------------------------------------------------------------


PARTS = {"labels": ridges, "labels-time": times, "labels-cleanlab": cleanlab, "labels-pydvl": pydvl}


def each(part: str, measure: Callable, names: list[str], work: Path) -> pd.DataFrame:
    """What `measure` gives for every draw, kept in `work` as it comes."""
    from book.sweep import bare

    library = Path(data.__file__).parent
    code = sha256("".join(bare(library / f"{m}.py") for m in ("labels", "dynamics")).encode())
    header = {"format": "book.labels 1", "part": part, "code": code.hexdigest()[:12]}
    rows = []
    with Journal(work / f"{part}.jsonl", header) as journal:
        kept = {(one["name"], one["seed"]): one["rows"] for one in journal.results}
        for seed, name in tqdm([(s, name) for s in SEEDS for name in names], desc=part):
            if (name, seed) not in kept:
                found = measure(Case.draw(name, seed))
                journal.append({"name": name, "seed": seed, "rows": found})
                kept[name, seed] = journal.results[-1]["rows"]
            rows += kept[name, seed]
    return pd.DataFrame(rows)


def record(names: list[str], work: Path, records: Path) -> None:
    """Measure everything, or go on with it, and write the tables, each with its source."""
    from book.chapters import provenance, store

    for part, measure in PARTS.items():
        source, other = provenance(), part.removeprefix("labels-")
        if other in ("cleanlab", "pydvl"):
            if not find_spec(other):
                print(f"{part}: left out, {other} is not installed; `make labels` installs it")
                continue
            source["versions"] += f" {other} {version(other)}"
        frame = each(part, measure, names, work).assign(**source)
        store(frame, records / f"{part}.csv", float_format="%.5g")


def main() -> None:
    from book.chapters import recorder

    args = recorder(__doc__).parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    record(["digits:all", "mnist:all", f"{args.cifar10}:all"], args.work, args.records)


if __name__ == "__main__":
    main()
