"""Whole computations by libraries of others: a task on standard input, cost and file out.

As `case`, this runs where the libraries are installed and needs nothing of this project: lines of
JSON with "task", "inputs" (an .npz file) and "output" (an .npy file) in, lines with the version,
seconds and memory out. What time and memory are stands here, for this library and for others.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
import types
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import process_time

warnings.filterwarnings("ignore")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import numpy as np  # noqa: E402

MARK = "result: "  # libraries print, too


def resident(what: str) -> int:
    """VmRSS or VmHWM of this process in bytes (Linux)."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(what))


def measured(call) -> tuple:
    """The result of a call, its processor seconds, and the memory that it adds at its peak, in MB.

    Memory that was freed, but not given back, would hide what the call takes: it is given back.
    """
    gc.collect()
    with suppress(AttributeError):  # of glibc
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins at what is resident
    before, began = resident("VmRSS"), process_time()
    result = call()
    seconds = process_time() - began
    return result, seconds, max(0, resident("VmHWM") - before) / 1e6


def fastest(call, repeat: int = 3) -> tuple[np.ndarray, dict]:
    """The result of a call, and its cost: seconds and memory.

    Seconds are those of the processor in the fastest run, after one to warm up: of `repeat` runs,
    and of more where these take less than a second. Memory is that of another run (see `measured`).
    """
    result, times = call(), []
    while len(times) < repeat or sum(times) < 1:
        began = process_time()
        result = call()
        times.append(process_time() - began)
    return np.asarray(result), {"seconds": min(times), "memory": measured(call)[2]}


def descend(layer, start, X, Y, s, lam: float, rate: float, momentum: float) -> None:
    """Minimise Eq 2 from where `layer` is, as one writes it in torch: SGD with momentum, one batch.

    It stops once ten steps change the predictions by less than a thousandth (rms).
    """
    import torch

    optimiser = torch.optim.SGD(layer.parameters(), lr=rate, momentum=momentum, nesterov=True)
    before = None
    for step in range(5000):
        optimiser.zero_grad()
        f = layer(X).relu() @ s
        loss = 0.5 * ((f - Y) ** 2).sum() + 0.5 * lam * ((layer.weight - start) ** 2).sum()
        loss.backward()
        optimiser.step()
        if step % 10 == 0:
            now = f.detach()
            if before is not None and (now - before).square().mean().sqrt() < 1e-3:
                return
            before = now


def neural_tangents(z):
    """K∞ by neural-tangents: W_std² = 2 gives (d/2)(ntk − nngp)."""
    sys.modules["neural_tangents.experimental"] = types.ModuleType("experimental")
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import stax

    _, _, kernel = stax.serial(
        stax.Dense(1, W_std=2**0.5), stax.Relu(), stax.Dense(1, W_std=1.0)
    )  # fmt: skip
    X = jax.numpy.asarray(z["X"])
    found = jax.jit(lambda x: kernel(x, None, ("ntk", "nngp")))

    def call():
        k = found(X)
        return np.asarray((k.ntk - k.nngp) * X.shape[1] / 2)

    return fastest(call)


def gpytorch(z):
    """Leave-one-out residuals by GPyTorch's linear algebra, as in its leave-one-out likelihood."""
    import torch
    from linear_operator import settings
    from linear_operator.operators import DenseLinearOperator

    torch.set_num_threads(1)
    K, Y, lam = torch.as_tensor(z["K"]), torch.as_tensor(z["Y"]), float(z["lam"])

    def call():
        with settings.fast_computations(False, False, False), torch.no_grad():
            A = DenseLinearOperator(K).add_diagonal(torch.tensor(lam).double())
            found = A.solve(torch.cat([Y[:, None], torch.eye(len(K), dtype=K.dtype)], 1))
            return -found[:, 0] / found[:, 1:].diagonal()

    return fastest(call)


def gradient_flow(z):
    """Leave-one-out residuals at time t by neural-tangents, a point at a time.

    Its `gradient_descent_mse` is the flow of a mean over the points that are left, so its time is
    theirs times t. An absolute `diag_reg` is the ridge λ.
    """
    sys.modules["neural_tangents.experimental"] = types.ModuleType("experimental")
    import jax

    jax.config.update("jax_enable_x64", True)
    from neural_tangents import predict

    K, Y, lam, t = z["K"], z["Y"], float(z["lam"]), float(z["t"])

    def without(i: int) -> float:
        kept = np.arange(len(K)) != i
        flow = predict.gradient_descent_mse(
            K[np.ix_(kept, kept)], Y[kept, None], diag_reg=lam, diag_reg_absolute_scale=True
        )
        return float(flow(t * kept.sum(), None, 0.0, K[i : i + 1, kept])[0, 0] - Y[i])

    return fastest(lambda: [without(i) for i in z["points"]])


def dattri(z):
    """Predictions without each point by dattri's retraining, around the loop `descend`."""
    import torch
    from dattri.model_util.retrain import retrain_loo
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    W0, W, X, Y, X_te, s = (
        torch.as_tensor(z[k]).float() for k in ("W0", "W", "X", "Y", "X_te", "s")
    )
    how = {k: float(z[k]) for k in ("lam", "rate", "momentum")}

    def train(loader, seed=None):
        layer = nn.Linear(W.shape[1], len(W), bias=False)
        layer.weight.data = W.clone()
        (batch,) = loader
        descend(layer, W0, *batch, s, **how)
        return layer

    def call():
        with tempfile.TemporaryDirectory() as folder:
            data = DataLoader(TensorDataset(X, Y), batch_size=len(X))
            retrain_loo(train, data, folder, indices=z["points"].tolist(), seed=int(z["seed"]))
            files = [f"{folder}/index_{i}/model_weights.pt" for i in z["points"]]
            layers = [torch.load(file, weights_only=False) for file in files]
        with torch.no_grad():
            return [(layer(X_te).relu() @ s).numpy() for layer in layers]

    return fastest(call)


def cleanlab(z):
    """Label quality by cleanlab's CleanLearning around a classifier of scikit-learn."""
    from cleanlab.classification import CleanLearning
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    name = str(z["kind"]).split("(")[0]
    models = {"LogisticRegression": lambda: LogisticRegression(max_iter=1000),
              "KNeighborsClassifier": lambda: KNeighborsClassifier(10),
              "LinearDiscriminantAnalysis": LinearDiscriminantAnalysis}  # fmt: skip

    def call():
        found = CleanLearning(
            models[name](),
            seed=0,
            cv_n_folds=int(z["folds"]),
            find_label_issues_kwargs={"n_jobs": 1},
        ).find_label_issues(z["X"], z["labels"])
        return -found["label_quality"].to_numpy()

    return fastest(call)


PACKAGES = {"neural_tangents": "neural-tangents", "gradient_flow": "neural-tangents",
            "gpytorch": "gpytorch", "dattri": "dattri", "cleanlab": "cleanlab"}  # fmt: skip
UNDER = ("numpy", "scipy", "torch", "jax", "scikit-learn")  # what they run on


def installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked["task"]
        package = PACKAGES[name]
        found = {"version": f"{package} {version(package)}", "outcome": "ok"}
        found["versions"] = " ".join(f"{name} {version(name)}" for name in UNDER if installed(name))
        try:
            result, cost = globals()[name](np.load(asked["inputs"]))
            np.save(asked["output"], result)
            found |= cost
        except Exception as error:  # whatever a library raises is what we want to know
            found["outcome"] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
