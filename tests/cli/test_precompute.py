"""`sttm precompute`: what it takes, what it prints, and what it leaves behind when it is ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sttm_cli.library.outcome import Tally
from tests.cli.process import sttm, sttm_here
from tests.cli.test_ask import QUESTION, SAMPLE, cached_files


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with two different videos, one in a subfolder, and one broken file."""
    folder = tmp_path / "library"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(SAMPLE, folder / "a.mp4")
    data = bytearray(SAMPLE.read_bytes())
    data[-1] ^= 1
    (folder / "sub" / "b.mp4").write_bytes(data)
    (folder / "broken.mp4").write_text("no video")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_it_does_all_goes_on_after_a_bad_file_and_ask_starts_from_it(library: Path) -> None:
    ended = sttm("precompute", library, "--json")
    assert ended.code == 1, ended.err
    report = ended.json
    assert report["schema"] == "sttm.precompute/1"
    assert (report["done"], report["skipped"]) == (2, 0)
    assert [Path(f["path"]).name for f in report["failed"]] == ["broken.mp4"]
    assert sttm("ask", library / "sub" / "b.mp4", QUESTION, "--json").json["cache"]["hit"]
    again = sttm_here("precompute", library, "--json").json
    assert (again["done"], again["skipped"]) == (0, 2)


def test_the_summary_counts_bytes_and_seconds_for_an_hour_of_video(library: Path) -> None:
    report = sttm_here("precompute", library / "a.mp4", "--json").json
    assert report["bytes"] == sum(map(len, cached_files().values()))
    assert report["estimated_bytes"] == pytest.approx(report["bytes"], rel=0.05)
    # The start of eight seconds of video is nearly all of the work: no rate.
    assert (report["video_seconds"], report["seconds_per_video_hour"]) == (8.0, None)
    tally = Tally(video_s=1800.0)
    assert tally.to_json(90.0)["seconds_per_video_hour"] == 180.0
    assert (report["videos"], report["stopped"]) == (1, None)


def test_a_dry_run_tells_what_would_be_done_and_stores_nothing(library: Path) -> None:
    shutil.copy(library / "a.mp4", library / "z.mp4")
    ended = sttm_here("precompute", library, "--dry-run")
    assert ended.code == 1
    lines = ended.err.splitlines()
    assert "a.mp4: to be computed, about 7" in lines[0]
    assert "broken.mp4: failed" in lines[1]
    assert f"z.mp4: skipped: same bytes as {library / 'a.mp4'}" in lines[3]
    assert lines[4].startswith("2 to do (1.")
    assert not cached_files()


def test_quiet_leaves_the_failures(library: Path) -> None:
    ended = sttm_here("precompute", library, "--dry-run", "--quiet")
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert "broken.mp4: failed" in line


def test_a_dry_run_warns_of_what_the_real_run_refuses(library: Path) -> None:
    (library / "broken.mp4").unlink()
    bound = ("--max-bytes", "1M")
    dry = sttm_here("precompute", library, "--dry-run", *bound)
    assert dry.code == 0
    real = sttm_here("precompute", library, *bound)
    assert real.code == 1
    assert "push out" in dry.err
    assert "push out" in real.err
    assert not cached_files()


def test_shards_share_out_all_videos_and_none_twice(library: Path) -> None:
    (library / "broken.mp4").unlink()
    done = [
        sttm_here("precompute", library, "--shard", f"{i}/2", "--json").json["done"] for i in (1, 2)
    ]
    assert done == [1, 1]
    assert len(cached_files()) == 2


@pytest.mark.parametrize("shard", ["0/2", "3/2", "x", "1/0", "1", "²/3"])
def test_an_impossible_shard_is_a_usage_error(library: Path, shard: str) -> None:
    assert sttm_here("precompute", library, "--shard", shard).code == 2


def test_paths_come_from_patterns_and_from_stdin(library: Path) -> None:
    def planned(*arguments: object, stdin: str = "") -> int:
        return sttm_here("precompute", *arguments, "--dry-run", "--json", stdin=stdin).json["done"]

    odd = library / "two\nlines.mp4"
    shutil.copy(library / "a.mp4", odd)
    assert planned(f"{library}/**/b.mp4") == 1
    assert planned("-", stdin=f"{library}/sub\r\n\n{library}/a.mp4\n") == 2
    assert planned("-", "--null", stdin=f"{odd}\0{library}/sub/b.mp4\0") == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--null", "."], "--null"),
        (["--no-cache", "."], "--no-cache"),
        (["-"], "empty list"),
        (["no/such/*.mp4"], "no/such/*.mp4"),
    ],
)
def test_what_cannot_hold_is_a_usage_error(arguments: list[str], named: str) -> None:
    ended = sttm_here("precompute", *arguments)
    assert ended.code == 2
    assert named in ended.err


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are always text")
def test_a_name_that_is_no_text_is_prepared_and_told(library: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(library) + b"/caf\xe9.mp4"))
    shutil.move(library / "sub" / "b.mp4", odd)
    report = sttm_here("precompute", odd, "--json").json
    assert (report["done"], report["failed"]) == (1, [])


def test_a_model_that_is_not_there_ends_it_at_once(library: Path) -> None:
    ended = sttm_here("precompute", library, "--model", "/nowhere", "--json")
    assert ended.code == 4
    assert ended.json["error"]["kind"] == "model"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_what_was_stored_stays_when_it_is_ended_and_the_rest_is_done_next(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.mp4").write_bytes(SAMPLE.read_bytes() + b"\0" * number)
    process = subprocess.Popen(
        [sys.executable, "-m", "sttm_cli", "precompute", str(tmp_path), "--frames", "4"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(2)]
    process.send_signal(sent)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == code, rest
    assert "01.mp4" in lines[1]
    assert len(cached_files()) >= 2
    if sent == signal.SIGINT:
        assert "Traceback" not in rest
        assert "before it was interrupted" in rest
    again = sttm_here("precompute", tmp_path, "--frames", "4", "--json").json
    assert again["skipped"] >= 2
    assert again["done"] + again["skipped"] == len(cached_files()) == 12
    assert sttm_here("cache", "verify").code == 0
    assert not list(Path(os.environ["STTM_CACHE_DIR"]).rglob("*.part"))
