"""Questions about a scene and their true answers, derived from its sampled frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sttm_cli.tiny.scenes import COLOURS, SHAPES, SIDE, Scene, Thing

NUMBERS = ("none", "one", "two", "three", "four")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
KINDS = ("colour", "shape", "position", "motion", "count", "order", "needle", "existence")
_MOVED = 16.0  # px over the sampled frames; smaller motions are not clear
_STILL = 1.0
_MARGIN = 5.0  # px from the middle lines; nearer places are not clearly in a corner

TEMPLATES: dict[str, tuple[str, ...]] = {
    "colour": (
        "what colour is the {x}?", "which colour is the {x}?", "what is the colour of the {x}?",
        "which colour does the {x} have?", "tell me the colour of the {x}",
        "the {x} is what colour?", "what colour does the {x} have?",
    ),
    "shape": (
        "what shape is {x}?", "which shape is {x}?", "what is the shape of the {x} object?",
        "what shape is the {x} object?", "what shape is the {x} one?", "what is the {x} thing?",
        "which object is {x}?", "what shape does the {x} thing have?",
    ),
    "position": (
        "where is the {x}?", "in which corner is the {x}?", "which corner is the {x} in?",
        "what is the position of the {x}?", "where in the picture is the {x}?",
        "where can you see the {x}?", "in which part of the video is the {x}?",
    ),
    "motion": (
        "which way does the {x} move?", "in which direction does the {x} move?",
        "which direction is the {x} moving?", "where does the {x} move?", "where does the {x} go?",
        "which way is the {x} going?", "what is the direction of the {x}?",
        "in what direction is the {x} moving?", "how does the {x} move?",
        "which way does the {x} go?",
    ),
    "count": (
        "how many shapes are there?", "how many objects are there?", "how many shapes do you see?",
        "how many things are in the video?", "count the shapes", "what is the number of shapes?",
        "how many shapes are visible?", "how many shapes appear?",
        "how many objects appear in the video?",
    ),
    "first": (
        "what appears first?", "which shape appears first?", "what comes first?",
        "which shape is seen first?", "what is the first shape?", "which object appears first?",
        "what is the first thing to appear?",
    ),
    "last": (
        "what appears last?", "which shape appears last?", "what comes last?",
        "which shape is the last to appear?", "which object appears last?",
        "what is the last thing to appear?",
    ),
    "pair": (
        "which appears first, the {x} or the {y}?", "what comes first, the {x} or the {y}?",
        "which is seen first, the {x} or the {y}?", "what appears first, the {x} or the {y}?",
    ),
    "before": (
        "does the {x} appear before the {y}?", "does the {x} come before the {y}?",
        "is the {x} seen before the {y}?",
    ),
    "needle": (
        "which digit flashes?", "what digit flashes?", "which number flashes?",
        "what number is shown?", "which digit is shown?", "what digit is on the card?",
        "which number is on the card?", "what number appears?", "which digit appears?",
        "what is the number on the card?", "what digit do you see?",
    ),
    "existence": (
        "is there a {x}?", "do you see a {x}?", "is there a {x} in the video?",
        "does a {x} appear?", "can you see a {x}?", "is a {x} visible?",
        "does the video show a {x}?",
    ),
    "anything": (
        "is there anything {x}?", "is there something {x}?", "is anything {x}?",
        "do you see anything {x}?", "is there a {x} shape?", "is there a {x} object?",
    ),
    "card": (
        "is there a digit?", "is there a number?", "does a digit flash?", "do you see a card?",
        "is there a card?", "does a number appear?",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question of a `kind`, and its true answer.

    `form`: the template's name and the number of words of the thing it names, which any reader of
    the text sees. `bet`: the answer; where two things are named, which of them it is.
    """

    kind: str
    text: str
    answer: str
    form: str = ""
    bet: str = ""


@dataclass(frozen=True)
class Seen:
    """A thing in the sampled frames: the index of its first frame, and its `places` [n, 2] (x, y)
    in the frames that show it."""

    thing: Thing
    first: int
    places: np.ndarray

    @property
    def motion(self) -> str | None:
        """The direction, "none" for a still thing, None if unclear."""
        if len(self.places) < 2:
            return None
        dx, dy = self.places[-1] - self.places[0]
        if abs(dx) >= _MOVED and abs(dy) < _STILL:
            return "right" if dx > 0 else "left"
        if abs(dy) >= _MOVED and abs(dx) < _STILL:
            return "down" if dy > 0 else "up"
        return "none" if max(abs(dx), abs(dy)) < _STILL else None

    @property
    def corner(self) -> str | None:
        """The corner of a still thing, None if unclear."""
        x, y = self.places[0] - SIDE / 2
        if self.motion not in (None, "none") or min(abs(x), abs(y)) < _MARGIN:
            return None
        if abs(self.places - self.places[0]).max() > _STILL:
            return None
        return CORNERS[2 * int(y > 0) + int(x > 0)]


def look(scene: Scene, times: Sequence[float]) -> list[Seen]:
    """Return the things that are visible at these times, in the scene's order."""
    result = []
    for thing in scene.things:
        shown = [i for i, t in enumerate(times) if thing.visible(t)]
        if shown:
            places = np.array([thing.at(times[i]) for i in shown])
            result.append(Seen(thing, shown[0], places))
    return result


