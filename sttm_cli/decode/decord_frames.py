"""Run as a process of its own: decord reads frames and writes them to stdout.

decord can hang, crash or leak on damaged files; here it can be ended from outside. Input: one
JSON line {"path", "times_s"} on stdin. Output: for each time a JSON line {"time_s", "shape"} and
the raw RGB bytes, or a last line {"error"}.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO


def main() -> None:
    job = json.loads(sys.stdin.readline())
    out = sys.stdout.buffer
    try:
        _write_frames(job["path"], job["times_s"], out)
    except Exception as error:
        # Whatever decord raises: the first line of its message says it.
        _line(out, {"error": (str(error).strip() or type(error).__name__).splitlines()[0][:200]})


def _write_frames(path: str, times_s: list[float], out: BinaryIO) -> None:
    import decord
    import numpy as np

    decord.logging.set_level(decord.logging.QUIET)
    reader = decord.VideoReader(path)
    shown = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(float)
    if not (np.all(np.isfinite(shown)) and np.all(np.diff(shown) > 0) and abs(shown[0]) < 1e9):
        raise ValueError("decord gives no usable frame times for this file")
    last, frame = -1, None
    for time in times_s:
        index = max(0, int(np.searchsorted(shown, time + shown[0], "right")) - 1)
        if frame is None or index != last:
            last, frame = index, reader[index].asnumpy()
        _line(out, {"time_s": float(shown[index] - shown[0]), "shape": frame.shape})
        out.write(memoryview(np.ascontiguousarray(frame)).cast("B"))
    out.flush()


def _line(out: BinaryIO, value: dict[str, Any]) -> None:
    out.write(json.dumps(value).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
