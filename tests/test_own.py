"""The networks of "Your own torch model": what they compute, and that a kept run goes on."""

from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from book import own
from lib.data import load
from lib.torch_influence import influence


def small(n=24, t=6):
    d = load("digits:3/8", n_train=n, n_test=t, seed=0)
    torch.manual_seed(0)
    net = own.Small(1, 2, (3, 4)).double()
    train = own.photos(d.images), own.classes(d.Y)
    return net, train, (own.photos(d.images_te), own.classes(d.Y_te))


def test_photos_and_classes():
    grey, colour = np.zeros((2, 4, 5)), np.full((2, 4, 5, 3), 0.75)
    assert own.photos(grey).shape == (2, 1, 4, 5) and own.photos(colour).shape == (2, 3, 4, 5)
    assert (own.photos(grey) == -2).all() and (own.photos(colour) == 1).all()
    assert own.classes(np.array([1.0, -1.0])).tolist() == [0, 1]
    assert own.classes(np.eye(3)[[2, 0]] - 1 / 3).tolist() == [2, 0]


def test_the_top_of_a_network_goes_on_from_its_stem():
    net, (X, _), _ = small()
    top = own.Top(net)
    torch.testing.assert_close(top(net.stem(X)), net(X))
    assert {name.split(".")[0] for name, _ in top.named_parameters()} == {"block", "head"}
    top.head.weight.data += 1  # a copy
    assert not torch.equal(top.head.weight, net.head.weight)


@pytest.mark.parametrize("pulled", [True, False])
def test_a_fit_is_at_rest_where_influence_expects_it(pulled):
    net, (X, Y), test = small()
    start, before = net if pulled else None, [p.clone() for p in net.parameters()]
    trained = own.fit(net, X, Y, 0.01, start=start)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    rest = {}
    for w in (0.01, 0.02):
        with pytest.warns(UserWarning, match="not at rest") if w > 0.01 else nullcontext():
            one = influence(trained, nn.CrossEntropyLoss(), (X, Y), test, 24 * w, start=start)
        rest[w] = one.rest
    assert rest[0.01] < 0.05 < 0.1 < rest[0.02]


def test_a_point_that_is_left_out_leaves_n_as_it_was():
    net, (X, Y), _ = small()
    without = own.fit(net, X, Y, 0.1, [3])
    keep = np.delete(np.arange(24), 3)
    same = own.fit(net, X[keep], Y[keep], 0.1 * 24 / 23)  # 24 times the loss is the same
    for p, q in zip(without.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_a_comparison_has_every_pair_and_what_is_not_retrained_is_missing():
    net, train, test = small()
    _, one, wrong, table = own.compare(net, train, test, 0.1, 3, 2, True)
    assert len(table) == 3 * 6 and table.row.nunique() == 3
    assert table.actual.isna().sum() == 6  # the point in the middle
    assert wrong.rest > 0.1 > one.rest
    np.testing.assert_array_equal(table.newton.to_numpy().reshape(3, 6), one.newton[table.row[::6]])


def test_a_kept_run_goes_on_and_records(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "POINTS", dict.fromkeys(own.POINTS, (2, 2)))
    monkeypatch.setattr(own, "draw", lambda png, file, source: file.write_bytes(png))
    monkeypatch.setattr(own, "strips", lambda results, source: {"": (np.zeros((1, 4, 4)), [""])})
    done = []

    def measure(source, part, work):
        done.append(part)
        head = {"data": f"{source} a/b", "part": part, "n": 4, "w": 0.1}
        source = {"date": "2026-01-02", "machine": "one", "versions": "all"}
        found = {"row": {"rest": 0.0, "seconds": 1.0}, "table": {"h": [0.5, 0.6]}}
        return {"head": head} | found | source

    monkeypatch.setattr(own, "measure", measure)
    monkeypatch.setattr("sys.argv", ["own", str(tmp_path), str(tmp_path), "--cifar10", "photos"])
    own.main()
    own.main()
    assert done == list(own.POINTS)  # once each
    record = pd.read_csv(tmp_path / "torch.csv")
    assert len(record) == 6 and {"date", "machine", "versions", "seconds"} <= set(record)
    assert pd.read_csv(tmp_path / "torch-cases.csv").part.tolist() == done
