"""Retraining without some training points: what the actual influence (Eq 7) is measured by.

Every training is a joblib task, so the caller chooses where they run: `workers` processes here, or
any backend that returns results as they come, for instance a Dask cluster that has `lib`, with
`joblib.parallel_config(backend="dask")` around the call. Each process makes the problem and its
warm start once, from the same seed and on the same number of threads, so that results depend
neither on their order nor on the number of workers.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import inspect
import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from lib import check
from lib.train import Problem, gradient_descent, newton

METHODS = {"newton": newton, "gradient descent": gradient_descent}
OPTIONS = {  # what a method takes and this module does not give
    name: [
        option for option in inspect.signature(train).parameters
        if option not in ("problem", "start", "remove", "record", "progress")
    ]
    for name, train in METHODS.items()
}  # fmt: skip
FORMAT = {"format": "lib.retrain 3"}  # how a file of results begins

_cache: dict = {}  # the last problem and warm start of this process, by setting
_lock = threading.Lock()  # tasks that are threads of one process make them once


@dataclass(frozen=True)
class Retrained:
    """Predictions of the network trained on everything, and without each group.

    groups : the removed points of each retraining, sorted
    f : (t,) predictions of the full model; f_without : (g, t) those without each group
    seconds, iterations, change : (g,) cost of each retraining and its last change, as in `Trained`
    """

    groups: list[tuple[int, ...]]
    f: np.ndarray
    f_without: np.ndarray
    seconds: np.ndarray
    iterations: np.ndarray
    change: np.ndarray

    def influence(self, y_te) -> np.ndarray:
        """Return the actual influence of every group on every test point, (g, t).

        Eq 7:  I = ½(f^{∖i} − y_te)² − ½(f − y_te)², positive where removing the group hurts.
        Computed as (f^{∖i} − f)(r_te + ½(f^{∖i} − f)), which subtracts no two close squares;
        `y_te` is (t,) in [-1, 1], r_te = f − y_te. Raises `ValueError` for other labels.

        Source: Zhang and Zhang (2022), Eq 7.

        >>> one = np.zeros(1)
        >>> result = Retrained([(3,)], np.array([0.5]), np.array([[-0.5]]), one, one, one)
        >>> result.influence([1.0]).tolist()  # ½ 1.5² − ½ 0.5²
        [[1.0]]
        """
        shift = self.f_without - self.f
        return shift * (self.f - check.labels("y_te", y_te, len(self.f)) + 0.5 * shift)


def retrain(
    X, Y, X_te, groups: Iterable[int | Sequence[int]], *, method: str = "newton",
    start: str = "warm", file: str | Path | None = None, workers: int | None = None,
    threads: int = 1, options: Mapping = {}, progress: bool = True, **settings,
) -> Retrained:  # fmt: skip
    """Train on all points, then again without each group (an index or several), see `Retrained`.

    X (n, d), Y (n,), X_te (t, d) and `settings` (lam, m, kappa, seed, ...) are those of `Problem`;
    `method` is "newton" or "gradient descent", `options` its keywords. `start` is "cold", from
    W(0), or "warm": gradient descent from the full model, whence it goes on with and without the
    group, and Newton so from the end of its flow on all points. `workers` is joblib's n_jobs
    (None: as configured around the call). Each training runs on `threads` threads of torch,
    whatever is set outside: the order of its sums, so the last digits, depends on it. A process
    holds one problem and one warm start, m·(3n + t) numbers, and each running task 2·m·n more, or
    4·m·n while Newton follows the flow from a cold start.

    Results go to `file` as they come, one JSON line each, synced to disk. The same call goes on
    with it after an interruption, also for more groups: what is there is not trained again.

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
    if workers is not None:  # joblib counts negative ones from the number of cores
        workers = check.integer("workers", workers, at_least=-np.inf)
        if workers == 0:
            raise ValueError("workers = 0 trains nothing; pass a number, or -1 for every core")
    for name, value, allowed in (("method", method, METHODS), ("start", start, ("warm", "cold"))):
        if value not in allowed:
            raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")
    bound = inspect.signature(Problem).bind(*data, **settings)
    bound.apply_defaults()
    header = {
        k: _fingerprint(v) if isinstance(v, np.ndarray) else v for k, v in bound.arguments.items()
    }
    header |= {"method": method, "start": start, "threads": check.integer("threads", threads)}
    header = FORMAT | header | {"options": _options(method, options), "code": code_version()}
    header = json.loads(json.dumps(header, default=_plain))

    before = torch.get_num_threads()
    try:
        with open(file, "a+b", buffering=0) if file else nullcontext() as handle:
            done = _read(handle, header) if handle else {}
            todo = [g for g in ((), *groups) if g not in done]
            parallel = Parallel(n_jobs=workers, batch_size=1, return_as="generator_unordered")
            results = parallel(delayed(_train)(g, *data, header) for g in todo)
            bar = tqdm(
                desc="retraining", total=len(groups) + 1, initial=len(groups) + 1 - len(todo),
                disable=not progress,
            )  # fmt: skip
            with closing(results), bar:
                for record in results:
                    if handle:
                        _append(handle, header, record, len(done))
                    done[tuple(record["without"])] = record
                    bar.update()
    finally:
        torch.set_num_threads(before)
        _cache.clear()
    columns = ([done[g][k] for g in groups] for k in ("f", "seconds", "iterations", "change"))
    return Retrained(groups, np.array(done[()]["f"]), *map(np.array, columns))


