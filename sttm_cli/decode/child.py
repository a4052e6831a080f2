"""Run as a process of its own: reads frames and writes them to stdout.

A reader can hang or crash on damaged input; here it takes nothing with it. Input: the job as one
JSON line on stdin. Output: for each time one JSON line, {"time_s", "shape"} followed by the raw
RGB bytes, or {"lost"}; a last line {"error"} where reading fails altogether.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from sttm_cli.decode.lost import Lost
from sttm_cli.errors import SttmError
from sttm_cli.types import FramePlan


def main() -> None:
    # Readers may print; stdout is for frames alone.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    try:
        _write(job, out)
    except Exception as error:
        # Whatever a reader raises becomes one line; its process ends either way.
        text = error.message if isinstance(error, SttmError) else str(error)
        _line(out, {"error": (text.strip() or type(error).__name__).splitlines()[0]})


def _write(job: dict[str, Any], out: BinaryIO) -> None:
    plan = FramePlan(**{**job["plan"], "size": tuple(job["plan"]["size"])})
    if job["reader"] == "decord":
        from sttm_cli.decode.decord_reader import read_decord as read
    else:
        from sttm_cli.decode.av_reader import read_damaged as read
    for found in read(Path(os.fsdecode(bytes.fromhex(job["path"]))), plan):
        if isinstance(found, Lost):
            _line(out, {"lost": found.cause})
        else:
            _line(out, {"time_s": found[0], "shape": found[1].shape})
            out.write(found[1].tobytes())
    out.flush()


def _line(out: BinaryIO, value: dict[str, Any]) -> None:
    out.write(json.dumps(value).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
