"""Killed at any moment, on a full disk, in a folder that cannot be used: the cache stays whole and
the answer comes, as a user sees it of the whole command."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sttm_cli.store import LocalStore
from sttm_cli.store.claim import claim
from tests.cli.process import Ended, sttm_here
from tests.cli.test_ask import QUESTION, SAMPLE
from tests.cli.warm import Warm

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
ANSWER = "three"


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm.start() as started:
        yield started


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other users may look into, with the video in it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        shutil.copy(SAMPLE, Path(name) / "video.mp4")
        yield Path(name)


def is_answered_with_one_warning(ended: Ended, *parts: str) -> None:
    assert (ended.code, ended.out) == (0, f"{ANSWER}\n"), ended.err
    warnings = [line for line in ended.err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1, ended.err
    assert any(part in warnings[0] for part in parts), warnings


def test_a_kill_at_any_of_50_moments_leaves_a_whole_cache_and_the_next_run_right(
    warm: Warm, place: Path
) -> None:
    cache, videos = place / "cache", place / "videos"
    videos.mkdir()
    for number in range(3):
        (videos / f"{number}.mp4").write_bytes(SAMPLE.read_bytes() + bytes(number))
    ask = ("ask", videos / "0.mp4", QUESTION, "--refresh")
    whole, _ = warm.run(*ask, "--json", cache=cache)
    seconds, rng, killed = whole.json["seconds"]["total"], random.Random(5), 0
    # From the lock on it decodes, encodes, prefills and saves; the temporary file is the save.
    moments = [(ask, "locks/*", rng.uniform(0, seconds)) for _ in range(18)]
    moments += [(ask, "kv/*/*.part", rng.uniform(0, 0.004)) for _ in range(16)]
    precompute = ("precompute", videos, "--refresh")
    moments += [(precompute, "locks/*", rng.uniform(0, 3 * seconds)) for _ in range(16)]
    for arguments, begin, after in moments:
        ended, _ = warm.run(*arguments, cache=cache, kill_from=begin, kill_after=after)
        killed += ended.code == -9
        with LocalStore(cache, warn=pytest.fail) as store:
            assert store.verify()[1] == []
    # A loaded machine may end before the moment comes.
    assert killed > 15
    ended, _ = warm.run("precompute", videos, "--refresh", "--json", cache=cache)
    assert ended.json.get("done") == 3, (ended.code, ended.out, ended.err)
    again, _ = warm.run("ask", videos / "0.mp4", QUESTION, "--json", cache=cache)
    assert again.json["cache"]["hit"]
    assert again.json["answers"] == whole.json["answers"]
    assert warm.run("cache", "verify", cache=cache)[0].code == 0
    assert not list(cache.rglob("*.part"))
    assert not list((cache / "locks").iterdir())


def test_eight_asks_at_once_about_four_videos_compute_each_once(warm: Warm, place: Path) -> None:
    videos = [place / f"{number}.mp4" for number in range(4)]
    for number, video in enumerate(videos):
        video.write_bytes(SAMPLE.read_bytes() + bytes(number))
    runs = [("ask", video, QUESTION, "--json") for video in videos for _ in range(2)]
    all_ended = [ended for ended, _ in warm.run_at_once(runs, cache=place / "cache")]
    assert [ended.json["answers"][0]["answer"] for ended in all_ended] == [ANSWER] * 8
    pairs = zip(all_ended[::2], all_ended[1::2], strict=True)
    hits = [sorted(ended.json["cache"]["hit"] for ended in pair) for pair in pairs]
    assert hits == [[False, True]] * 4
    assert any("waiting for it" in ended.err for ended in all_ended)


def test_where_no_file_can_grow_the_answer_comes_with_one_warning(warm: Warm, place: Path) -> None:
    ended, _ = warm.run(
        "ask", place / "video.mp4", QUESTION, cache=place / "cache", file_bytes=100_000
    )
    is_answered_with_one_warning(ended, "not stored")
    assert not [path for path in (place / "cache" / "kv").rglob("*") if path.is_file()]


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 600 kB, where one can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k,mode=700", "tmpfs", str(folder)]
    if not ROOT or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder that cannot be written: root may write everywhere but on a read-only disk."""
    if ROOT:
        with small_disk(folder):
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            yield folder
        return
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


