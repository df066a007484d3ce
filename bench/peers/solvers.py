"""How each library is called: one function a method, from a network to scores (n, t).

Each returns the scores in the unit of Î (Eq 12), converted as the library's own documentation says
what they are. A library that averages the loss over n points has the Hessian (JᵀJ + λI)/n if its
damping is λ/n, and its scores are n times Î. Methods without a unit (TracIn, TRAK, similarity) are
returned as they are. This module needs NumPy, torch and the library called, and nothing else.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset


class Module(nn.Module):
    """The network of the comparison: W is trained, the read-out a is fixed."""

    def __init__(self, W: torch.Tensor, a: torch.Tensor, smooth: bool):
        super().__init__()
        self.hidden = nn.Linear(W.shape[1], len(W), bias=False)
        self.act = nn.GELU() if smooth else nn.ReLU()
        self.hidden.weight.data = W.clone()
        self.register_buffer("a", a)

    def forward(self, x):
        return self.act(self.hidden(x)) @ self.a


@dataclass
class Case:
    """A trained network with its data, as torch has them, and the seed of what is random.

    `used` is what a method was given as damping, in the unit of its library, and as batch.
    """

    module: Module
    X: torch.Tensor
    Y: torch.Tensor
    X_te: torch.Tensor
    Y_te: torch.Tensor
    lam: float
    seed: int
    checkpoints: list[torch.Tensor]
    used: dict = field(default_factory=dict)

    @classmethod
    def load(cls, file: str | Path, seed: int = 0) -> Case:
        z = np.load(file)
        part = {k: torch.as_tensor(z[k]) for k in ("X", "Y", "X_te", "Y_te", "a", "hidden.weight")}
        part = {k: v.float() if v.is_floating_point() else v for k, v in part.items()}
        squared = part["Y"].is_floating_point()
        y, y_te = (v[:, None] if squared else v for v in (part["Y"], part["Y_te"]))
        a = part["a"].reshape(len(part["a"]), -1)
        module = Module(part["hidden.weight"], a, smooth=not squared).eval()
        steps = [torch.as_tensor(z[k]) for k in z.files if k.startswith("checkpoint ")]
        return cls(module, part["X"], y, part["X_te"], y_te, float(z["lam"]), seed, steps)

    @property
    def squared(self) -> bool:
        return self.Y.is_floating_point()

    def __len__(self) -> int:
        return len(self.X)

    def loss(self, f, y, reduction="mean"):
        """ℓ as training has it: ½ (f − y)² or the cross-entropy."""
        if self.squared:
            return 0.5 * nn.functional.mse_loss(f, y, reduction=reduction)
        return nn.functional.cross_entropy(f, y, reduction=reduction)

    def train(self, batch: int) -> DataLoader:
        return DataLoader(TensorDataset(self.X, self.Y), batch_size=batch)

    def test(self) -> DataLoader:
        return DataLoader(TensorDataset(self.X_te, self.Y_te), batch_size=len(self.X_te))


# --- this library ---------------------------------------------------------------------------------


def lib(case: Case, memory: float):
    """The dual solution for any module, in float64; it needs this project, whose Python runs it."""
    from lib.losses import Softmax, Squared
    from lib.torch_influence import influence

    points = (case.X, case.Y), (case.X_te, case.Y_te)
    loss = Squared() if case.squared else Softmax()
    case.used |= {"damping": case.lam, "batch": len(case)}
    with warnings.catch_warnings():  # the start to which Eq 2 pulls is not in the file
        warnings.filterwarnings("ignore", "model is not at rest")
        return influence(case.module.double(), loss, *points, case.lam, memory=memory).ihvp


# --- pyDVL ----------------------------------------------------------------------------------------


def pydvl(case: Case, kind: str, batch: int = 0, damping: float | None = None,
          moved: bool = False, sampled: bool = False, **knobs):  # fmt: skip
    """pyDVL's influence models: fit on the training loader, then `influences`, (t, n).

    EK-FAC of pyDVL 0.10.0 takes the last weights of a layer for its bias, even if it has none;
    `moved` puts the last column of the weights where it looks for a bias. Its gradients are those
    of Σ √p log p over classes and points, so that their squares hold products of different classes;
    `sampled` has those of labels drawn from the model in their place.
    """
    from pydvl.influence import torch as models

    n = len(case)
    damping = case.lam / n if damping is None else damping
    case.used |= {"damping": damping, "batch": batch or n}
    if sampled:
        from pydvl.influence.torch import influence_function_model as module

        module.empirical_cross_entropy_loss_fn = of_sampled_labels
    if kind == "EkfacInfluence":
        model = models.EkfacInfluence(case.module, hessian_regularization=damping, **knobs)
        if moved:
            model._solve_hvp_by_layer = last_column(model._solve_hvp_by_layer, len(case.module.a))
    else:
        of = getattr(models, kind)
        model = of(case.module, case.loss, regularization=damping, **knobs)
    model = model.fit(case.train(batch or n))
    scores = model.influences(case.X_te, case.Y_te, case.X, case.Y)
    return scores.detach().numpy().T / n


def of_sampled_labels(f, *rest, **more):
    """The summed cross-entropy of labels drawn from the model."""
    labels = torch.multinomial(f.detach().softmax(dim=1), 1)[:, 0]
    return nn.functional.cross_entropy(f, labels, reduction="sum")


def last_column(solve, m: int):
    """`solve` for gradients (t, m d) whose last column of m weights it takes for a bias.

    >>> swapped = last_column(lambda v: {"hidden": v}, 2)
    >>> swapped(torch.arange(6.0)[None])["hidden"].tolist()  # there and back again
    [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]
    """

    def solved(v, *rest):
        W = v.reshape(len(v), m, -1)
        given = torch.cat([W[:, :, :-1].flatten(1), W[:, :, -1]], dim=1)
        ((name, found),) = solve(given, *rest).items()
        weights = found[:, :-m].reshape(len(v), m, -1)
        return {name: torch.cat([weights, found[:, -m:, None]], dim=2).flatten(1)}

    return solved


# --- kronfluence ----------------------------------------------------------------------------------


def kronfluence(case: Case, strategy: str = "ekfac", damping: float | str | None = None,
                batch: int = 0, empirical: bool = False):  # fmt: skip
    """Kronfluence's Analyzer: factors of the Fisher matrix, then pairwise scores, (t, n)."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class OurTask(Task):
        def compute_train_loss(self, batch, model, sample=False):
            x, y = batch
            f = model(x)
            if sample and case.squared:  # labels of the model itself, of variance one
                y = (f + torch.randn_like(f)).detach()
            elif sample:
                y = torch.multinomial(f.detach().softmax(dim=1), 1)[:, 0]
            return case.loss(f, y, "sum")

        def compute_measurement(self, batch, model):
            x, y = batch
            return case.loss(model(x), y, "sum")

        def get_influence_tracked_modules(self):
            return ["hidden"]

    n, task = len(case), OurTask()
    model = prepare_model(case.module, task)
    data, data_te = TensorDataset(case.X, case.Y), TensorDataset(case.X_te, case.Y_te)
    damping = case.lam / n if damping is None else None if damping == "heuristic" else damping
    case.used |= {"damping": damping, "batch": batch or n}
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("a", model, task, cpu=True, output_dir=folder, disable_tqdm=True)
        analyzer.fit_all_factors(
            "factors", data, per_device_batch_size=batch or n,
            factor_args=FactorArguments(strategy=strategy, use_empirical_fisher=empirical),
        )  # fmt: skip
        analyzer.compute_pairwise_scores(
            "scores", "factors", data_te, data, per_device_query_batch_size=len(case.X_te),
            per_device_train_batch_size=batch or n,
            score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        scores = analyzer.load_pairwise_scores("scores")["all_modules"]
    return scores.numpy().T / n


# --- dattri ---------------------------------------------------------------------------------------


def dattri_task(case: Case, function=None, checkpoints=None):
    from dattri.task import AttributionTask

    def loss(params, data):
        x, y = data
        f = functional_call(case.module, params, x)
        return case.loss(f, y if case.squared else y.long())

    checkpoints = checkpoints or case.module.state_dict()
    return AttributionTask(function or loss, case.module, checkpoints)


def dattri(case: Case, kind: str, batch: int = 0, damping: float | None = None,
           transposed: bool = False, **knobs):  # fmt: skip
    """dattri's influence attributors: cache the training loader, then `attribute`, (n, t).

    EK-FAC of dattri 0.3.0 goes to the eigenbasis by Q · Qᵀ with eigenvectors in the columns of Q,
    where Qᵀ · Q is meant; `transposed` gives it the Q that it takes them for.
    """
    from dattri.algorithm import influence_function as attributors

    if transposed:
        from dattri.func import fisher

        found = fisher.estimate_eigenvector
        fisher.estimate_eigenvector = lambda cov: {
            name: tuple(q.T for q in both) for name, both in found(cov).items()
        }
    n = len(case)
    damping = case.lam / n if damping is None else damping
    name = "regularization"
    if kind in ("IFAttributorLiSSA", "IFAttributorEKFAC"):
        name = "damping"
    if kind == "IFAttributorLiSSA":  # it subtracts damping times the vector, beside H / scaling
        damping /= knobs.get("scaling", 50.0)
        knobs["batch_size"] = knobs.get("batch_size", 1)
    case.used |= {"damping": damping, "batch": knobs.get("batch_size", batch or n)}
    attributor = getattr(attributors, kind)(dattri_task(case), **{name: damping}, **knobs)
    attributor.cache(case.train(batch or n))
    return attributor.attribute(case.train(n), case.test()).detach().numpy() / n


def along(case: Case, checkpoints: int | None) -> list[dict]:
    """The state at the end after those at the last of the checkpoints, or at all."""
    end = case.module.state_dict()
    first = 0 if checkpoints is None else len(case.checkpoints) - checkpoints
    return [{**end, "hidden.weight": W} for W in case.checkpoints[first:]] + [end]


def dattri_tracin(
    case: Case, kind: str, checkpoints: int | None = None, proj_dim: int | None = 512
):
    """Gradient products at the end, or along training with equal weights.

    dattri 0.3.0 projects gradients to 512 dimensions where nothing is said; None takes them whole.
    """
    from dattri.algorithm.tracin import TracInAttributor

    states = along(case, checkpoints if kind == "TracIn" else 0)
    case.used |= {"batch": len(case)}
    attributor = TracInAttributor(
        dattri_task(case, checkpoints=states), torch.ones(len(states)),
        normalized_grad=kind == "gradient cosine", projector_kwargs={"proj_dim": proj_dim},
    )  # fmt: skip
    if proj_dim is None:
        attributor.projector_kwargs = None
    return attributor.attribute(case.train(len(case)), case.test()).detach().numpy()


def dattri_trak(case: Case, proj_dim: int = 512, damping: float | None = None):
    """TRAK on the output of the network, of classes the margin, times `residual`."""
    from dattri.algorithm.trak import TRAKAttributor

    def output(params, data):
        f = functional_call(case.module, params, data[0][None])
        if case.squared:
            return f.sum()
        others = f.masked_fill(torch.arange(f.shape[1]) == data[1], -torch.inf)
        return f[0].gather(0, data[1][None])[0] - others.logsumexp(dim=1)[0]

    def one_less_residual(params, data):
        x, y = data
        f = functional_call(case.module, params, x[None])[0]
        return 1 - (f - y) if case.squared else f.softmax(dim=0).gather(0, y[None])

    size = case.module.hidden.weight.numel()
    damping = case.lam / size if damping is None else damping  # gradients are divided by √p
    case.used |= {"damping": damping, "batch": len(case)}
    attributor = TRAKAttributor(
        dattri_task(case, output), one_less_residual,
        projector_kwargs={"proj_dim": proj_dim, "proj_seed": case.seed, "device": "cpu"},
        regularization=damping,
    )  # fmt: skip
    attributor.cache(case.train(len(case)))
    scores = attributor.attribute(case.test()).detach().numpy()
    return scores * residual(case)


def residual(case: Case) -> np.ndarray:
    """What makes scores of outputs those of test losses: f − y, or 1 − p of the own class."""
    with torch.no_grad():
        f = case.module(case.X_te)
    if case.squared:
        return (f - case.Y_te)[:, 0].numpy()
    return 1 - f.softmax(dim=1)[range(len(f)), case.Y_te].numpy()


# --- TRAK -----------------------------------------------------------------------------------------


def trak(case: Case, proj_dim: int = 2048, damping: float | None = None, half: bool = True):
    """TRAKer with the output of the network, times `residual`.

    For classes it is its own "image_classification", whose output is the margin.
    """
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput

    class Output(AbstractModelOutput):
        def __init__(self):
            super().__init__()

        @staticmethod
        def get_output(model, weights, buffers, x, y):
            return functional_call(model, (weights, buffers), x[None]).sum()

        def get_out_to_loss_grad(self, model, weights, buffers, batch):
            x, y = batch
            return (functional_call(model, (weights, buffers), x) - y).detach()

    n, size = len(case), case.module.hidden.weight.numel()
    damping = case.lam * proj_dim / size if damping is None else damping
    case.used |= {"damping": damping, "batch": n}
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            case.module, Output() if case.squared else "image_classification", n,
            save_dir=folder, device="cpu", proj_dim=proj_dim, use_half_precision=half,
            lambda_reg=damping, projector_seed=case.seed, logging_level=logging.WARNING,
        )  # fmt: skip
        traker.load_checkpoint(case.module.state_dict(), model_id=0)
        traker.featurize(batch=(case.X, case.Y), num_samples=n)
        traker.finalize_features()
        t = len(case.X_te)
        traker.start_scoring_checkpoint("test", case.module.state_dict(), 0, t)
        traker.score(batch=(case.X_te, case.Y_te), num_samples=t)
        scores = np.array(traker.finalize_scores("test"), dtype=float)
    return scores * residual(case)


