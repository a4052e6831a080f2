"""A picture of what was merged: frames in a row, their cells, and what the tokens stand for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sttm_cli.inspect.view import (
    SIDE,
    Frames,
    Kept,
    View,
    cell_colours,
    evenly,
    resized,
    token_colours,
)

SHOWN = 8
"""Frames in a picture, spread evenly over the video."""
WIDTH, HEIGHT = 224, 280
CELL = 12
"""Pixels of a frame in the picture, and of a cell where the frame would be too small for them."""
GAP, LINE = 8, 22
LEAST_WIDTH = 480
INK, PAPER = (30, 30, 30), (255, 255, 255)
# Outlines from the finest cell to the coarsest; seen against dark and bright frames alike.
LEVELS = ((0, 170, 255), (255, 160, 0), (255, 60, 0), (225, 0, 110), (130, 0, 200))


def draw(view: View, budgets: Sequence[Kept]) -> Image.Image:
    """Draw a row of frames and, for each budget, what it made of them.

    For a budget, from top to bottom: the frames with the cells outlined by their size, those
    that are carried over from an earlier frame dimmed; every cell in the mean colour of all that
    its token stands for; when, how many cells and how many tokens begin here.
    """
    steps = evenly(len(view.frames), SHOWN)
    tile = _tile(view, budgets[0].tokens.shape[2])
    small = [resized(view.frames[step], *tile, Image.Resampling.LANCZOS) for step in steps]
    strips = [_strip(small), *(_band(view, kept, steps, small) for kept in budgets)]
    sheet_width = max(LEAST_WIDTH, *(strip.width for strip in strips))
    sheet = Image.new("RGB", (sheet_width, sum(strip.height for strip in strips) + GAP), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _tile(view: View, columns: int) -> tuple[int, int]:
    """Width and height of a frame in the picture."""
    _, height, width, _ = view.frames.shape
    scale = min(WIDTH / width, HEIGHT / height)
    scale = max(scale, min(SIDE, CELL * columns) / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _strip(tiles: Sequence[Frames]) -> Image.Image:
    """Tiles of equal size in a row, with gaps to the left and above."""
    height, width, _ = tiles[0].shape
    row = Image.new("RGB", (len(tiles) * (width + GAP) + GAP, height + GAP), PAPER)
    for column, tile in enumerate(tiles):
        row.paste(Image.fromarray(tile), (GAP + column * (width + GAP), GAP))
    return row


def _band(view: View, kept: Kept, steps: Sequence[int], small: Sequence[Frames]) -> Image.Image:
    """One budget: a title, the outlined cells, the mean colours, a caption for each frame."""
    means = token_colours(cell_colours(view.frames, kept.tokens), kept.tokens)
    outlined = _strip([_outlined(f, kept, step) for f, step in zip(small, steps, strict=True)])
    painted = _strip([_painted(means, kept, step, small[0].shape) for step in steps])
    width = max(LEAST_WIDTH, outlined.width)
    band = Image.new("RGB", (width, 2 * (outlined.height + LINE) + GAP), PAPER)
    band.paste(outlined, (0, GAP + LINE))
    band.paste(painted, (0, GAP + LINE + outlined.height))
    pen, font = ImageDraw.Draw(band), ImageFont.load_default(14)
    pen.text((GAP, GAP + 4), kept.title, INK, ImageFont.load_default(15))
    _legend(pen, kept, width - GAP)
    for column, step in enumerate(steps):
        left = GAP + column * (small[0].shape[1] + GAP)
        place = (left, band.height - LINE + 2)
        pen.text(place, kept.caption(step, view.times_s[step]), INK, font)
    return band


def _legend(pen: ImageDraw.ImageDraw, kept: Kept, right: int) -> None:
    """Which colour outlines which size of cell, for the sizes that there are."""
    font = ImageFont.load_default(13)
    sizes = np.unique(kept.boxes[:, 3:] - kept.boxes[:, 1:3], axis=0)
    for level in sorted({_level(*size) for size in sizes.tolist()}, reverse=True):
        side = 2**level
        label = f"{side}x{side}"
        right -= round(pen.textlength(label, font)) + 4
        pen.text((right, GAP + 5), label, INK, font)
        right -= 14
        pen.rectangle((right, GAP + 8, right + 9, GAP + 17), outline=LEVELS[level], width=2)
        right -= 6


def _level(height: int, width: int) -> int:
    """0 for a finest cell, 1 for up to 2 x 2 of them, and so on."""
    return min((max(height, width) - 1).bit_length(), len(LEVELS) - 1)


def _outlined(frame: Frames, kept: Kept, step: int) -> Frames:
    height, width, _ = frame.shape
    rows, columns = kept.tokens.shape[1:]
    picture = Image.fromarray(_dimmed(frame, kept.began(step)))
    pen, line = ImageDraw.Draw(picture), 1 if width / columns < 20 else 2
    for box in kept.boxes[kept.boxes[:, 0] == step]:
        _, top, left, bottom, right = box.tolist()
        corner = (round(left * width / columns), round(top * height / rows))
        # Neighbours share a line.
        end = (
            min(round(right * width / columns), width - 1),
            min(round(bottom * height / rows), height - 1),
        )
        colour = LEVELS[_level(bottom - top, right - left)]
        pen.rectangle((corner, end), outline=colour, width=line)
    return np.asarray(picture)


def _painted(means: Frames, kept: Kept, step: int, shape: tuple[int, ...]) -> Frames:
    height, width, _ = shape
    cells = resized(means[kept.tokens[step]], width, height, Image.Resampling.NEAREST)
    return _dimmed(cells, kept.began(step))


def _dimmed(picture: Frames, began: NDArray[np.bool_]) -> Frames:
    """The picture with the cells that do not begin here paled."""
    height, width, _ = picture.shape
    mask = resized(began.astype(np.uint8), width, height, Image.Resampling.NEAREST)
    pale = 0.35 * picture + 0.65 * np.array(PAPER)
    return np.where(mask[..., None] > 0, picture, pale.round()).astype(np.uint8)