def test_on_a_full_disk_the_answer_comes_with_one_warning(warm: Warm, place: Path) -> None:
    asked = ("ask", place / "video.mp4", QUESTION, "--max-bytes", "1G")
    with small_disk(place / "disk") as disk:
        ended, _ = warm.run(*asked, cache=disk / "cache")
        is_answered_with_one_warning(ended, "No space left")
        assert not [p for p in (disk / "cache" / "kv").rglob("*") if p.is_file()]
        smaller, _ = warm.run(*asked, "--kv-dtype", "int8", cache=disk / "cache")
        assert "computed and stored" in smaller.err


def test_a_folder_that_cannot_be_written_costs_one_warning(warm: Warm, place: Path) -> None:
    with read_only(place / "cache") as folder:
        for cache in (folder, folder / "missing" / "deeper"):
            asked = ("ask", place / "video.mp4", QUESTION, "--max-bytes", "1G")
            ended, _ = warm.run(*asked, cache=cache)
            is_answered_with_one_warning(ended, "Permission denied", "Read-only")


def test_another_users_folder_is_not_used_and_costs_one_warning(warm: Warm, place: Path) -> None:
    cache = Path("/usr")
    if ROOT:
        cache = place / "cache"
        cache.mkdir()
        os.chown(cache, 65534, 65534)
    ended, _ = warm.run("ask", place / "video.mp4", QUESTION, cache=cache)
    is_answered_with_one_warning(ended, "belongs to another user")


def test_a_missing_folder_is_made_without_a_word(warm: Warm, place: Path) -> None:
    cache = place / "one" / "two" / "three"
    ended, _ = warm.run("ask", place / "video.mp4", QUESTION, cache=cache)
    assert ended.out == f"{ANSWER}\n"
    assert "computed and stored" in ended.err
    assert "warning" not in ended.err


def index_is_a_file(index: Path) -> None:
    index.write_bytes(b"garbage")


def database_is_a_folder(index: Path) -> None:
    (index / "cache.db").mkdir(parents=True)


def index_cannot_be_written(index: Path) -> None:
    index.symlink_to("/proc/1")


@pytest.mark.parametrize(
    "break_it", [index_is_a_file, database_is_a_folder, index_cannot_be_written]
)
def test_without_an_index_everything_is_right(place: Path, break_it) -> None:
    """As where SQLite cannot be trusted: entries are found by their keys alone."""
    cache = Path(os.environ["STTM_CACHE_DIR"])
    claim(cache)
    break_it(cache / "index")
    cold, warm = (sttm_here("ask", place / "video.mp4", QUESTION, "--json") for _ in range(2))
    assert [run.json["cache"]["hit"] for run in (cold, warm)] == [False, True]
    assert cold.json["answers"] == warm.json["answers"]
    assert "warning" not in cold.err + warm.err
    (entry,) = sttm_here("cache", "ls", "--json").json["entries"]
    assert entry["key"] == warm.json["cache"]["key"]
    assert sttm_here("cache", "verify").code == 0
    assert sttm_here("cache", "prune", "--max-bytes", "1", "--json").json["removed"]


def test_an_index_that_stays_locked_is_done_without(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sttm_cli.store.index.PATIENCE_S", 0.1)
    sttm_here("ask", place / "video.mp4", QUESTION)
    locked = sqlite3.connect(Path(os.environ["STTM_CACHE_DIR"]) / "index" / "cache.db")
    locked.execute("BEGIN EXCLUSIVE")
    ended = sttm_here("ask", place / "video.mp4", QUESTION, "--json")
    locked.close()
    assert ended.json["cache"]["hit"]
    assert "warning" not in ended.err
