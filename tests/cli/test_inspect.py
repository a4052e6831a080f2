"""inspect: what it counts, measures, prints and draws."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from sttm_cli.cli.inspect_tables import SECONDS, TOKENS
from tests.checkpoints_qwen import qwen_vl
from tests.cli.process import Ended, sttm, sttm_here
from tests.cli.test_ask import QUESTION, SAMPLE, cached_files
from tests.inspect.page import Page, unpacked


@pytest.fixture(scope="module")
def printed() -> Ended:
    """The default budgets, as printed in a pipe of 80 columns."""
    return sttm("inspect", SAMPLE, "--repeat", "1", COLUMNS="80")


def test_inspect_measures_every_budget_and_leaves_the_cache_alone() -> None:
    report = sttm_here("inspect", SAMPLE, "--budgets", "1,0.5,0.2", "--repeat", "2", "--json").json
    assert report["schema"] == "sttm.inspect/1"
    time, height, width = report["grid"]
    rows = report["budgets"]
    assert [row["budget"] for row in rows] == [1.0, 0.5, 0.2]
    assert all(row["video_full"] == time * height * width for row in rows)
    assert rows[0]["video_kept"] == rows[0]["video_full"]
    assert rows[0]["kv_bytes"] > rows[1]["kv_bytes"] > rows[2]["kv_bytes"]
    for row in rows:
        assert row["video_kept"] <= row["budget"] * row["video_full"]
        seconds, sums = row["seconds"], row["sums_of_medians"]
        for stage in ("decode", "encode", "merge", "prefill", "restore", "first_token"):
            assert seconds[stage] >= 0
        assert sums["restored"] == pytest.approx(seconds["restore"] + seconds["first_token"])
        assert sums["computed"] >= seconds["decode"] + seconds["encode"] + seconds["prefill"]
        assert row["speedup"] > 0
    assert report["repeat"] == 2
    assert not cached_files()


def test_inspect_tells_the_times_asked_for_and_the_times_that_came_of_it() -> None:
    report = sttm_here(
        "inspect", SAMPLE, "--frames", "3", "--budgets", "0.5", "--repeat", "1", "--json"
    ).json
    sampled = report["sampled"]
    assert len(sampled["asked_s"]) == len(sampled["times_s"]) == len(report["frames"]) == 3
    assert sampled["times_s"] == pytest.approx(sampled["asked_s"], abs=0.2)
    assert (sampled["lost"], sampled["reader"]) == (0, report["video"]["reader"])


def test_inspect_tells_what_the_cache_holds_already() -> None:
    key = sttm_here("ask", SAMPLE, QUESTION, "--budget", "0.3", "--json").json["cache"]["key"]
    report = sttm_here("inspect", SAMPLE, "--budgets", "0.5,0.3", "--repeat", "1", "--json").json
    assert [(row["cached"], row["key"]) for row in report["budgets"]] == [
        (False, None),
        (True, key),
    ]
    (entry,) = report["cache"]
    assert (entry["key"], entry["budget"], entry["model"]) == (key, 0.3, "tiny")
    off = sttm_here("inspect", SAMPLE, "--budgets", "0.3", "--repeat", "1", "--json", "--no-cache")
    assert off.json["cache"] == []


def test_inspect_tables_fit_80_columns_and_have_a_row_for_each_budget(printed: Ended) -> None:
    assert printed.code == 0, printed.err
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80
    for names in (TOKENS, SECONDS):
        head = next(i for i, line in enumerate(lines) if line.split() == " ".join(names).split())
        assert [line.split()[0] for line in lines[head + 1 : head + 5]] == "1 0.5 0.3 0.15".split()


def test_budgets_without_thresholds_show_none(printed: Ended, tmp_path: Path) -> None:
    lines = printed.out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split() == " ".join(TOKENS).split())
    assert " - " not in lines[head + 1]
    path = tmp_path / "report.html"
    whole = sttm_here("inspect", SAMPLE, "--budgets", "1", "--repeat", "1", "--report", path)
    assert "thresholds" not in whole.out
    page = Page(path.read_text(encoding="utf-8"))
    assert "thresholds" not in page.texts["th"]
    assert not [text for text in page.texts["td"] if "-" in text]


def test_inspect_draws_in_the_terminal_only_when_it_is_one_or_asked_to(printed: Ended) -> None:
    assert "->" not in printed.out
    shown = sttm_here("inspect", SAMPLE, "--budgets", "0.5", "--repeat", "1", "--show")
    last = shown.out.splitlines()[-1]
    assert last.count("49 -> ") == last.count(" tokens") == 4


def test_show_with_json_is_a_usage_error_that_names_both() -> None:
    ended = sttm_here("inspect", SAMPLE, "--show", "--json")
    assert ended.code == 2
    assert "--show" in ended.err
    assert "--json" in ended.err


@pytest.mark.parametrize("budgets", ["", "0.5,", "0.3,2", "none"])
def test_budgets_that_are_none_name_their_flag(budgets: str) -> None:
    ended = sttm_here("inspect", SAMPLE, "--budgets", budgets)
    assert ended.code == 2
    assert "--budgets" in ended.err


def test_picture_draws_every_budget_below_1(tmp_path: Path) -> None:
    sizes = {}
    for budgets in ("1,0.3", "1,0.5,0.3"):
        path = tmp_path / f"{budgets}.png"
        sttm_here("inspect", SAMPLE, "--budgets", budgets, "--repeat", "1", "--picture", path)
        sizes[budgets] = Image.open(path).size
    (width, one), (same, two) = sizes.values()
    assert width == same
    assert two > 1.4 * one


def test_a_picture_of_budget_1_alone_has_frames_and_no_cells(tmp_path: Path) -> None:
    heights = []
    for budget in ("1", "0.5"):
        path = tmp_path / f"{budget}.png"
        sttm_here("inspect", SAMPLE, "--budgets", budget, "--repeat", "1", "--picture", path)
        heights.append(Image.open(path).height)
    assert heights[0] < 0.6 * heights[1]


def test_report_holds_what_json_tells_of_a_video_with_a_hostile_name(tmp_path: Path) -> None:
    video = tmp_path / "<img src=x onerror=alert(1)>\x1b]0;'.mp4"
    shutil.copy(SAMPLE, video)
    path = tmp_path / "report.html"
    report = sttm_here(
        "inspect", video, "--budgets", "1,0.3", "--repeat", "1", "--report", path, "--json"
    ).json
    page = Page(path.read_text(encoding="utf-8"))
    assert page.data["inspect"] == report
    assert [tag for tag, _ in page.elements].count("img") == 0
    assert page.texts["h1"] == ["<img src=x onerror=alert(1)>?]0;'.mp4"]
    assert len(page.data["images"]) == report["grid"][0]
    for packed, row in zip(page.data["tokens"], report["budgets"], strict=True):
        tokens = unpacked(packed, "<i4").cumsum()
        assert len(set(tokens.tolist())) == row["video_kept"]
        assert len(tokens) == row["video_full"]


@pytest.mark.parametrize(("flag", "name"), [("--picture", "a.jpg"), ("--report", "a.pdf")])
def test_a_file_of_the_wrong_kind_is_a_usage_error(flag: str, name: str, tmp_path: Path) -> None:
    ended = sttm_here("inspect", SAMPLE, flag, tmp_path / name)
    assert ended.code == 2
    assert flag in ended.err


@pytest.mark.parametrize(("flag", "name"), [("--picture", "a.png"), ("--report", "a.html")])
def test_a_file_that_cannot_be_written_fails_and_names_it(
    flag: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()
    for path in (tmp_path / "missing" / name, tmp_path / name):
        ended = sttm_here("inspect", SAMPLE, "--budgets", "1", "--repeat", "1", flag, path)
        assert ended.code == 1
        assert str(path) in ended.err


def test_where_two_frames_make_a_step_of_the_grid_the_first_of_them_is_drawn(
    tmp_path: Path,
) -> None:
    model = qwen_vl(tmp_path / "qwen", "qwen2_5_vl", pixels=(256, 80 * 112))
    path = tmp_path / "report.html"
    report = sttm_here(
        *("inspect", SAMPLE, "--model", model, "--frames", "5", "--budgets", "0.5"),
        *("--repeat", "1", "--report", path, "--json"),
    ).json
    data = Page(path.read_text(encoding="utf-8")).data
    assert report["grid"][0] == len(data["images"]) == 3
    assert data["times"] == pytest.approx(report["frames"][::2], abs=0.01)
