"""`sttm eval FILE`: what is asked, what is right, what is kept, and which lines are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sttm_cli
from sttm_cli.base.errors import UsageError
from sttm_cli.bench.exam import Sheet
from sttm_cli.eval.own import Asked, report
from sttm_cli.eval.questions import ALL, Item, plain, read_items
from tests.cli.process import Ended, sttm_here
from tests.eval.scenes import items, write_lines

GOOD = {"video": "a.mp4", "question": "what?", "options": ["red", "blue", "c"], "answer": "red"}


def evaluated(file: Path, *flags: object, budgets: str = "1,0.05") -> Ended:
    return sttm_here("eval", file, "--budgets", budgets, "-q", *flags)


@pytest.fixture
def questions(tmp_path: Path, scenes: list[Sheet]) -> Path:
    """All questions about the scenes, in a file beside copies of their videos."""
    for sheet in scenes:
        shutil.copy(sheet.path, tmp_path)
    rows = [{**row, "video": Path(row["video"]).name} for row in items(scenes)]
    return write_lines(tmp_path / "questions.jsonl", rows)


def test_answers_are_those_of_the_session_and_counted_by_category_and_budget(
    questions: Path, scenes: list[Sheet]
) -> None:
    done = evaluated(questions, "--json").json
    rows = {(row["budget"], row["category"]): row for row in done["rows"]}
    asked = items(scenes)
    assert done["schema"] == "sttm.eval/1"
    assert (done["kind"], done["items"], done["answered"]) == ("questions", len(asked), len(asked))
    for budget in (1.0, 0.05):
        with sttm_cli.VideoQA(model="tiny", budget=budget) as qa:
            right = [
                (row["category"], qa.ask(row["video"], row["question"]).text == row["answer"])
                for row in asked
            ]
        for category in {ALL, *(row["category"] for row in asked)}:
            marks = [mark for kind, mark in right if category in (ALL, kind)]
            row = rows[budget, category]
            assert row["items"] == len(marks)
            assert row["accuracy"]["value"] == pytest.approx(100 * sum(marks) / len(marks))
    full, less = rows[1.0, ALL], rows[0.05, ALL]
    assert less["accuracy"]["value"] < full["accuracy"]["value"]
    assert less["accuracy"]["low"] <= less["accuracy"]["value"] <= less["accuracy"]["high"]
    assert less["difference"]["value"] == pytest.approx(
        less["accuracy"]["value"] - full["accuracy"]["value"]
    )
    assert less["tokens"]["kept"] <= 0.05 * less["tokens"]["full"] < full["tokens"]["kept"]


def test_thresholds_given_by_hand_stand_for_a_budget(questions: Path, scenes: list[Sheet]) -> None:
    done = evaluated(questions, "--json", "--thresholds", "0.9/0.80,0.5/0.5", budgets="1").json
    rows = [row for row in done["rows"] if row["category"] == ALL]
    pairs = [row["thresholds"] for row in rows]
    assert pairs == [None, [0.9, 0.8], [0.5, 0.5]]
    asked = items(scenes)
    for row, pair in zip(rows[1:], pairs[1:], strict=True):
        kept, right = [], 0
        with sttm_cli.VideoQA(model="tiny", budget=1, method="sttm:{:g}/{:g}".format(*pair)) as qa:
            for one in asked:
                answer = qa.ask(one["video"], one["question"])
                kept.append(answer.tokens.video_kept)
                right += answer.text == one["answer"]
                assert answer.tokens.spatial_threshold == pair[0]
                assert answer.tokens.temporal_threshold == pair[1]
        assert row["tokens"]["kept"] == pytest.approx(sum(kept) / len(kept))
        assert row["accuracy"]["value"] == pytest.approx(100 * right / len(asked))
    full, *less = (row["tokens"]["kept"] for row in rows)
    assert full > less[0] > less[1]
    again = evaluated(questions, "--thresholds", "0.9/0.8", budgets="1")
    assert "0 asked now" in again.out
    assert "from 1 to 0.9/0.8:" in again.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--thresholds", "0.85"), "--thresholds '0.85' is not a pair of thresholds"),
        (("--thresholds", "0.85/1.2"), "is not a pair of thresholds"),
        (("--thresholds", "0.85/x"), "--thresholds 'x' is not a number"),
        (
            ("--thresholds", "0.85/0.6", "--method", "tome"),
            "--thresholds 0.85/0.6 cannot be combined with --method tome",
        ),
        (
            ("--method", "sttm:0.85/0.6"),
            "--method sttm:0.85/0.6 has thresholds and cannot be combined with --budgets",
        ),
        (("--method", "tome:0.85/0.6"), "--method 'tome' has no thresholds"),
    ],
)
def test_thresholds_that_cannot_be_are_refused_before_anything_is_asked(
    tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    file = write_lines(tmp_path / "q.jsonl", [GOOD])
    for given in ((file, *flags), ("paper", *flags)):
        done = sttm_here("eval", *given)
        assert done.code == 2
        assert message in done.err


def test_thresholds_and_a_budget_cannot_be_combined(scenes: list[Sheet]) -> None:
    message = "--method sttm:0.8/0.6 has thresholds and cannot be combined with --budget 0.5"
    done = sttm_here("ask", scenes[0].path, "what?", "--method", "sttm:0.80/0.6")
    assert done.code == 2
    assert message in done.err


def test_options_are_weighed_and_the_answer_may_be_a_text_a_letter_or_a_place(
    questions: Path, scenes: list[Sheet]
) -> None:
    kind = next(q for q in scenes[0].questions if q.kind == "colour")
    options = [kind.answer, "nothing at all", "a house by the sea"]
    row = {"video": scenes[0].path.name, "question": kind.text, "options": options}
    given = [kind.answer, "A", "a", 0, "B"]
    write_lines(questions, [{**row, "answer": answer} for answer in given])
    done = evaluated(questions, "--json", budgets="1").json
    assert done["rows"][0]["accuracy"] == {"value": 80.0, "low": None, "high": None}


def test_run_again_only_what_is_new_is_asked(questions: Path) -> None:
    first = evaluated(questions, "--json").json
    again = evaluated(questions, "--json").json
    assert first["cache"]["kept_answers"] == 0
    assert again["cache"] == {**again["cache"], "asked": 0, "kept_answers": 2 * first["items"]}
    assert again["rows"] == first["rows"]
    assert again["changed"] == first["changed"]
    another = evaluated(questions, "--json", budgets="1,0.3").json
    assert another["cache"]["asked"] == first["items"]
    fresh = evaluated(questions, "--json", "--again").json
    assert fresh["cache"]["asked"] == 2 * first["items"]
    # The KVs are in the cache: what was saved is said.
    assert fresh["cache"]["hits"] == 2 * first["items"]
    assert fresh["cache"]["saved_s"] > 0


def test_another_video_under_the_same_name_is_asked_anew(
    questions: Path, scenes: list[Sheet]
) -> None:
    evaluated(questions, budgets="1")
    about = sum(row["video"] == str(scenes[0].path) for row in items(scenes))
    shutil.copy(scenes[1].path, questions.parent / scenes[0].path.name)
    assert evaluated(questions, "--json", budgets="1").json["cache"]["asked"] == about


def test_an_answer_that_a_kill_cut_off_is_asked_again(questions: Path, tmp_path: Path) -> None:
    from platformdirs import user_data_path

    first = evaluated(questions, "--json", budgets="1").json
    (kept,) = (user_data_path("sttm") / "eval" / "questions").glob("*.jsonl")
    kept.write_bytes(kept.read_bytes()[:-20])
    again = evaluated(questions, "--json", budgets="1").json
    assert again["cache"]["asked"] == 1
    assert again["rows"] == first["rows"]
    assert evaluated(questions, "--json", budgets="1").json["cache"]["asked"] == 0


def test_a_bad_video_is_left_out_at_every_budget_and_the_end_is_1(questions: Path) -> None:
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    (questions.parent / "bad.mp4").write_bytes(b"no video")
    lost = {**rows[0], "video": "bad.mp4"}, {**rows[0], "video": "missing.mp4"}
    write_lines(questions, [lost[0], *rows, lost[1]])
    ended = evaluated(questions, "--json")
    assert ended.code == 1
    assert ended.json["answered"] == len(rows)
    assert {fault["line"] for fault in ended.json["failed"]} == {1, len(rows) + 2}
    assert "line 1 has no answer" in ended.err
    assert ended.err.count("missing.mp4") == 1


def test_forgotten_videos_are_one_warning_that_names_the_flag(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "q.jsonl", [GOOD, {**GOOD, "video": "b.mp4"}])
    ended = evaluated(file, "--json")
    assert (ended.code, len(ended.json["failed"])) == (1, 4)
    assert f"is in {tmp_path}: name their folder with --videos" in ended.err
    assert "has no answer" not in ended.err


def test_the_table_says_which_answers_changed(questions: Path) -> None:
    done = evaluated(questions, "--json").json
    lost = [item for item in done["changed"] if not item["answers"][1]["right"]]
    assert lost
    shown = evaluated(questions).out
    pairs = [[answer["right"] for answer in item["answers"]] for item in done["changed"]]
    gained = pairs.count([False, True])
    assert f"from 1 to 0.05: {pairs.count([True, False])} lost, {gained} gained" in shown
    for item in lost[:20]:
        assert f"line {item['line']}, {item['video']}: {item['question']}" in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: it is not a JSON object"),
        ({"video": None}, "line 2: 'video' is missing, or not a text"),
        ({"question": " "}, "line 2: 'question' is missing, or not a text"),
        ({"options": "red"}, "line 2: 'options' is not a list of texts"),
        ({"options": ["red"]}, "line 2: 'options' has fewer than two, or one of them twice"),
        ({"options": []}, "line 2: 'options' has fewer than two"),
        ({"options": ["red", "red"]}, "line 2: 'options' has fewer than two, or one of them twice"),
        ({"answer": "green"}, "line 2: 'answer' is not one of the options"),
        ({"answer": "D"}, "line 2: 'answer' is not one of the options"),
        ({"answer": 3}, "line 2: 'answer' is not one of the options"),
        ({"answer": -1}, "line 2: 'answer' is not one of the options"),
        ({"answer": True}, "line 2: 'answer' is not one of the options"),
        ({"options": None, "answer": 1}, "line 2: 'answer' is missing, or not a text"),
        ({"options": None, "answer": [1]}, "line 2: 'answer' is not a list of texts"),
        ({"options": None, "answer": "?!"}, "line 2: 'answer' has no word to compare with"),
        ({"category": 1}, "line 2: 'category' is missing, or not a text"),
        ({"category": "all"}, "line 2: a category cannot be called 'all'"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(
    tmp_path: Path, line: str | dict[str, Any], message: str
) -> None:
    text = line if isinstance(line, str) else json.dumps({**GOOD, **line})
    file = tmp_path / "q.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n{text}\n\n{text}\n")
    with pytest.raises(UsageError, match=r"\(also bad: 4\)") as caught:
        read_items(file)
    assert message in caught.value.message
    assert evaluated(file).code == 2


def test_an_option_that_is_a_letter_is_meant_before_its_place(tmp_path: Path) -> None:
    rows = [{**GOOD, "options": ["B", "A"], "answer": answer} for answer in ("A", "b", 0)]
    found = [item.answers for item in read_items(write_lines(tmp_path / "q.jsonl", rows))]
    assert found == [("A",), ("A",), ("B",)]


@pytest.mark.parametrize(
    ("given", "truth"),
    [
        ("The red ball.", "red ball"),
        ("A  Cup", "a cup!"),
        ("DON'T", "don t"),
        ("Straße", "STRASSE"),
    ],
)
def test_case_punctuation_and_articles_do_not_count(given: str, truth: str) -> None:
    assert plain(given) == plain(truth)
    assert plain("theatre an hour") == "theatre hour"


def test_a_question_that_failed_once_counts_at_no_budget() -> None:
    one, two = (Item(n, f"{n}.mp4", "?", ("a",)) for n in (1, 2))
    asked = [Asked(one, 1.0, "a"), Asked(one, 0.3, error="x"), Asked(two, 1.0, "b")]
    done = report([*asked, Asked(two, 0.3, "a")], (1.0, 0.3))
    assert [row["videos"] for row in done["rows"]] == [1, 1]
    assert [(r["budget"], r["items"], r["accuracy"]["value"]) for r in done["rows"]] == [
        (1.0, 1, 0.0),
        (0.3, 1, 100.0),
    ]
    assert report([Asked(one, 1.0, error="x")], (1.0,))["rows"] == []
