"""Frames by presentation time, from files made here: each tells its own number."""

from __future__ import annotations

import gc
import os
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sttm_cli.base.errors import UsageError, VideoError
from sttm_cli.base.types import DecodeReport
from sttm_cli.decode import digest, plan_frames, probe, read_frames, remembered_probe
from tests.decode.made import Make, number_of
from tests.decode.reference import decode_all
from tests.fakes import DictMemo
from tests.hostile import videos as hostile


def read(path: Path, **choice: object) -> tuple[list[int], DecodeReport]:
    """The numbers of the frames that are read, and the report."""
    plan = plan_frames(probe(path), **{"max_frames": 8, **choice})
    report = DecodeReport()
    chunks = read_frames(path, plan, report=report)
    return [number_of(frame) for chunk in chunks for frame in chunk.frames], report


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds at ten frames a second, with B-frames and several keyframes."""
    return Make().write(tmp_path_factory.mktemp("decode") / "steady.mp4")


@pytest.mark.parametrize("decoder", ["av", "decord"])
def test_one_frame_a_second_is_the_one_on_show_then(steady: Path, decoder: str) -> None:
    if decoder == "decord":
        pytest.importorskip("decord")
    numbers, report = read(steady, decoder=decoder)
    assert numbers == [0, 10, 20, 30, 40, 50]
    assert report.times_s == pytest.approx([0, 1, 2, 3, 4, 5])
    assert (report.lost, report.warnings) == (0, [])


def test_no_decoded_frame_waits_for_the_garbage_collector(steady: Path) -> None:
    """A few frames of 8K would fill the memory long before it comes."""
    gc.collect()
    gc.disable()
    try:
        read(steady)
        left = [found for found in gc.get_objects() if isinstance(found, av.VideoFrame)]
    finally:
        gc.enable()
    assert not left


def test_more_seconds_than_frames_are_spread_evenly_with_both_ends(steady: Path) -> None:
    assert read(steady, max_frames=3)[0] == [0, 25, 50]
    assert read(steady, frames=2)[0] == [0, 50]


def test_rate_and_range_are_kept_to(steady: Path) -> None:
    assert read(steady, fps=2, start=1.0, end=3.0)[0] == [10, 15, 20, 25]
    assert read(steady, start=5.95)[0] == [59]


def test_variable_rate_is_read_by_time_and_not_by_number(tmp_path: Path) -> None:
    # Frame 3 stands from 0.3 s to 4 s.
    pts = [0, 1, 2, 3, 40, 41, 50, 60]
    # Without B-frames: the muxer's own idea of the duration is wrong with them.
    video = Make(pts=pts, options={"bf": "0"}).write(tmp_path / "vfr.mp4")
    assert read(video)[0] == [0, 3, 3, 3, 4, 6, 7]


def test_times_count_from_the_first_frame_of_a_late_start(tmp_path: Path) -> None:
    video = Make(pts=tuple(range(35, 65)), base=Fraction(1, 10)).write(tmp_path / "late.mkv")
    numbers, report = read(video)
    assert numbers == [0, 10, 20]
    assert report.times_s == pytest.approx([0, 1, 2])


def test_chunks_are_bounded_and_a_multiple(steady: Path) -> None:
    plan = plan_frames(probe(steady), max_frames=12, fps=2)
    one = 160 * 96 * 3
    chunks = list(
        read_frames(steady, plan, report=DecodeReport(), multiple=2, max_chunk_bytes=5 * one)
    )
    assert [len(chunk.frames) for chunk in chunks] == [4, 4, 4]
    assert chunks[0].frames.dtype == np.uint8


def test_pixels_equal_a_plain_sequential_decode(steady: Path) -> None:
    plan = plan_frames(probe(steady), max_frames=60, fps=10)
    chunks = read_frames(steady, plan, report=DecodeReport())
    ours = np.concatenate([chunk.frames for chunk in chunks]).astype(int)
    plain = sorted(decode_all(steady), key=lambda pair: pair[0])
    theirs = np.stack([frame.to_ndarray(format="rgb24") for _, frame in plain]).astype(int)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).mean() < 2


@pytest.mark.parametrize(
    ("choice", "flag"),
    [
        ({"start": 99.0}, "--start 99"),
        ({"start": 3.0, "end": 2.0}, "--end 2"),
        ({"fps": 0.0}, "--fps 0"),
        ({"frames": 0}, "--frames 0"),
        ({"decoder": "vlc"}, "vlc"),
    ],
)
def test_what_cannot_hold_names_the_flag_and_its_value(steady: Path, choice, flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        plan_frames(probe(steady), max_frames=8, **choice)


def test_files_that_are_no_videos_are_refused_by_name(steady: Path, tmp_path: Path) -> None:
    made = [
        hostile.text(tmp_path / "text.mp4"),
        hostile.empty(tmp_path / "empty.mp4"),
        hostile.noise(tmp_path / "noise.mp4"),
        hostile.audio_only(tmp_path / "sound.mp4"),
        hostile.streams_without_frames(tmp_path / "hollow.mp4"),
        hostile.playlist(tmp_path / "list.mp4", str(steady)),
        tmp_path / "missing.mp4",
        tmp_path,
    ]
    for path in made:
        with pytest.raises(VideoError, match=path.name):
            read(path)


def test_damage_in_the_middle_loses_frames_and_says_how_many(steady: Path, tmp_path: Path) -> None:
    damaged = hostile.zeroed(steady, tmp_path / "damaged.mp4", 0.3, 0.7)
    plan = plan_frames(probe(damaged), max_frames=60, fps=10)
    report = DecodeReport()
    chunks = list(read_frames(damaged, plan, report=report))
    read_now = sum(len(chunk.frames) for chunk in chunks)
    assert report.lost > 0
    assert read_now + report.lost == len(plan.times_s) == 60
    assert str(report.lost) in report.warnings[0]


def test_mutated_videos_are_read_or_refused_and_nothing_else(steady: Path, tmp_path: Path) -> None:
    outcomes = set()
    for damaged in hostile.mutated(steady, tmp_path, 60):
        try:
            outcomes.add("read" if read(damaged)[0] else "nothing")
        except VideoError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.usefixtures("unhurried")
def test_digest_is_remembered_until_the_file_changes(steady: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(steady.read_bytes())
    memo = DictMemo()
    first = digest(copy, memo)
    assert first == digest(steady, DictMemo())
    (row,) = memo.rows.values()
    row["blake3"] = "remembered"
    assert digest(copy, memo) == "remembered"
    os.utime(copy, (1, 1))
    assert digest(copy, memo) == first


@pytest.mark.usefixtures("unhurried")
def test_a_remembered_probe_opens_no_decoder(steady: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memo = DictMemo()
    info = remembered_probe(steady, memo)
    assert (info.width, info.height, info.codec) == (160, 96, "h264")
    monkeypatch.setitem(sys.modules, "av", None)
    assert remembered_probe(steady, memo) == info
