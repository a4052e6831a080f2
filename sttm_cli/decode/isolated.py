"""Probe and read in child processes, where a hang can be ended and a crash does no harm.

A child does one job after another: only the first video of a process waits for one to start.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path
from threading import Lock, Timer
from typing import IO, Any

from sttm_cli.base.errors import DisturbedError, VideoError
from sttm_cli.base.system import command, environment
from sttm_cli.base.types import DecodeReport, FramePlan, VideoInfo
from sttm_cli.decode.file import NEEDED, changed, file_version
from sttm_cli.decode.lost import DAMAGED, Lost, Reading
from sttm_cli.decode.source import video_version

PATIENCE_S = 60.0
"""Seconds after which a child that decodes a frame or opens a file counts as hung."""
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP) if os.name == "posix" else ()
"""Signals that come from the system or a person, never from a fault of the process."""
KILLED = "the system kills processes where memory runs out: free some, and ask again"


def probe_isolated(path: Path, *, image_fps: float = 1.0, version: str = "") -> VideoInfo:
    """Like `probe`, or `probe_images` for a folder. Raises VideoError, also if opening the file
    crashes, hangs or needs too much memory."""
    _check(path)
    with _child() as child:
        child.start({"do": "probe", "image_fps": image_fps}, path, version)
        head = child.line()
        if "info" in head:
            child.finish()
            return VideoInfo(**{**head["info"], "notes": tuple(head["info"]["notes"])})
        raise child.failure(head, f"{path} cannot be read", NEEDED)


def read_isolated(
    path: Path, plan: FramePlan, report: DecodeReport, version: str = ""
) -> Iterator[Reading]:
    """Yield a reading for each of the plan's times, from the plan's reader; `report` collects
    damage.

    Raises VideoError if the reader refuses the file, fails, crashes or hangs; DisturbedError if the
    file does not have `version`, changes before the last frame is read, or the reader is killed:
    the frames already read are then invalid.
    """
    _check(path)
    with _child() as child:
        child.start({"do": "read", "plan": asdict(plan)}, path, version)
        done = 0
        while done < len(plan.times_s):
            head = child.line()
            if "damaged" in head:
                report.causes.setdefault(DAMAGED, 0)
            elif "lost" in head:
                yield Lost(head["lost"])
                done += 1
            elif "shape" in head:
                yield head["time_s"], child.picture(head["shape"])
                done += 1
            else:
                hint = "use --decoder auto" if plan.reader == "decord" else NEEDED
                raise child.failure(head, f"{plan.reader} cannot read {path}", hint)
        report.warnings += child.finish()


def _check(path: Path) -> None:
    """Report a fault of the file before starting a process for it."""
    if not path.is_dir():
        file_version(path)


_idle: list[_Child] = []
_lock = Lock()


class _Child:
    """A child process and its pipes."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            command("sttm_cli.decode.child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        self._out = _pipe(self._process.stdout)
        self.busy, self._path, self._version = False, Path(), ""
        self._hung = False

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def start(self, job: dict[str, Any], path: Path, version: str) -> None:
        self.busy, self._path, self._version = True, path, version
        job |= {"path": os.fsencode(path.absolute()).hex(), "version": version}
        try:
            _pipe(self._process.stdin).write(json.dumps(job).encode() + b"\n")
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            # Reading the reply raises the error.
            return

    def line(self) -> dict[str, Any]:
        """Return the next line of the reply, {"ended": reason} if there is none."""
        data = self._patiently(self._out.readline)
        return json.loads(data) if data.endswith(b"\n") else {"ended": self._ending()}

    def picture(self, shape: list[int]) -> Any:
        size = prod(shape)
        data = self._patiently(lambda: self._out.read(size))
        if len(data) < size:
            start = f"{self._path} cannot be read"
            raise self.failure({"ended": self._ending()}, start, NEEDED)
        import numpy as np

        return np.frombuffer(data, np.uint8).reshape(shape)

    def finish(self) -> list[str]:
        """Read the end of a completely received reply and return the job's warnings; if it ended
        well, the child can take another job. Raises DisturbedError if the file has another
        version."""
        end = self.line()
        if "done" not in end:
            failure = self.failure(end, f"{self._path} cannot be read", NEEDED)
            if isinstance(failure, DisturbedError):
                raise failure
            return []
        self.busy = False
        return list(end["warnings"])

    def failure(self, head: dict[str, Any], start: str, hint: str) -> VideoError:
        """Return the error for a job that failed with the last line `head`."""
        self.busy = "changed" not in head and head.get("hint") is None
        if "changed" in head or self._is_changed():
            return changed(self._path)
        if head.get("hint"):
            named = head["error"].replace(str(self._path.absolute()), str(self._path))
            return VideoError(named, head["hint"])
        if "error" in head:
            return VideoError(f"{start}: {_plain(head['error'])}", hint)
        if self._is_killed:
            return DisturbedError(f"{start}: {head['ended']}", KILLED)
        return VideoError(f"{start}: {head['ended']}", hint)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _patiently(self, read: Any) -> bytes:
        watch = Timer(PATIENCE_S, self._give_up)
        watch.start()
        try:
            data: bytes = read()
        finally:
            watch.cancel()
        return data

    def _give_up(self) -> None:
        self._hung = True
        self._process.kill()

    @property
    def _is_killed(self) -> bool:
        """Whether another process killed the child: not a fault of the file."""
        return not self._hung and self._process.poll() in {-number for number in FROM_OUTSIDE}

    def _is_changed(self) -> bool:
        try:
            return bool(self._version) and video_version(self._path) != self._version
        except VideoError:
            return True

    def _ending(self) -> str:
        code = self._process.wait()
        if self._hung:
            return f"nothing came for {PATIENCE_S:.0f} s"
        if code >= 0:
            return "the reader crashed" if code else "the reader ended without a frame"
        name = _signal_name(-code)
        return f"the reader {'was killed' if self._is_killed else 'crashed'} ({name})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def _child() -> Iterator[_Child]:
    """Borrow a child process; it returns to the pool unless its job was interrupted."""
    with _lock:
        ready = [child for child in _idle if child.is_alive]
        _idle[:] = ready[1:]
    child = ready[0] if ready else _Child()
    try:
        yield child
    finally:
        if child.busy:
            child.end()
        else:
            with _lock:
                _idle.append(child)


if hasattr(os, "register_at_fork"):
    # A forked process must not use its parent's children.
    os.register_at_fork(after_in_child=_idle.clear)


@atexit.register
def end_children() -> None:
    """End the idle children."""
    with _lock:
        while _idle:
            _idle.pop().end()


def _plain(error: str) -> str:
    """Return a reader's message without source locations, timestamps and paths."""
    text = re.sub(r"\[[^\]]*\]|\S*/\S*|Check failed:", " ", error)
    return re.sub(r"\s+", " ", text).strip(" :")[:120] or "it gives no reason"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the reading process was started without pipes")
    return pipe
