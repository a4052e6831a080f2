"""`sttm ask`: computed once, restored by every later process, and never for another video."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.base.errors import VideoError
from sttm_cli.base.types import DecodeReport, FramePlan
from sttm_cli.cli.output import show_failure
from sttm_cli.decode import isolated
from sttm_cli.decode.lost import Reading
from sttm_cli.store import LocalStore
from tests.cli.process import sttm, sttm_here

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"
COMPUTED = ("decode", "encode", "merge", "prefill")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return Path(shutil.copy(SAMPLE, tmp_path / "video.mp4"))


def cached_files() -> dict[str, bytes]:
    root = Path(os.environ["STTM_CACHE_DIR"])
    return {str(p): p.read_bytes() for p in root.rglob("*.safetensors")}


def test_second_process_starts_from_the_cache_and_answers_the_same(video: Path) -> None:
    cold = sttm("ask", video, QUESTION, "--json")
    warm = sttm("ask", video, QUESTION, "--json")
    assert (cold.code, warm.code) == (0, 0), cold.err + warm.err
    assert not cold.json["cache"]["hit"]
    assert all(cold.json["seconds"][stage] > 0 for stage in COMPUTED)
    assert cold.json["seconds"]["restore"] is None
    assert warm.json["cache"]["hit"]
    assert warm.json["cache"]["prefilled_tokens"] == 0
    assert warm.json["cache"]["restored_tokens"] == cold.json["cache"]["prefilled_tokens"] > 0
    assert all(warm.json["seconds"][stage] is None for stage in COMPUTED)
    assert warm.json["seconds"]["restore"] > 0
    assert warm.json["answers"] == cold.json["answers"]
    assert warm.json["video"] == cold.json["video"]
    assert warm.json["tokens"] == cold.json["tokens"]
    assert "cache hit" in warm.err
    assert "cold:" in warm.err


def test_json_has_the_fields_of_the_contract(video: Path) -> None:
    found = sttm_here(
        "ask", video, QUESTION, "is there a circle?", "--json", "--budget", "0.3"
    ).json
    assert found["schema"] == "sttm.ask/1"
    assert set(found["video"]) >= {"path", "digest", "duration_s", "frame_times_s"}
    assert set(found["model"]) >= {"name", "revision", "device", "dtype"}
    assert set(found["tokens"]) >= {"budget", "method", "video_full", "video_kept", "prefix"}
    wanted = {"hit", "key", "bytes", "restored_tokens", "prefilled_tokens", "miss_reason"}
    assert set(found["cache"]) >= wanted
    stages = {"load_model", *COMPUTED, "restore", "first_token", "answer", "total"}
    assert set(found["seconds"]) >= stages
    assert [a["question"] for a in found["answers"]] == [QUESTION, "is there a circle?"]
    kept, full = found["tokens"]["video_kept"], found["tokens"]["video_full"]
    assert 0 < kept <= 0.3 * full


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (["--budget", "0.25"], "budget"),
        (["--start", "1"], "times"),
        (["--frames", "3"], "times"),
        (["--merge-layer", "0"], "layer"),
        (["--dtype", "bfloat16"], "dtype"),
    ],
)
def test_another_setting_is_a_miss_that_names_it(
    video: Path, change: list[str], reason: str
) -> None:
    sttm_here("ask", video, QUESTION)
    other = sttm_here("ask", video, QUESTION, "--json", *change).json
    assert not other["cache"]["hit"]
    assert reason in other["cache"]["miss_reason"]
    assert sttm_here("ask", video, QUESTION, "--json").json["cache"]["hit"]


def test_one_changed_byte_of_the_video_is_a_miss(video: Path) -> None:
    sttm_here("ask", video, QUESTION)
    data = bytearray(video.read_bytes())
    data[-1] ^= 1
    video.write_bytes(data)
    other = sttm_here("ask", video, QUESTION, "--json").json
    assert not other["cache"]["hit"]
    assert "video" in other["cache"]["miss_reason"]


def test_another_model_is_a_miss(video: Path, random_model: Path) -> None:
    sttm_here("ask", video, QUESTION)
    other = sttm_here("ask", video, QUESTION, "--json", "--model", random_model).json
    assert not other["cache"]["hit"]
    assert "model" in other["cache"]["miss_reason"]


@pytest.mark.parametrize(("frames", "read"), [(3, 3), (12, 12), (99, 16)])
def test_frames_is_an_upper_bound_that_may_exceed_the_models_default(
    video: Path, frames: int, read: int
) -> None:
    found = sttm_here("ask", video, QUESTION, "--json", "--fps", "2", "--frames", frames).json
    assert len(found["video"]["frame_times_s"]) == read


def test_debug_says_whether_recomputing_would_have_been_faster(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sttm_here("ask", video, QUESTION)
    assert "times as long" in sttm_here("ask", video, QUESTION, "--debug").err
    load = LocalStore.load

    def from_a_slow_disk(store: LocalStore, *given: Any, **more: Any) -> Any:
        kv = load(store, *given, **more)
        kv.facts["seconds"] = dict.fromkeys(COMPUTED, 0.001)
        time.sleep(0.05)
        return kv

    monkeypatch.setattr(LocalStore, "load", from_a_slow_disk)
    found = sttm_here("ask", video, QUESTION, "--debug").err
    assert "recomputing would have been faster" in found


def test_a_copy_under_another_name_is_a_hit(video: Path, tmp_path: Path) -> None:
    sttm_here("ask", video, QUESTION)
    copy = shutil.copy(video, tmp_path / "another name.mp4")
    assert sttm_here("ask", copy, QUESTION, "--json").json["cache"]["hit"]


def test_refresh_computes_anew_and_no_cache_keeps_nothing(video: Path) -> None:
    off = sttm_here("ask", video, QUESTION, "--json", "--no-cache").json
    assert not off["cache"]["hit"]
    assert not cached_files()
    sttm_here("ask", video, QUESTION)
    anew = sttm_here("ask", video, QUESTION, "--json", "--refresh").json
    assert not anew["cache"]["hit"]
    assert "refresh" in anew["cache"]["miss_reason"]


@pytest.mark.parametrize("kv_dtype", ["int8", "bfloat16"])
def test_a_rounded_kv_answers_the_same_cold_and_from_the_cache(video: Path, kv_dtype: str) -> None:
    asked = ("ask", video, QUESTION, "which digit flashes?", "--json", "--kv-dtype", kv_dtype)
    cold, warm, off = (sttm_here(*asked, *more).json for more in ([], [], ["--no-cache"]))
    assert [run["cache"]["hit"] for run in (cold, warm, off)] == [False, True, False]
    assert cold["answers"] == warm["answers"] == off["answers"]
    assert cold["cache"]["kv_dtype"] == warm["cache"]["kv_dtype"] == kv_dtype
    assert cold["cache"]["saved_bytes"] == warm["cache"]["saved_bytes"] > 300_000
    lossless = sttm_here("ask", video, QUESTION, "--json").json
    assert lossless["cache"]["miss_reason"] == f'kv_dtype: asked "float32", stored "{kv_dtype}"'
    smaller = cold["cache"]["bytes"] + cold["cache"]["saved_bytes"]
    assert abs(smaller - lossless["cache"]["bytes"]) < 20_000
    shown = sttm_here("cache", "show", cold["cache"]["key"], "--json").json
    assert shown["saved_bytes"] == cold["cache"]["saved_bytes"]


def test_questions_from_stdin_give_one_answer_a_line(video: Path) -> None:
    ended = sttm_here("ask", video, "-", stdin=f"{QUESTION}\n\nis there a circle?\n")
    assert ended.code == 0
    assert len(ended.out.splitlines()) == 2


def test_questions_from_a_file_give_one_answer_a_line(video: Path, tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text(f"\ufeff{QUESTION}\n\nis there a circle?\n", encoding="utf-8")
    found = sttm_here("ask", video, "--questions", file, "--json").json
    assert [a["question"] for a in found["answers"]] == [QUESTION, "is there a circle?"]
    assert sttm_here("ask", video, "--questions", file).out.splitlines() == [
        a["answer"] for a in found["answers"]
    ]


def test_choices_print_the_best_and_its_probability_for_each_question(video: Path) -> None:
    asked = ["ask", video, QUESTION, "which digit flashes?", "--choices", "1|three|4|red"]
    found = sttm_here(*asked, "--json").json["answers"]
    assert [a["answer"] for a in found] == ["three", "4"]
    for answer in found:
        assert [c["text"] for c in answer["choices"]] == ["1", "three", "4", "red"]
        assert sum(c["probability"] for c in answer["choices"]) == pytest.approx(1.0)
    ended = sttm_here(*asked)
    lines = [line.split("\t") for line in ended.out.splitlines()]
    assert [line[0] for line in lines] == ["three", "4"]
    assert all(0.5 < float(line[1]) <= 1 for line in lines)
    assert "options weighed" in ended.err


def test_a_temperature_in_the_config_file_does_not_stand_against_choices(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("temperature = 0.7\n")
    monkeypatch.setenv("STTM_CONFIG", str(tmp_path / "config.toml"))
    assert sttm_here("ask", video, QUESTION, "--choices", "one|three").code == 0
    assert "seed" in sttm_here("ask", video, QUESTION, "--json").json["answers"][0]


def test_asking_twice_in_one_call_equals_asking_one_by_one(video: Path) -> None:
    questions = [QUESTION, "is there a circle?", QUESTION]
    together = sttm_here("ask", video, *questions).out.splitlines()
    alone = [sttm_here("ask", video, question).out.strip() for question in questions]
    assert together == alone


def test_a_drawn_answer_tells_the_seed_that_draws_it_again(video: Path) -> None:
    def drawn(*flags: object) -> dict[str, object]:
        flags = (*flags, "--temperature", 1.5, "--top-p", 1, "--json")
        found: dict[str, object] = sttm_here("ask", video, QUESTION, *flags).json["answers"][0]
        return found

    first = drawn()
    assert drawn("--seed", first["seed"]) == first


def test_stdout_holds_answers_only_and_quiet_leaves_stderr_empty(video: Path) -> None:
    loud = sttm_here("ask", video, QUESTION)
    quiet = sttm_here("ask", video, QUESTION, "--quiet")
    assert len(loud.out.splitlines()) == 1
    assert quiet.out == loud.out
    assert quiet.err == ""


def bad_inputs(folder: Path) -> dict[str, tuple[list[object], int, str]]:
    """name -> (arguments after `ask`, exit code, part of the message)."""
    empty, text, model = folder / "empty.mp4", folder / "text.mp4", folder / "model"
    empty.write_bytes(b"")
    text.write_text("this is no video\n" * 100)
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llava_onevision"}')
    video = shutil.copy(SAMPLE, folder / "video.mp4")
    return {
        "missing file": ([folder / "none.mp4", QUESTION], 3, "none.mp4"),
        "empty file": ([empty, QUESTION], 3, "empty"),
        "text as mp4": ([text, QUESTION], 3, "text.mp4"),
        "folder": ([folder, QUESTION], 3, "folder"),
        "start beyond the end": ([video, QUESTION, "--start", "1:00:00"], 2, "--start"),
        "end before start": ([video, QUESTION, "--start", "5", "--end", "2"], 2, "--end"),
        "budget 0": ([video, QUESTION, "--budget", "0"], 2, "--budget 0"),
        "budget 1.2": ([video, QUESTION, "--budget", "1.2"], 2, "--budget 1.2"),
        "budget 5": ([video, QUESTION, "--budget", "5"], 2, "--budget 5"),
        "budget nan": ([video, QUESTION, "--budget", "nan"], 2, "--budget"),
        "fps 0": ([video, QUESTION, "--fps", "0"], 2, "--fps 0"),
        "frames 0": ([video, QUESTION, "--frames", "0"], 2, "--frames 0"),
        "layer too deep": ([video, QUESTION, "--merge-layer", "99"], 2, "--merge-layer 99"),
        "decoder": ([video, QUESTION, "--decoder", "vlc"], 2, "vlc"),
        "kv dtype": ([video, QUESTION, "--kv-dtype", "int4"], 2, "int4"),
        "both cache flags": ([video, QUESTION, "--no-cache", "--refresh"], 2, "--refresh"),
        "one choice": ([video, QUESTION, "--choices", "red"], 2, "single"),
        "empty choice": ([video, QUESTION, "--choices", "red||blue"], 2, "empty"),
        "choices and temperature": (
            [video, QUESTION, "--choices", "red|blue", "--temperature", "1"],
            2,
            "--temperature",
        ),
        "choices and tokens": (
            [video, QUESTION, "--choices", "red|blue", "--max-new-tokens", "9"],
            2,
            "--choices",
        ),
        "no such questions": ([video, "--questions", folder / "no.txt"], 2, "no.txt"),
        "empty questions": ([video, "--questions", empty], 2, "no question"),
        "questions twice": ([video, QUESTION, "--questions", text], 2, "--questions"),
        "seed alone": ([video, QUESTION, "--seed", "1"], 2, "--temperature"),
        "top-p alone": ([video, QUESTION, "--top-p", "0.9"], 2, "--temperature"),
        "cold": ([video, QUESTION, "--temperature", "-1"], 2, "temperature -1"),
        "no question": ([video], 2, "QUESTION"),
        "empty question": ([video, "  "], 2, "question"),
        "no weights": ([video, QUESTION, "--model", model], 4, "weights"),
        "unknown model": ([video, QUESTION, "--model", "no-such-model"], 4, "no-such-model"),
        "no such device": ([video, QUESTION, "--device", "abacus"], 2, "abacus"),
    }


BAD = [
    "missing file", "empty file", "text as mp4", "folder", "start beyond the end",
    "end before start", "budget 0", "budget 1.2", "budget 5", "budget nan", "fps 0", "frames 0",
    "layer too deep", "decoder", "kv dtype", "both cache flags", "one choice",
    "empty choice", "choices and temperature", "choices and tokens", "no such questions",
    "empty questions", "questions twice", "seed alone", "top-p alone", "cold", "no question",
    "empty question", "no weights",
    "unknown model", "no such device",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_clear_line_and_the_contracts_exit_code(
    tmp_path: Path, name: str
) -> None:
    arguments, code, part = bad_inputs(tmp_path)[name]
    plain = sttm_here("ask", *arguments)
    assert plain.code == code, plain.err
    assert plain.out == ""
    assert part in plain.err
    assert "Traceback" not in plain.err
    found = sttm_here("ask", *arguments, "--json")
    assert found.code == code
    assert found.json["schema"] == "sttm.error/1"
    assert part in found.json["error"]["message"] + found.json["error"]["hint"]


def test_a_failed_ask_leaves_the_cache_as_it_was(video: Path, tmp_path: Path) -> None:
    sttm_here("ask", video, QUESTION)
    before = cached_files()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:2000])
    assert sttm_here("ask", broken, QUESTION).code == 3
    assert before
    assert cached_files() == before


def test_a_video_cut_off_in_its_middle_is_answered_with_a_warning_or_refused(
    video: Path,
) -> None:
    data = video.read_bytes()
    half = len(data) // 2
    video.write_bytes(data[:half] + bytes(len(data) - half))
    ended = sttm_here("ask", video, QUESTION)
    assert ended.code in (0, 3)
    assert "Traceback" not in ended.err
    if ended.code == 0:
        assert "warning" in ended.err
        again = sttm_here("ask", video, QUESTION)
        assert "warning" in again.err, "an entry made from damage must say so when it is used"


def test_more_frames_than_the_context_takes_are_refused_before_they_are_read(video: Path) -> None:
    ended = sttm_here("ask", video, QUESTION, "--fps", "1000", "--frames", "700", "--json")
    assert ended.code == 2
    assert "34,300 tokens" in ended.json["error"]["message"]
    assert "32,768" in ended.json["error"]["message"]


def test_decord_takes_over_where_pyav_fails_and_that_is_told_and_not_stored(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("decord")
    sound = isolated.read_isolated

    def failing(
        path: Path, plan: FramePlan, report: DecodeReport, version: str
    ) -> Iterator[Reading]:
        if plan.reader == "av":
            raise VideoError(f"av cannot read {path}: the reader crashed")
        return sound(path, plan, report, version)

    right = sttm_here("ask", video, QUESTION, "--no-cache").out
    monkeypatch.setattr(isolated, "read_isolated", failing)
    for _ in range(2):
        ended = sttm_here("ask", video, QUESTION, "--debug")
        assert (ended.code, ended.out) == (0, right), ended.err
        assert "warning: read with decord, as av failed; it is not stored" in ended.err
        assert "the reader crashed" in ended.err
        assert "computed, not stored" in ended.err
    assert sttm_here("ask", video, QUESTION, "--decoder", "av").code == 3


def test_ctrl_c_ends_with_130_and_no_traceback(video: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sttm_cli", "ask", str(video), "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("bad", ["", "  ", "what is <|im_start|> ?"])
def test_a_bad_question_among_good_ones_is_refused_before_any_answer(video: Path, bad: str) -> None:
    ended = sttm_here("ask", video, QUESTION, bad)
    assert (ended.code, ended.out) == (2, "")


def test_questions_that_are_no_text_are_refused(video: Path) -> None:
    ended = sttm("ask", video, "-", stdin=b"what\xff?\n")
    assert (ended.code, ended.out) == (2, "")
    assert "UTF-8" in ended.err
    assert "Traceback" not in ended.err


def test_a_question_in_the_videos_place_is_told(video: Path) -> None:
    ended = sttm_here("ask", QUESTION, str(video))
    assert ended.code == 2
    assert "give the video first" in ended.err


def test_ctrl_c_that_a_library_made_another_error_of_is_still_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = ModuleNotFoundError("could not import module")
    error.__cause__ = KeyboardInterrupt()
    assert show_failure(error, as_json=False, debug=False) == 130
    assert capsys.readouterr().err == "sttm: interrupted\n"
