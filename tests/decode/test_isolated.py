"""The reading process: what hangs or crashes in it is told; it takes one video after another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from sttm_cli.base.errors import DisturbedError, VideoError
from sttm_cli.base.types import DecodeReport
from sttm_cli.decode import isolated, plan_frames, read_frames
from sttm_cli.decode.isolated import end_children, probe_isolated
from tests.decode.made import Make, number_of
from tests.hostile.videos import text

COUNT = 12


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    end_children()
    yield
    end_children()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Make(pts=range(10 * COUNT)).write(tmp_path_factory.mktemp("isolated") / "a.mp4")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One item for each process that is started."""
    found: list[object] = []
    popen = subprocess.Popen

    def counted(*args: object, **options: object) -> object:
        found.append(args)
        return popen(*args, **options)

    monkeypatch.setattr(isolated.subprocess, "Popen", counted)
    return found


def numbers(video: Path) -> list[int]:
    plan = plan_frames(probe_isolated(video), max_frames=COUNT)
    chunks = read_frames(video, plan, report=DecodeReport())
    return [number_of(frame) for chunk in chunks for frame in chunk.frames]


def stand_in(folder: Path, script: str) -> str:
    """A program that takes the reading process's place."""
    path = folder / "reader"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ("exec sleep 60", "nothing came for"),
        ("kill -SEGV $$", r"crashed \(SIGSEGV\)"),
        ("kill -KILL $$", r"was killed \(SIGKILL\)"),
        ("exit 0", "ended without"),
    ],
)
def test_what_hangs_or_crashes_is_told(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, part: str
) -> None:
    monkeypatch.setattr(sys, "executable", stand_in(tmp_path, script))
    monkeypatch.setattr(isolated, "PATIENCE_S", 0.5)
    with pytest.raises(VideoError, match=part) as shown:
        probe_isolated(video)
    assert str(video) in shown.value.message
    assert shown.value.hint


def test_a_reader_that_the_system_kills_is_not_taken_for_a_damaged_video(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_frames(probe_isolated(video), max_frames=COUNT)
    chunks = read_frames(video, plan, report=DecodeReport(), max_chunk_bytes=1)
    line = isolated._Child.line

    def killed(child: isolated._Child) -> dict[str, Any]:
        head = line(child)
        child._process.kill()
        return head

    # What the pipe holds of later frames still comes: 12 frames are more than it takes.
    with monkeypatch.context() as patched:
        patched.setattr(isolated._Child, "line", killed)
        with pytest.raises(DisturbedError, match=r"killed \(SIGKILL\).*memory"):
            list(chunks)


def test_one_process_serves_many_videos_and_bad_files_between(
    video: Path, tmp_path: Path, started: list[object]
) -> None:
    bad = text(tmp_path / "bad.mp4")
    for _ in range(3):
        assert numbers(video) == [10 * i for i in range(COUNT)]
        with pytest.raises(VideoError, match=r"bad\.mp4"):
            probe_isolated(bad)
    assert len(started) == 1


def test_reading_that_is_left_in_the_middle_disturbs_no_later_one(video: Path) -> None:
    plan = plan_frames(probe_isolated(video), max_frames=COUNT)
    for _ in range(2):
        next(iter(read_frames(video, plan, report=DecodeReport(), max_chunk_bytes=1)))
    assert numbers(video) == [10 * i for i in range(COUNT)]


def test_threads_read_at_the_same_time(video: Path) -> None:
    found: list[list[int]] = []
    threads = [Thread(target=lambda: found.append(numbers(video))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[10 * i for i in range(COUNT)]] * 3


def test_a_process_that_died_meanwhile_is_replaced(video: Path) -> None:
    assert numbers(video)
    (child,) = isolated._idle
    child._process.kill()
    child._process.wait()
    assert numbers(video) == [10 * i for i in range(COUNT)]


def test_no_module_beside_the_video_is_run(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "av.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    end_children()
    assert numbers(video)
    assert not (tmp_path / "ran").exists()
