"""Videos that are very long, very short, still, wide, odd or without a header's numbers."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sttm_cli.base.types import DecodeReport, VideoInfo
from sttm_cli.decode import plan_frames, read_frames
from sttm_cli.decode.isolated import probe_isolated
from tests.decode.made import Make, number_of, numbered
from tests.hostile.videos import truncated

HOURS_3 = 3 * 3600


def read(path: Path, **choice: object) -> tuple[VideoInfo, list[int], list[float]]:
    """What the video is, the numbers of the frames read, and their times; nothing may be lost."""
    info, report = probe_isolated(path), DecodeReport()
    plan = plan_frames(info, **{"max_frames": 8, **choice})
    frames = [f for chunk in read_frames(path, plan, report=report) for f in chunk.frames]
    assert report.warnings == []
    assert all(frame.shape == (info.height, info.width, 3) for frame in frames)
    return info, [number_of(frame) for frame in frames], report.times_s


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv"])
def test_three_hours_are_sampled_from_end_to_end(tmp_path: Path, name: str) -> None:
    # A frame a minute.
    minutes = Make(pts=[600 * i for i in range(181)], options={"bf": "0"}).write(tmp_path / name)
    info, numbers, times = read(minutes, frames=4)
    assert info.duration_s == pytest.approx(HOURS_3, abs=61)
    assert numbers == [0, 60, 120, 180]
    assert times == pytest.approx([0, 3600, 7200, 10800])
    assert read(minutes, start=5400.0, end=5460.0, frames=1)[1] == [90]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("one.mp4", Make(pts=[0])),
        ("one.mkv", Make(pts=[0])),
        ("one.webm", Make("libvpx-vp9", pts=[0])),
        ("one.gif", Make("gif", pts=[0], pixels="rgb8")),
        ("one.ts", Make(pts=[0])),
    ],
)
def test_a_single_frame_is_a_video(tmp_path: Path, name: str, make: Make) -> None:
    assert read(make.write(tmp_path / name))[1] == [0]


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        Image.fromarray(numbered(5)).save(tmp_path / name)
        assert read(tmp_path / name)[1] == [5]


def test_an_animated_gif_keeps_its_own_pace(tmp_path: Path) -> None:
    # Shown for 0.2 s, 1.3 s, 0.5 s and 1 s.
    frames = [Image.fromarray(numbered(number)) for number in range(4)]
    frames[0].save(
        tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[200, 1300, 500, 1000]
    )
    assert read(tmp_path / "a.gif", fps=2)[1] == [0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("live.mkv", {"live": "1"}),
        ("fragmented.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("stream.ts", {}),
    ],
)
def test_number_of_frames_unknown(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    video = Make(container=options).write(tmp_path / name)
    with av.open(str(video)) as container:
        assert container.streams.video[0].frames == 0
    assert read(video)[1] == [0, 10, 20, 30, 40, 50]


def test_times_before_zero_count_from_the_first_frame(tmp_path: Path) -> None:
    late = Make(pts=range(-15, 15), options={"bf": "0"}).write(tmp_path / "a.mkv")
    assert read(late)[1:] == ([0, 10, 20], [0, 1, 2])


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    info, numbers, _ = read(Make(size=(161, 97), pixels="yuv444p").write(tmp_path / "a.mp4"))
    assert (info.width, info.height) == (161, 97)
    assert numbers == [0, 10, 20, 30, 40, 50]


def test_pixels_that_are_not_square_are_shown_square(tmp_path: Path) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2)

    info, numbers, _ = read(Make(set_up=wide).write(tmp_path / "a.mp4"))
    assert (info.width, info.height) == (320, 96)
    assert numbers == [0, 10, 20, 30, 40, 50]


def test_eight_k_is_read(tmp_path: Path) -> None:
    fast = {"preset": "ultrafast"}
    wide = Make(size=(7680, 4320), pts=[0, 1], options=fast).write(tmp_path / "8k.mp4")
    assert read(wide)[1] == [0]


def test_interlaced_pictures_lose_their_comb(tmp_path: Path) -> None:
    comb = np.zeros((96, 160, 3), np.uint8)
    comb[::2] = 255

    path = tmp_path / "a.mpg"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for pts in range(5):
            frame = av.VideoFrame.from_ndarray(comb, format="rgb24").reformat(format="yuv420p")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    info, report = probe_isolated(path), DecodeReport()
    plan = plan_frames(info, max_frames=1)
    (chunk,) = read_frames(path, plan, report=report)
    lines = chunk.frames[0].mean(axis=(1, 2))[2:-2]
    assert np.abs(np.diff(lines)).max() < 60


def test_a_cut_off_avi_is_not_taken_for_a_short_one(tmp_path: Path) -> None:
    whole = Make("mpeg4", pts=range(200)).write(tmp_path / "whole.avi")
    cut = truncated(whole, tmp_path / "cut.avi", 0.5)
    assert probe_isolated(whole).notes == ()
    info = probe_isolated(cut)
    assert 0 < info.duration_s < 18
    assert info.notes == (
        "the file is cut off: its header promises 20.0 s of video, "
        f"its data end after {info.duration_s:.1f} s",
    )
