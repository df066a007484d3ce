"""Measure estimators, each in a process of its own: cases on standard input, results out.

    echo '{"solver": "pydvl", "network": "FILE.npz", "knobs": {...}, ...}' | python case.py

A case is a line of JSON, and so is its result: outcome, errors against the oracle, processor
seconds and memory. The library of the first case is imported once, and that time is not counted.
Each case runs in a fork, so that its memory is its own and whatever it does ends with it. This runs
where the libraries of others are installed, and needs nothing of this project.
"""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import resource
import sys
import warnings
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time

sys.path.insert(0, str(Path(__file__).parent))
warnings.filterwarnings("ignore")
os.environ["TQDM_DISABLE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402

# torch.func loads these at its first call, and no method's time should have that in it
import torch._decomp.decompositions_for_jvp  # noqa: E402
import torch._dynamo  # noqa: E402, F401
from side import MARK, resident  # noqa: E402


def errors(S: np.ndarray, exact: np.ndarray, actual: np.ndarray) -> dict:
    """Relative rms errors and correlations of scores S against both oracles.

    `fitted` is the error that is left after the best factor, `factor` that factor.

    >>> one = np.array([[1.0], [2.0]])
    >>> found = errors(2 * one, one, one)
    >>> found["error"], found["factor"], round(found["fitted"], 6)
    (1.0, 0.5, 0.0)
    """
    size = np.linalg.norm
    factor = float((S * exact).sum() / (S * S).sum())
    return {
        "error": float(size(S - exact) / size(exact)),
        "factor": factor, "fitted": float(size(factor * S - exact) / size(exact)),
        "correlation": float(np.corrcoef(S.ravel(), exact.ravel())[0, 1]),
        "error actual": float(size(S - actual) / size(actual)),
        "correlation actual": float(np.corrcoef(S.ravel(), actual.ravel())[0, 1]),
    }  # fmt: skip


@contextmanager
def told():
    """What a library says meanwhile, in warnings and in its log; that code is old does not count.

    >>> with told() as said:
    ...     warnings.warn("no convergence")
    ...     warnings.warn("use another name", DeprecationWarning)
    ...     logging.getLogger("one").warning("step %d", 2)
    >>> said
    ['no convergence', 'step 2']
    """
    said: list[str] = []

    def hear(message, category, *rest, **how):
        if not issubclass(category, DeprecationWarning | PendingDeprecationWarning | FutureWarning):
            said.append(" ".join(str(message).split()))

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(" ".join(record.getMessage().split()))
    logging.getLogger().addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = hear
        yield said
    logging.getLogger().removeHandler(handler)


def measure(asked: dict, pipe) -> None:
    """Run a case in this process, within its limits, and send the result."""
    import solvers

    torch.manual_seed(asked["seed"])
    np.random.seed(asked["seed"])  # noqa: NPY002
    limit = int(asked["memory"])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    case = solvers.Case.load(asked["network"], asked["seed"])
    spent = int(process_time()) + 1
    seconds = int(asked["seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, spent + seconds + 5))
    before, began, wall, found = resident("VmRSS"), process_time(), perf_counter(), {}
    try:
        with told() as said:
            S = np.asarray(getattr(solvers, asked["solver"])(case, **asked["knobs"]), dtype=float)
    except Exception as error:  # whatever a library raises is what we want to know
        words = f"{type(error).__name__}: {error}".strip().splitlines()[0][:160]
        memory = "memory" in words.lower() or isinstance(error, MemoryError)
        found["outcome"] = "out of memory" if memory else words
        S = None
    found["seconds"] = process_time() - began
    found |= {"said": " | ".join(dict.fromkeys(said))[:300], **case.used}
    found["wall"] = perf_counter() - wall
    found["memory"] = (resident("VmHWM") - before) / 1e6
    if S is not None:
        z = np.load(asked["network"])
        found["outcome"] = "ok" if np.isfinite(S).all() else "not finite"
        if found["outcome"] == "ok":
            found |= errors(S, z["ihvp"], z["actual"])
            if asked["unit"] and found["error"] > 100:
                found["outcome"] = "diverged"
    pipe.send(found)


REPEAT, QUICK = 3, 5  # runs of a case that takes less than so many seconds


def answer(asked: dict) -> dict:
    """The result of a case, each run in a process of its own, with the seconds of the fastest."""
    found = run(asked)
    times = [found.get("seconds")]
    while found["outcome"] == "ok" and times[0] < QUICK and len(times) < REPEAT:
        times.append(run(asked).get("seconds") or asked["seconds"])
    return found | {"seconds": min(times)}


def run(asked: dict) -> dict:
    """The result of a case, which a process of its own measures."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=measure, args=(asked, theirs))
    process.start()
    theirs.close()
    try:
        waited = ours.poll(20 * asked["seconds"])
        found = ours.recv() if waited else {"outcome": "time limit"}
    except EOFError:  # the system has ended it
        process.join(10)
        late = process.exitcode in (-24, -9)  # SIGXCPU, SIGKILL
        found = {"outcome": "time limit" if late else f"ended by signal {-process.exitcode}"}
        found["seconds"] = asked["seconds"] if late else None
    process.kill()
    process.join()
    return found


def main() -> None:
    import solvers

    multiprocessing.set_start_method("fork")
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        package, modules = solvers.LIBRARIES[asked["solver"]]
        for module in modules:
            importlib.import_module(module)
        found = {"library": package, "version": version(package)} | answer(asked)
        print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
