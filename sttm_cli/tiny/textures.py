"""Textured backgrounds: varied, fast to generate, moving like a slow camera."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

Backdrop = Callable[[float], np.ndarray]
"""A background: maps a time in seconds to a frame [side, side, 3] uint8."""

_CANVAS = 168  # px; larger than a frame, so that the camera can move
_VIEW = 112


def textured(rng: np.random.Generator, *, side: int = _VIEW) -> Backdrop:
    """Make a random texture seen by a camera that stands still or drifts."""
    canvas = Image.fromarray(_canvas(rng))
    room = _CANVAS - _VIEW
    start = rng.uniform(0.3 * room, 0.7 * room, 2)
    drift = rng.normal(0, 2.0, 2) if rng.random() < 0.5 else np.zeros(2)
    gain = rng.uniform(-0.02, 0.02) if rng.random() < 0.3 else 0.0

    def frame(t: float) -> np.ndarray:
        x, y = np.clip(start + drift * t, 0, room)
        box = (float(x), float(y), float(x) + _VIEW, float(y) + _VIEW)
        view = canvas.resize((side, side), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(view, np.float32) * (1 + gain * t)
        return np.asarray(np.clip(pixels, 0, 255), np.uint8)

    return frame


def filmed(frames: np.ndarray, *, fps: float) -> Backdrop:
    """Make a background that plays frames [T, side, side, 3] uint8 back and forth."""
    count = len(frames)

    def frame(t: float) -> np.ndarray:
        index = int(t * fps) % max(1, 2 * count - 2)
        picture: np.ndarray = frames[index if index < count else 2 * count - 2 - index]
        return picture

    return frame


def _canvas(rng: np.random.Generator) -> np.ndarray:
    base = _KINDS[rng.integers(len(_KINDS))](rng)
    if rng.random() < 0.6:
        other = _KINDS[rng.integers(len(_KINDS))](rng)
        weight = _field(rng, int(rng.integers(2, 6)))[..., None]
        if rng.random() < 0.5:  # a hard border between two textures, like that between objects
            weight = (weight > 0.5).astype(np.float32)
        base = base * weight + other * (1 - weight)
    if rng.random() < 0.5:
        base = base * (0.6 + 0.7 * _field(rng, 2)[..., None])  # uneven light
    grain = rng.uniform(0, 10)
    base = base + rng.normal(0, grain, base.shape).astype(np.float32)
    return np.asarray(np.clip(base, 0, 255), np.uint8)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """Draw a random colour, usually less saturated than the things."""
    grey = rng.uniform(10, 245)
    saturation = rng.beta(1.2, 2.0)
    return np.clip(grey + saturation * rng.uniform(-160, 160, 3), 0, 255).astype(np.float32)


def _field(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Make a smooth random field [side, side] float32 in 0..1 with `cells` bumps along a side."""
    coarse = Image.fromarray(rng.random((cells + 1, cells + 1), np.float32))
    fine = np.asarray(coarse.resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC))
    low, high = fine.min(), fine.max()
    return np.asarray((fine - low) / max(high - low, 1e-6), np.float32)


def _octaves(rng: np.random.Generator) -> np.ndarray:
    cells = int(rng.integers(2, 5))
    total = np.zeros((_CANVAS, _CANVAS), np.float32)
    fall = rng.uniform(0.45, 0.75)
    for octave in range(5):
        total += fall**octave * _field(rng, cells * 2**octave)
    return np.asarray((total - total.min()) / (total.max() - total.min()), np.float32)


def _mix(rng: np.random.Generator, weight: np.ndarray) -> np.ndarray:
    mixed = _colour(rng) * weight[..., None] + _colour(rng) * (1 - weight[..., None])
    return np.asarray(mixed, np.float32)


def _ramp(rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:_CANVAS, 0:_CANVAS].astype(np.float32)
    ramp: np.ndarray = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    return ramp


def _plain(rng: np.random.Generator) -> np.ndarray:
    return np.broadcast_to(_colour(rng), (_CANVAS, _CANVAS, 3)).astype(np.float32)


def _gradient(rng: np.random.Generator) -> np.ndarray:
    ramp = _ramp(rng)
    return _mix(rng, (ramp - ramp.min()) / (ramp.max() - ramp.min()))


def _stripes(rng: np.random.Generator) -> np.ndarray:
    wave = np.sin(_ramp(rng) * rng.uniform(0.08, 0.9) + 2 * _field(rng, 3))
    return _mix(rng, np.clip(0.5 + wave * rng.uniform(0.5, 3), 0, 1))


def _checks(rng: np.random.Generator) -> np.ndarray:
    step = int(rng.integers(6, 34))
    y, x = np.mgrid[0:_CANVAS, 0:_CANVAS] // step
    return _mix(rng, ((x + y) % 2).astype(np.float32))


def _cloud(rng: np.random.Generator) -> np.ndarray:
    first = _octaves(rng)
    picture = _mix(rng, first)
    picture += (_colour(rng) - picture) * (_octaves(rng) ** 2)[..., None]
    return picture


def _regions(rng: np.random.Generator) -> np.ndarray:
    """Flat regions with hard edges, like objects out of focus."""
    levels = int(rng.integers(3, 8))
    index = np.minimum((_octaves(rng) * levels).astype(int), levels - 1)
    regions: np.ndarray = np.stack([_colour(rng) for _ in range(levels)])[index]
    return regions


def _patches(rng: np.random.Generator) -> np.ndarray:
    """Voronoi cells of random points."""
    count = int(rng.integers(5, 40))
    points = rng.uniform(0, _CANVAS, (count, 2)).astype(np.float32)
    y, x = np.mgrid[0:_CANVAS:2, 0:_CANVAS:2].astype(np.float32)
    distance = (x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2
    nearest = distance.argmin(-1).repeat(2, 0).repeat(2, 1)
    patches: np.ndarray = np.stack([_colour(rng) for _ in range(count)])[nearest]
    return patches


def _blobs(rng: np.random.Generator) -> np.ndarray:
    """Soft and hard ellipses without an outline, as distractors."""
    picture = _cloud(rng) if rng.random() < 0.5 else _plain(rng).copy()
    y, x = np.mgrid[0:_CANVAS, 0:_CANVAS].astype(np.float32)
    for _ in range(int(rng.integers(2, 10))):
        cx, cy = rng.uniform(0, _CANVAS, 2)
        rx, ry = rng.uniform(4, 34, 2)
        edge = rng.uniform(1, 12)
        inside = np.clip((1 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2) * edge, 0, 1)[..., None]
        picture = picture * (1 - inside) + _colour(rng) * inside
    return picture


def _noise(rng: np.random.Generator) -> np.ndarray:
    step = int(rng.integers(1, 5))
    cells = -(-_CANVAS // step)
    coarse = rng.random((cells, cells, 1 if rng.random() < 0.5 else 3), np.float32)
    fine = coarse.repeat(step, 0).repeat(step, 1)[:_CANVAS, :_CANVAS]
    return np.asarray(_colour(rng) + (fine - 0.5) * np.float32(rng.uniform(20, 160)))


_KINDS = (_plain, _gradient, _stripes, _checks, _cloud, _cloud, _regions, _patches, _blobs, _noise)
