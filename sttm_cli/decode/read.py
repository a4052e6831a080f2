"""Frames in chunks of bounded size, with a report of their losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import DisturbedError, VideoError
from sttm_cli.base.types import DecodeReport, FrameChunk, FramePlan
from sttm_cli.decode.lost import DAMAGED, ENDED, Lost, Reading

SHOWN_CAUSES = 3
"""How many damaged images of a folder are named."""


def read_frames(
    path: Path,
    plan: FramePlan,
    *,
    report: DecodeReport,
    version: str = "",
    multiple: int = 1,
    max_chunk_bytes: int = 64 << 20,
) -> Iterator[FrameChunk]:
    """Read the plan's frames, a multiple of `multiple` at a time (the last chunk may be short).

    Frames are [T, H, W, 3] uint8 RGB as in `FrameChunk`, at most `max_chunk_bytes` of them at once
    unless `multiple` frames take more. A frame that cannot be decoded is left out and counted in
    `report`, which is complete after the last chunk. Raises VideoError if no frame can be decoded,
    DisturbedError if the file changes before the last chunk or does not have `version` (of
    `video_version`, if given): all chunks are then invalid.
    """
    import numpy as np

    width, height = plan.size
    count = max(multiple, max_chunk_bytes // (width * height * 3) // multiple * multiple)
    pictures: list[Any] = []
    for time, picture in _kept(_readings(path, plan, report, version), report):
        pictures.append(picture)
        report.times_s.append(time)
        if len(pictures) == count:
            yield FrameChunk(np.stack(pictures), tuple(report.times_s[-count:]))
            pictures = []
    if pictures:
        yield FrameChunk(np.stack(pictures), tuple(report.times_s[-len(pictures) :]))
    if not report.times_s:
        raise VideoError(f"no frame of {path} could be decoded", "it is damaged or cut off")
    if report.lost:
        report.warnings.append(_loss(len(plan.times_s), report))
    elif report.causes:
        report.warnings.append("the video is damaged: frames may show traces of it")


def _kept(readings: Iterator[Reading], report: DecodeReport) -> Iterator[tuple[float, Any]]:
    """Yield the decoded frames with their times; count the others by cause."""
    for found in readings:
        if isinstance(found, Lost):
            report.lost += 1
            report.causes[found.cause] = report.causes.get(found.cause, 0) + 1
        else:
            yield found


def _readings(path: Path, plan: FramePlan, report: DecodeReport, version: str) -> Iterator[Reading]:
    """Yield one reading per requested time, from the plan's reader or from the fallback."""
    report.reader = plan.reader
    from sttm_cli.decode.isolated import read_isolated

    done = 0
    try:
        for found in read_isolated(path, plan, report, version):
            yield found
            done += 1
    except DisturbedError:
        raise
    except VideoError as error:
        if done and plan.reader != "decord":
            yield from (Lost(DAMAGED) for _ in plan.times_s[done:])
        elif plan.fallback:
            yield from _taken_over(path, plan, report, version, error=error)
        else:
            raise


def _taken_over(
    path: Path, plan: FramePlan, report: DecodeReport, version: str, *, error: VideoError
) -> Iterator[Reading]:
    """Yield the fallback's readings after the plan's reader failed with `error`, which is raised if
    the fallback fails too."""
    report.fallback = error.message
    try:
        yield from _readings(
            path, replace(plan, reader=plan.fallback, fallback=""), report, version
        )
    except DisturbedError:
        raise
    except VideoError:
        raise error from None
    report.warnings.append(f"read with {plan.fallback}, as {plan.reader} failed; it is not stored")


def _loss(asked: int, report: DecodeReport) -> str:
    damaged, ended = report.causes.get(DAMAGED, 0), report.causes.get(ENDED, 0)
    why = []
    if damaged:
        why.append("the video is damaged, and what follows may show traces of it")
    why += [cause for cause in report.causes if cause not in (DAMAGED, ENDED)][:SHOWN_CAUSES]
    if ended:
        why.append(f"its data end after {max(report.times_s):.1f} s")
    were = "was" if report.lost == 1 else "were"
    return f"{report.lost} of {asked} frames could not be decoded and {were} left out: " + (
        "; ".join(why)
    )
