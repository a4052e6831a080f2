"""Data of all pictures: thumbnails of a sampled video, tokens at a budget, mean colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]
Index = NDArray[np.int64]

SIDE, LEAST_SIDE = 384, 96
PIXELS = 64 * SIDE * SIDE
"""Limits of the thumbnails: pixels of a frame's longer side, and of all frames together."""


@dataclass(frozen=True, eq=False)
class View:
    """`frames` [T, H, W, 3] uint8: a thumbnail of each grid step; `times_s` [T]."""

    frames: Frames
    times_s: Sequence[float]


@dataclass(frozen=True, eq=False)
class Kept:
    """The tokens at one budget: `tokens` [T, h, w] int64, the token of each finest cell, -1 if
    dropped; `boxes` [N, 5] int32, the tokens' boxes where they begin (t, top, left, bottom, right).
    """

    budget: float | int
    tokens: Index
    boxes: NDArray[np.int32]

    def began(self, step: int) -> NDArray[np.bool_]:
        """Return the mask [h, w] of cells whose tokens begin at this step."""
        tokens = self.tokens[step]
        began: NDArray[np.bool_] = (tokens >= 0) & (self.boxes[tokens, 0] == step)
        return began

    def count(self, step: int) -> int:
        """Count the tokens that begin at this step."""
        return int(np.count_nonzero(self.boxes[:, 0] == step))

    def caption(self, step: int) -> str:
        """Return the numbers of cells and of tokens that begin here: "196 -> 61 tokens"."""
        return f"{self.tokens[step].size} -> {self.count(step)} tokens"

    @property
    def is_whole(self) -> bool:
        """Whether every cell has its own token."""
        return len(self.boxes) == self.tokens.size

    @property
    def carries(self) -> bool:
        """Whether any token includes cells of later frames."""
        steps = np.arange(len(self.tokens))[:, None, None]
        return bool(((self.tokens >= 0) & (self.boxes[self.tokens, 0] != steps)).any())

    @property
    def drops(self) -> bool:
        """Whether any cell is dropped."""
        return bool((self.tokens < 0).any())

    @property
    def title(self) -> str:
        kept, full = len(self.boxes), self.tokens.size
        return f"budget {self.budget:g}: {kept:,} of {full:,} tokens ({100 * kept / full:.0f} %)"


def thumbnail(frame: Frames, count: int) -> Frames:
    """Shrink one of `count` frames [H, W, 3] so that all together stay within the limits."""
    side = max(LEAST_SIDE, min(SIDE, int((PIXELS / count) ** 0.5)))
    picture = Image.fromarray(frame)
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def cell_colours(frames: Frames, tokens: Index) -> Frames:
    """Compute the mean colours [T, h, w, 3] of the finest cells."""
    _, rows, columns = tokens.shape
    return np.stack([resized(frame, columns, rows, Image.Resampling.BOX) for frame in frames])


def token_colours(cells: Frames, tokens: Index) -> Frames:
    """Compute the mean colours [N + 1, 3] of the tokens; the last one, for token -1, is black."""
    kept, colours = tokens.ravel() >= 0, cells.reshape(-1, 3).astype(np.float64)
    flat, colours = tokens.ravel()[kept], colours[kept]
    counts = np.maximum(np.bincount(flat), 1)
    sums = np.stack([np.bincount(flat, colours[:, channel]) for channel in range(3)], axis=1)
    return np.vstack([sums / counts[:, None], np.zeros(3)]).round().astype(np.uint8)


def resized(picture: Frames, width: int, height: int, how: Image.Resampling) -> Frames:
    return np.asarray(Image.fromarray(picture).resize((width, height), how))


def evenly(count: int, shown: int) -> list[int]:
    """Return at most `shown` of `count` steps, evenly spaced, including the first and the last."""
    if count <= shown:
        return list(range(count))
    return [i * (count - 1) // (shown - 1) for i in range(shown)]


def clock(seconds: float) -> str:
    """Format seconds as [H:]MM:SS, with tenths if not zero."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours = f"{minutes // 60}:" if minutes >= 60 else ""
    text = f"{hours}{minutes % 60:02d}:{rest / 10:04.1f}"
    return text.removesuffix(".0")
