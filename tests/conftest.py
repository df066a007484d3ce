"""Fixtures of all tests: no network, and one set of hypothesis settings."""

from urllib.error import URLError

import pytest
from hypothesis import settings

settings.register_profile("book", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("book")


@pytest.fixture
def no_network(monkeypatch):
    """Let every download of torchvision fail at once; returns the list of what was asked for."""
    asked = []

    def refuse(url, *args, **settings):
        asked.append(url)
        raise URLError("the network is unreachable")

    from lib.data import import_datasets

    datasets = import_datasets()
    monkeypatch.setattr(datasets.mnist, "download_and_extract_archive", refuse)
    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", refuse)
    return asked
