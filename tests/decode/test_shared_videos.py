"""Frames of every real video agree with a plain sequential decode, with either reader."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sttm_cli.base.errors import VideoError
from sttm_cli.base.types import DecodeReport, FramePlan, VideoInfo
from sttm_cli.decode import plan_frames, probe, read_frames
from sttm_cli.decode.tone import to_sdr
from tests.conftest import SHARED
from tests.runtime.test_every_video import DECORD_REFUSES, UNREADABLE, VIDEOS

READERS = ["av"] + (["decord"] if importlib.util.find_spec("decord") else [])
SIDE = 24

pytestmark = pytest.mark.skipif(not VIDEOS, reason="../shared/videos is not there")


def small(rgb: np.ndarray) -> np.ndarray:
    """A picture [H, W, 3] as [SIDE, SIDE, 3] float: size and shape of pixels left aside."""
    picture = Image.fromarray(np.ascontiguousarray(rgb)).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(picture, np.float32)


def upright(frame: Any, info: VideoInfo) -> np.ndarray:
    if info.transfer == "sdr":
        rgb = frame.to_ndarray(format="rgb24")
    else:
        rgb = to_sdr(frame.to_ndarray(format="rgb48le"), info.transfer)
    return small(np.rot90(rgb, frame.rotation // 90))


def plan(info: VideoInfo, reader: str = "auto") -> FramePlan:
    """A few frames from start to end; of long videos from their beginning, to save time."""
    end = None if info.duration_s < 8 else 3.0
    count = 4 if info.width < 4000 else 2
    return plan_frames(info, max_frames=count, fps=25, end=end, decoder=reader)


@functools.cache
def reference(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """The times, from the first frame on, and the frames on show then; every frame is decoded."""
    info = probe(path)
    times = plan(info).times_s
    frames = decoded(path)
    origin, first = next(frames)
    shown = [(origin, first)] * len(times)
    for time, frame in frames:
        if time > origin + times[-1] + 1:
            break
        for place, wanted in enumerate(times):
            if shown[place][0] <= time <= wanted + origin + 2e-6:
                shown[place] = time, frame
    return list(times), [upright(frame, info) for _, frame in shown]


def decoded(path: Path) -> Any:
    """Every frame with its time, in the order of display."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        # AVI has no presentation times: frames follow each other at one distance.
        counted = container.format.name == "avi"
        number = 0
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                yield float(number / stream.average_rate) if counted else float(frame.time), frame
                number += 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", [name for name in VIDEOS if name not in UNREADABLE])
def test_frames_agree_with_a_sequential_decode(name: str, reader: str) -> None:
    path = SHARED / "videos" / name
    info, report = probe(path), DecodeReport()
    if reader == "decord" and name in DECORD_REFUSES:
        with pytest.raises(VideoError):
            list(read_frames(path, plan(info, reader), report=report))
        return
    chunks = list(read_frames(path, plan(info, reader), report=report))
    times, frames = reference(path)
    ours = [small(frame) for chunk in chunks for frame in chunk.frames]
    assert len(ours) + report.lost == len(times)
    assert report.lost == 0 or report.warnings
    for place, frame in enumerate(ours):
        # Where frames are lost, it is not told which: then it must be one of the right ones.
        right = frames if report.lost else frames[place : place + 1]
        assert min(float(np.abs(frame - other).mean()) for other in right) < 2, times[place]
