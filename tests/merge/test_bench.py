"""The benchmark of the merging: what it measures, and what it prints."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from sttm_cli.bench import merge_speed as bench
from sttm_cli.cli import app


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHAPES", ((2, 6, 6, 64), (8, 6, 6, 64), (4, 8, 8, 64)))


def measured(*options: str) -> str:
    arguments = ["bench", "merge", "--device", "cpu", "--repeat", "1", *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.usefixtures("small")
def test_every_size_dtype_and_setting_has_a_row() -> None:
    rows = json.loads(measured("--json"))["rows"]
    assert len(rows) == 3 * 2 * 2
    for row in rows:
        assert 0 < row["kept"] <= (row["budget"] or 1)
        assert row["best"] > 0
        assert row["floor"] > 0


@pytest.mark.usefixtures("small")
def test_the_table_ends_with_how_time_grows() -> None:
    said = measured("--frames", "16")
    assert "| 8 x 6 x 6 x 64 | bfloat16 | 0.3 | 2" in said
    assert said.count("time grows with T to the power of") == 4


def test_growth_is_one_where_time_is_proportional_to_frames() -> None:
    rows = [
        bench.Row((frames, 1, 1, 1), "float32", "cuda", None, 1.0, best=frames / 7, median=1.0,
                  cpu=1.0, floor=1.0, extra=None)
        for frames in (2, 8, 32)
    ]  # fmt: skip
    assert bench.growth(rows) == pytest.approx(1)
    assert bench.growth(rows[:1]) is None


def test_the_made_up_tokens_are_the_same_every_time_and_change_from_frame_to_frame() -> None:
    one, other = (bench.made_up_tokens((3, 6, 6, 32), torch.float32, "cpu") for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