# --- captum ---------------------------------------------------------------------------------------


def captum(case: Case, kind: str, damping: float | None = None, **knobs):
    """captum's influence functions: their Hessian is a sum, of (f − y)² without the half."""
    from captum.influence._core import arnoldi_influence_function, influence_function

    half = 2.0 if case.squared else 1.0
    damping = half * case.lam if damping is None else damping
    case.used |= {"damping": damping, "batch": 20}
    loss = nn.MSELoss(reduction="none") if case.squared else nn.CrossEntropyLoss(reduction="none")
    where = influence_function if kind == "NaiveInfluenceFunction" else arnoldi_influence_function
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save(case.module.state_dict(), file.name)
        model = getattr(where, kind)(
            case.module, TensorDataset(case.X, case.Y), file.name, loss_fn=loss, batch_size=20,
            hessian_reg=damping, **knobs,
        )  # fmt: skip
        scores = model.influence((case.X_te, case.Y_te))
    return scores.detach().numpy().T / half


def captum_tracin(case: Case, checkpoints: int | None = None):
    """TracInCP over the checkpoints of gradient descent and the end."""
    from captum.influence import TracInCP

    loss = nn.MSELoss(reduction="sum") if case.squared else nn.CrossEntropyLoss(reduction="sum")
    states = along(case, checkpoints)
    case.used |= {"batch": 20}

    def load(module, path):
        module.load_state_dict(torch.load(path))
        return 1.0

    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{k}.pt") for k in range(len(states))]
        for state, file in zip(states, files, strict=True):
            torch.save(state, file)
        tracin = TracInCP(
            case.module, TensorDataset(case.X, case.Y), files, load, loss_fn=loss, batch_size=20,
            sample_wise_grads_per_batch=True,
        )  # fmt: skip
        scores = tracin.influence((case.X_te, case.Y_te))
    return scores.detach().numpy().T


