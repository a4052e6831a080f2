"""The checks on a video file that need no decoder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sttm_cli.base.errors import VideoError

NEEDED = "give a file with a video stream, such as .mp4, .mkv, .webm or .mov"

PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<MPD", b"<?xml", b"<smil", b"<asx")
"""How files begin that only name other files or addresses, which are never followed."""


def check_file(path: Path) -> os.stat_result:
    """Return the file's stat; raise VideoError unless it is a readable, non-empty file."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise VideoError(f"{path} is a folder, not a video", NEEDED)
        if not stat.S_ISREG(found.st_mode):
            raise VideoError(f"{path} is not a regular file", "give a file, or - and pipe it in")
        if found.st_size == 0:
            raise VideoError(f"{path} is empty", NEEDED)
        with path.open("rb") as file:
            head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    except FileNotFoundError:
        raise VideoError(f"there is no file {path}", "check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path} cannot be read: {reason}", "check the path") from None
    if head.lower().startswith(tuple(mark.lower() for mark in PLAYLISTS)):
        raise VideoError(f"{path} is a playlist or a text, not a video", NEEDED)
    return found


def version_key(path: Path, found: os.stat_result) -> str:
    """What tells one version of a file from another without reading it."""
    # Names need not be text; the index holds nothing else.
    name = os.fsencode(path.absolute()).decode(errors="backslashreplace")
    # Unlike the modification time, nobody can set the change time back.
    times = f"{found.st_mtime_ns}|{found.st_ctime_ns}"
    return f"{name}|{found.st_size}|{times}|{found.st_ino}"
