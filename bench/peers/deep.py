"""The kernel of deep networks by neural-tangents, recorded in deep-kernel.csv.

`record` asks this file itself, which then runs where neural-tangents is installed and needs nothing
of this project: a line of JSON with "depths" and "degrees" in, a line with the rows out.
"""

from __future__ import annotations

import json
import os
import sys
import types
from importlib.metadata import version
from pathlib import Path
from time import process_time

MARK = "result: "
ASKED = {"depths": [1, 2, 3, 5], "degrees": [0, 1, 30, 60, 90, 120, 150, 179, 180]}


def record(jax: str | None, records: Path) -> None:
    """Write the kernel of each depth, all layers trained and the read-out frozen, at each angle."""
    if not jax:
        return
    import pandas as pd

    from bench.peers.__main__ import ask
    from book.chapters import provenance, store

    (found,) = ask(jax, [ASKED], "deep.py")
    about = provenance() | {k: found[k] for k in ("versions", "seconds")}
    store(pd.DataFrame(found["rows"]).assign(**about), records / "deep-kernel.csv")


def rows(depths: list[int], degrees: list[float]) -> list[dict]:
    """The rows: W_std² = 2 behind each ReLU gives `book.oracles.Deep`; frozen, it is ntk − nngp."""
    sys.modules["neural_tangents.experimental"] = types.ModuleType("experimental")
    import jax
    import numpy as np
    from neural_tangents import stax

    jax.config.update("jax_enable_x64", True)
    t = np.radians(degrees)
    X, X2 = np.array([[1.0, 0.0]]), np.stack([np.cos(t), np.sin(t)], axis=1)
    found = []
    for depth in depths:
        layers = [stax.Dense(1, W_std=2**0.5), stax.Relu()] * depth  # the first divides by d = 2
        _, _, kernel = stax.serial(*layers, stax.Dense(1, W_std=1.0))
        k = kernel(X, X2, ("ntk", "nngp"))
        for frozen, K in ((False, k.ntk), (True, k.ntk - k.nngp)):
            found += [
                {"depth": depth, "frozen": frozen, "degrees": a, "kernel": float(v)}
                for a, v in zip(degrees, np.asarray(K)[0], strict=True)
            ]
    return found


def main() -> None:
    began, asked = process_time(), json.loads(sys.stdin.readline())
    found = rows(**asked)
    versions = " ".join(f"{k} {version(k)}" for k in ("neural-tangents", "jax", "numpy"))
    seconds = round(process_time() - began, 1)
    print(MARK + json.dumps({"rows": found, "versions": versions, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main()
