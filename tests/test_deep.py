"""The networks that `book.deep` trains again, and their record."""

import numpy as np
import pandas as pd
import pytest
import torch

from book.deep import Case, Convolutional, cases, ended, prepare


@pytest.mark.parametrize("colours", [1, 3])
def test_convolutions_see_the_planes_of_an_image(colours):
    image = torch.rand(2, 6, 6, colours, dtype=torch.float64, generator=torch.Generator())
    net = Convolutional(36 * colours, width=2, outputs=1, activation=torch.nn.GELU, seed=0)
    _, *layers = net  # the first makes planes of a vector
    by_hand = 16 * torch.nn.Sequential(*layers)(8 * image.permute(0, 3, 1, 2))
    torch.testing.assert_close(net(image.flatten(1)), by_hand)
    turned = net(image.transpose(1, 2).flatten(1))  # control: rows for columns
    assert not torch.allclose(turned, by_hand)


def test_recorded_networks_are_those_of_the_plan(request):
    key = ["page", "data", "seed", "kind", "width", "depth", "activation", "ridge", "steps", "n"]
    plan = {tuple(str(vars(case)[k]) for k in key) for case in cases()}
    for page in ("lazy", "kinks"):
        record = pd.read_csv(request.config.rootpath / f"book/records/{page}.csv")
        record["ridge"] = record["ridge"].astype(float)
        found = {tuple(str(v) for v in row) for row in record[key].itertuples(index=False)}
        assert found <= plan and len(found) == len(record)


def test_a_trained_network_has_the_parameters_of_its_training():
    case = Case("kinks", width=4, n=12, t=4, steps=200, ridge=3.0)
    (X, Y), _, _, K0, k0, fit = prepare(case)
    assert X.shape == (12, 64) and Y.shape == (12, 1) and K0.shape == (12, 12)
    theta, (first,) = fit([()], fit.start)
    net = ended(case, fit, theta)
    f = net(fit.X_te).detach().numpy().ravel()
    np.testing.assert_allclose(f, np.ravel(first["f"]), rtol=1e-12)
    start = ended(case, fit, {k: v[None] for k, v in fit.start.items()})  # control: it is centred
    np.testing.assert_allclose(start(fit.X_te).detach(), 0, atol=1e-12)
