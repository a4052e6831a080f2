"""A picture of what was merged: frames in a row, their cells, and what the tokens stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WIDTH = 224
"""Pixels of one frame's column."""
GAP = 8
CAPTION = 20
INK, PAPER = (30, 30, 30), (255, 255, 255)
# Outlines from the finest cell to the coarsest; seen against dark and bright frames alike.
LEVELS = ((255, 255, 255), (255, 214, 10), (255, 122, 0), (230, 0, 90), (130, 0, 200))

Frames = NDArray[np.uint8]
Index = NDArray[np.int64]


def draw(
    frames: Frames, times_s: Sequence[float], tokens: Index, boxes: NDArray[np.int32]
) -> Image.Image:
    """Draw a row of frames with their merged cells.

    `frames` [T, H, W, 3] uint8 and their `times_s` are those to be shown; `tokens` [T, h, w]
    tells for each finest cell of these frames the token it went to, `boxes` [N, 5] the root
    boxes (t, top, left, bottom, right) of all tokens, with t counted in shown frames (negative
    for a token that began in a frame before).

    From top to bottom: the frame; the frame with the cells outlined by their size, those that
    were carried over from an earlier frame dimmed; every cell in the mean colour of all that
    its token stands for; when, how many cells and how many tokens begin here.
    """
    height = round(WIDTH * frames.shape[1] / frames.shape[2])
    small = [Image.fromarray(f).resize((WIDTH, height), Image.Resampling.BOX) for f in frames]
    means = _token_colours(np.stack([np.asarray(s) for s in small]), tokens)
    count = len(frames)
    sheet = Image.new(
        "RGB", (count * (WIDTH + GAP) + GAP, 3 * (height + GAP) + GAP + CAPTION), PAPER
    )
    for column, (frame, cells) in enumerate(zip(small, tokens, strict=True)):
        left = GAP + column * (WIDTH + GAP)
        new = boxes[cells, 0] == column
        rows = (frame, _outlined(frame, cells, new), _painted(means[cells], new, (WIDTH, height)))
        for row, picture in enumerate(rows):
            sheet.paste(picture, (left, GAP + row * (height + GAP)))
        began = len(np.unique(cells[new]))
        caption = f"{_clock(times_s[column])}  {cells.size} -> {began}"
        ImageDraw.Draw(sheet).text(
            (left, 3 * (height + GAP) + GAP), caption, INK, ImageFont.load_default(14)
        )
    return sheet


def _token_colours(frames: Frames, tokens: Index) -> NDArray[np.float64]:
    """Mean colour [N, 3] of all shown cells of each token."""
    _, rows, columns = tokens.shape
    cells = np.stack(
        [
            np.asarray(Image.fromarray(f).resize((columns, rows), Image.Resampling.BOX))
            for f in frames
        ]
    )
    flat, colours = tokens.ravel(), cells.reshape(-1, 3).astype(np.float64)
    size = int(flat.max()) + 1
    counts = np.maximum(np.bincount(flat, minlength=size), 1)
    sums = [np.bincount(flat, colours[:, channel], minlength=size) for channel in range(3)]
    return np.stack(sums, axis=1) / counts[:, None]


def _outlined(frame: Image.Image, cells: Index, new: NDArray[np.bool_]) -> Image.Image:
    rows, columns = cells.shape
    mask = Image.fromarray((new * 255).astype(np.uint8)).resize(
        frame.size, Image.Resampling.NEAREST
    )
    dimmed = Image.blend(frame, Image.new("RGB", frame.size, PAPER), 0.65)
    picture = Image.composite(frame, dimmed, mask)
    pen = ImageDraw.Draw(picture)
    for cell in np.unique(cells[new]):
        ys, xs = np.nonzero((cells == cell) & new)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        scale = (frame.width / columns, frame.height / rows) * 2
        corners = [round(edge * by) for edge, by in zip(box, scale, strict=True)]
        level = int(max(box[2] - box[0], box[3] - box[1]) - 1).bit_length()
        colour = LEVELS[min(level, len(LEVELS) - 1)]
        pen.rectangle((corners[0], corners[1], corners[2] - 1, corners[3] - 1), outline=colour)
    return picture


def _painted(
    colours: NDArray[np.float64], new: NDArray[np.bool_], size: tuple[int, int]
) -> Image.Image:
    shown = np.where(new[..., None], colours, 0.35 * colours + 0.65 * np.array(PAPER))
    return Image.fromarray(shown.round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:02d}:{seconds % 60:04.1f}"