def captum_similarity(case: Case, layers=("act",)):
    """Cosine of the hidden activations; captum 0.9.0 fails if it is given one layer."""
    from captum.influence import SimilarityInfluence

    n = len(case)
    with tempfile.TemporaryDirectory() as folder:
        similar = SimilarityInfluence(
            case.module, list(layers), list(case.X), folder, "model", batch_size=n,
        )  # fmt: skip
        index, value = similar.influence(case.X_te, top_k=n)["act"]
    scores = np.empty((n, len(case.X_te)))
    np.put_along_axis(scores.T, index.numpy(), value.detach().numpy(), axis=1)
    return scores


# --- curvlinops -----------------------------------------------------------------------------------


def curvlinops(case: Case, kind: str, damping: float | None = None, batch: int = 0, **knobs):
    """An inverse operator of curvlinops, applied to the gradients of the test points."""
    import curvlinops as library

    n, half = len(case), 0.5 if case.squared else 1.0
    damping = case.lam if damping is None else damping
    case.used |= {"damping": damping, "batch": batch or n}
    loss = nn.MSELoss(reduction="sum") if case.squared else nn.CrossEntropyLoss(reduction="sum")
    parameters, data = list(case.module.parameters()), list(case.train(batch or n))
    g, g_te = gradients(case, case.X, case.Y), gradients(case, case.X_te, case.Y_te)
    if "KFAC" in kind:
        factors = getattr(library, kind)(
            case.module, loss, parameters, data, check_deterministic=False, seed=case.seed,
            fisher_type=knobs.pop("fisher_type", "mc"),
            separate_weight_and_bias=True, **knobs,
        )  # fmt: skip
        inverse = library.KFACInverseLinearOperator(
            factors, damping=damping / half, use_exact_damping=True
        )
        return (g @ (inverse @ g_te.T) / half).numpy()
    A = library.GGNLinearOperator(case.module, loss, parameters, data, check_deterministic=False)
    A = half * A + damping * identity(g.shape[1], parameters)
    return (g @ (getattr(library, kind)(A, **knobs) @ g_te.T)).numpy()


