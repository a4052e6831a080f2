"""A picture of merged tokens: a row of frames, and their cells and tokens at each budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sttm_cli.inspect.view import (
    SIDE,
    Frames,
    Kept,
    View,
    cell_colours,
    clock,
    evenly,
    resized,
    token_colours,
)

SHOWN = 8
"""Maximum number of frames in a picture, spread evenly over the video."""
WIDTH, HEIGHT = 224, 280
CELL = 12
"""Maximum pixels of a frame in the picture; minimum pixels of a cell, which takes precedence."""
GAP, LINE = 8, 22
LEFT, LEAST_WIDTH = 104, 640
"""Width in pixels of the row labels, and the minimum width of the picture."""
TITLE, TEXT, SMALL = 19, 14, 13
INK, SOFT, PAPER = (30, 30, 30), (95, 95, 102), (255, 255, 255)
# Outline colours from the finest cell to the coarsest, each with a seam of contrasting brightness,
# so that one of the two is visible on any frame.
LEVELS = ((0, 170, 255), (255, 160, 0), (255, 60, 0), (225, 0, 110), (130, 0, 200))
SEAMS = ((0, 0, 0), (0, 0, 0), (0, 0, 0), (255, 255, 255), (255, 255, 255))
Colour = tuple[int, int, int]
Entry = tuple[Colour, Colour, Colour, str]
"""Outline, seam and fill of a swatch of the legend, and its label."""
SAMPLE = (40, 140, 70)
"""The colour of the swatches of dimmed cells."""


@dataclass(frozen=True)
class _Grid:
    """The columns of tiles: size of a tile, distance between tiles, time steps."""

    tile: tuple[int, int]
    pitch: int
    steps: Sequence[int]

    @property
    def width(self) -> int:
        return max(LEAST_WIDTH, LEFT + len(self.steps) * self.pitch + GAP)

    def row(self, label: str, tiles: Sequence[Frames], captions: Sequence[str] = ()) -> Image.Image:
        """Draw a row of tiles with the label to the left and a caption below each tile."""
        height = GAP + self.tile[1] + LINE * bool(captions)
        row = Image.new("RGB", (self.width, height), PAPER)
        pen = ImageDraw.Draw(row)
        middle = (GAP, GAP + self.tile[1] / 2)
        pen.multiline_text(middle, label, INK, _font(SMALL), anchor="lm", spacing=4)
        for column, tile in enumerate(tiles):
            left = LEFT + column * self.pitch
            row.paste(Image.fromarray(tile), (left, GAP))
            if captions:
                pen.text((left, height - LINE + 4), captions[column], INK, _font(TEXT))
        return row


def draw(view: View, budgets: Sequence[Kept], *, title: str, about: str) -> Image.Image:
    """Draw a row of frames and, for each budget, their cells and tokens.

    Per budget, from top to bottom: the frames with cells outlined by size (cells of an earlier
    frame's token and dropped cells are dimmed); every cell in the mean colour of its token; time,
    number of cells, and number of tokens that begin there. A single line replaces them if every
    token is kept.
    """
    steps = evenly(len(view.frames), SHOWN)
    times = [clock(view.times_s[step]) for step in steps]
    captions = [
        [f"{time}  {kept.caption(step)}" for step, time in zip(steps, times, strict=True)]
        for kept in budgets
    ]
    tile = _tile(view, budgets[0].tokens.shape[2])
    widest = max(_length(text, TEXT) for texts in captions for text in texts)
    grid = _Grid(tile, max(tile[0] + GAP, widest + 2 * GAP), steps)
    small = [resized(view.frames[step], *tile, Image.Resampling.LANCZOS) for step in steps]
    strips = [_head(grid.width, title, about, budgets), grid.row("frames", small, times)]
    for kept, texts in zip(budgets, captions, strict=True):
        strips += _band(view, kept, grid, small, texts)
    return _stacked(strips)


def _tile(view: View, columns: int) -> tuple[int, int]:
    """Return the width and height of a frame in the picture."""
    _, height, width, _ = view.frames.shape
    scale = min(WIDTH / width, HEIGHT / height)
    scale = max(scale, min(SIDE, CELL * columns) / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    height = sum(strip.height for strip in strips) + GAP
    sheet = Image.new("RGB", (strips[0].width, height), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _head(width: int, title: str, about: str, budgets: Sequence[Kept]) -> Image.Image:
    """Draw the title, the line below it, and the legend of merged tokens, if any."""
    lines, room = _lines(list(_legend(budgets)), width), width - 2 * GAP
    head = Image.new("RGB", (width, GAP + (2 + len(lines)) * LINE + 4), PAPER)
    pen = ImageDraw.Draw(head)
    pen.text((GAP, GAP), _cut(title, TITLE, room), INK, _font(TITLE))
    pen.text((GAP, GAP + LINE + 4), _cut(about, SMALL, room), SOFT, _font(SMALL))
    for row, line in enumerate(lines):
        middle = GAP + (2.5 + row) * LINE + 4
        for left, (outline, seam, fill, text) in line:
            box = (left, middle - 6, left + 12, middle + 6)
            pen.rectangle(box, fill=fill, outline=seam, width=4)
            inside = (left + 1, middle - 5, left + 11, middle + 5)
            pen.rectangle(inside, outline=outline, width=2)
            pen.text((left + 18, middle), text, INK, _font(SMALL), anchor="lm")
    return head


def _lines(entries: Sequence[Entry], width: int) -> list[list[tuple[int, Entry]]]:
    """Break the entries into lines; each entry with its left edge."""
    lines: list[list[tuple[int, Entry]]] = []
    left = width
    for entry in entries:
        needed = 18 + _length(entry[3], SMALL) + 2 * GAP
        if left + needed > width:
            lines.append([])
            left = GAP
        lines[-1].append((left, entry))
        left += needed
    return lines


def _legend(budgets: Sequence[Kept]) -> Iterator[Entry]:
    """Yield the legend entries for the cells in the budgets' rows."""
    shown = [kept for kept in budgets if not kept.is_whole]
    sizes = [box for kept in shown for box in (kept.boxes[:, 3:] - kept.boxes[:, 1:3]).tolist()]
    for level in sorted({_level(*size) for size in sizes}):
        cells = "cell" if level == 0 else "cells"
        yield LEVELS[level], SEAMS[level], PAPER, f"token of {2**level}x{2**level} {cells}"
    pale = _pale(np.array(SAMPLE))
    if any(kept.carries for kept in shown):
        yield pale, pale, pale, "dimmed: an earlier frame's token stands for it"
    if any(kept.drops for kept in shown):
        grey = _pale(np.zeros(3))
        yield grey, grey, grey, "dimmed, grey as mean colour: dropped"


def _band(
    view: View, kept: Kept, grid: _Grid, small: Sequence[Frames], captions: Sequence[str]
) -> list[Image.Image]:
    """Draw one budget: a headline, the outlined cells, the mean colours with captions."""
    headline = Image.new("RGB", (grid.width, 2 * GAP + LINE - 4), PAPER)
    place = (GAP, 2 * GAP)
    if kept.is_whole:
        text = f"{kept.title}: every token is kept, nothing is merged"
        ImageDraw.Draw(headline).text(place, text, INK, _font(TEXT))
        return [headline]
    ImageDraw.Draw(headline).text(place, kept.title, INK, _font(TEXT + 1))
    means = token_colours(cell_colours(view.frames, kept.tokens), kept.tokens)
    outlined = [_outlined(f, kept, step) for f, step in zip(small, grid.steps, strict=True)]
    painted = [_painted(means, kept, step, small[0].shape) for step in grid.steps]
    return [
        headline,
        grid.row("tokens that\nbegin here", outlined),
        grid.row("mean colour\nof each token", painted, captions),
    ]


def _level(height: int, width: int) -> int:
    """Return the level of a box: 0 for a finest cell, 1 for up to 2 x 2 cells, and so on."""
    return min((max(height, width) - 1).bit_length(), len(LEVELS) - 1)


def _outlined(frame: Frames, kept: Kept, step: int) -> Frames:
    """Outline the cells whose tokens begin in this frame, and dim the others."""
    height, width, _ = frame.shape
    rows, columns = kept.tokens.shape[1:]
    picture = Image.fromarray(_dimmed(frame, kept.began(step)))
    pen, line = ImageDraw.Draw(picture), 1 if width / columns < 20 else 3
    boxes = []
    for _, top, left, bottom, right in kept.boxes[kept.boxes[:, 0] == step].tolist():
        x0, y0 = round(left * width / columns), round(top * height / rows)
        # Neighbours share a line; the lines at the frame's edge stay inside the picture.
        x1 = min(round(right * width / columns), width - 1)
        y1 = min(round(bottom * height / rows), height - 1)
        boxes.append(((x0, y0, x1, y1), _level(bottom - top, right - left)))
    # All seams first, so that they never cover an outline.
    for colours, wide in ((SEAMS, line + 2), (LEVELS, line)):
        for (x0, y0, x1, y1), level in boxes:
            out = wide // 2
            around = (x0 - out, y0 - out, x1 + out, y1 + out)
            pen.rectangle(around, outline=colours[level], width=wide)
    return np.asarray(picture)


def _painted(means: Frames, kept: Kept, step: int, shape: tuple[int, ...]) -> Frames:
    height, width, _ = shape
    cells = resized(means[kept.tokens[step]], width, height, Image.Resampling.NEAREST)
    return _dimmed(cells, kept.began(step))


def _dimmed(picture: Frames, began: NDArray[np.bool_]) -> Frames:
    """Dim the cells whose tokens do not begin in this frame."""
    height, width, _ = picture.shape
    mask = resized(began.astype(np.uint8), width, height, Image.Resampling.NEAREST)
    return np.where(mask[..., None] > 0, picture, _paled(picture)).astype(np.uint8)


def _paled(picture: NDArray[Any]) -> NDArray[np.uint8]:
    mixed = 0.35 * picture + 0.65 * np.array(PAPER)
    return mixed.round().astype(np.uint8)


def _pale(colour: NDArray[Any]) -> Colour:
    red, green, blue = _paled(colour).tolist()
    return red, green, blue


def _cut(text: str, size: int, room: int) -> str:
    """Shorten the text in its middle to at most `room` pixels."""
    whole = text
    while _length(text, size) > room and len(whole) > 8:
        keep = len(text.replace(" ... ", "")) - 2
        text = f"{whole[: (keep + 1) // 2]} ... {whole[len(whole) - keep // 2 :]}"
    return text


def _length(text: str, size: int) -> int:
    return round(_font(size).getlength(text))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
