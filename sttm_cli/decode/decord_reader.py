"""Reading frames with decord. Only ever run in a process of its own: see isolated.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sttm_cli.base.errors import VideoError
from sttm_cli.base.types import FramePlan
from sttm_cli.decode.hidden import hides_frames
from sttm_cli.decode.lost import Reading
from sttm_cli.decode.pixels import RGB, fitted


def read_decord(path: Path, plan: FramePlan) -> Iterator[Reading]:
    """For each of the plan's times the frame on show and its true time.

    Raises VideoError for a file whose frames or times decord gets wrong, and whatever decord
    raises.
    """
    import decord

    if hides_frames(path):
        raise VideoError("it has hidden frames, which decord counts as shown ones")
    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(str(path.absolute()))
    shown = _times(reader)
    last: tuple[int, RGB] | None = None
    for time in plan.times_s:
        index = max(0, int(np.searchsorted(shown, time + 2e-6, "right")) - 1)
        if last is None or index != last[0]:
            last = index, fitted(reader[index].asnumpy(), plan.size, plan.transfer)
        yield round(float(shown[index]), 6), last[1]


def _times(reader: object) -> NDArray[np.float64]:
    """When each frame is shown, in seconds from the first one."""
    times = reader.get_frame_timestamp(range(len(reader)))[:, 0]  # type: ignore[attr-defined,arg-type]
    shown = np.asarray(times, np.float64)
    if not (np.all(np.isfinite(shown)) and np.all(np.diff(shown) >= 0) and abs(shown[0]) < 1e9):
        raise VideoError("it gives no usable frame times")
    first = float(shown[0])
    return np.asarray(shown - first)
