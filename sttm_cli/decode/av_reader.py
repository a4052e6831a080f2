"""Read frames with PyAV: any format, seeking by keyframe, with errors caught per packet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from sttm_cli.base.types import FramePlan
from sttm_cli.decode.container import open_video
from sttm_cli.decode.cursor import Cursor
from sttm_cli.decode.lost import Lost, Reading
from sttm_cli.decode.pixels import RGB, picture

ROUNDING_S = 2e-6
"""Requested times are rounded to microseconds."""


def read_sound(path: Path, plan: FramePlan, version: str = "") -> Iterator[Reading]:
    """Yield the frame on show at each of the plan's times, with its true time, until the first
    damage.

    Ends early, without any reading that damage could have affected, if a packet does not decode.
    Raises as `open_video`.
    """
    with open_video(path, version) as (container, stream):
        cursor = Cursor(container, stream)
        for found in _readings(cursor, plan):
            if cursor.damaged:
                return
            yield found


def read_damaged(path: Path, plan: FramePlan, version: str = "") -> Iterator[Reading]:
    """Yield the frame on show at each of the plan's times, or its loss.

    Uses a single thread: several frame threads lose more of a damaged stream, by an amount that
    depends on their number. Raises as `open_video`.
    """
    with open_video(path, version, threads="SLICE") as (container, stream):
        yield from _readings(Cursor(container, stream), plan)


def _readings(cursor: Cursor, plan: FramePlan) -> Iterator[Reading]:
    last: tuple[int, RGB] | None = None
    for time in plan.times_s:
        try:
            pts, frame = cursor.at(math.floor((time + plan.origin_s + ROUNDING_S) / cursor.base))
        except Lost as lost:
            yield lost
            continue
        if last is None or last[0] != pts:
            last = pts, picture(frame, plan.size, plan.transfer)
        yield max(0.0, round(float(pts * cursor.base) - plan.origin_s, 6)), last[1]
