"""What a new user types: refusals that name the command to give, and checks that take no time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from tests.cli.process import sttm, sttm_here
from tests.cli.terminal import ENTER, Terminal
from tests.cli.test_ask import QUESTION, SAMPLE
from tests.cli.test_chat import spoken

WORDS = ("how", "many", "shapes", "are", "there")


# ---- questions


def test_a_sentence_without_quotes_is_refused_with_the_command_to_copy() -> None:
    ended = sttm_here("ask", SAMPLE, *WORDS, "-b", "0.3")
    assert (ended.code, ended.out) == (2, "")
    assert f'sttm ask {SAMPLE} "how many shapes are there" -b 0.3' in ended.err
    ended = sttm_here("ask", SAMPLE, QUESTION, *WORDS[:2])
    assert '"how many"' in ended.err


@pytest.mark.parametrize("asked", [["colours?", "shapes?"], ["describe"], ["描述视频", "有几个人"]])
def test_single_words_that_are_questions_are_asked(asked: list[str]) -> None:
    assert len(sttm_here("ask", SAMPLE, *asked).out.splitlines()) == len(asked)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_file_among_the_questions_is_refused_by_name(place: int, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(b"")
    asked = [QUESTION, "is there a circle?"]
    asked.insert(place, str(other))
    ended = sttm_here("ask", SAMPLE, *asked)
    assert (ended.code, ended.out) == (2, "")
    assert repr(str(other)) in ended.err


def test_questions_of_one_word_in_a_file_are_asked(tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("colour\nshape\n")
    ended = sttm_here("ask", SAMPLE, "--questions", tmp_path / "questions.txt")
    assert len(ended.out.splitlines()) == 2


# ---- names


@pytest.mark.parametrize(
    ("typed", "named"), [("llava", "llava-onevision-7b"), ("qwen", "qwen3-vl-8b")]
)
def test_the_beginning_of_a_name_suggests_the_names(typed: str, named: str) -> None:
    for command in (["ask", SAMPLE, QUESTION, "-m", typed], ["models", "pull", typed]):
        ended = sttm_here(*command)
        assert ended.code == 4
        assert "did you mean" in ended.err
        assert named in ended.err


def test_a_video_in_place_of_a_command_suggests_ask() -> None:
    ended = sttm_here(SAMPLE, QUESTION)
    assert ended.code == 2
    assert f"sttm ask {SAMPLE} '{QUESTION}'" in ended.err
    assert "did you mean ask?" in sttm_here("aks", SAMPLE, QUESTION).err


def test_help_is_a_command() -> None:
    assert sttm_here("help").out == sttm_here("--help").out
    assert sttm_here("help", "cache", "rm").out == sttm_here("cache", "rm", "--help").out


def test_models_are_still_listed_and_one_on_this_machine_needs_no_network() -> None:
    assert sttm_here("models", "--json").json["schema"] == "sttm.models/1"
    ended = sttm_here("models", "pull", "tiny", "--json")
    assert Path(ended.json["folder"]).is_dir()
    assert ended.json["bytes"] > 0
    missing = sttm_here("models", "pull", "llava-onevision-7b")
    assert (missing.code, missing.out) == (4, "")
    assert "could not be fetched" in missing.err


# ---- the budget


def test_a_percentage_is_a_share() -> None:
    share = sttm_here("ask", SAMPLE, QUESTION, "-b", "30%", "--json").json
    assert share["tokens"]["budget"] == 0.3
    assert sttm_here("ask", SAMPLE, QUESTION, "-b", "0.3", "--json").json["cache"]["hit"]
    assert sttm_here("ask", SAMPLE, QUESTION, "-b", "130%").code == 2


def test_a_number_of_tokens_is_said_as_a_share_of_this_video() -> None:
    ended = sttm_here("ask", SAMPLE, QUESTION, "-b", "30")
    assert "--budget 30 is 30 tokens" in ended.err
    assert "7.7 % of this one's 392" in ended.err
    assert "30%" in ended.err
    assert "tokens for" not in sttm_here("ask", SAMPLE, QUESTION, "-b", "0.3").err
    assert "--budget 30%" in sttm_here("precompute", SAMPLE, "-b", "30").err


# ---- the disk is full


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", SAMPLE, QUESTION],
        ["ask", SAMPLE, QUESTION, "--json"],
        ["ask", "no-such.mp4", QUESTION, "--json"],
        ["inspect", SAMPLE, "--repeat", "1"],
        ["cache", "ls", "--json"],
        ["models"],
        ["config", "show"],
        ["--help"],
        ["--version"],
    ],
    ids=lambda given: " ".join(map(str, given))[-30:],
)
def test_output_that_cannot_be_written_is_one_line_and_exit_1(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sttm_cli", *map(str, arguments)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    failures = [line for line in done.stderr.splitlines() if line.startswith("sttm: ")]
    missing = "no-such.mp4" in arguments
    assert done.returncode == (3 if missing else 1)
    assert len(failures) == 1
    assert missing or "cannot be written: No space left" in failures[0]
    assert "Traceback" not in done.stderr


# ---- what needs no model imports none

LIGHT = """
import sys
from sttm_cli.cli import main
sys.argv = ["sttm", *{arguments!r}]
try: main()
except SystemExit as end: code = end.code
heavy = {{"torch", "torchvision", "transformers"}} & set(sys.modules)
print("HEAVY", code, sorted(heavy))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ask", "no-such.mp4", QUESTION], 3),
        (["ask", "TEXT", QUESTION], 3),
        (["ask", "FOLDER", QUESTION], 3),
        (["ask", str(SAMPLE), QUESTION, "-m", "no-such"], 4),
        (["ask", str(SAMPLE), QUESTION, "--start", "1:30:00"], 2),
        (["ask", str(SAMPLE), *WORDS], 2),
        (["chat", "no-such.mp4"], 3),
        (["inspect", "no-such.mp4"], 3),
        (["inspect", "TEXT"], 3),
        (["precompute", "FOLDER", "-m", "no-such"], 4),
        (["precompute", "no-such/*.mp4"], 2),
        (["cache", "ls"], 0),
        (["cache", "path"], 0),
        (["cache", "rm", "abcdef"], 1),
        (["cache", "show", "abcdef"], 1),
        (["models"], 0),
        (["log"], 0),
        (["config", "show"], 0),
    ],
    ids=lambda given: " ".join(map(str, given))[-30:] if isinstance(given, list) else str(given),
)
def test_what_needs_no_model_imports_nothing_heavy(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.mp4").write_bytes(SAMPLE.read_bytes())
    places = {"TEXT": str(tmp_path / "text.mp4"), "FOLDER": str(tmp_path / "folder")}
    given = [places.get(word, word) for word in arguments]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(arguments=given)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.stdout.splitlines()[-1] == f"HEAVY {code} []", done.stderr


# ---- words


def test_a_file_of_sound_is_said_to_hold_only_audio(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    (tmp_path / "a.mp3").write_bytes(b"ID3\4\0\0\0\0\0\0" + b"\xff\xfb\x90\x00" + bytes(413))
    for name in ("a.wav", "a.mp3"):
        ended = sttm_here("ask", tmp_path / name, QUESTION)
        assert ended.code == 3
        assert "only audio" in ended.err


def test_a_missing_package_of_the_server_costs_a_note_and_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sttm_cli.cli.flags.find_spec", lambda name: None)
    ended = sttm_here("ask", SAMPLE, QUESTION, "--keep-alive", "10m")
    assert (ended.code, ended.out) == (0, "three\n")
    assert "no server is left behind" in ended.err
    served = sttm_here("serve", "--socket-only")
    assert served.code == 1
    assert "python -m pip install starlette uvicorn prometheus-client" in served.err


def test_the_small_model_is_named_once_a_day_on_a_terminal_and_never_beside_an_error() -> None:
    assert "tiny" not in sttm_here("ask", SAMPLE, QUESTION).err
    failed = Terminal("ask", "no-such.mp4", QUESTION)
    assert failed.ended() == 3
    assert "tiny" not in failed.screen
    for times in (1, 0):
        asked = Terminal("ask", SAMPLE, QUESTION)
        assert asked.ended() == 0
        assert asked.screen.count("'tiny'") == times


def test_exit_leaves_a_chat_on_a_terminal_and_is_a_question_in_a_pipe() -> None:
    terminal = Terminal("chat", SAMPLE)
    terminal.expect("/help lists commands")
    terminal.send(f"exit{ENTER}")
    assert terminal.ended() == 0
    assert len(sttm_here("chat", SAMPLE, stdin=spoken("exit", QUESTION)).out.splitlines()) == 2


def test_errors_and_warnings_have_colour_on_a_terminal_alone() -> None:
    red = Terminal("ask", "no-such.mp4", QUESTION)
    red.ended()
    assert b"\x1b[31msttm: \x1b[0m" in red.raw
    plain = Terminal("ask", "no-such.mp4", QUESTION, NO_COLOR="1")
    plain.ended()
    assert b"\x1b[31m" not in plain.raw
    assert "\x1b" not in sttm("ask", "no-such.mp4", QUESTION).err


def test_a_spinner_shows_before_the_model_is_imported() -> None:
    terminal = Terminal("ask", SAMPLE, QUESTION)
    assert terminal.ended() == 0
    assert terminal.screen.index("starting") < terminal.screen.index("three")


def test_a_rate_is_said_once_it_means_something(tmp_path: Path) -> None:
    ended = sttm_here("precompute", SAMPLE)
    assert "1 done" in ended.err
    assert "hour of video" not in ended.err
    assert json.loads(sttm_here("precompute", SAMPLE, "--json").out)["done"] == 0


def test_entries_with_sizes_in_attention_are_told_apart_in_the_listing() -> None:
    for sizes in ("off", "on"):
        assert sttm_here("ask", SAMPLE, QUESTION, "-q", "--attention-sizes", sizes).code == 0
    methods = [entry["method"] for entry in sttm_here("cache", "ls", "--json").json["entries"]]
    assert sorted(methods) == ["sttm", "sttm+sizes"]


def test_a_path_is_no_question_though_nothing_is_there(tmp_path: Path) -> None:
    for wrong, said in (("nope.mp4", "nothing is there"), (str(tmp_path), "is a folder")):
        ended = sttm_here("ask", SAMPLE, wrong, QUESTION)
        assert (ended.code, ended.out) == (2, "")
        assert f"QUESTION {wrong!r}" in ended.err
        assert said in ended.err
    assert sttm_here("ask", SAMPLE, QUESTION, "-q").code == 0
    lost = sttm_here("ask", "nope.mp4", QUESTION, "-c")
    assert (lost.code, lost.out) == (3, "")
    assert "there is no file nope.mp4" in lost.err
    further = sttm_here("ask", "-c", "is there a circle?")
    assert further.code == 0
    assert f"about {SAMPLE}" in further.err


def test_help_is_in_the_list_of_commands_and_knows_near_names() -> None:
    assert re.search(r"^.? *help  ", sttm_here().out or sttm_here("help").out, re.MULTILINE)
    ended = sttm_here("help", "preconpute")
    assert ended.code == 2
    assert "precompute" in ended.err


def test_what_forbids_fetching_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        ["models", "pull", "qwen2-vl-2b"],
        ["ask", SAMPLE, QUESTION, "-m", "qwen2-vl-2b"],
    ):
        ended = sttm(*command, HF_HUB_OFFLINE="1")
        assert ended.code == 4
        assert "could not be fetched (HF_HUB_OFFLINE is set)" in ended.err
        assert "unset HF_HUB_OFFLINE" in ended.err


def test_without_credentials_a_bucket_names_where_they_are_looked_for(tmp_path: Path) -> None:
    pytest.importorskip("obstore", reason="the extra 'cloud' is not installed")
    plain = sttm("ask", "az://box/a.mp4", QUESTION, HOME=str(tmp_path))
    assert plain.code == 1
    assert "AZURE_STORAGE_ACCOUNT_NAME (not set)" in plain.err
    half = sttm("cache", "ls", "--cache-dir", "az://box/a", AZURE_STORAGE_ACCOUNT_KEY="c2VjcmV0")
    assert half.code == 1
    assert "AZURE_STORAGE_ACCOUNT_KEY (set)" in half.err
    assert "c2VjcmV0" not in half.err


def test_a_switch_in_the_config_file_may_be_a_boolean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    monkeypatch.setenv("STTM_CONFIG", str(config))
    for value, read in (("true", "on"), ("false", "off"), ('"on"', "on")):
        config.write_text(f"attention_sizes = {value}\n")
        shown = sttm_here("config", "show")
        assert shown.code == 0, shown.err
        assert re.search(rf"^attention_sizes +{read} ", shown.out, re.MULTILINE)
    config.write_text("attention_sizes = 1\n")
    refused = sttm_here("config", "show")
    assert "choose one of auto, off, on" in refused.err


def test_sizes_in_messages_read_as_they_were_typed(tmp_path: Path) -> None:
    bodies = sttm_here("serve", "--max-body", "64M", "--max-bodies", "500K")
    assert "--max-bodies 500K is less than --max-body 64M" in bodies.err
    large = sttm("ask", "-", QUESTION, "--max-download", "16K", stdin=SAMPLE.read_bytes())
    assert "larger than --max-download allows (16K)" in large.err
    small = sttm_here("ask", SAMPLE, QUESTION, "--max-bytes", "100K")
    assert "are more than --max-bytes 100K" in small.err
