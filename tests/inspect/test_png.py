"""The picture shows what was merged: kept cells outlined, carried ones dimmed."""

from __future__ import annotations

import numpy as np
import pytest

from sttm_cli.inspect import Kept, View, draw, thumbnail
from sttm_cli.inspect.png import (
    GAP,
    LEAST_WIDTH,
    LEFT,
    LEVELS,
    LINE,
    SEAMS,
    SHOWN,
    WIDTH,
)
from sttm_cli.inspect.view import PIXELS, clock, evenly
from tests.inspect.scene import dropped, everything, halves, moved, view

HEIGHT = WIDTH // 2
HEAD = GAP + 3 * LINE + 4
FRAMES = GAP + HEIGHT + LINE
HEADLINE = 2 * GAP + LINE - 4
BAND = HEADLINE + 2 * (GAP + HEIGHT) + LINE
TOPS = (HEAD + GAP, HEAD + FRAMES + HEADLINE + GAP, HEAD + FRAMES + HEADLINE + HEIGHT + 2 * GAP)
"""Of the rows of a picture of one budget: frames, outlined cells, mean colours."""


def drawn(video: View, *budgets: Kept, title: str = "cat.mp4", about: str = "tiny") -> np.ndarray:
    return np.asarray(draw(video, budgets, title=title, about=about))


def tile(picture: np.ndarray, column: int, row: int) -> np.ndarray:
    left, top = LEFT + column * (WIDTH + GAP), TOPS[row]
    return picture[top : top + HEIGHT, left : left + WIDTH].astype(int)


def cell(picture: np.ndarray, column: int, row: int, x: float) -> np.ndarray:
    """The colour in the middle of row `row` (0 to 2) of a frame's column, `x` across."""
    return tile(picture, column, row)[HEIGHT // 2, round(x * WIDTH)]


def ink(picture: np.ndarray) -> int:
    """How many pixels are dark and grey: letters."""
    return int(((picture.max(-1) < 130) & (np.ptp(picture.astype(int), -1) < 12)).sum())


def test_picture_has_a_head_a_row_of_frames_and_a_band_for_each_budget() -> None:
    picture = drawn(view(), halves(), halves(0.4))
    width = max(LEAST_WIDTH, LEFT + 2 * (WIDTH + GAP) + GAP)
    assert picture.shape == (HEAD + FRAMES + 2 * BAND + GAP, width, 3)


def test_every_row_has_a_label_and_the_picture_a_title() -> None:
    picture = drawn(view(), halves())
    for top in TOPS:
        assert ink(picture[top : top + HEIGHT, :LEFT]) > 20
    assert ink(picture[:LINE]) > ink(drawn(view(), halves(), title="")[:LINE]) == 0


def test_a_long_title_loses_its_middle_and_not_its_end() -> None:
    for title in ("x" * 300 + ".mp4", "\u732b" * 200):
        picture = drawn(view(), halves(), title=title, about=title)
        assert (picture[: 2 * LINE, -GAP:] == 255).all()


def test_a_budget_that_keeps_every_token_draws_no_empty_grid_but_says_so() -> None:
    picture = drawn(view(), everything())
    head = HEAD - LINE  # No legend: nothing to explain.
    assert len(picture) == head + FRAMES + HEADLINE + GAP
    assert ink(picture[head + FRAMES :]) > 100
    both = drawn(view(), everything(), halves())
    assert len(both) == HEAD + FRAMES + HEADLINE + BAND + GAP


@pytest.mark.parametrize(("kept", "pale"), [(halves(), True), (dropped(), True), (moved(), False)])
def test_the_legend_explains_dimmed_cells_where_there_are_any(kept: Kept, pale: bool) -> None:
    legend = drawn(view(), kept)[HEAD - LINE : HEAD, :].astype(int)
    swatch = (np.abs(legend[:, 1:] - legend[:, :-1]).sum(-1) == 0) & (legend[:, 1:].min(-1) > 150)
    swatch &= legend[:, 1:].max(-1) < 230
    assert (swatch.sum() > 60) == pale


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_an_outline_has_a_tone_that_stands_out_on_any_frame(level: int) -> None:
    def luminance(colour: tuple[int, ...]) -> float:
        linear = [((c / 255 + 0.055) / 1.055) ** 2.4 if c > 10 else c / 3295 for c in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    def contrast(one: float, other: float) -> float:
        return (max(one, other) + 0.05) / (min(one, other) + 0.05)

    tones = [luminance(LEVELS[level]), luminance(SEAMS[level])]
    assert all(max(contrast(tone, ground) for tone in tones) > 2 for ground in np.linspace(0, 1))


def test_outlines_are_seen_on_a_frame_of_their_own_colour() -> None:
    frames = np.full((1, 40, 80, 3), LEVELS[1], np.uint8)
    kept = Kept(0.5, np.array([[[0, 0, 1, 1], [0, 0, 1, 1]]]), halves().boxes)
    row = tile(drawn(View(frames, (0.0,)), kept), 0, 1)
    assert (row == SEAMS[1]).all(-1).sum() > 2 * HEIGHT


def test_many_frames_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert evenly(100, SHOWN) == [0, 14, 28, 42, 56, 70, 84, 99]
    assert evenly(3, SHOWN) == [0, 1, 2]


def test_a_portrait_frame_is_no_higher_than_a_wide_one_is_wide() -> None:
    tall = View(np.zeros((2, 160, 90, 3), np.uint8), (0.0, 1.0))
    assert len(drawn(tall, halves())) < 2.5 * len(drawn(view(), halves()))


def test_reconstruction_paints_cells_in_their_tokens_mean_colour_and_dims_carried_ones() -> None:
    picture = drawn(view(), halves())
    assert cell(picture, 0, 2, 0.25).tolist() == [200, 0, 0]
    assert cell(picture, 0, 2, 0.75).tolist() == [0, 0, 200]
    carried = cell(picture, 1, 2, 0.25)
    assert carried.min() > 100


def test_dropped_cells_are_dimmed_and_have_no_colour() -> None:
    picture = drawn(view(), dropped())
    assert cell(picture, 0, 2, 0.25).tolist() == [200, 0, 0]
    for column, x in ((0, 0.75), (1, 0.25), (1, 0.75)):
        assert len(set(cell(picture, column, 2, x).tolist())) == 1
    assert dropped().caption(0) == "8 -> 1 tokens"


def test_only_cells_that_begin_in_a_frame_are_outlined() -> None:
    picture = drawn(view(), halves())
    plain = cell(picture, 0, 0, 0.501)
    assert cell(picture, 0, 1, 0.501).tolist() != plain.tolist()
    assert tile(picture, 1, 1).reshape(-1, 3).min(axis=1).min() > 100


def test_captions_count_the_tokens_that_begin() -> None:
    assert halves().caption(0) == "8 -> 2 tokens"
    assert halves().caption(1) == "8 -> 0 tokens"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "00:00"),
        (59.97, "01:00"),
        (61.25, "01:01.2"),
        (3600, "1:00:00"),
        (36061.5, "10:01:01.5"),
    ],
)
def test_times_read_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize("count", [1, 64, 1000])
def test_thumbnails_of_many_frames_are_smaller(count: int) -> None:
    frame = np.zeros((1080, 1920, 3), np.uint8)
    height, width, _ = thumbnail(frame, count).shape
    assert height * width * count <= PIXELS
    assert width / height == pytest.approx(16 / 9, rel=0.05)
