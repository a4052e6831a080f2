"""A malformed checkpoint ends the command with 4 and one line that names it, or still answers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.attack.checkpoints import Case, cases
from tests.cli.process import Ended, sttm, sttm_here

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
SLOW = ("never ends", "long number")
"""Templates that take all the time they are given: one of them is in tests/models."""
QUICK = [case for case in cases(1) if not case.name.endswith(SLOW)]
WHOLE = [case for case in QUICK if case.name.startswith(("template:", "weights:", "shard:"))]
ARGUMENTS = ("--frames", "4", "--max-new-tokens", "2", "--no-server", "--no-cache")


def is_done_or_refused(ended: Ended) -> None:
    assert ended.code in (0, 4, 5), ended.err
    assert "Traceback" not in ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("sttm: ")]
    assert len(lines) == (1 if ended.code else 0), ended.err


@pytest.mark.parametrize(
    "case", [*WHOLE, *islice((c for c in QUICK if c not in WHOLE), 90)], ids=lambda case: case.name
)
def test_it_is_refused_in_one_line_or_answers(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path / "model")
    asked = ("ask", SAMPLE, "how many?", "--model", tmp_path / "model", *ARGUMENTS)
    is_done_or_refused(sttm_here(*asked))


def test_a_config_without_sizes_is_refused_before_a_large_model_is_made(tmp_path: Path) -> None:
    for name in ("config.json: text_config: null", "config.json: vision_config: object"):
        (case,) = (case for case in QUICK if case.name == name)
        folder = tmp_path / case.name.replace(" ", "")
        case.write(folder)
        ended = sttm_here("ask", SAMPLE, "how many?", "--model", folder, *ARGUMENTS)
        assert ended.code == 4
        assert "by its config.json, more than its files" in ended.err


@pytest.mark.parametrize(
    "name",
    [
        "weights: all nan",
        "model.safetensors.index.json: weight_map: list",
        "config.json: text_config: list",
        "template: raises",
    ],
)
def test_so_it_is_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    (case,) = (case for case in QUICK if case.name == name)
    case.write(tmp_path / "model")
    ended = sttm("ask", SAMPLE, "how many?", "--model", tmp_path / "model", *ARGUMENTS)
    is_done_or_refused(ended)
    assert ended.code == 4
