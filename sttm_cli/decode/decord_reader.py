"""Read frames with decord, only ever in a child process: see isolated.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sttm_cli.base.errors import VideoError
from sttm_cli.base.types import FramePlan
from sttm_cli.decode.container import hides_frames
from sttm_cli.decode.file import OpenFile, changed, file_version, open_file
from sttm_cli.decode.lost import Reading
from sttm_cli.decode.pixels import RGB, fitted


def read_decord(path: Path, plan: FramePlan, version: str = "") -> Iterator[Reading]:
    """Yield the frame on show at each of the plan's times, with its true time.

    Raises VideoError for a file whose frames or times decord gets wrong, DisturbedError as
    `open_file`, and any exception of decord.
    """
    with open_file(path, version) as file:
        if hides_frames(path, file.version):
            raise VideoError("it has hidden frames, which decord counts as shown ones")
        yield from _readings(_name(file), plan)
        _check_path(file)


def _name(file: OpenFile) -> str:
    """Return a name by which decord can open the file again: its descriptor's, if there is one."""
    own = Path(f"/proc/self/fd/{file.fileno()}")
    return str(own if own.exists() else file.path.absolute())


def _check_path(file: OpenFile) -> None:
    # decord opened the path, where another file may have been at that moment.
    if file_version(file.path) != file.version:
        raise changed(file.path)


def _readings(name: str, plan: FramePlan) -> Iterator[Reading]:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(name)
    shown = _times(reader)
    last: tuple[int, RGB] | None = None
    for time in plan.times_s:
        index = max(0, int(np.searchsorted(shown, time + 2e-6, "right")) - 1)
        if last is None or index != last[0]:
            last = index, fitted(reader[index].asnumpy(), plan.size, plan.transfer)
        yield round(float(shown[index]), 6), last[1]


def _times(reader: object) -> NDArray[np.float64]:
    """Return when each frame is shown, in seconds from the first one."""
    times = reader.get_frame_timestamp(range(len(reader)))[:, 0]  # type: ignore[attr-defined,arg-type]
    shown = np.asarray(times, np.float64)
    if not (np.all(np.isfinite(shown)) and np.all(np.diff(shown) >= 0) and abs(shown[0]) < 1e9):
        raise VideoError("it gives no usable frame times")
    first = float(shown[0])
    return np.asarray(shown - first)
