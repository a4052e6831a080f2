"""Reading frames in a child process: what hangs is ended, what crashes takes nothing with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Timer
from typing import IO, Any

import numpy as np

import sttm_cli
from sttm_cli.decode.lost import Lost, Reading
from sttm_cli.errors import VideoError
from sttm_cli.types import FramePlan

PATIENCE_S = 60.0
"""How long a reader may take for one frame before it counts as hanging."""


def read_isolated(path: Path, plan: FramePlan, reader: str) -> Iterator[Reading]:
    """For each of the plan's times what `reader` ("decord", or "av" for damaged files) gives.

    Raises VideoError where it refuses the file, fails, crashes or hangs.
    """
    with _process(path, plan, reader) as process:
        for _ in plan.times_s:
            watch = Timer(PATIENCE_S, process.kill)
            watch.start()
            try:
                found = _reading(process)
            finally:
                watch.cancel()
            if isinstance(found, str):
                raise VideoError(f"{reader} cannot read {path}: {found}", "use --decoder auto")
            yield found


@contextmanager
def _process(path: Path, plan: FramePlan, reader: str) -> Iterator[subprocess.Popen[bytes]]:
    package = str(Path(sttm_cli.__file__).parents[1])
    seen = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "sttm_cli.decode.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": seen},
    )
    job = {"reader": reader, "path": os.fsencode(path.absolute()).hex(), "plan": asdict(plan)}
    try:
        _pipe(process.stdin).write(json.dumps(job).encode() + b"\n")
        _pipe(process.stdin).flush()
        yield process
    finally:
        process.kill()
        process.communicate()


def _reading(process: subprocess.Popen[bytes]) -> Reading | str:
    """The next reading, or why there is none."""
    out = _pipe(process.stdout)
    line = out.readline()
    if not line.endswith(b"\n"):
        return _ending(process)
    head: dict[str, Any] = json.loads(line)
    if "error" in head:
        return _plain(head["error"])
    if "lost" in head:
        return Lost(head["lost"])
    shape = tuple(head["shape"])
    data = out.read(int(np.prod(shape)))
    if len(data) < np.prod(shape):
        return _ending(process)
    return head["time_s"], np.frombuffer(data, np.uint8).reshape(shape)


def _plain(error: str) -> str:
    """A reader's message without the source places, stamps and paths in it."""
    text = re.sub(r"\[[^\]]*\]|\S*/\S*|Check failed:", " ", error)
    return re.sub(r"\s+", " ", text).strip(" :")[:120] or "it gives no reason"


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    if code == -9:
        return f"no frame came for {PATIENCE_S:.0f} s"
    return "it crashed" if code else "it ended without a frame"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the reading process was started without pipes")
    return pipe
