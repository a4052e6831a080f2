"""Frames and their merged tokens, drawn with characters in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL.Image import Resampling
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from sttm_cli.inspect.view import (
    Frames,
    Kept,
    View,
    cell_colours,
    clock,
    evenly,
    resized,
    token_colours,
)

SHOWN = 4
COLUMNS, LINES = 48, 14
"""Maximum characters of one frame."""
RAMP = " .:-=+*#%@"
"""Characters from dark to bright, for terminals without colours."""
HALF = "▀"


def print_frames(console: Console, view: View, kept: Kept) -> None:
    """Print up to four frames in a row; below each, its cells in the mean colours of their tokens,
    then its time and its token count. Cells of an earlier frame's token are dimmed.

    A character is two pixels, one above the other, if the console has 256 colours or more. On other
    consoles a character shows the brightness of a pixel, and dimmed cells are blank.
    """
    coloured = console.color_system in ("256", "truecolor") and not console.no_color
    # A character that the output cannot encode would end the command.
    coloured = coloured and not console.options.ascii_only
    cells = kept.tokens[0].size
    shown = min(SHOWN, (console.width + 1) // len(f"{cells} -> {cells} tokens "))
    steps = evenly(len(view.frames), max(2, shown))
    captions = [kept.caption(step) for step in steps]
    _, height, width, _ = view.frames.shape
    columns = min(COLUMNS, (console.width + 1) // max(2, shown) - 1)
    # A character is about twice as high as wide.
    scale = min(columns / width, 2 * LINES / height)
    size = (max(1, round(width * scale)), 2 * max(1, round(height * scale / 2)))
    means = token_colours(cell_colours(view.frames, kept.tokens), kept.tokens)
    frames = [resized(view.frames[step], *size, Resampling.BOX) for step in steps]
    # Brightness: the share for dimmed cells, and the minimum of the others.
    bounds = (0.3, 0) if coloured else (0.0, 255 // (len(RAMP) - 1))
    painted = [
        resized(_painted(means, kept, step, bounds), *size, Resampling.NEAREST) for step in steps
    ]
    pitch = max(size[0], *map(len, captions))
    console.print(kept.title)
    for pictures in (frames, painted):
        for line in _lines(pictures, _half_blocks if coloured else _shades, pitch - size[0] + 1):
            console.print(line, no_wrap=True, overflow="crop")
    for texts in ([clock(view.times_s[step]) for step in steps], captions):
        console.print(" ".join(f"{text:<{pitch}}" for text in texts).rstrip(), no_wrap=True)


def _painted(means: Frames, kept: Kept, step: int, bounds: tuple[float, int]) -> Frames:
    """Paint the cells [h, w, 3] in their tokens' colours.

    `bounds`: the share of brightness for dimmed cells, and the minimum brightness of the others.
    """
    dim, least = bounds
    colours = means[kept.tokens[step]]
    began = kept.began(step)[..., None]
    shown: Frames = np.where(began, np.maximum(colours, least), dim * colours).astype(np.uint8)
    return shown


def _lines(
    pictures: list[Frames], draw: Callable[[Frames, Frames], Text], gap: int
) -> Iterator[Text]:
    """Yield lines with the pictures side by side, two rows of pixels per line."""
    for top in range(0, len(pictures[0]), 2):
        yield Text(" " * gap).join(draw(picture[top], picture[top + 1]) for picture in pictures)


def _half_blocks(above: Frames, below: Frames) -> Text:
    line = Text()
    for upper, lower in zip(above.tolist(), below.tolist(), strict=True):
        line.append(HALF, Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
    return line


def _shades(above: Frames, below: Frames) -> Text:
    bright = (above.astype(float) + below).mean(axis=1) / 2
    return Text("".join(RAMP[int(value * (len(RAMP) - 1) / 255 + 0.5)] for value in bright))
