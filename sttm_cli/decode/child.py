"""Run as a child process: all decoding of videos and images happens here.

A file can make a decoder hang, crash or exhaust the memory; in a child this does no harm.
Input: jobs, a JSON line each: {"do": "probe", "path", "version", "image_fps"} or {"do": "read",
"path", "version", "plan"}; a file of another version is refused.
Output: for a probe {"info"}; for reading and each time {"time_s", "shape"} followed by the raw RGB
bytes, or {"lost"}, and {"damaged"} before the first one of a damaged file that is read once more.
Each job ends with {"done", "warnings"}, {"changed"} or {"error", "hint"}; hint is None unless the
error is one of ours.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

from sttm_cli.base.errors import DisturbedError, SttmError
from sttm_cli.base.system import bound_memory
from sttm_cli.base.types import DecodeReport, FramePlan, VideoInfo
from sttm_cli.decode.lost import Lost, Reading

MEMORY_BYTES = 3 << 30
"""8K in 10 bits with the maximum number of references takes 2.3 GB."""


def main() -> None:
    # Readers may print, and stdout is reserved for the protocol.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Ctrl-C reaches the whole process group; the parent ends its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bound_memory(MEMORY_BYTES)
    for line in sys.stdin:
        try:
            _line(out, {"done": True, "warnings": _do(json.loads(line), out)})
        except DisturbedError:
            _line(out, {"changed": True})
        except SttmError as error:
            _line(out, {"error": error.message, "hint": error.hint})
        except Exception as error:
            # Any exception of a reader becomes one line; the reader's state is unknown afterwards.
            too_much = isinstance(error, MemoryError)
            text = "it takes too much memory" if too_much else str(error).strip()
            _line(out, {"error": (text or type(error).__name__).splitlines()[0], "hint": None})
            return


def _do(job: dict[str, Any], out: BinaryIO) -> list[str]:
    """Write the job's reply to `out`; return its warnings."""
    path = Path(os.fsdecode(bytes.fromhex(job["path"])))
    if job["do"] == "probe":
        _line(out, {"info": asdict(_probed(path, job["version"], job["image_fps"]))})
        return []
    report = DecodeReport()
    plan = FramePlan(**{**job["plan"], "size": tuple(job["plan"]["size"])})
    for found in _readings(path, job["version"], plan, report=report, out=out):
        if isinstance(found, Lost):
            _line(out, {"lost": found.cause})
        else:
            _line(out, {"time_s": found[0], "shape": found[1].shape})
            out.write(found[1].data)
    out.flush()
    return report.warnings


def _probed(path: Path, version: str, image_fps: float) -> VideoInfo:
    if path.is_dir():
        from sttm_cli.decode.images import probe_images

        return probe_images(path, image_fps, version)
    from sttm_cli.decode.probe import probe

    return probe(path, version)


def _readings(
    path: Path, version: str, plan: FramePlan, *, report: DecodeReport, out: BinaryIO
) -> Iterator[Reading]:
    """Read fast until the first damage, and from there as `read_damaged`."""
    if plan.reader == "images":
        from sttm_cli.decode.images import read_images

        yield from read_images(path, plan, report, version)
        return
    if plan.reader == "decord":
        from sttm_cli.decode.decord_reader import read_decord

        yield from read_decord(path, plan, version)
        return
    from sttm_cli.decode.av_reader import read_damaged, read_sound

    done = 0
    for found in read_sound(path, plan, version):
        yield found
        done += 1
    if done < len(plan.times_s):
        _line(out, {"damaged": True})
        yield from read_damaged(path, replace(plan, times_s=plan.times_s[done:]), version)


def _line(out: BinaryIO, value: dict[str, Any]) -> None:
    out.write(json.dumps(value).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
