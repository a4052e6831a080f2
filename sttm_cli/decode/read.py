"""Frames in chunks of bounded size, with a report of what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sttm_cli.decode.lost import DAMAGED, ENDED, Lost
from sttm_cli.errors import VideoError
from sttm_cli.types import DecodeReport, FrameChunk, FramePlan


def read_frames(
    path: Path,
    plan: FramePlan,
    *,
    report: DecodeReport,
    multiple: int = 1,
    max_chunk_bytes: int = 64 << 20,
    fallback: bool = False,
) -> Iterator[FrameChunk]:
    """Read the plan's frames, a multiple of `multiple` at a time (the last chunk may be short).

    Frames are [T, H, W, 3] uint8 RGB as `FrameChunk` says, at most `max_chunk_bytes` of them at
    once unless `multiple` frames take more. A frame that cannot be decoded is left out and
    counted in `report`, which is complete after the last chunk. With `fallback`, PyAV goes on
    where decord fails. Raises VideoError where not a single frame can be had.
    """
    import numpy as np

    width, height = plan.size
    fitting = max_chunk_bytes // (width * height * 3) // multiple * multiple
    count = max(multiple, fitting)
    pictures, times = [], []
    for time, picture in _kept(path, plan, report, fallback):
        pictures.append(picture)
        times.append(time)
        report.times_s.append(time)
        if len(pictures) == count:
            yield FrameChunk(np.stack(pictures), tuple(times))
            pictures, times = [], []
    if pictures:
        yield FrameChunk(np.stack(pictures), tuple(times))
    _conclude(path, plan, report)


def _kept(
    path: Path, plan: FramePlan, report: DecodeReport, fallback: bool
) -> Iterator[tuple[float, Any]]:
    """The pictures that can be had, with their times; the others are counted by cause."""
    for found in _readings(path, plan, report, fallback):
        if isinstance(found, Lost):
            report.lost += 1
            report.causes[found.cause] = report.causes.get(found.cause, 0) + 1
        else:
            yield found


def _readings(
    path: Path, plan: FramePlan, report: DecodeReport, fallback: bool
) -> Iterator[tuple[float, Any] | Lost]:
    """One reading per asked time, from the plan's reader or from the one that takes over."""
    report.reader, done = plan.reader, 0
    if plan.reader == "decord":
        from sttm_cli.decode.decord_reader import read_decord

        try:
            for found in read_decord(path, plan):
                yield found
                done += 1
            return
        except VideoError as error:
            if not fallback:
                raise
            report.fallback = f"decord: {error.message}"
            report.reader = "av"
    from sttm_cli.decode.av_reader import read_av

    yield from read_av(path, replace(plan, times_s=plan.times_s[done:]))


def _conclude(path: Path, plan: FramePlan, report: DecodeReport) -> None:
    """Say what was lost; raise VideoError where nothing is left."""
    asked = len(plan.times_s)
    if not report.times_s:
        raise VideoError(f"no frame of {path} could be decoded", "the file is damaged or cut off")
    if report.lost:
        report.warnings.append(_loss(asked, report))


def _loss(asked: int, report: DecodeReport) -> str:
    whole = f"{report.lost} of {asked} frames could not be decoded and are left out"
    damaged, ended = report.causes.get(DAMAGED, 0), report.causes.get(ENDED, 0)
    last = max(report.times_s)
    if not damaged:
        return f"{whole}: the video's data end after {last:.1f} s"
    if not ended:
        return f"{whole}: the video is damaged"
    return f"{whole}: {damaged} are damaged, and the data end after {last:.1f} s"
