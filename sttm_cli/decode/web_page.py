"""Fetch a video from a web page (such as YouTube) with yt-dlp, an optional extra.

yt-dlp runs in a process group of its own (`page_child`), with bounds on its memory, its files and
its time: a page may be endless, and may refer to further pages, playlists and streams.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import IO

from sttm_cli.base.errors import VideoError
from sttm_cli.base.system import command, environment
from sttm_cli.base.types import Json, Progress
from sttm_cli.decode.spool import LEAST_SPEED, LONGEST_S, check_size

PATIENCE_S = 60.0
"""Time limit for each `PATIENCE_S * LEAST_SPEED` bytes of the video."""
_LOOK_S = 0.1
_LINE_BYTES = 1 << 16
_HINT = "check the address; a newer yt-dlp may know the page: pip install -U yt-dlp"


def download_from_page(address: str, target: Path, *, max_bytes: int, progress: Progress) -> None:
    """Write the video of the page at `address` to `target`.

    Raises VideoError if yt-dlp is not installed, if the page has no video or one that is too large,
    and if it takes too much memory or time.
    """
    if find_spec("yt_dlp") is None:
        raise VideoError(
            f"{address} is a web page, not a video file",
            "to take videos from web pages: python -m pip install yt-dlp",
        )
    with TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name)

        def check(size: int) -> None:
            check_size(address, size, max_bytes)

        with _child({"address": address, "max_bytes": max_bytes}, folder) as lines:
            failure = _failure(lines, lambda: _bytes_in(folder), check, progress)
        check(_bytes_in(folder))
        videos = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
        if failure or len(videos) != 1:
            raise VideoError(f"{address} gives no video: {failure or 'the page has none'}", _HINT)
        videos[0].rename(target)


def _failure(
    lines: queue.Queue[Json],
    written: Callable[[], int],
    check: Callable[[int], None],
    progress: Progress,
) -> str:
    """Wait for the child to end; return why there is no video, or ""."""
    mark, since = 0, time.monotonic()
    ends = since + LONGEST_S
    while time.monotonic() < ends:
        with suppress(queue.Empty):
            line = lines.get(timeout=_LOOK_S)
            if "progress" not in line:
                return str(line.get("error", "yt-dlp crashed"))
            done, total = line["progress"]
            check(max(done, total))
            progress("download", done, total)
        size = written()
        check(size)
        if size >= mark + PATIENCE_S * LEAST_SPEED:
            mark, since = size, time.monotonic()
        elif time.monotonic() - since > PATIENCE_S:
            return f"nothing came for {PATIENCE_S:.0f} s"
    return f"it took longer than {LONGEST_S / 3600:.0f} hours"


@contextmanager
def _child(job: Json, folder: Path) -> Iterator[queue.Queue[Json]]:
    """Run yt-dlp in `folder` and yield a queue of its lines, of which the last is {"error"}. It
    ends with the context and with this process, since it watches its stdin."""
    process = subprocess.Popen(
        command("sttm_cli.decode.page_child"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=environment(),
        start_new_session=True,
    )
    lines: queue.Queue[Json] = queue.Queue(maxsize=16)
    try:
        with suppress(BrokenPipeError):
            _pipe(process.stdin).write(json.dumps(job).encode() + b"\n")
            _pipe(process.stdin).flush()
        Thread(target=_read, args=(_pipe(process.stdout), lines), daemon=True).start()
        yield lines
    finally:
        _end(process)


def _read(out: IO[bytes], lines: queue.Queue[Json]) -> None:
    with suppress(ValueError, OSError):
        while line := out.readline(_LINE_BYTES):
            lines.put(json.loads(line))
    lines.put({"error": "yt-dlp crashed"})


def _end(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "killpg"):
        # The group outlives its leader if yt-dlp started a process of its own.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _bytes_in(folder: Path) -> int:
    """Return the bytes of all files in a folder that another process writes to."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise RuntimeError("the process was started without pipes")
    return pipe
