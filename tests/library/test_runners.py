"""Where a library is prepared is a runner's business: another package can bring one."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from sttm_cli.base.errors import UsageError
from sttm_cli.library.outcome import Computed, Failed, Skipped
from sttm_cli.library.prepare import prepare_one
from sttm_cli.library.runners import check_runner
from sttm_cli.settings.settings import Settings
from tests.installed import install, sttm

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"

POOL = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed

from sttm_cli.library.outcome import Job
from sttm_cli.library.prepare import prepare_one


class Pool:
    def __init__(self, address, qa):
        self.settings, self.workers = qa.settings, int(address.partition("://")[2])

    def run(self, items, admit):
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, mp_context=spawn) as pool:
            sent = []
            for item in items:
                found = admit(item) if isinstance(item, Job) else item
                if found is None:
                    sent.append(pool.submit(prepare_one, self.settings, item.path))
                else:
                    yield found
            for done in as_completed(sent):
                yield done.result()
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Two videos, one of them twice, and one that is none."""
    folder = tmp_path / "library"
    folder.mkdir()
    shutil.copy(SAMPLE, folder / "a.mp4")
    (folder / "b.mp4").write_bytes(SAMPLE.read_bytes() + b"\0")
    shutil.copy(SAMPLE, folder / "c.mp4")
    (folder / "d.mp4").write_bytes(b"none")
    return folder


def test_a_runner_of_another_package_prepares_a_library(tmp_path: Path, library: Path) -> None:
    there = install(tmp_path / "site", "pool", POOL, "[sttm_cli.runners]\npool = pool:Pool\n")
    flags = ("--on", "pool://2", "--frames", 2, "--cache-dir", tmp_path / "cache", "--json")
    first, again = (sttm(there, "precompute", library, *flags) for _ in range(2))
    report = json.loads(first.stdout)
    assert (report["done"], report["skipped_same_bytes"]) == (2, 1), first.stderr
    assert [failed["path"] for failed in report["failed"]] == [str(library / "d.mp4")]
    assert json.loads(again.stdout)["skipped"] == 3
    asked = sttm(
        there, "ask", library / "b.mp4", "how many?", "--frames", 2, *flags[4:], "--no-server"
    )
    assert json.loads(asked.stdout)["cache"]["hit"]


def test_an_unknown_runner_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match="--on 'clsuter://x' is not known"):
        check_runner("clsuter://x")


def test_one_video_is_prepared_by_what_can_be_sent_to_another_process(tmp_path: Path) -> None:
    settings = Settings(frames=2, cache_dir=tmp_path)
    work = pickle.loads(pickle.dumps((prepare_one, settings, SAMPLE)))
    outcomes = [pickle.loads(pickle.dumps(work[0](*work[1:]))) for _ in range(2)]
    assert [type(outcome) for outcome in outcomes] == [Computed, Skipped]
    missing = prepare_one(settings, tmp_path / "missing.mp4")
    assert isinstance(missing, Failed)
    assert "there is no file" in missing.error
