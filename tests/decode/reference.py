"""A slow, obviously right decode to compare with: every frame, from the first to the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av


def decode_all(path: Path) -> list[tuple[float, Any]]:
    """Every frame of the best video stream with its time on the file's own clock, in the order
    in which the decoder gives them."""
    with av.open(f"file:{path}") as container:
        stream = container.streams.best("video")
        assert stream is not None
        found = []
        for packet in container.demux(stream):
            try:
                found += [(float(f.time), f) for f in packet.decode()]
            except av.FFmpegError:
                continue
        return found
