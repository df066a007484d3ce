"""Shared by the tests: random unit vectors, no network, and one set of hypothesis settings."""

from urllib.error import URLError

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("book", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("book")


def unit_points(n: int, d: int, seed: int = 0) -> np.ndarray:
    X = np.random.default_rng(seed).standard_normal((n, d))
    return X / np.linalg.norm(X, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def points():
    """The function (n, d, seed=0) → n random unit vectors in d dimensions, float64."""
    return unit_points


@pytest.fixture
def no_network(monkeypatch):
    """Let every download of torchvision fail at once; returns the list of what was asked for."""
    asked = []

    def refuse(url, *args, **settings):
        asked.append(url)
        raise URLError("the network is unreachable")

    from lib.data import _import_datasets

    datasets = _import_datasets()
    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", refuse)
    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", refuse)
    return asked
