"""A server that tests of several modules share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.many import Case, alone, make_videos
from tests.serve.running import ENDLESS, Running, serving

PARALLEL, QUEUE = 2, 4
IMPATIENT = """
import sttm_cli.serve.connections, sttm_cli.serve.service
sttm_cli.serve.service.BODY_S = sttm_cli.serve.connections.HEAD_S = 0.5
"""
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


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """Questions with the answers computed alone."""
    return alone(make_videos(tmp_path_factory.mktemp("videos"), 3))


@pytest.fixture(scope="session")
def tight(tmp_path_factory: pytest.TempPathFactory, cases: list[Case]) -> Iterator[Running]:
    """A server with small bounds and little patience, that has a key."""
    with serving(
        tmp_path_factory.mktemp("tight"),
        *("--allow-path", cases[0].video.parent, "--parallel", PARALLEL, "--max-queue", QUEUE),
        *("--device-bytes", "3M", "--host-bytes", "1M", "--max-bytes", "3M", "--max-body", "1M"),
        key="secret",
        code=ENDLESS + IMPATIENT,
    ) as running:
        yield running
