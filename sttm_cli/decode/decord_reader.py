"""Reading frames with decord, in a child process that can be ended when it hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import IO

import numpy as np

from sttm_cli.decode.hidden import hides_frames
from sttm_cli.decode.lost import Lost
from sttm_cli.decode.pixels import RGB, fitted
from sttm_cli.errors import VideoError
from sttm_cli.types import FramePlan

PATIENCE_S = 60.0
"""How long decord may take for one frame before it counts as hanging."""


def read_decord(path: Path, plan: FramePlan) -> Iterator[tuple[float, RGB] | Lost]:
    """For each of the plan's times the frame on show and its true time.

    Raises VideoError, naming another decoder, where decord refuses the file, fails or hangs.
    """
    if hides_frames(path):
        raise _failed(path, "it has hidden frames, which decord counts as shown ones")
    with _process(path, plan) as process:
        for _ in plan.times_s:
            time, frame = _frame(path, process)
            yield round(time, 6), fitted(frame, plan.size, plan.transfer)


@contextmanager
def _process(path: Path, plan: FramePlan) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "sttm_cli.decode.decord_frames"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        job = {"path": str(path.absolute()), "times_s": plan.times_s}
        _pipe(process.stdin).write(json.dumps(job).encode() + b"\n")
        _pipe(process.stdin).flush()
        yield process
    finally:
        process.kill()
        process.communicate()


def _frame(path: Path, process: subprocess.Popen[bytes]) -> tuple[float, RGB]:
    """The next time and frame [H, W, 3]; the process is ended when they take too long."""
    out = _pipe(process.stdout)
    watch = Timer(PATIENCE_S, process.kill)
    watch.start()
    try:
        line = out.readline()
        head = json.loads(line) if line else {"error": _ending(process)}
        if "error" in head:
            raise _failed(path, head["error"])
        height, width, depth = head["shape"]
        data = out.read(height * width * depth)
    finally:
        watch.cancel()
    if len(data) < height * width * depth:
        raise _failed(path, _ending(process))
    return float(head["time_s"]), np.frombuffer(data, np.uint8).reshape(height, width, depth)


def _ending(process: subprocess.Popen[bytes]) -> str:
    """What became of a process that stopped writing."""
    code = process.wait()
    if code == -9:
        return f"it gave no frame for {PATIENCE_S:.0f} s and was ended"
    return "it crashed" if code < 0 else "it ended without a frame"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the decord process was started without pipes")
    return pipe


def _failed(path: Path, reason: str) -> VideoError:
    return VideoError(f"decord cannot read {path}: {reason}", "use --decoder auto or --decoder av")
