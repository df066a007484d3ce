"""Measure the estimators of others, and whole computations, beside this library.

python -m bench.peers WORK RECORDS --peers PYTHON [--jax PYTHON] [--more] [--only NAME] [--limit S]

PYTHON is that of the peers' environment, that of --jax is of neural-tangents'; `make peers`
makes both. Results are kept in WORK as they come, so that a run that was cut short goes on. The
records are written after each network, and keep what they have of networks that were not measured;
--more measures further seeds, and images. Images that are not at hand are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic

import numpy as np
from tqdm import tqdm

from bench.peers import plan
from bench.peers.side import MARK
from lib import data
from lib.journal import Journal

HEADER = {"format": "bench.peers 1"}
LAST = ["date", "machine", "versions"]  # columns of a record


def ask(python: str, lines: list[dict], script: str = "case.py"):
    """Yield the answer of each line, from one process that reads them all."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    process = subprocess.Popen(
        [python, str(Path(__file__).with_name(script))], text=True, env=environ | threads,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for line in lines:
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()
            for told in process.stdout:
                if told.startswith(MARK):
                    yield json.loads(told.removeprefix(MARK))
                    break
            else:
                raise RuntimeError(f"{python} ended at {line}; run {script} with it to see why")
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


def words(knobs: dict) -> str:
    """Knobs as text.

    >>> words({"kind": "CgInfluence", "maxiter": 8})
    'CgInfluence, maxiter=8'
    """
    return ", ".join(str(v) if k == "kind" else f"{k}={v}" for k, v in knobs.items())


def solvers(networks, work: Path, python: str, limit: float):
    """Measure what is not in the journal yet, until `limit`; yield all rows after each network."""
    from book.chapters import provenance

    with Journal(work / "solvers.jsonl", HEADER) as journal:
        done = {(r["network"], r["method"], r["solver"], r["knobs"]) for r in journal.results}
        for network in networks:
            file = work / f"{network.name}.npz"
            if not file.is_file():
                from bench.peers.prepare import prepare

                try:
                    data.load(network.source, n_train=plan.N, n_test=plan.T)
                except OSError as error:
                    print(f"{network.name} is left out: {str(error).splitlines()[0]}", flush=True)
                    continue
                prepare(network, work)
            if network.width and (network.name, "dual", "lib.ihvp", "") not in done:
                journal.append(about(network, file) | counted(file) | provenance())
            todo = [
                case for case in plan.cases(network)
                if (network.name, case.method, case.solver, words(case.knobs)) not in done
            ]  # fmt: skip
            todo.sort(key=plan.turn)
            values = np.load(file).get("values")
            asked = [
                {"solver": case.solver, "network": str(file), "knobs": case.knobs,
                 "seed": network.seed, "seconds": plan.SECONDS, "memory": plan.MEMORY,
                 "unit": case.unit}
                for case in todo
            ]  # fmt: skip
            with tqdm(total=len(todo), desc=network.name) as bar:
                for turn in dict.fromkeys(plan.turn(case) for case in todo):
                    of = [k for k, case in enumerate(todo) if plan.turn(case) == turn]
                    own = todo[of[0]].solver == "lib"
                    answers = ask(sys.executable if own else python, [asked[k] for k in of])
                    for k, found in zip(of, answers, strict=False):
                        case = todo[k]
                        journal.append(about(network, file) | {
                            "method": case.method, "solver": case.solver,
                            "knobs": words(case.knobs), "default": case.default,
                            "unit": case.unit, "about": case.about, **found, **provenance(),
                            "theory": plan.theory(case, values, network.lam),
                            **({"library": "this library", "version": ""} if own else {}),
                        })  # fmt: skip
                        bar.update()
                        if monotonic() > limit:
                            break
                    answers.close()
                    if monotonic() > limit:
                        break
            yield journal.results
            if monotonic() > limit:
                return


def about(network: plan.Network, file: Path) -> dict:
    """The start of a row: what network it is of."""
    z, size = np.load(file), np.linalg.norm
    return {
        "network": network.name, "data": network.source, "loss": "squared" if network.width
        else "softmax", "width": network.width or plan.HIDDEN,
        "n": len(z["X"]), "t": len(z["X_te"]), "outputs": 1 if network.width else z["a"].shape[1],
        "parameters": z["hidden.weight"].size, "lam": network.lam, "seed": network.seed,
        "leverage": float(z["h"].mean()),
        "error rescaled": float(size(z["rescaled"] - z["actual"]) / size(z["actual"])),
    }  # fmt: skip


def counted(file: Path) -> dict:
    """The row of the dual solution for the network of Eq 1, from what its training has counted."""
    from bench.peers.case import errors

    z = np.load(file)
    row = {"method": "dual", "solver": "lib.ihvp", "knobs": "", "default": True, "unit": True,
           "about": "", "library": "this library", "version": "", "outcome": "ok"}  # fmt: skip
    return row | errors(z["counted"], z["ihvp"], z["actual"]) | {
        "seconds": float(z["counted seconds"]), "memory": float(z["counted memory"]),
        "damping": float(z["lam"]), "retraining": float(z["retraining"]),
    }  # fmt: skip


def dated(rows: list[dict]) -> list[dict]:
    """The rows with date, machine and versions of this run, where they have none of their own."""
    from book.chapters import provenance

    now = provenance()
    return [row | (now | row) for row in rows]


def merged(results: list[dict], record: Path):
    """What was measured, and what the record has of networks of which nothing was, as a frame."""
    import pandas as pd

    parts = [pd.DataFrame(dated(results))] if results else []
    if record.is_file():
        kept = pd.read_csv(record)
        parts.append(kept[~kept.network.isin({row["network"] for row in results})])
    names = [network.name for network in plan.NETWORKS + plan.MORE]
    frame = pd.concat(parts).fillna({"knobs": "", "about": "", "version": ""})
    frame = frame[frame.network.isin(names)]
    frame = frame.sort_values("network", key=lambda one: one.map(names.index), kind="stable")
    return frame[[k for k in frame if k not in LAST] + [k for k in LAST if k in frame]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--peers", required=True, help="Python of the peers' environment")
    parser.add_argument("--jax", help="Python of the environment of neural-tangents")
    parser.add_argument("--more", action="store_true", help="measure other seeds, too")
    parser.add_argument("--only", choices=["solvers", "tasks"], help="measure a part")
    parser.add_argument("--network", default="", help="only networks whose name has this in it")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds, then go on next time")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    import pandas as pd

    from book.chapters import store

    record = args.records / "solvers.csv"
    if args.only != "tasks":
        networks = plan.NETWORKS + (plan.MORE if args.more else ())
        networks = [network for network in networks if args.network in network.name]
        for rows in solvers(networks, args.work, args.peers, monotonic() + args.limit):
            store(merged(rows, record), record, float_format="%.5g")
    if args.only != "solvers":
        from bench.peers import deep
        from bench.peers.tasks import tasks

        deep.record(args.jax, args.records)
        with Journal(args.work / "solvers.jsonl", HEADER) as journal:
            rows = merged(journal.results, record)
        frame = pd.DataFrame(dated(tasks(args.work, args.peers, args.jax, rows)))
        store(frame, args.records / "peers.csv", float_format="%.5g")


if __name__ == "__main__":
    main()
