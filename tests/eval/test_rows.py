"""What is published, how a measurement is set beside it, and VNBench's items."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.bench.charts import chart_of
from sttm_cli.cli.eval_tables import paper_table
from sttm_cli.eval.paper import TASKS, Measured
from sttm_cli.eval.published import BENCHMARKS, Benchmark, benchmarks, in_words, published
from sttm_cli.eval.rows import report
from sttm_cli.eval.vnbench_items import ANNOTATIONS, ITEMS, write_items
from sttm_cli.settings.fields import Thresholds
from tests.conftest import SHARED

MODEL = "llava-video-7b"
MME, NEXT = BENCHMARKS[1], BENCHMARKS[5]


def item(number: int, right: float | None, *, video: str = "", hit: bool = False) -> dict[str, Any]:
    served = {
        "tokens": {"video_full": 1000, "video_kept": 300 + number},
        "cache": {"hit": hit, "cold_seconds": 5.0},
        "seconds": {"first_token": 0.5 if hit else 4.0 + number, "restore": 1.0, "prefill": 2.0},
    }
    made = {"item": number, "video": video or f"{number}.mp4", "right": right, "failed": False}
    return {**made, "served": served}


def result(*marks: float | None, **more: Any) -> dict[str, Any]:
    items = [item(number, mark, hit=number > 1) for number, mark in enumerate(marks)]
    return {"metric": "m", "score": 0.25, "items": items, **more}


@pytest.mark.parametrize(
    ("method", "budget", "average", "seconds", "tokens"),
    [
        ("sttm", 1.0, 68.8, 1.687, 18522),
        ("sttm", 0.5, 68.4, 0.815, 8522),
        ("tome", 0.5, 67.4, 0.878, 9261),
        ("dycoke", 0.5, 67.4, 0.824, 8873),
        ("sttm", 0.3, 67.3, 0.555, 5179),
        ("tome", 0.3, 64.3, 0.610, 5557),
        ("dycoke", 0.3, 64.9, 0.590, 5797),
    ],
)
def test_the_published_rows_have_the_published_averages(
    method: str, budget: float, average: float, seconds: float, tokens: int
) -> None:
    rows = [published(MODEL, method, budget, benchmark.task) for benchmark in BENCHMARKS]
    assert sum(row.accuracy for row in rows if row) / 6 == pytest.approx(average, abs=0.051)
    assert {(row.first_token_s, row.tokens) for row in rows if row} == {(seconds, tokens)}


def test_the_published_rows_are_those_of_the_description_of_the_method() -> None:
    if not (SHARED / "method.md").exists():
        pytest.skip("the description of the method (../shared/method.md) is not there")
    names = {"none": "sttm", "ToMe": "tome", "DyCoke stage 1": "dycoke", "STTM": "sttm"}
    lines = (SHARED / "method.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    rows = [row for row in cells if len(row) == 11 and row[0].endswith("%")]
    assert len(rows) == 7
    for kept, name, *figures in rows:
        for benchmark, figure in zip(BENCHMARKS, figures[:6], strict=True):
            known = published(MODEL, names[name], float(kept[:-2]) / 100, benchmark.task)
            assert known is not None
            assert known.accuracy == float(figure)


@pytest.mark.parametrize(
    ("model", "method", "budget", "task"),
    [
        ("tiny", "sttm", 0.5, "videomme"),
        (MODEL, "evs", 0.5, "videomme"),
        (MODEL, "sttm", 0.4, "videomme"),
        (MODEL, "sttm", 500, "videomme"),
        (MODEL, "sttm", 0.5, "mine"),
    ],
)
def test_nothing_is_made_up_where_nothing_is_published(
    model: str, method: str, budget: float, task: str
) -> None:
    assert published(model, method, budget, task) is None


@pytest.mark.parametrize(
    ("pair", "share"),
    [
        ((0.85, 0.55), 0.5), ((0.85, 0.65), 0.5), ((0.8, 0.5), 0.3), ((0.8, 0.65), 0.3),
        ((0.85, 0.5), None), ((0.8, 0.7), None), ((0.9, 0.6), None),
    ],
)  # fmt: skip
def test_thresholds_of_the_paper_have_the_row_that_they_were_set_for(
    pair: tuple[float, float], share: float | None
) -> None:
    found = published(MODEL, "sttm", Thresholds(*pair), "videomme")
    assert found == (None if share is None else published(MODEL, "sttm", share, "videomme"))
    assert published("tiny", "sttm", Thresholds(*pair), "videomme") is None


def test_thresholds_have_rows_averages_and_a_line_of_their_own() -> None:
    pairs = (Thresholds(0.85, 0.6), Thresholds(0.8, 0.0))
    measured = [Measured(b, at, result(1, 0)) for at in (1.0, *pairs) for b in BENCHMARKS]
    done = report(MODEL, "sttm", measured)
    rows = {in_words(row): row for row in done["rows"] if row["task"] == "videomme"}
    assert list(rows) == ["1", "0.85/0.6", "0.8/0"]
    assert (rows["0.85/0.6"]["budget"], rows["0.85/0.6"]["thresholds"]) == (None, [0.85, 0.6])
    assert (rows["0.85/0.6"]["published"], rows["0.85/0.6"]["published_share"]) == (62.6, 0.5)
    assert rows["0.8/0"]["published"] is None
    assert rows["0.8/0"]["against_full"]["value"] == 0
    assert [in_words(average) for average in done["averages"]] == list(rows)
    lines = [line for line in chart_of(done).lines if line.name == "Video-MME, thresholds by hand"]
    assert [point.at for point in lines[0].points] == pytest.approx([30.05, 30.05])
    json.dumps(done)


@pytest.mark.parametrize(
    ("model", "known"), [(MODEL, True), ("LLaVA-Video-7B", True), ("x", False)]
)
def test_a_model_without_published_rows_is_said_to_have_none(
    model: str, known: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    done = report(model, "sttm", [Measured(MME, 0.3, result(1, 0))])
    assert done["published"] is known
    paper_table(done)
    assert ("of which no rows are published" in capsys.readouterr().out) is not known


def test_tasks_go_by_their_own_names_and_the_benchmarks() -> None:
    found = benchmarks(["Video-MME", " mlvu", "videomme", "nextqa_mc_test"], own=False)
    assert [b.task for b in found] == ["videomme", "mlvu_dev", "nextqa_mc_test"]
    assert benchmarks(["mine"], own=True) == (Benchmark("mine", "mine"),)
    with pytest.raises(UsageError, match="'mine' is not known"):
        benchmarks(["mine"], own=False)
    with pytest.raises(UsageError, match="names no task"):
        benchmarks(["", " "], own=True)
    assert {b.task: b.frames for b in BENCHMARKS if b.frames != 128} == {"vnbench": 180}


def test_a_row_has_the_difference_to_what_is_published_and_to_budget_1() -> None:
    full, less = result(1, 1, 1, 0), result(1, 1, 0, 0)
    done = report(MODEL, "sttm", [Measured(MME, 1.0, full), Measured(MME, 0.3, less)])
    whole, row = done["rows"]
    assert (whole["published"], row["published"]) == (63.1, 62.3)
    assert whole["accuracy"]["value"] == 75
    assert row["accuracy"]["value"] == 50
    assert row["accuracy"]["low"] < 50 < row["accuracy"]["high"]
    assert row["difference"]["value"] == pytest.approx(50 - 62.3)
    assert row["difference"]["high"] == pytest.approx(row["accuracy"]["high"] - 62.3)
    assert whole["against_full"] is None
    assert row["against_full"]["value"] == -25
    # On the same draws: whatever is drawn, the shorter never does better.
    assert row["against_full"]["high"] == 0
    assert (row["items"], row["videos"]) == (4, 4)
    assert row["tokens"] == {"full": 1000, "kept": 301.5}
    assert row["first_token_s"] == {"computed": 4.5, "cached": 0.5}
    assert row["cache"] == {"questions": 4, "hits": 2, "saved_s": 8.0}


def test_the_table_has_videos_and_an_interval_where_all_is_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    paper_table(report(MODEL, "sttm", [Measured(MME, 0.3, result(1, 1, 1))]))
    shown = " ".join(capsys.readouterr().out.split())
    assert "benchmark budget questions videos accuracy" in shown
    assert "Video-MME 0.3 3 3 100.0 [43.8, 100.0]" in shown


def test_tokens_and_seconds_are_set_beside_the_published_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = [Measured(b, at, result(1, 0)) for at in (0.3, 0.4) for b in (MME, NEXT)]
    paper_table(report(MODEL, "sttm", [*measured, Measured(MME, 0.5, None, "gone")]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cost")]
    assert lines == [
        "cost at 0.3: 300 tokens, published 5,179; 2 s of the decoder's pass, published 0.555"
    ]


def test_what_was_kept_from_before_is_not_said_to_be_asked_now(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, again = Measured(MME, 0.3, result(1, 1, 1)), Measured(NEXT, 0.3, result(1, 1), kept=True)
    paper_table(report(MODEL, "sttm", [first, again]))
    shown = capsys.readouterr().out
    assert "1 of 2 measurements kept from before" in shown
    assert "cache: 1 of 3 questions began" in shown
    paper_table(report(MODEL, "sttm", [again]))
    shown = capsys.readouterr().out
    assert "1 of 1 measurements kept from before" in shown
    assert "cache:" not in shown


def test_no_interval_from_one_video_and_no_accuracy_where_no_item_is_right_or_wrong() -> None:
    items = [item(number, number % 2, video="same.mp4") for number in range(4)]
    one = {"metric": "m", "score": 0.5, "items": items}
    done = report(MODEL, "sttm", [Measured(MME, 0.3, one), Measured(NEXT, 0.3, result(1, None))])
    first, second = done["rows"]
    assert first["accuracy"] == {"value": 50.0, "low": None, "high": None}
    assert second["accuracy"] is None
    assert second["lmms_eval"] == {"metric": "m", "score": 0.25}


def test_a_failed_measurement_has_its_reason_and_no_figure() -> None:
    failed = Measured(MME, 0.3, None, "it is gone")
    (row,) = report(MODEL, "sttm", [failed])["rows"]
    assert "gone" in row["error"]
    assert "accuracy" not in row


def test_one_unreadable_video_leaves_the_figure_of_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = result(1, 1, 0, 0)
    found["items"][3] |= {"failed": True, "served": None}
    measured = Measured(MME, 0.3, found, "1 of 4 questions were not answered, about 3.mp4: gone")
    done = report(MODEL, "sttm", [measured])
    (row,) = done["rows"]
    assert (row["items"], row["videos"], row["failed"]) == (3, 3, 1)
    assert row["accuracy"]["value"] == pytest.approx(200 / 3)
    assert row["error"] == measured.error
    paper_table(done)
    shown = capsys.readouterr().out
    assert "66.7" in shown
    assert "Video-MME at 0.3: without 1 questions that were not answered" in shown
    for item in found["items"]:
        item["failed"] = True
    assert "accuracy" not in report(MODEL, "sttm", [measured])["rows"][0]


def test_the_average_is_that_of_all_six_or_none() -> None:
    measured = [Measured(b, 0.3, result(1, 0)) for b in BENCHMARKS]
    (average,) = report(MODEL, "sttm", measured)["averages"]
    assert average["budget"] == 0.3
    assert average["accuracy"] == 50
    assert average["published"] == pytest.approx(67.3, abs=0.051)
    assert report(MODEL, "sttm", measured[1:])["averages"] == []


def test_the_chart_has_a_line_for_each_benchmark_and_a_dashed_one_as_published() -> None:
    measured = [Measured(b, at, result(1, 0)) for at in (1.0, 0.3, 500) for b in (MME, NEXT)]
    chart = chart_of(report(MODEL, "sttm", measured))
    assert [(line.name, line.dashed) for line in chart.lines] == [
        ("Video-MME", False),
        ("Video-MME, published", True),
        ("NExT-QA", False),
        ("NExT-QA, published", True),
    ]
    assert [(p.at, p.value) for p in chart.lines[1].points] == [(100, 63.1), (30, 62.3)]
    # A number of tokens has no place among shares.
    assert [p.at for p in chart.lines[0].points] == [100, 30]
    assert chart.figure()


# ---- VNBench


def entry(**fields: Any) -> dict[str, Any]:
    made = {"video": "/VNBench_new/a.mp4", "question": "which?", "type": "ret", "try": 1}
    return {**made, "options": ["x", 2, "z", "w"], "gt": 2, "gt_option": "B", **fields}


def write_annotations(folder: Path, *entries: Any) -> Path:
    (folder / "videos").mkdir()
    (folder / "videos" / "a.mp4").touch()
    (folder / ANNOTATIONS).write_text(json.dumps(entries))
    return folder


def test_annotations_of_mixed_types_become_items(tmp_path: Path) -> None:
    write_items(write_annotations(tmp_path, entry(gt=7), entry(gt_option=None, gt="w")))
    lines = [json.loads(line) for line in (tmp_path / ITEMS).read_text().splitlines()]
    assert [line["answer"] for line in lines] == ["B", "D"]
    assert lines[0] == {
        "video": str(tmp_path / "videos" / "a.mp4"),
        "question": "which?",
        "options": ["x", "2", "z", "w"],
        "answer": "B",
        "type": "ret",
        "try": 1,
    }


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry(gt_option=None, gt="y"), "entry 2, is not one of VNBench"),
        (entry(options=None), "entry 2, is not one of VNBench"),
        ({}, "entry 2, is not one of VNBench"),
        (entry(video="b.mp4"), "the video b.mp4 of VNBench is missing"),
    ],
)
def test_an_entry_that_cannot_be_asked_is_named(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(SttmError, match=message):
        write_items(write_annotations(tmp_path, entry(), bad))


def test_missing_annotations_are_said() -> None:
    with pytest.raises(SttmError, match="VNBench's annotations are missing"):
        write_items(Path("nowhere"))


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", ""),
        ("(C) a cup", "C"),
        ("The answer is D.", "D"),
        ("The correct option is: A", "A"),
        ("Best answer: C", "C"),
        ("Answer: B", "B"),
        ("", ""),
        ("nothing", ""),
    ],
)
def test_the_letter_of_an_answer(answer: str, letter: str) -> None:
    spec = importlib.util.spec_from_file_location("task", TASKS / "vnbench" / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(task)
    assert task.letter_of(answer) == letter
    doc = {"question": "which?", "options": ["x", "y", "z", "w"], "answer": letter, "video": "a"}
    assert task.judge(doc, [answer]) == {"accuracy": 1.0}
    assert task.text_of(doc) == (
        "which?\nA. x\nB. y\nC. z\nD. w\n"
        "Answer with the option's letter from the given choices directly."
    )
