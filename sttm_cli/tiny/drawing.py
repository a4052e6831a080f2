"""Drawing of scenes: anti-aliased shapes with a dark outline over a background frame."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image

from sttm_cli.tiny.scenes import COLOURS, SIDE, Card, Scene, Thing

_OUTLINE = 1.6  # px of a 112 px picture
_INK = np.array((18, 18, 22), np.float32)
_PAPER = np.array((246, 246, 242), np.float32)
# Dot matrices of the digits: rows of five dots, top to bottom.
_DIGITS = (
    "01110 10001 10011 10101 11001 10001 01110",
    "00100 01100 00100 00100 00100 00100 01110",
    "01110 10001 00001 00010 00100 01000 11111",
    "11110 00001 00001 01110 00001 00001 11110",
    "00010 00110 01010 10010 11111 00010 00010",
    "11111 10000 11110 00001 00001 10001 01110",
    "00110 01000 10000 11110 10001 10001 01110",
    "11111 00001 00010 00100 01000 01000 01000",
    "01110 10001 10001 01110 10001 10001 01110",
    "01110 10001 10001 01111 00001 00010 01100",
)


def draw(scene: Scene, t: float, backdrop: np.ndarray) -> np.ndarray:
    """Draw the scene at time `t` over a copy of `backdrop` [side, side, 3] uint8."""
    picture = backdrop.astype(np.float32)
    scale = len(picture) / SIDE
    for thing in scene.things:
        if thing.visible(t):
            _draw_thing(picture, thing, thing.at(t), scale)
    if scene.card is not None and scene.card.visible(t):
        _draw_card(picture, scene.card, scale)
    return np.asarray(np.clip(picture + 0.5, 0, 255), np.uint8)


def coverage(thing: Thing | Card, t: float, cells: int) -> np.ndarray:
    """Compute the share [cells, cells] float32 of each cell of the picture covered by the thing."""
    full = np.zeros((SIDE, SIDE), np.float32)
    window, distance = _window(thing, thing.at(t), 1.0, SIDE)
    full[window] = np.clip(0.5 - distance + _OUTLINE, 0, 1)
    step = SIDE // cells
    shares: np.ndarray = full.reshape(cells, step, cells, step).mean((1, 3))
    return shares


def _draw_thing(picture: np.ndarray, thing: Thing, at: tuple[float, float], scale: float) -> None:
    window, distance = _window(thing, at, scale, len(picture))
    colour = np.array(COLOURS[thing.colour], np.float32)
    _blend(picture, window, _INK, distance - _OUTLINE * scale)
    _blend(picture, window, colour, distance)


def _draw_card(picture: np.ndarray, card: Card, scale: float) -> None:
    window, distance = _window(card, card.start, scale, len(picture))
    _blend(picture, window, _INK, distance - _OUTLINE * scale)
    _blend(picture, window, _PAPER, distance)
    tall = round(1.65 * card.radius * scale)
    glyph = _glyph(card.digit, tall)[..., None]
    top = round(card.start[1] * scale - tall / 2)
    left = round(card.start[0] * scale - glyph.shape[1] / 2)
    part = picture[top : top + tall, left : left + glyph.shape[1]]
    part += (_INK - part) * glyph[: part.shape[0], : part.shape[1]]


def _blend(
    picture: np.ndarray, window: tuple[slice, slice], colour: np.ndarray, distance: np.ndarray
) -> None:
    part = picture[window]
    part += (colour - part) * np.clip(0.5 - distance, 0, 1)[..., None]


def _window(
    thing: Thing | Card, at: tuple[float, float], scale: float, side: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return the rows and columns around the thing, and the signed distances in drawn pixels."""
    reach = (thing.radius * 1.1 + 3) * scale
    cx, cy = at[0] * scale, at[1] * scale
    rows = slice(max(0, int(cy - reach)), min(side, int(cy + reach) + 1))
    columns = slice(max(0, int(cx - reach)), min(side, int(cx + reach) + 1))
    radius = thing.radius * scale
    y = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5 - cy) / radius
    x = (np.arange(columns.start, columns.stop, dtype=np.float32)[None] + 0.5 - cx) / radius
    if isinstance(thing, Card):
        return (rows, columns), (np.maximum(abs(x), abs(y)) - 0.95) * radius
    c, s = math.cos(thing.angle), math.sin(thing.angle)
    return (rows, columns), _DISTANCE[thing.shape](c * x + s * y, c * y - s * x) * radius


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(x * x + y * y) - np.float32(0.93))


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(abs(x), abs(y)) - np.float32(0.82))


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    slant = abs(x) * np.float32(0.88) - y * np.float32(0.475)
    return np.maximum(slant - np.float32(0.46), y - np.float32(0.78))


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    fifth = np.float32(2 * math.pi / 5)
    angle = np.mod(np.arctan2(x, -y) + fifth / 2, fifth) - fifth / 2
    r = np.sqrt(x * x + y * y)
    # The edge from the point at (1.05, 0) to the notch at 0.45 along the half angle.
    nx, ny = 0.45 * math.cos(math.pi / 5) - 1.05, 0.45 * math.sin(math.pi / 5)
    length = math.hypot(nx, ny)
    edge = (r * np.cos(angle) - np.float32(1.05)) * ny - abs(r * np.sin(angle)) * nx
    return np.asarray(edge / length, np.float32)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    ax, ay = abs(x), abs(y)
    long, thick = np.float32(0.95), np.float32(0.33)
    bars = np.maximum(ax - thick, ay - long), np.maximum(ax - long, ay - thick)
    return np.asarray(np.minimum(*bars))


_DISTANCE = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross,
}  # fmt: skip


@lru_cache(maxsize=512)
def _glyph(digit: int, tall: int) -> np.ndarray:
    """Render the digit as ink [tall, 5/7 tall] float32 in 0..1."""
    dots = np.array([[int(c) for c in row] for row in _DIGITS[digit].split()], np.uint8) * 255
    size = (round(tall * 5 / 7), tall)
    sharp = Image.fromarray(dots).resize((40, 56), Image.Resampling.NEAREST)
    return np.asarray(sharp.resize(size, Image.Resampling.BOX), np.float32) / 255
