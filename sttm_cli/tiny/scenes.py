"""Generated scenes: coloured shapes that move, appear and vanish, and a flashing digit card.

A scene is generated from a seed and can be drawn at any time t in seconds. Coordinates and radii
are in pixels of a 112 x 112 picture, independent of the drawn size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

SIDE = 112
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 32, 38),
    "orange": (255, 138, 0),
    "yellow": (250, 228, 45),
    "green": (35, 160, 60),
    "cyan": (60, 215, 225),
    "blue": (35, 70, 215),
    "purple": (150, 45, 185),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOST_THINGS = 4


@dataclass(frozen=True)
class Thing:
    """A shape at `start` (x, y) at time `born`, moving by `velocity` px/s, visible until `gone`."""

    shape: str
    colour: str
    radius: float
    angle: float
    start: tuple[float, float]
    velocity: tuple[float, float]
    born: float
    gone: float

    def visible(self, t: float) -> bool:
        return self.born <= t < self.gone

    def at(self, t: float) -> tuple[float, float]:
        """Return the centre (x, y), which never leaves the picture."""
        age, edge = t - self.born, self.radius + 1
        x, y = (s + v * age for s, v in zip(self.start, self.velocity, strict=True))
        return min(max(x, edge), SIDE - edge), min(max(y, edge), SIDE - edge)


@dataclass(frozen=True)
class Card:
    """A white card with a digit, shown around one sampled time."""

    digit: int
    radius: float
    start: tuple[float, float]
    born: float
    gone: float

    def visible(self, t: float) -> bool:
        return self.born <= t < self.gone

    def at(self, t: float) -> tuple[float, float]:
        return self.start


@dataclass(frozen=True)
class Scene:
    """A scene of `seconds`; `things` have distinct shapes and distinct colours."""

    seed: int
    seconds: int
    things: tuple[Thing, ...]
    card: Card | None


def make_scene(seed: int, *, seconds: int | None = None, crowded: bool = False) -> Scene:
    """Generate the scene of a seed, by default of 1 to 8 seconds; one frame is sampled per second.

    `crowded`: as many things as fit and a permanent card, for more training signal per frame.
    """
    rng = np.random.default_rng(seed)
    drawn = int(rng.integers(1, 9))
    length = drawn if seconds is None else seconds
    card = _make_card(rng, length) if rng.random() < 0.55 or crowded else None
    if card is not None and crowded:
        card = replace(card, born=0.0, gone=float(length))
    shapes = rng.permutation(SHAPES)
    colours = rng.permutation(list(COLOURS))
    things: list[Thing] = []
    count = int(rng.choice(MOST_THINGS + 1, p=(0.04, 0.22, 0.26, 0.26, 0.22)))
    count = MOST_THINGS if crowded else count
    for shape, colour in zip(shapes[:count], colours, strict=False):
        thing = _place(rng, (str(shape), str(colour)), things, card=card, seconds=length)
        if thing is not None:
            things.append(thing)
    order = rng.permutation(len(things))
    return Scene(seed=seed, seconds=length, things=tuple(things[i] for i in order), card=card)


def _make_card(rng: np.random.Generator, seconds: int) -> Card:
    moment = int(rng.integers(seconds))
    radius = float(rng.uniform(15, 19))
    x, y = (float(v) for v in rng.uniform(radius + 1, SIDE - radius - 1, 2))
    return Card(
        digit=int(rng.integers(10)),
        radius=radius,
        start=(x, y),
        born=moment - 0.45,
        gone=moment + 0.45,
    )


def _place(
    rng: np.random.Generator,
    name: tuple[str, str],
    others: list[Thing],
    *,
    card: Card | None,
    seconds: int,
) -> Thing | None:
    """Make a thing that does not touch the others at any sampled time; None after 40 tries."""
    times = np.arange(0, seconds, 0.5)
    for _ in range(40):
        thing = _random_thing(rng, name, seconds)
        if all(_clear(thing, other, times) for other in (*others, *([card] if card else ()))):
            return thing
    return None


def _random_thing(rng: np.random.Generator, name: tuple[str, str], seconds: int) -> Thing:
    radius = float(rng.uniform(13, 19))
    born, gone = 0, seconds
    shortest = min(seconds, 2)
    if rng.random() < 0.5:
        born = int(rng.integers(0, seconds - shortest + 1))
    if rng.random() < 0.3:
        gone = int(rng.integers(born + shortest, seconds + 1))
    first, last = radius + 1, SIDE - radius - 1
    start = rng.uniform(first, last, 2)
    velocity = np.zeros(2)
    if gone - born >= 2 and rng.random() < 0.7:
        axis, travel = int(rng.integers(2)), float(rng.uniform(40, 72))
        sign = int(rng.choice((-1, 1)))
        begin = rng.uniform(first, last - travel) if last - travel > first else first
        travel = min(travel, last - begin)
        start[axis] = begin if sign > 0 else begin + travel
        velocity[axis] = sign * travel / (gone - born - 1)
    # Things appear and vanish between two sampled times; `start` moves back accordingly, so that
    # the place at the first sampled time stays the same.
    shown, hidden = (t - 0.5 if 0 < t < seconds else t for t in (born, gone))
    start = start - velocity * (born - shown)
    return Thing(
        shape=name[0],
        colour=name[1],
        radius=radius,
        angle=float(rng.uniform(-0.2, 0.2)),
        start=(float(start[0]), float(start[1])),
        velocity=(float(velocity[0]), float(velocity[1])),
        born=float(shown),
        gone=float(hidden),
    )


def _clear(thing: Thing, other: Thing | Card, times: np.ndarray) -> bool:
    near = 0.85 * (thing.radius + other.radius)
    return all(
        math.dist(thing.at(t), other.at(t)) > near
        for t in times
        if thing.visible(t) and other.visible(t)
    )
