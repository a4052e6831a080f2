"""`sttm bench accuracy`: the same answers as the real path, the same tokens for every method."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import sttm_cli
from sttm_cli.base.errors import UsageError
from sttm_cli.base.results import Clock
from sttm_cli.bench.accuracy import FOLLOW_UP, Results, find_entrants, report, take_exam
from sttm_cli.bench.exam import FIRST_SEED, Exam, films
from sttm_cli.bench.intervals import Bootstrap
from sttm_cli.bench.scoring import alone, in_conversation, mark
from sttm_cli.bench.studies.variants import VARIANTS
from sttm_cli.cli import app
from sttm_cli.tiny.questions import Question, ask_about
from sttm_cli.tiny.scenes import make_scene
from sttm_cli.tiny.training.batches import FIRST_TRAINING_SEED

FILMS = Path(__file__).parents[3] / "shared" / "videos"


def test_marks_are_those_of_decoding_through_the_real_path_one_by_one(tmp_path: Path) -> None:
    with sttm_cli.VideoQA(model="tiny", budget=0.1, frames=5, no_cache=True) as qa:
        marks = []
        for seed in range(700_000_000, 700_000_003):
            sheet = Exam("test", 5).sheet(seed, tmp_path)
            model, request = qa.model(), qa.request(sheet.path)
            tokens, _ = qa.compute.visual_tokens(request, Clock())
            kv = qa.compute.prefill(tokens, Clock(), budget=0.1)
            asked = [alone(model, question) for question in sheet.questions]
            *first, later = mark(model, kv, [*asked, in_conversation(model, sheet.questions)])
            prepared, history = qa.prepare(sheet.path), []
            for question, (marked,), turn in zip(sheet.questions, first, later, strict=True):
                once = qa.answer(prepared, question.text).text.lower()
                again = qa.answer(prepared, question.text, history=history).text.lower()
                assert (once == question.answer, again == question.answer) == (marked, turn)
                history.append((question.text, question.answer))
                marks.append(marked)
    assert 0 < sum(marks) < len(marks)


def test_the_command_compares_methods_at_the_same_number_of_tokens(tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    arguments = ["bench", "accuracy", "--questions", "12", "--frames", "4", "--json", "-q"]
    arguments += ["--methods", "tome,random", "--budgets", "0.3", "--plot", str(plot)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    names = [(row["method"], row["budget"]) for row in shown["rows"]]
    assert names == [("sttm", 1.0), ("sttm", 0.3), ("tome", 0.3), ("random", 0.3)]
    full, *shortened = shown["rows"]
    assert full["kept"] == 1
    assert len({row["kept"] for row in shortened}) == 1
    assert shortened[0]["kept"] <= 0.3
    assert full["accuracy"]["value"] > 0.5
    assert shown["questions"]["all"] >= 12
    assert shown["questions"][FOLLOW_UP] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_scenes_are_the_same_every_time_and_never_those_of_training_or_the_other_split(
    tmp_path: Path,
) -> None:
    one, other = (next(Exam("dev", 2).sheets(tmp_path)) for _ in range(2))
    assert one == other
    assert one.path.stat().st_mtime_ns == other.path.stat().st_mtime_ns
    assert FIRST_SEED["test"] + 50_000_000 < FIRST_SEED["dev"] < FIRST_TRAINING_SEED - 50_000_000


def test_backgrounds_are_cut_from_films(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    with pytest.raises(UsageError, match="no readable film"):
        films(tmp_path)
    if not FILMS.is_dir():
        pytest.skip("needs ../shared/videos")
    (tmp_path / "flower.webm").symlink_to(FILMS / "mdn_flower.webm")
    found = films(tmp_path, seconds=2)
    assert list(found) == ["flower.webm"]
    assert next(Exam("test", 2, found).sheets(tmp_path)).background == "flower.webm"


@pytest.mark.parametrize(
    ("name", "said"), [("magic", "'magic' is not known"), ("tome@9", "the model has 4 layers")]
)
def test_a_method_that_is_not_known_is_refused(name: str, said: str) -> None:
    arguments = ["bench", "accuracy", "--methods", name]
    with pytest.raises(UsageError, match=said):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_method_can_merge_before_another_layer() -> None:
    found = find_entrants("sttm@0,tome@2,tome,tome")
    named = [("sttm", None), ("sttm@0", 0), ("tome@2", 2), ("tome", None)]
    assert [(entrant.name, entrant.layer) for entrant in found] == named
    features = torch.randn(2, 4, 4, 8)
    sttm, early, late, tome = (entrant.shorten(features, 0.5, 9) for entrant in found)
    assert len(late.roots) == len(tome.roots) == 9
    assert len(sttm.roots) == len(early.roots) == 16


def test_sizes_count_as_the_method_needs_it_or_as_its_name_says() -> None:
    found = find_entrants("tome,tome+sizes,anchors,anchors-sizes,tome@2+sizes")
    sized = {entrant.name: entrant.sizes for entrant in found}
    assert sized == {
        "sttm": False, "tome": False, "tome+sizes": True, "anchors": True, "anchors-sizes": False,
        "tome@2+sizes": True,
    }  # fmt: skip
    with pytest.raises(UsageError, match=r"only \+sizes or -sizes"):
        find_entrants("tome+size")


def test_intervals_hold_the_value_and_pair_what_is_compared() -> None:
    video = np.repeat(np.arange(100), 5)
    hard = np.repeat(np.arange(100) % 4 == 0, 5)
    easy, every = ~hard, np.ones(500, dtype=bool)
    boot = Bootstrap(video)
    found = boot.accuracy(easy, every)
    assert found.value == 0.75
    assert 0.65 < found.low < 0.70 < 0.80 < found.high < 0.85
    # The same videos fail for both: no more than the rule of three is left to chance.
    worse = easy & (np.arange(500) % 5 != 0)
    assert boot.ahead(easy, easy, every).high == pytest.approx(3 / 100)
    assert boot.ahead(easy, worse, every).low > 0
    assert boot.kept(worse, easy, every).value == pytest.approx(0.8)


def test_an_interval_holds_95_of_100_draws() -> None:
    # Of 400 videos with a question each, half of them right: 1.96 standard errors of 2.5 %.
    right, every = np.arange(400) % 2 == 0, np.ones(400, dtype=bool)
    found = Bootstrap(np.arange(400)).accuracy(right, every)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.025, rel=0.06)


def test_a_draw_without_a_video_of_a_category_says_nothing_of_it() -> None:
    video = np.repeat(np.arange(20), 2)
    right, among = np.ones(40, dtype=bool), video < 2
    boot = Bootstrap(video)
    assert boot.accuracy(right, among).low > 0
    assert boot.kept(right, right, among).low == 1


@pytest.mark.parametrize("mark", [True, False])
def test_where_all_draws_are_the_same_the_number_of_videos_bounds(mark: bool) -> None:
    # Wilson's score interval of 5 of 5, and of none of 5.
    right, every = np.full(10, mark), np.ones(10, dtype=bool)
    boot = Bootstrap(np.repeat(np.arange(5), 2))
    found = boot.accuracy(right, every)
    edges = (0.5655, 1.0) if mark else (0.0, 0.4345)
    assert (found.low, found.high) == pytest.approx(edges, abs=1e-4)
    same = boot.ahead(right, right, every)
    assert (same.low, same.high) == pytest.approx((-0.6, 0.6))
    assert boot.ahead(right, ~right, every).high == (1 if mark else pytest.approx(-0.4))


def test_an_answer_that_would_go_on_is_not_right(tmp_path: Path) -> None:
    with sttm_cli.VideoQA(model="tiny", frames=5, no_cache=True) as qa:
        sheet = Exam("test", 5).sheet(700_000_000, tmp_path)
        model = qa.model()
        tokens, _ = qa.compute.visual_tokens(qa.request(sheet.path), Clock())
        kv = qa.compute.prefill(tokens, Clock(), budget=1.0)
        asked = [alone(model, question) for question in sheet.questions]
        assert any(answer for (answer,) in mark(model, kv, asked))
        with pytest.MonkeyPatch.context() as patch:
            # As if the model went on after each of them.
            patch.setattr(model._generation, "eos_token_id", 0)
            assert not any(answer for (answer,) in mark(model, kv, asked))


def test_chance_is_the_most_frequent_answer_to_questions_of_a_form() -> None:
    marks = {("sttm", 1.0): [True] * 6}
    results = Results(
        video=[0, 1, 2, 0, 1, 0],
        kind=["colour"] * 3 + ["count"] * 2 + [FOLLOW_UP],
        form=["colour 1", "colour 1", "colour 2", "count 0", "count 0", "count 0"],
        bet=["red", "red", "blue", "two", "one", "two"],
        right=marks,
        kept={("sttm", 1.0): [1.0] * 3},
    )
    chance = report(results)["chance"]
    assert (chance["colour"], chance["count"]) == (1.0, 0.5)
    assert chance["all"] == pytest.approx(0.8)


def test_a_rule_that_knows_the_question_sees_its_form_and_bets_on_a_name() -> None:
    seen: dict[str, list[Question]] = {}
    for seed in range(500_000_000, 500_000_040):
        scene = make_scene(seed, seconds=8)
        for question in ask_about(scene, range(8), np.random.default_rng(seed)):
            seen.setdefault(question.form, []).append(question)
    assert {"pair 1", "existence 1", "existence 2", "count 0"} <= set(seen)
    for question in seen["pair 1"]:
        one, two = question.text.split(", the ")[1].rstrip("?").split(" or the ")
        assert question.answer == {"first": one, "second": two}[question.bet]
    assert {question.bet for question in seen["existence 2"]} == {"yes", "no"}


def test_a_report_counts_kinds_follow_ups_and_chance() -> None:
    results = Results(
        video=[0, 0, 0, 1],
        kind=["colour", "count", FOLLOW_UP, "colour"],
        form=["colour 1", "count 0", "count 0", "colour 1"],
        bet=["red", "two", "two", "red"],
        right={
            ("sttm", 1.0): [True, True, True, False],
            ("sttm", 0.5): [True, False, False, False],
        },
        kept={("sttm", 1.0): [1.0, 1.0], ("sttm", 0.5): [0.5, 0.25]},
    )
    shown = report(results)
    full, half = shown["rows"]
    assert shown["questions"] == {"all": 3, "colour": 2, "count": 1, FOLLOW_UP: 1}
    assert full["accuracy"]["value"] == pytest.approx(2 / 3)
    assert half["of_full"]["value"] == pytest.approx(1 / 2)
    assert half["follow_up_of_full"]["value"] == 0
    assert half["kept"] == 0.375
    assert shown["chance"] == {"all": 1.0, "colour": 1.0, "count": 1.0, FOLLOW_UP: 1.0}


@pytest.mark.parametrize("name", ["sttm", *VARIANTS])
def test_variants_stay_within_the_budget_and_are_reached_through_prefill(name: str) -> None:
    with sttm_cli.VideoQA(model="tiny", frames=4, no_cache=True) as qa:
        entrants = find_entrants(name, variants=VARIANTS)
        found = take_exam(qa, Exam("dev", 4), entrants=entrants, budgets=[0.3], questions=1)
    assert found.kept[name, 0.3][0] <= 0.3
