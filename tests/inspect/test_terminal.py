"""The terminal shows frames and tokens in the colours it has, and in none where it has none."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console

from sttm_cli.inspect import View, print_frames
from tests.inspect.scene import halves, view

WIDTH = 80


def printed(video: View | None = None, **terminal: object) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=str(terminal.pop("encoding", "utf-8")))
    console = Console(file=file, width=WIDTH, highlight=False, **terminal)  # type: ignore[arg-type]
    print_frames(console, video or view(), halves())
    file.flush()
    return file.buffer.getvalue().decode(file.encoding)


def plain(text: str) -> list[str]:
    return re.sub(r"\x1b\[[^m]*m", "", text).splitlines()


def test_true_colour_draws_two_pixels_a_character() -> None:
    text = printed(force_terminal=True, color_system="truecolor")
    assert "\x1b[38;2;200;0;0;48;2;200;0;0m▀" in text
    dimmed = round(0.3 * 200)
    assert f"\x1b[38;2;0;0;{dimmed};48;2;0;0;{dimmed}m▀" in text


def test_256_colours_are_used_where_there_are_no_more() -> None:
    # Colours of its own: rich remembers within a process how it spelt a style.
    text = printed(view(bright=190), force_terminal=True, color_system="256")
    assert "\x1b[38;5;" in text
    assert "38;2;" not in text


@pytest.mark.parametrize(
    "terminal",
    [
        {"force_terminal": True, "color_system": "truecolor", "no_color": True},
        {"force_terminal": True, "color_system": "standard"},
        {"force_terminal": False},
        {"force_terminal": True, "color_system": "truecolor", "encoding": "ascii"},
    ],
    ids=["NO_COLOR", "16 colours", "no terminal", "no UTF-8"],
)
def test_without_colours_brightness_is_drawn_in_ascii(terminal: dict[str, object]) -> None:
    text = printed(**terminal)
    assert text.isascii()
    assert "38;" not in text
    _, *rows, times, captions = plain(text)
    frames, tokens = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert all(len(line.rstrip()) > len(line) // 2 for line in frames)
    # The second frame's cells are all carried over.
    assert {line[len(line) // 2 + 1 :].strip() for line in tokens} == {""}
    assert all(line[: len(line) // 2].strip() for line in tokens)
    assert times.split() == ["00:00", "00:01"]
    assert re.split("  +", captions) == ["8 -> 2 tokens", "8 -> 0 tokens"]


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (20, 400), (64, 64)])
def test_every_shape_of_frame_fits_the_width(shape: tuple[int, int]) -> None:
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False)
    frames = np.full((9, *shape, 3), 128, np.uint8)
    tokens = np.arange(9 * 4).reshape(9, 2, 2)
    where = np.array(np.unravel_index(np.arange(36), (9, 2, 2))).T
    kept = type(halves())(1.0, tokens, np.hstack([where, where[:, 1:] + 1]))
    print_frames(console, View(frames, [float(t) for t in range(9)]), kept)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1].count("4 -> 4 tokens") == 4


@pytest.mark.parametrize(("width", "shown"), [(120, 4), (80, 4), (60, 3), (40, 2)])
def test_captions_stand_below_their_frames_and_are_never_cut(width: int, shown: int) -> None:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    tokens = np.zeros((9, 14, 14), int)
    print_frames(
        console,
        View(np.full((9, 160, 90, 3), 255, np.uint8), [float(t) for t in range(9)]),
        type(halves())(0.1, tokens, np.array([[0, 0, 0, 14, 14]], np.int32)),
    )
    *rows, times, captions = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, rows[1:])) <= width
    assert captions.count("196 -> ") == captions.count("tokens") == shown
    starts = [found.start() for found in re.finditer("@+", rows[1])]
    assert starts == [found.start() for found in re.finditer("00:", times)]
    assert starts == [found.start() for found in re.finditer("196", captions)]