def _train(group: tuple, X, Y, X_te, header: dict) -> dict:
    """The task: train without a group and return its record. Runs in any process or thread."""
    torch.set_num_threads(header["threads"])
    train, key = METHODS[header["method"]], json.dumps(header)
    warm, options = header["start"] == "warm", header["options"]
    with _lock:
        if key not in _cache:
            _cache.clear()  # frees the last problem before the next one is made
            settings = {k: header[k] for k in list(inspect.signature(Problem).parameters)[3:]}
            problem = Problem(*map(np.array, (X, Y, X_te)), **settings)
            first = options | ({"settle": 0} if header["method"] == "newton" else {})
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
    if unknown := sorted(set(options) - set(OPTIONS[method])):
        raise ValueError(f"options has {unknown[0]!r}; {method} takes {', '.join(OPTIONS[method])}")
    return dict(options)


def _plain(x):
    """A NumPy number as a plain one, a device of torch as its name."""
    if isinstance(x, np.generic):
        return x.item()
    if isinstance(x, torch.device):
        return str(x)
    raise ValueError(f"settings and options must be plain numbers and names, not {x!r}")


@cache
def code_version() -> str:
    """Digest of the code that trains, and the version of torch: its results are of these.

    >>> code_version()
    '..., torch ...'
    """
    files = [Path(__file__).with_name(f"{name}.py") for name in ("train", "product", "network")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    return f"{digest}, torch {torch.__version__}"


def _fingerprint(x: np.ndarray) -> str:
    return f"{x.shape} {hashlib.sha256(x.tobytes()).hexdigest()[:16]}"


def _read(handle: FileIO, header: dict) -> dict:
    """Lock a file of results, drop a torn end, return its records by group."""
    name = handle.name
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        why = "another run is writing to it; wait for its end or choose another file"
        raise BlockingIOError(errno.EAGAIN, why, str(name)) from error
    handle.seek(0)
    *lines, torn = handle.read().split(b"\n")
    first, begin = (lines or [torn])[0], json.dumps(FORMAT)[:-3].encode()
    if not (first.startswith(begin) or (not lines and begin.startswith(torn))):
        raise ValueError(f"{name} is not a file of lib.retrain; choose another file")
    found = []
    for k, line in enumerate(lines, 1):
        with suppress(ValueError):  # the last line may be what a power cut left of it
            found.append(json.loads(line))
        if len(found) < k < len(lines):
            raise ValueError(f"line {k} of {name} is damaged; delete the line and call again")
    if found:
        there = found[0]
        differ = [
            f"{k} is {there.get(k)!r} in the file and {v!r} here, "
            for k, v in header.items() if there.get(k) != v
        ]  # fmt: skip
        if differ:
            raise ValueError(f"{name} is of another setting: {''.join(differ)}choose another file")
    handle.truncate(sum(len(line) + 1 for line in lines[: len(found)]))
    return {tuple(record["without"]): record for record in found[1:]}


def _append(handle: FileIO, header: dict, record: dict, kept: int) -> None:
    """Append a record, and the header before the first, wholly and synced or not at all."""
    size = handle.seek(0, os.SEEK_END)
    lines = [record] if size else [header, record]
    rest = "".join(json.dumps(line) + "\n" for line in lines).encode()
    try:
        while rest:
            rest = rest[handle.write(rest) :]
        os.fsync(handle.fileno())
    except OSError as error:
        with suppress(OSError):
            handle.truncate(size)
        why = f"{error.strerror}; {kept} trainings are kept: make room and call again to go on"
        raise OSError(error.errno, why, str(handle.name)) from error
