"""Settings are checked when they are made, in Python as on the command line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sttm_cli.base.errors import UsageError
from sttm_cli.runtime.session import VideoQA
from sttm_cli.settings.settings import Settings
from sttm_cli.store import LocalStore
from tests.cli.process import sttm_here

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"


@pytest.mark.parametrize(
    ("field", "given", "read"),
    [
        ("budget", 1, 1.0),
        ("budget", np.float32(0.5), 0.5),
        ("budget", np.int64(100), 100),
        ("budget", "0.3", 0.3),
        ("start", "0:02", 2.0),
        ("end", 3, 3.0),
        ("max_bytes", "1G", 1 << 30),
        ("frames", np.int32(4), 4),
        ("cache_dir", "/somewhere", Path("/somewhere")),
        ("model", Path("/a/folder"), "/a/folder"),
    ],
)
def test_what_means_the_same_is_read_alike(field: str, given: Any, read: Any) -> None:
    value = getattr(Settings(**{field: given}), field)
    assert value == read
    assert type(value) is type(read) or isinstance(read, Path)


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("budget", True),
        ("budget", None),
        ("budget", "much"),
        ("frames", "three"),
        ("frames", 2.5),
        ("merge_layer", True),
        ("merge_layer", 1.0),
        ("fps", "fast"),
        ("start", "soon"),
        ("max_bytes", 1.5),
        ("max_new_tokens", 0),
    ],
)
def test_what_cannot_be_read_names_its_flag(field: str, given: Any) -> None:
    with pytest.raises(UsageError, match="--" + field.replace("_", "-")):
        Settings(**{field: given})


def test_budget_one_is_one_entry_however_it_is_written(tmp_path: Path) -> None:
    for budget, hit in ((1, False), (1.0, True), ("1", True)):
        with VideoQA(budget=budget, cache_dir=str(tmp_path)) as qa:
            assert qa.ask(SAMPLE, "how many shapes are there?").cache_hit is hit


def test_cache_commands_take_their_folder_from_the_config_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'cache_dir = "{tmp_path / "mine"}"\nbudget = 0.3\n')
    monkeypatch.setenv("STTM_CONFIG", str(config))
    monkeypatch.delenv("STTM_CACHE_DIR")
    assert sttm_here("cache", "path").out.strip() == str(tmp_path / "mine")
    assert sttm_here("ask", SAMPLE, "how many shapes are there?", "--json").json["tokens"][
        "budget"
    ] == pytest.approx(0.3)
    assert len(sttm_here("cache", "ls", "--json").json["entries"]) == 1
    # What asks by itself for several budgets is not narrowed to the usual one.
    report = sttm_here("inspect", SAMPLE, "--budgets", "1,0.5", "--repeat", "1", "--json")
    assert [row["budget"] for row in report.json["budgets"]] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("video", "question", "said"),
    [
        (SAMPLE, 3, "the question is 3"),
        (SAMPLE, ["a"], "the question is"),
        (None, "a", "the video is None"),
    ],
)
def test_what_is_no_video_or_question_is_refused_by_name(
    video: Any, question: Any, said: str
) -> None:
    with VideoQA(no_cache=True) as qa, pytest.raises(ValueError, match=said):
        qa.ask(video, question)


def test_a_rate_that_the_default_bound_does_not_allow_is_said() -> None:
    for settings, said in (
        ({"fps": 2}, 1),
        ({"fps": 2, "frames": 16}, 0),
        ({"fps": 1}, 0),
        ({}, 0),
    ):
        lines: list[str] = []
        with VideoQA(no_cache=True, warn=lines.append, **settings) as qa:
            times = qa.prepare(SAMPLE).frame_times_s
        assert len(times) == (16 if "frames" in settings else 8)
        assert sum("--fps 2 gives more than the 8 frames" in line for line in lines) == said


def test_settings_and_fields_beside_them_are_refused() -> None:
    with pytest.raises(ValueError, match="budget"):
        VideoQA(Settings(), budget=0.1)


def test_the_first_token_counts_all_that_was_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    save = LocalStore.save

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(3)
        return save(*args, **options)

    monkeypatch.setattr(LocalStore, "save", slow)
    with VideoQA() as qa:
        first, again = (qa.ask(SAMPLE, "how many shapes are there?") for _ in range(2))
        assert first.seconds["first_token"] > 3
        assert again.seconds["first_token"] < first.seconds["first_token"]


def test_cold_seconds_are_what_was_waited_for_when_it_was_computed() -> None:
    with VideoQA() as qa:
        waited = qa.prepare(SAMPLE).seconds
    with VideoQA() as qa:
        again = qa.prepare(SAMPLE)
    assert again.cache.hit
    assert again.seconds < again.cold_seconds <= waited
