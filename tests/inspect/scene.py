"""A video of two equal frames that every picture is tried on."""

from __future__ import annotations

import numpy as np

from sttm_cli.inspect import Kept, View

TOKENS = np.array([[[0, 0, 1, 1], [0, 0, 1, 1]]] * 2)
BOXES = np.array([[0, 0, 0, 2, 2], [0, 0, 2, 2, 4]], np.int32)


def view(*, bright: int = 200) -> View:
    """The left half red, the right half blue."""
    frames = np.zeros((2, 40, 80, 3), np.uint8)
    frames[:, :, :40, 0] = bright
    frames[:, :, 40:, 2] = bright
    return View(frames, (0.0, 1.0))


def halves(budget: float | int = 0.5) -> Kept:
    """One token for each half; both are carried over to the second frame."""
    return Kept(budget, TOKENS, BOXES)


def moved() -> Kept:
    """Two tokens in each frame: nothing is carried over, nothing dropped."""
    boxes = np.vstack([BOXES, np.add(BOXES, [1, 0, 0, 0, 0])]).astype(np.int32)
    return Kept(0.5, np.stack([TOKENS[0], TOKENS[0] + 2]), boxes)


def dropped() -> Kept:
    """One token for the left half of the first frame; all other cells are dropped."""
    tokens = np.full_like(TOKENS, -1)
    tokens[0, :, :2] = 0
    return Kept(0.1, tokens, BOXES[:1])


def everything() -> Kept:
    """A token for every cell of both frames."""
    where = np.array(np.unravel_index(np.arange(16), (2, 2, 4))).T
    return Kept(1.0, np.arange(16).reshape(2, 2, 4), np.hstack([where, where[:, 1:] + 1]))
