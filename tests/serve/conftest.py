"""A server that tests of several modules share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.running import Running, serving

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"


@pytest.fixture(scope="session")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder whose files clients may name, with one video."""
    folder = tmp_path_factory.mktemp("allowed")
    shutil.copy(SAMPLE, folder / "sample.mp4")
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, allowed: Path) -> Iterator[Running]:
    """A server as a user would start it, that may fetch from this machine."""
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, "--allow-path", allowed, "--allow-private") as running:
        yield running
