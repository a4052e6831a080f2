"""Choose the frames to read and the reader: pure, from the header's facts."""

from __future__ import annotations

import math
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from sttm_cli.base.errors import UsageError, VideoError
from sttm_cli.base.types import FramePlan, VideoInfo

PIXELS = "pixels-1"
"""Changes whenever the same file and plan could give different pixels or times."""

DISTRIBUTIONS = {"av": "av", "decord": "decord", "images": "pillow"}

DECORD_UNREAD = {"av1": "AV1", "vvc": "VVC", "gif": "GIF"}
DECORD_WRONG = {"mpegts": "MPEG-TS"}


def plan_frames(
    info: VideoInfo,
    *,
    max_frames: int,
    fps: float | None = None,
    frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    decoder: str = "auto",
    input_side: int | None = None,
) -> FramePlan:
    """Choose the times to read, the reader, and the size to read at.

    One frame per second (or `fps`) from the start of the range; if that exceeds `max_frames` or
    `frames`, that many, evenly spread, including the first and the last. `input_side`: the model's
    input side in pixels; frames of more than twice that are shrunk to it while reading. Raises
    UsageError for an impossible range, rate or count and for a decoder that is not installed,
    VideoError if the chosen decoder is known not to read such a file.
    """
    first, last = _range(info, start, end)
    if fps is not None and not (0 < fps < math.inf):
        raise UsageError(f"--fps {fps:g} is not possible", "give a rate above 0")
    if frames is not None and frames < 1:
        raise UsageError(f"--frames {frames} is not possible", "it starts at 1")
    limit = min(max_frames, frames or max_frames)
    reader = _reader(info, decoder)
    return FramePlan(
        times_s=spread(first, last, fps=fps or 1.0, limit=limit),
        start_s=first,
        end_s=last,
        reader=reader,
        reader_version=f"{_version(DISTRIBUTIONS[reader])} {PIXELS}",
        size=_size(info, input_side),
        transfer=info.transfer,
        origin_s=info.start_s,
        image_fps=info.fps if reader == "images" else 0.0,
        fallback="decord" if reader == "av" and decoder == "auto" and _decord_reads(info) else "",
    )


def spread(start: float, end: float, *, fps: float, limit: int) -> tuple[float, ...]:
    """Return the times start, start + 1/fps, ... before `end`; at most `limit`, evenly spread."""
    steps = max(1, math.ceil((end - start) * fps - 1e-6))
    count = min(steps, limit)
    stride = (steps - 1) / (count - 1) if count > 1 else 1.0
    return tuple(round(start + i * stride / fps, 6) for i in range(count))


def _range(info: VideoInfo, start: float | None, end: float | None) -> tuple[float, float]:
    first = 0.0 if start is None else start
    if first < 0 or not math.isfinite(first):
        raise UsageError(f"--start {first:g} is not possible", "it is a time from 0 on")
    if first >= info.duration_s:
        raise UsageError(
            f"--start {first:g} lies beyond the end of the video ({info.duration_s:.2f} s)",
            "give a time within the video",
        )
    if end is not None and not end > first:
        named = f"--start {first:g}" if start is not None else "the start of the video"
        raise UsageError(f"--end {end:g} is not after {named}", "give a later time")
    return first, info.duration_s if end is None else min(end, info.duration_s)


def _size(info: VideoInfo, input_side: int | None) -> tuple[int, int]:
    """Return the displayed size, shrunk to a shorter side of twice the model's input side."""
    short = min(info.width, info.height)
    if input_side is None or short <= 2 * input_side:
        return info.width, info.height
    share = 2 * input_side / short
    return max(1, round(info.width * share)), max(1, round(info.height * share))


def _reader(info: VideoInfo, decoder: str) -> str:
    if decoder not in ("auto", "av", "decord"):
        raise UsageError(f"--decoder {decoder!r} is not known", "choose one of auto, av, decord")
    if info.codec == "images":
        if decoder != "auto":
            raise UsageError(
                f"--decoder {decoder} cannot be combined with a folder of images", "leave it out"
            )
        return "images"
    if decoder != "decord":
        return "av"
    if not _has_decord():
        raise UsageError(
            f"--decoder decord is not possible: decord is not installed ({sys.platform})",
            "use --decoder av; decord has wheels for Linux and Windows on x86-64 only",
        )
    _check_decord(info)
    return "decord"


def _check_decord(info: VideoInfo) -> None:
    unread, wrong = DECORD_UNREAD.get(info.codec), DECORD_WRONG.get(info.container)
    if unread:
        raise VideoError(f"decord cannot read {unread} video", "use --decoder av")
    if wrong:
        raise VideoError(f"decord gives wrong frames for {wrong}", "use --decoder av")


def _decord_reads(info: VideoInfo) -> bool:
    known = info.codec in DECORD_UNREAD or info.container in DECORD_WRONG
    return not known and _has_decord()


@cache
def _has_decord() -> bool:
    try:
        return find_spec("decord") is not None and bool(_version("decord"))
    except PackageNotFoundError:
        return False


@cache
def _version(name: str) -> str:
    # Looked up once, since it takes milliseconds and is needed for every video of a library.
    return version(name)
