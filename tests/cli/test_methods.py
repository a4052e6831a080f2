"""`--method`: every method answers, and is part of the report and of the key of a stored KV."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sttm_cli.base.errors import UsageError
from sttm_cli.base.names import METHODS
from sttm_cli.runtime.session import VideoQA
from sttm_cli.settings.settings import Settings
from tests.cli.process import sttm, sttm_here
from tests.test_startup import HEAVY, modules_after

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"

TOY = """\
from sttm_cli.merge.groups import chosen, evenly, within_budget
from sttm_cli.merge.method import Method


def toy(features, keep):
    return chosen(features, evenly(keep, features.shape[:3].numel(), features.device))


METHOD = Method("toy", 1, within_budget(toy))
"""


def add_package(folder: Path, *, source: str = TOY, version: str = "1.0") -> None:
    """A package beside ours that brings the method `toy`, as pip would have installed it."""
    (folder / "toy.py").write_text(source)
    about = folder / f"toy-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy\nVersion: {version}\n")
    (about / "entry_points.txt").write_text("[sttm_cli.methods]\ntoy = toy:METHOD\n")


def beside(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", os.getcwd())]))


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_answers_from_its_own_kv_alone(name: str) -> None:
    other = "sttm" if name == "tome" else "tome"
    assert sttm_here("ask", SAMPLE, QUESTION, "--budget", "0.3", "--method", other).code == 0
    flags = ("--budget", "0.3", "--method", name, "--json")
    first, again = (sttm_here("ask", SAMPLE, QUESTION, *flags).json for _ in range(2))
    assert first["tokens"]["method"] == name
    assert (first["tokens"]["video_kept"], first["tokens"]["video_full"]) == (117, 392)
    assert not first["cache"]["hit"]
    assert "merge.method" in first["cache"]["miss_reason"]
    assert again["cache"]["hit"]
    assert again["answers"] == first["answers"]


@pytest.mark.parametrize("name", METHODS.names())
def test_at_budget_one_every_method_gives_the_same_answer(name: str) -> None:
    with (
        VideoQA(budget=1.0, no_cache=True) as qa,
        VideoQA(budget=1.0, method=name, no_cache=True) as other,
    ):
        one, two = qa.prepare(SAMPLE).kv, other.prepare(SAMPLE).kv
    assert one.lengths == two.lengths
    for a, b, rows in zip(
        one.keys + one.values, two.keys + two.values, one.lengths * 2, strict=True
    ):
        assert a[:rows].equal(b[:rows])


def test_a_method_is_set_by_flag_variable_and_config_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text('method = "evs"\n')
    monkeypatch.setenv("STTM_CONFIG", str(tmp_path / "config.toml"))
    asked = ("ask", SAMPLE, QUESTION, "--json")
    assert sttm_here(*asked).json["tokens"]["method"] == "evs"
    monkeypatch.setenv("STTM_METHOD", "tome")
    assert sttm_here(*asked).json["tokens"]["method"] == "tome"
    assert sttm_here(*asked, "--method", "sttm").json["tokens"]["method"] == "sttm"


@pytest.mark.parametrize("command", ["ask", "chat", "precompute", "inspect"])
def test_an_unknown_method_is_answered_with_the_nearest(command: str) -> None:
    question = [QUESTION] if command == "ask" else []
    ended = sttm_here(command, SAMPLE, *question, "--method", "vidcom")
    assert ended.code == 2
    assert "--method 'vidcom' is not known" in ended.err
    assert "did you mean vidcom2?" in ended.err
    with pytest.raises(UsageError, match="--method"):
        Settings(method="vidcom")


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", SAMPLE, "--budget", "1", "--method", "sttm:0.8/0.6"),
        ("bench", "speed", SAMPLE, "--method", "sttm:0.8/0.6"),
        ("bench", "accuracy", "--methods", "sttm:0.8/0.6", "--questions", "2"),
    ],
)
def test_thresholds_are_refused_where_budgets_are_compared(command: tuple[str, ...]) -> None:
    ended = sttm_here(*command)
    assert ended.code == 2
    assert "sttm:0.8/0.6 has thresholds, and this command takes budgets" in ended.err


def test_names_are_known_without_anything_heavy() -> None:
    code = (
        "from sttm_cli.settings.settings import Settings\n"
        "from sttm_cli.base.names import METHODS\n"
        "Settings(method='vidcom2'), METHODS.names()"
    )
    assert not modules_after(code) & HEAVY


def test_a_prepared_video_is_one_of_its_method(tmp_path: Path) -> None:
    assert sttm_here("precompute", SAMPLE, "--method", "evs").code == 0
    (entry,) = sttm_here("cache", "ls", "--json").json["entries"]
    assert entry["method"] == "evs"
    assert sttm_here("ask", SAMPLE, QUESTION, "--json", "--method", "evs").json["cache"]["hit"]
    report = sttm_here("inspect", SAMPLE, "--budgets", "0.5", "--repeat", "1", "--json")
    assert (report.json["model"]["method"], report.json["budgets"][0]["cached"]) == ("sttm", False)


@pytest.mark.parametrize("name", ["evs", "tome"])
def test_inspect_draws_what_a_method_dropped_or_joined(name: str, tmp_path: Path) -> None:
    pictures = ("--picture", tmp_path / "a.png", "--report", tmp_path / "a.html", "--show")
    flags = ("--budgets", "0.2", "--repeat", "1", "--method", name)
    ended = sttm_here("inspect", SAMPLE, *flags, *pictures)
    assert ended.code == 0, ended.err
    assert f"merged by {name} before layer 1" in ended.out
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_method_of_another_package_is_found_by_its_entry_point(tmp_path: Path) -> None:
    add_package(tmp_path)
    path = beside(tmp_path)
    assert sttm("ask", SAMPLE, QUESTION, "-q", "--budget", "0.3").code == 0
    flags = ("--json", "--budget", "0.3", "--method", "toy")
    first, again = (sttm("ask", SAMPLE, QUESTION, *flags, PYTHONPATH=path) for _ in range(2))
    assert first.code == 0, first.err
    assert first.json["tokens"]["method"] == "toy"
    assert first.json["tokens"]["video_kept"] == 117
    assert not first.json["cache"]["hit"]
    assert 'asked "toy/1", stored "sttm/2"' in first.json["cache"]["miss_reason"]
    assert again.json["cache"]["hit"]
    assert again.json["answers"] == first.json["answers"]
    gone = sttm("ask", SAMPLE, QUESTION, *flags)
    assert gone.code == 2
    assert "--method 'toy' is not known" in gone.json["error"]["message"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nowhere", "cannot be imported: No module named 'nowhere'"),
        (TOY.replace('"toy"', '"sttm"'), "is not a merging method of that name"),
        ("METHOD = print", "is not a merging method of that name"),
    ],
)
def test_a_method_of_another_package_that_is_broken_is_named(
    source: str, said: str, tmp_path: Path
) -> None:
    add_package(tmp_path, source=source)
    ended = sttm("ask", SAMPLE, QUESTION, "--method", "toy", PYTHONPATH=beside(tmp_path))
    assert ended.code == 2
    assert said in ended.err