def identity(size: int, parameters):
    """The identity as an operator of curvlinops, which has none."""
    from curvlinops._torch_base import PyTorchLinearOperator

    class Identity(PyTorchLinearOperator):
        SELF_ADJOINT = True
        device, dtype = parameters[0].device, parameters[0].dtype

        def _matmat(self, M):
            return [m.clone() for m in M]

        def _adjoint(self):
            return self

    shape = [tuple(p.shape) for p in parameters]
    return Identity(shape, shape)


def gradients(case: Case, X, Y) -> torch.Tensor:
    """Gradients of ℓ at each point, (n, p)."""
    state = {k: v.detach() for k, v in case.module.named_parameters()}

    def one(state, x, y):
        return case.loss(functional_call(case.module, state, (x[None],)), y[None], "sum")

    parts = torch.func.vmap(torch.func.grad(one), (None, 0, 0))(state, X, Y)
    return torch.cat([v.flatten(1) for v in parts.values()], dim=1)


LIBRARIES = {  # of each function: the distribution, for its version, and what to import before
    "lib": ("ntk-influence", ["lib.torch_influence"]),
    "pydvl": ("pyDVL", ["pydvl.influence.torch"]),
    "kronfluence": ("kronfluence", ["kronfluence.analyzer"]),
    "dattri": ("dattri", ["dattri.algorithm", "dattri.task"]),
    "dattri_tracin": ("dattri", ["dattri.algorithm.tracin", "dattri.task"]),
    "dattri_trak": ("dattri", ["dattri.algorithm.trak", "dattri.task"]),
    "trak": ("traker", ["trak"]),
    "captum": ("captum", ["captum.influence"]),
    "captum_tracin": ("captum", ["captum.influence"]),
    "captum_similarity": ("captum", ["captum.influence"]),
    "curvlinops": ("curvlinops-for-pytorch", ["curvlinops.examples"]),
}
