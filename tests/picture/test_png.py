"""The picture shows what was merged: kept cells outlined, carried ones dimmed."""

from __future__ import annotations

import numpy as np

from sttm_cli.picture import draw
from sttm_cli.picture.png import CAPTION, GAP, WIDTH


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two equal frames, left half red, right half blue; the second is carried over whole."""
    frames = np.zeros((2, 40, 80, 3), np.uint8)
    frames[:, :, :40, 0] = 200
    frames[:, :, 40:, 2] = 200
    tokens = np.array([[[0, 0, 1, 1], [0, 0, 1, 1]]] * 2)
    boxes = np.array([[0, 0, 0, 2, 2], [0, 0, 2, 2, 4]], np.int32)
    return frames, tokens, boxes


def cell(picture: np.ndarray, column: int, row: int, x: float) -> np.ndarray:
    """The colour in the middle of row `row` (0 to 2) of a frame's column, `x` across."""
    height = WIDTH // 2
    left, top = GAP + column * (WIDTH + GAP), GAP + row * (height + GAP)
    return picture[top + height // 2, left + round(x * WIDTH)].astype(int)


def test_picture_has_a_column_a_frame_and_three_rows() -> None:
    frames, tokens, boxes = scene()
    picture = draw(frames, [0.0, 1.0], tokens, boxes)
    assert picture.size == (2 * (WIDTH + GAP) + GAP, 3 * (WIDTH // 2 + GAP) + GAP + CAPTION)


def test_reconstruction_paints_cells_in_their_tokens_mean_colour_and_dims_carried_ones() -> None:
    frames, tokens, boxes = scene()
    picture = np.asarray(draw(frames, [0.0, 1.0], tokens, boxes))
    assert cell(picture, 0, 2, 0.25).tolist() == [200, 0, 0]
    assert cell(picture, 0, 2, 0.75).tolist() == [0, 0, 200]
    carried = cell(picture, 1, 2, 0.25)
    assert carried.min() > 100


def test_only_cells_that_begin_in_a_frame_are_outlined() -> None:
    frames, tokens, boxes = scene()
    picture = np.asarray(draw(frames, [0.0, 1.0], tokens, boxes))
    plain = cell(picture, 0, 0, 0.501)
    assert cell(picture, 0, 1, 0.501).tolist() != plain.tolist()
    dimmed = picture[GAP * 2 + WIDTH // 2 + 2 :, GAP * 2 + WIDTH :][: WIDTH // 2 - 4]
    assert dimmed.reshape(-1, 3).min(axis=1).min() > 100
