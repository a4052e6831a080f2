"""Run as a child process: yt-dlp downloads the video of one page into the working folder.

Input: one JSON line {"address", "max_bytes"}; the end of the input ends this process.
Output: JSON lines {"progress": [bytes so far, bytes expected or 0]}, then {"error": one line},
which is "" after a success.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from threading import Thread
from typing import Any, BinaryIO

from sttm_cli.base.system import bound_memory
from sttm_cli.base.types import Json
from sttm_cli.decode.spool import BLOCK, TIMEOUT_S

MEMORY_BYTES = 768 << 20
"""yt-dlp takes about 100 MB, and several times the size of compressed pages."""
PAGE_BYTES = 32 << 20
"""Bytes of all pages and playlists on the way to one video; YouTube's take about 10 MB."""
_TOO_MUCH_MEMORY = "its page takes too much memory"
_TOO_LARGE = f"its page is larger than {PAGE_BYTES >> 20} MiB"
# The best picture up to 1080 lines, more than any model here uses; audio is not needed.
_FORMAT = "bestvideo[height<=1080]/best[height<=1080]/bestvideo/best"


def main() -> None:
    # yt-dlp and its processes may print, and stdout is reserved for the protocol.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.buffer.readline())
    Thread(target=_end_with_parent, daemon=True).start()
    _bound(job["max_bytes"])
    try:
        _line(out, {"error": _download(job["address"], out)})
    except MemoryError:
        _line(out, {"error": _TOO_MUCH_MEMORY})
    # Do not wait for threads or processes that yt-dlp may have left.
    os._exit(0)


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _bound(max_bytes: int) -> None:
    """Bound the memory of every process and the size of every file written from here on."""
    bound_memory(MEMORY_BYTES)
    try:
        import resource
    except ImportError:
        # Windows has no such limits.
        return
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    # One more byte, so that a file that is too large differs from one that fits.
    bound = max_bytes + 1 if most == resource.RLIM_INFINITY else min(max_bytes + 1, most)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bound, most))


def _download(address: str, out: BinaryIO) -> str:
    """Download the page's video; return the reason of a failure, or ""."""
    import yt_dlp

    page_bytes = 0

    class Bounded(yt_dlp.YoutubeDL):  # type: ignore[misc]
        """Reads at most `PAGE_BYTES` of pages; videos are read in blocks and not counted."""

        def urlopen(self, request: Any) -> Any:
            response = super().urlopen(request)
            read = response.read

            def read_bounded(amount: int | None = None) -> Any:
                nonlocal page_bytes
                if amount is not None:
                    return read(amount)
                data = bytearray()
                while not response.closed and (block := read(BLOCK)):
                    data += block
                    page_bytes += len(block)
                    if page_bytes > PAGE_BYTES:
                        raise yt_dlp.utils.DownloadError(_TOO_LARGE)
                return bytes(data)

            response.read = read_bounded
            return response

    def follow(state: dict[str, Any]) -> None:
        sizes = (int(state.get(f"{which}_bytes") or 0) for which in ("downloaded", "total"))
        _line(out, {"progress": list(sizes)})

    try:
        with Bounded({**_options(), "progress_hooks": [follow]}) as page:
            page.extract_info(address)
    except Exception as error:
        # yt-dlp ignores some failures and then reports their consequences.
        return _TOO_LARGE if page_bytes > PAGE_BYTES else _reason(error)
    return ""


def _options() -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "outtmpl": "video.%(ext)s",
        "noplaylist": True,
        "playlist_items": "1",
        "fixup": "never",
        "cachedir": False,
        "socket_timeout": TIMEOUT_S,
        "retries": 3,
        "noprogress": True,
        "logger": _Silent(),
    }


class _Silent:
    """Discards yt-dlp's output; its errors are also raised."""

    def debug(self, line: str) -> None: ...
    def info(self, line: str) -> None: ...
    def warning(self, line: str) -> None: ...
    def error(self, line: str) -> None: ...


def _reason(error: BaseException) -> str:
    """Return the first line of yt-dlp's message, without the advice to report it."""
    causes: list[Any] = [error]
    while causes:
        cause = causes.pop()
        if isinstance(cause, MemoryError):
            return _TOO_MUCH_MEMORY
        causes += [each for each in (getattr(cause, "cause", None), cause.__context__) if each]
        causes += getattr(cause, "unexpected_errors", ())
    text = str(error).removeprefix("ERROR: ").strip() or type(error).__name__
    return text.splitlines()[0].split("; please report")[0][:200]


def _line(out: BinaryIO, value: Json) -> None:
    out.write(json.dumps(value).encode() + b"\n")
    out.flush()


if __name__ == "__main__":
    main()
