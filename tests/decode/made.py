"""Small videos with known contents: each frame tells its own number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

SIDE = 16
BITS = 8


def numbered(number: int, width: int = 160, height: int = 96) -> np.ndarray:
    """A picture [H, W, 3] whose upper row of blocks holds `number` in binary, dark and light.

    Its left third is reddish and its lower third bluish, so that turns and mirrors show.
    """
    frame = np.full((height, width, 3), 90, np.uint8)
    frame[:, : width // 3, 0] = 180
    frame[-height // 3 :, :, 2] = 200
    block = width // BITS
    for bit in range(BITS):
        frame[: height // 3, bit * block : (bit + 1) * block] = 235 if number >> bit & 1 else 20
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that a picture made by `numbered` tells, at any size."""
    height, width = frame.shape[:2]
    row = frame[height // 6].mean(axis=-1)
    at = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    return sum(int(row[x] > 128) << bit for bit, x in enumerate(at))


@dataclass
class Make:
    """How to write a video; `pts` in units of `base`, one for each frame."""

    codec: str = "libx264"
    pts: Sequence[int] = tuple(range(60))
    base: Fraction = Fraction(1, 10)
    size: tuple[int, int] = (160, 96)
    pixels: str = "yuv420p"
    gop: int = 12
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    set_up: Callable[[Any], None] = lambda stream: None

    def write(self, target: Path) -> Path:
        """Write the video; frame i shows `numbered(i)`."""
        with av.open(str(target), "w", options=self.container) as container:
            stream = container.add_stream(self.codec, rate=1 / self.base, options=self.options)
            stream.width, stream.height = self.size
            stream.pix_fmt, stream.time_base = self.pixels, self.base
            stream.codec_context.time_base = self.base
            stream.codec_context.gop_size = self.gop
            self.set_up(stream)
            for number, pts in enumerate(self.pts):
                frame = av.VideoFrame.from_ndarray(numbered(number, *self.size), format="rgb24")
                frame.pts, frame.time_base = pts, self.base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return target
