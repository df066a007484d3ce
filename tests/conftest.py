"""Fixtures of all tests: no network, a browser, and one set of hypothesis settings."""

import os
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


def unavailable(reason: str):
    """Skip with the reason, or fail with it in CI."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="module")
def browser():
    from book.browser import chromium

    try:
        with chromium() as started:
            yield started
    except FileNotFoundError as error:
        unavailable(str(error))
