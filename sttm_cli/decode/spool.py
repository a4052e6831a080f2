"""Write a video's bytes from elsewhere to a file, with bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sttm_cli.base.errors import VideoError
from sttm_cli.settings.fields import size_text

BLOCK = 1 << 20
TIMEOUT_S = 30.0
"""Seconds for which a connection may be silent, or slower than `LEAST_SPEED`."""
LEAST_SPEED = 1000
"""Average bytes per second below which a download counts as stalled."""

LONGEST_S = 6 * 3600.0
"""Time limit in seconds for the bytes of one video."""


def write(
    blocks: Iterator[bytes],
    target: Path,
    *,
    name: str,
    max_bytes: int,
    on_bytes: Callable[[int], None],
) -> int:
    """Write `blocks`, at most `max_bytes` in total, to `target`; return the number of bytes."""
    done = 0
    with target.open("wb") as file:
        for block in blocks:
            done += len(block)
            check_size(name, done, max_bytes)
            file.write(block)
            on_bytes(done)
    return done


def check_size(name: str, size: int, max_bytes: int) -> None:
    """Raise VideoError where a video from elsewhere is larger than `max_bytes`."""
    if size > max_bytes:
        raise VideoError(
            f"{name} is larger than --max-download allows ({size_text(max_bytes)})",
            "give a larger --max-download, or fetch it yourself and give the file",
        )
