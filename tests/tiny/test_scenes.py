"""Scenes: the same for the same seed, and what they tell is what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from sttm_cli.tiny.drawing import coverage, draw
from sttm_cli.tiny.scenes import COLOURS, SHAPES, SIDE, Card, Scene, Thing, make_scene
from sttm_cli.tiny.textures import filmed, textured

GREY = np.full((SIDE, SIDE, 3), 128, np.uint8)


def thing(shape: str = "circle", colour: str = "red", **fields: object) -> Thing:
    values: dict[str, object] = {
        "radius": 16.0, "angle": 0.0, "start": (30.0, 80.0), "velocity": (0.0, 0.0),
        "born": 0.0, "gone": 8.0,
    }  # fmt: skip
    return Thing(shape, colour, **{**values, **fields})  # type: ignore[arg-type]


def test_a_seed_always_makes_the_same_scene_and_pixels() -> None:
    first, second = make_scene(5, seconds=8), make_scene(5, seconds=8)
    assert first == second
    one, other = (textured(np.random.default_rng(3)) for _ in range(2))
    for t in (0.0, 3.5):
        assert np.array_equal(draw(first, t, one(t)), draw(second, t, other(t)))


def test_different_seeds_make_different_scenes() -> None:
    assert len({make_scene(seed).things for seed in range(20)}) > 15


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_is_drawn_in_its_colour_where_it_is(shape: str, colour: str) -> None:
    picture = draw(Scene(0, 8, (thing(shape, colour),), None), 1.0, GREY)
    assert np.abs(picture[80, 30].astype(int) - COLOURS[colour]).max() <= 2
    assert np.array_equal(picture[20, 90], GREY[0, 0])
    changed = np.argwhere((picture != GREY).any(-1))
    assert np.abs(changed.mean(0) - (80, 30)).max() < 3
    assert 24 <= np.ptp(changed[:, 1]) <= 42


def test_a_thing_moves_with_its_velocity() -> None:
    scene = Scene(0, 8, (thing(start=(20.0, 40.0), velocity=(10.0, 0.0)),), None)
    red = np.array(COLOURS["red"])
    for t in (0, 3, 7):
        is_red = np.abs(draw(scene, t, GREY).astype(int) - red).max(-1) < 20
        assert abs(np.argwhere(is_red)[:, 1].mean() - (20 + 10 * t)) < 1.5


def test_nothing_is_drawn_before_a_thing_appears_or_after_it_vanishes() -> None:
    scene = Scene(0, 8, (thing(born=2.5, gone=4.5),), None)
    shown = [bool((draw(scene, t, GREY) != GREY).any()) for t in range(8)]
    assert shown == [False, False, False, True, True, False, False, False]


def test_a_card_is_seen_in_one_sampled_frame_only() -> None:
    flashing = [s for s in (make_scene(i, seconds=8) for i in range(40)) if s.card is not None]
    assert len(flashing) > 10
    for scene in flashing:
        assert scene.card is not None
        assert sum(scene.card.visible(t) for t in range(8)) == 1


def test_every_digit_looks_different() -> None:
    cards = [Scene(0, 1, (), Card(d, 17.0, (56.0, 56.0), -0.5, 0.5)) for d in range(10)]
    drawn = [draw(scene, 0, GREY).astype(int) for scene in cards]
    for a in range(10):
        for b in range(a):
            assert (np.abs(drawn[a] - drawn[b]).max(-1) > 100).sum() > 20


def test_drawn_at_twice_the_size_a_scene_is_the_same_picture() -> None:
    scene = make_scene(9, seconds=4)
    small = draw(scene, 1, GREY).astype(float)
    large = draw(scene, 1, GREY.repeat(2, 0).repeat(2, 1)).astype(float)
    halved = large.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))
    assert np.abs(halved - small).mean() < 2


def test_coverage_is_the_share_of_each_cell_that_is_drawn_over() -> None:
    square = thing("square", start=(56.0, 56.0))
    share = coverage(square, 1.0, 7)
    changed = (draw(Scene(0, 8, (square,), None), 1.0, GREY) != GREY).any(-1)
    assert share[3, 3] == pytest.approx(1)
    assert share.sum() * 256 == pytest.approx(changed.sum(), rel=0.06)


def test_a_filmed_background_plays_back_and_forth() -> None:
    frames = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 10, 20)])
    backdrop = filmed(frames, fps=1)
    assert [int(backdrop(t)[0, 0, 0]) for t in range(6)] == [0, 10, 20, 10, 0, 10]
