"""Questions: their true answers follow from what the sampled frames show."""

from __future__ import annotations

import numpy as np
import pytest

from sttm_cli.tiny.questions import KINDS, Question, ask_about
from sttm_cli.tiny.scenes import Card, Scene, Thing, make_scene

LEFT_MOVING_STAR = Thing("star", "blue", 15.0, 0.0, (90.0, 30.0), (-8.0, 0.0), 0.0, 8.0)
LATE_CIRCLE = Thing("circle", "red", 15.0, 0.0, (30.0, 85.0), (0.0, 0.0), 2.5, 8.0)
CARD = Card(7, 16.0, (90.0, 90.0), 4.55, 5.45)
SCENE = Scene(0, 8, (LEFT_MOVING_STAR, LATE_CIRCLE), CARD)


def asked(scene: Scene = SCENE, times: tuple[float, ...] = tuple(range(8))) -> list[Question]:
    """Everything that many draws ask about the scene."""
    return [q for seed in range(200) for q in ask_about(scene, times, np.random.default_rng(seed))]


def answers(kind: str, word: str, **given: object) -> set[str]:
    found = {q.answer for q in asked(**given) if q.kind == kind and word in q.text}  # type: ignore[arg-type]
    assert found
    return found


@pytest.mark.parametrize(
    ("kind", "word", "truth"),
    [
        ("colour", "circle", "red"),
        ("colour", "star", "blue"),
        ("colour", "cross", "none"),
        ("shape", "red", "circle"),
        ("shape", "green", "none"),
        ("position", "circle", "bottom left"),
        ("motion", "star", "left"),
        ("motion", "circle", "none"),
        ("count", "how many", "two"),
        ("needle", "digit", "7"),
        ("existence", "red circle", "yes"),
        ("existence", "blue circle", "no"),
        ("order", "what appears first?", "star"),
        ("order", "what appears last?", "circle"),
        ("order", "first, the", "star"),
    ],
)
def test_the_truth_is_what_the_frames_show(kind: str, word: str, truth: str) -> None:
    assert answers(kind, word) == {truth}


def test_only_what_is_sampled_counts() -> None:
    early = {"times": (0.0, 1.0, 2.0)}
    assert answers("count", "how many", **early) == {"one"}
    assert answers("needle", "digit", **early) == {"none"}
    assert answers("colour", "circle", **early) == {"none"}


def test_motion_is_not_asked_where_it_cannot_be_seen() -> None:
    assert not [q for q in asked(times=(3.0,)) if q.kind == "motion"]


def test_no_position_is_asked_of_what_moves() -> None:
    assert not [q for q in asked() if q.kind == "position" and "star" in q.text]


def test_every_kind_is_asked_and_existence_is_balanced() -> None:
    questions = [
        q
        for seed in range(200)
        for q in ask_about(make_scene(seed, seconds=8), range(8), np.random.default_rng(seed))
    ]
    assert {q.kind for q in questions} == set(KINDS)
    existence = [q.answer for q in questions if q.kind == "existence"]
    assert 0.4 < existence.count("yes") / len(existence) < 0.6


def test_both_spellings_of_colour_are_used() -> None:
    texts = " ".join(q.text for q in asked() if q.kind == "colour")
    assert "colour" in texts
    assert "color " in texts
