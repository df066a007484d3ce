"""The inverse on two worker processes against the dense one, also when one of them is lost."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from lib.changes import Removal, addition
from lib.inverse import Inverse
from lib.kernel import DIAGONAL, ntk
from lib.ridge import Ridge
from lib.stream import stream
from tests.cases import labels, near, unit_points

distributed = pytest.importorskip("dask.distributed")
cluster = pytest.importorskip("lib.cluster")

N, T, LAM = 120, 7, 0.3
CLOSE = 1e-9


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None,
        local_directory=tmp_path_factory.mktemp("dask"),
    ) as two, distributed.Client(two) as client:  # fmt: skip
        client.wait_for_workers(2)
        yield client


@pytest.fixture(scope="module")
def X():
    return unit_points(N, 9)


@pytest.mark.parametrize("tile", [50, 1000])  # an uneven end, a single tile
def test_it_is_the_dense_inverse(client, X, tile):
    Q, dense = cluster.ClusterInverse(ntk, X, LAM, client, tile=tile), Inverse(ntk(X), LAM)
    b = np.random.default_rng(0).standard_normal((N, 3))
    for given in (b, b[:, 0]):
        near(Q @ given, dense @ given, CLOSE)
        near(Q.solve(given), dense @ given, CLOSE)
    near(Q.diagonal(), dense.diagonal(), CLOSE)
    for group in ([0], [119, 3, 50], np.arange(N)):
        near(Q.rows(group), dense.rows(group), CLOSE)
        near(Q.block(group), dense.block(group), CLOSE)
    near(Q.off_diagonal(), dense.off_diagonal(), CLOSE)
    kept = Q @ b, Q.diagonal(), Q.rows([0]), Q.off_diagonal()  # here, and not on the workers
    assert {type(x) for x in kept} == {np.ndarray}
    near(Q.largest(), dense.largest(), CLOSE)
    np.testing.assert_array_equal(Q.kernel_diagonal(), np.full(N, 0.5))


@pytest.mark.parametrize("c", [None, 3])
def test_everything_that_a_model_has(client, X, c):
    rng = np.random.default_rng(1)
    X_te, Y, y_te = unit_points(T, 9, rng), labels(rng, N, c), labels(rng, T, c)
    ours = Ridge.packed(cluster.ClusterInverse(ntk, X, LAM, client, tile=60), Y)
    dense = Ridge(ntk(X), Y, LAM)
    for name in ("beta", "h", "r", "rho", "diagonal"):
        near(getattr(ours, name), getattr(dense, name), CLOSE)
    k = ntk(X, X_te)
    a, b = (model.influence(k, y_te) for model in (ours, dense))
    near(a.exact, b.exact, CLOSE)
    near(a.ihvp, b.ihvp, CLOSE)
    a, b = (Removal(model, [[3, 100]], k, y_te) for model in (ours, dense))
    near(a.exact, b.exact, CLOSE)
    near(a.bound(DIAGONAL), b.bound(DIAGONAL), CLOSE)
    new = X, unit_points(2, 9, rng), labels(rng, 2, c), X_te, y_te
    a, b = (addition(model, ntk, *new) for model in (ours, dense))
    near(a.exact, b.exact, CLOSE)
    found = stream(ours, ntk, X, X_te, y_te, top=3, progress=False)
    near(found.mean, dense.influence(k, y_te).exact.mean(axis=1), CLOSE)


def test_a_worker_that_is_killed_in_the_middle(client, X):
    """Its tiles are computed again, so the result is the same."""
    running, killed = threading.Event(), []

    def kill():
        running.wait()
        while sum(map(len, client.has_what().values())) < 40:  # tiles that are there
            time.sleep(0.01)
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    running.set()
    Q = cluster.ClusterInverse(ntk, X, LAM, client, tile=12)  # 100 tiles of each of four matrices
    thread.join(30)
    assert killed
    near(Q.diagonal(), Inverse(ntk(X), LAM).diagonal(), CLOSE)
    client.wait_for_workers(2)


def test_a_matrix_without_an_inverse(client, X):
    twice = np.vstack([X, X[:1]])
    with pytest.raises(ValueError, match="lam = 0 is singular to working precision; choose"):
        cluster.ClusterInverse(ntk, twice, 0.0, client, tile=61)
    with pytest.raises(ValueError, match="lam = 0.1 is singular to working precision; choose"):
        cluster.ClusterInverse(lambda A, B=None: -ntk(A, B), X, 0.1, client, tile=61)


def test_workers_with_too_little_memory(client, X, monkeypatch):
    """Three matrices of 120² numbers of 8 bytes are 345,600 bytes, six tenths of 576,000."""
    limits = {"a": 288_000, "b": 288_000}
    with monkeypatch.context() as patch:
        patch.setattr(client, "run", lambda _: limits)
        Q = cluster.ClusterInverse(ntk, X, LAM, client)
        near(Q.diagonal(), Inverse(ntk(X), LAM).diagonal(), CLOSE)
        limits["b"] -= 1
        with pytest.raises(
            MemoryError, match="2 workers hold 0.0 together .* 60 % of .*; add workers"
        ):
            cluster.ClusterInverse(ntk, X, LAM, client)
    monkeypatch.setattr(client, "run", lambda _: {})
    with pytest.raises(ValueError, match="client has no workers"):
        cluster.ClusterInverse(ntk, X, LAM, client)


@pytest.mark.parametrize(
    ("change", "match"), [({"lam": -1}, "lam must"), ({"tile": 0}, "tile must")]
)
def test_bad_input(client, X, change, match):
    with pytest.raises(ValueError, match=match):
        cluster.ClusterInverse(**{"kernel": ntk, "X": X, "lam": LAM, "client": client} | change)
