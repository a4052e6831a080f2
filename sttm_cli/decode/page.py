"""A video from a web page (YouTube and the like), with yt-dlp, which is an optional extra."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import VideoError
from sttm_cli.base.types import Progress
from sttm_cli.decode.spool import TIMEOUT_S, check_size

# The best picture up to 1080 lines, more than any model here looks at; sound is not needed.
FORMAT = "bestvideo[height<=1080]/best[height<=1080]/bestvideo/best"


def download_from_page(address: str, target: Path, *, max_bytes: int, progress: Progress) -> None:
    """Write the video that the page at `address` shows to `target`.

    Raises VideoError where yt-dlp is not installed, finds no video, or one that is too large.
    """
    if find_spec("yt_dlp") is None:
        raise VideoError(
            f"{address} is a web page, not a video file",
            "to take videos from web pages: pip install 'sttm-cli[web]'",
        )
    import yt_dlp

    with yt_dlp.YoutubeDL(_options(address, target.parent, max_bytes, progress)) as page:
        try:
            page.extract_info(address)
        except yt_dlp.utils.YoutubeDLError as error:
            raise VideoError(f"{address} gives no video: {_plain(error)}", HINT) from None
    found = [path for path in target.parent.iterdir() if path.is_file()]
    if len(found) != 1:
        raise VideoError(f"{address} gives no video", HINT)
    found[0].rename(target)
    check_size(address, target.stat().st_size, max_bytes)


HINT = "check the address; a newer yt-dlp may know the page: pip install -U yt-dlp"


def _options(address: str, folder: Path, max_bytes: int, progress: Progress) -> dict[str, Any]:
    def follow(state: dict[str, Any]) -> None:
        done = int(state.get("downloaded_bytes") or 0)
        total = int(state.get("total_bytes") or 0)
        check_size(address, max(done, total), max_bytes)
        progress("download", done, total)

    return {
        "format": FORMAT,
        "paths": {"home": str(folder)},
        "outtmpl": "video.%(ext)s",
        "noplaylist": True,
        "playlist_items": "1",
        "fixup": "never",
        "cachedir": False,
        "socket_timeout": TIMEOUT_S,
        "retries": 3,
        "noprogress": True,
        "logger": _Silent(),
        "progress_hooks": [follow],
    }


class _Silent:
    """What yt-dlp would print; its errors are raised as well."""

    def debug(self, line: str) -> None: ...
    def info(self, line: str) -> None: ...
    def warning(self, line: str) -> None: ...
    def error(self, line: str) -> None: ...


def _plain(error: Exception) -> str:
    """The first line of yt-dlp's message without its mark and its advice to report it."""
    text = str(error).removeprefix("ERROR: ").splitlines()[0]
    return text.split("; please report")[0][:200]
