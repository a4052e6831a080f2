"""The shipped weights answer held-out scenes, through the package's own path."""

from __future__ import annotations

import pytest

import sttm_cli
from sttm_cli.tiny.measure import Outcome, ask_scenes, table


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    cache = tmp_path_factory.mktemp("cache")
    with sttm_cli.VideoQA(model="tiny", budget=1.0, no_cache=True, cache_dir=cache) as qa:
        return list(ask_scenes(qa, 24))


def test_answers_are_far_above_chance(outcomes: list[Outcome]) -> None:
    total = table(outcomes)[-1]
    assert total["n"] > 100
    assert total["accuracy"] > total["chance"] + 0.25


def test_every_answer_is_a_word_that_the_kind_can_have(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.answer
        assert "<" not in outcome.answer