def ask_about(scene: Scene, times: Sequence[float], rng: np.random.Generator) -> list[Question]:
    """Make questions of every kind with a clear answer at these times, in random order."""
    seen = look(scene, times)
    digit = None
    if scene.card is not None and any(scene.card.visible(t) for t in times):
        digit = scene.card.digit
    questions = [
        *_colours(seen, rng), *_shapes(seen, rng), *_positions(seen, rng), *_motions(seen, rng),
        *_order(seen, rng), *_existence(seen, rng), *_card(digit, rng),
        _question("count", "count", NUMBERS[len(seen)], rng),
    ]  # fmt: skip
    return [questions[i] for i in rng.permutation(len(questions))]


def _question(
    kind: str, wording: str, answer: str, rng: np.random.Generator, x: str = "", y: str = ""
) -> Question:
    templates = TEMPLATES[wording]
    text = templates[rng.integers(len(templates))].format(x=x, y=y)
    text = text.replace(" a orange", " an orange")
    if rng.random() < 0.5:
        text = text.replace("colour", "color")
    bet = ("second", "first")[answer == x] if wording == "pair" else answer
    return Question(kind, text, answer, f"{wording} {len(x.split())}", bet)


def _absent(names: Sequence[str], present: set[str], rng: np.random.Generator) -> str:
    left = [name for name in names if name not in present]
    return left[rng.integers(len(left))]


def _name(thing: Thing, rng: np.random.Generator) -> str:
    return thing.shape if rng.random() < 0.7 else f"{thing.colour} {thing.shape}"


def _colours(seen: list[Seen], rng: np.random.Generator) -> list[Question]:
    questions = [_question("colour", "colour", s.thing.colour, rng, s.thing.shape) for s in seen]
    if rng.random() < 0.25:
        shape = _absent(SHAPES, {s.thing.shape for s in seen}, rng)
        questions.append(_question("colour", "colour", "none", rng, shape))
    return questions


def _shapes(seen: list[Seen], rng: np.random.Generator) -> list[Question]:
    questions = [_question("shape", "shape", s.thing.shape, rng, s.thing.colour) for s in seen]
    if rng.random() < 0.25:
        colour = _absent(list(COLOURS), {s.thing.colour for s in seen}, rng)
        questions.append(_question("shape", "shape", "none", rng, colour))
    return questions


def _positions(seen: list[Seen], rng: np.random.Generator) -> list[Question]:
    questions = [
        _question("position", "position", s.corner, rng, _name(s.thing, rng))
        for s in seen
        if s.corner is not None
    ]
    if rng.random() < 0.12:
        shape = _absent(SHAPES, {s.thing.shape for s in seen}, rng)
        questions.append(_question("position", "position", "none", rng, shape))
    return questions


def _motions(seen: list[Seen], rng: np.random.Generator) -> list[Question]:
    return [
        _question("motion", "motion", s.motion, rng, _name(s.thing, rng))
        for s in seen
        if s.motion is not None
    ]


def _order(seen: list[Seen], rng: np.random.Generator) -> list[Question]:
    if not seen:
        return [_question("order", "first", "none", rng)] if rng.random() < 0.3 else []
    questions = []
    ranked = sorted(seen, key=lambda s: s.first)
    if len(seen) == 1 and rng.random() < 0.7:
        return []
    if len(seen) == 1 or ranked[0].first < ranked[1].first:
        questions.append(_question("order", "first", ranked[0].thing.shape, rng))
    if len(seen) == 1 or ranked[-1].first > ranked[-2].first:
        questions.append(_question("order", "last", ranked[-1].thing.shape, rng))
    a, b = (seen[i] for i in rng.permutation(len(seen))[:2]) if len(seen) > 1 else (seen[0],) * 2
    if a.first != b.first:
        earlier = (a if a.first < b.first else b).thing.shape
        yes = "yes" if a.first < b.first else "no"
        questions.append(_question("order", "pair", earlier, rng, a.thing.shape, b.thing.shape))
        questions.append(_question("order", "before", yes, rng, a.thing.shape, b.thing.shape))
    return questions


def _existence(seen: list[Seen], rng: np.random.Generator) -> list[Question]:
    """Make about as many questions with "yes" as with "no"; half of the latter combine the shape of
    one visible thing with the colour of another."""
    shapes, colours = {s.thing.shape for s in seen}, {s.thing.colour for s in seen}
    questions = []
    if seen:
        one = seen[rng.integers(len(seen))].thing
        what = (one.shape, f"{one.colour} {one.shape}")[rng.integers(2)]
        questions.append(_question("existence", "existence", "yes", rng, what))
    lures: list[Callable[[], str]] = [
        lambda: _absent(SHAPES, shapes, rng),
        lambda: f"{rng.choice(list(COLOURS))} {_absent(SHAPES, shapes, rng)}",
    ]
    if seen:
        lures.append(lambda: f"{_absent(list(COLOURS), colours, rng)} {one.shape}")
    if len(seen) > 1:
        other = next(s.thing for s in seen if s.thing is not one)
        lures += [lambda: f"{other.colour} {one.shape}"] * 3
    lure = lures[rng.integers(len(lures))]()
    questions.append(_question("existence", "existence", "no", rng, lure))
    if rng.random() < 0.4:
        if seen and rng.random() < 0.5:
            questions.append(_question("existence", "anything", "yes", rng, one.colour))
        else:
            away = _absent(list(COLOURS), colours, rng)
            questions.append(_question("existence", "anything", "no", rng, away))
    return questions


def _card(digit: int | None, rng: np.random.Generator) -> list[Question]:
    questions = []
    if digit is not None or rng.random() < 0.3:
        questions.append(
            _question("needle", "needle", "none" if digit is None else str(digit), rng)
        )
    if rng.random() < 0.15:
        questions.append(_question("existence", "card", "no" if digit is None else "yes", rng))
    return questions
