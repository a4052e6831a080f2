"""The picture shows what was merged: kept cells outlined, carried ones dimmed."""

from __future__ import annotations

import numpy as np
import pytest

from sttm_cli.inspect import View, draw, thumbnail
from sttm_cli.inspect.png import GAP, LEAST_WIDTH, LINE, SHOWN, WIDTH
from sttm_cli.inspect.view import PIXELS, clock, evenly
from tests.inspect.scene import dropped, everything, halves, view

HEIGHT = WIDTH // 2
BAND = 2 * (HEIGHT + GAP + LINE) + GAP


def cell(picture: np.ndarray, column: int, row: int, x: float) -> np.ndarray:
    """The colour in the middle of row `row` (0 to 2) of a frame's column, `x` across."""
    left, top = GAP + column * (WIDTH + GAP), GAP + row * (HEIGHT + GAP)
    top += (GAP + LINE) * (row > 0)
    return picture[top + HEIGHT // 2, left + round(x * WIDTH)].astype(int)


def test_picture_has_a_row_of_frames_and_a_band_for_each_budget() -> None:
    picture = draw(view(), [everything(), halves()])
    width = max(LEAST_WIDTH, 2 * (WIDTH + GAP) + GAP)
    assert picture.size == (width, HEIGHT + 2 * GAP + 2 * BAND)


def test_many_frames_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert evenly(100, SHOWN) == [0, 14, 28, 42, 56, 70, 84, 99]
    assert evenly(3, SHOWN) == [0, 1, 2]


def test_a_portrait_frame_is_no_higher_than_a_wide_one_is_wide() -> None:
    tall = View(np.zeros((2, 160, 90, 3), np.uint8), (0.0, 1.0))
    assert draw(tall, [halves()]).height < 2.5 * draw(view(), [halves()]).height


def test_reconstruction_paints_cells_in_their_tokens_mean_colour_and_dims_carried_ones() -> None:
    picture = np.asarray(draw(view(), [halves()]))
    assert cell(picture, 0, 2, 0.25).tolist() == [200, 0, 0]
    assert cell(picture, 0, 2, 0.75).tolist() == [0, 0, 200]
    carried = cell(picture, 1, 2, 0.25)
    assert carried.min() > 100


def test_dropped_cells_are_dimmed_and_have_no_colour() -> None:
    picture = np.asarray(draw(view(), [dropped()]))
    assert cell(picture, 0, 2, 0.25).tolist() == [200, 0, 0]
    for column, x in ((0, 0.75), (1, 0.25), (1, 0.75)):
        assert len(set(cell(picture, column, 2, x).tolist())) == 1
    assert dropped().caption(0, 0.0) == "00:00  8 -> 1"


def test_only_cells_that_begin_in_a_frame_are_outlined() -> None:
    picture = np.asarray(draw(view(), [halves()]))
    plain = cell(picture, 0, 0, 0.501)
    assert cell(picture, 0, 1, 0.501).tolist() != plain.tolist()
    top = 3 * GAP + HEIGHT + LINE
    dimmed = picture[top : top + HEIGHT, GAP * 2 + WIDTH : GAP * 2 + 2 * WIDTH]
    assert dimmed.reshape(-1, 3).min(axis=1).min() > 100


def test_captions_count_the_tokens_that_begin() -> None:
    assert halves().caption(0, 12.0) == "00:12  8 -> 2"
    assert halves().caption(1, 12.34) == "00:12.3  8 -> 0"


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
