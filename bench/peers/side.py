"""Whole computations by libraries of others: a task on standard input, seconds and file out.

As `case`, this runs where the libraries are installed and needs nothing of this project: lines of
JSON with "task", "inputs" (an .npz file) and "output" (an .npy file) in, lines with seconds out.
"""

from __future__ import annotations

import json
import os
import sys
import types
import warnings
from importlib.metadata import version
from time import process_time

warnings.filterwarnings("ignore")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import numpy as np  # noqa: E402

MARK = "result: "


def fastest(call, repeat: int = 3):
    """The result of a call, and the processor seconds of its fastest run after one to warm up."""
    result, times = call(), []
    for _ in range(repeat):
        began = process_time()
        result = call()
        times.append(process_time() - began)
    return np.asarray(result), min(times)


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
    """Leave-one-out residuals of GPyTorch: those of its leave-one-out pseudo-likelihood."""
    import torch
    from linear_operator import settings
    from linear_operator.operators import DenseLinearOperator

    torch.set_num_threads(1)
    K, Y, lam = torch.as_tensor(z["K"]), torch.as_tensor(z["Y"]), float(z["lam"])

    def call():
        with settings.fast_computations(False, False, False), torch.no_grad():
            L = DenseLinearOperator(K).add_diagonal(torch.tensor(lam).double()).cholesky()
            inverse = L._cholesky_solve(torch.eye(len(K), dtype=K.dtype))
            return -(L._cholesky_solve(Y[:, None])[:, 0] / inverse.diagonal())

    return fastest(call)


def cleanlab(z):
    """Label quality by cleanlab's CleanLearning around a classifier of scikit-learn."""
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    def call():
        found = CleanLearning(
            LogisticRegression(max_iter=1000), seed=0, find_label_issues_kwargs={"n_jobs": 1}
        ).find_label_issues(z["X"], z["labels"])
        return -found["label_quality"].to_numpy()

    return fastest(call, repeat=1)


PACKAGES = {"neural_tangents": "neural-tangents", "gpytorch": "gpytorch", "cleanlab": "cleanlab"}


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        name = asked["task"]
        found = {"version": version(PACKAGES[name]), "outcome": "ok"}
        try:
            result, found["seconds"] = globals()[name](np.load(asked["inputs"]))
            np.save(asked["output"], result)
        except Exception as error:  # whatever a library raises is what we want to know
            found["outcome"] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
