"""The shipped weights answer held-out scenes, through the package's own path."""

from __future__ import annotations

from pathlib import Path

import pytest

import sttm_cli
from sttm_cli.bench.accuracy import find_entrants, report, take_exam
from sttm_cli.bench.exam import Exam


@pytest.fixture(scope="module")
def qa() -> sttm_cli.VideoQA:
    return sttm_cli.VideoQA(model="tiny", budget=1.0, frames=8, no_cache=True)


def test_nearly_every_answer_is_right(qa: sttm_cli.VideoQA) -> None:
    shown = report(
        take_exam(qa, Exam("test", 8), entrants=find_entrants("sttm"), budgets=[], questions=60)
    )
    # 98.3 % of 2,006 (docs/benchmarks.md): of 60 questions, two wrong ones more than that.
    assert shown["rows"][0]["accuracy"]["value"] > 0.94


def test_every_answer_is_a_word_that_the_kind_can_have(
    qa: sttm_cli.VideoQA, tmp_path: Path
) -> None:
    sheet = next(Exam("test", 8).sheets(tmp_path))
    for question in sheet.questions:
        answer = qa.ask(sheet.path, question.text).text
        assert answer
        assert "<" not in answer
