"""`sttm log` and `sttm ask -c`: what was asked is kept, and can be gone on with."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.cli.asker import Asker
from sttm_cli.prefill import KVContinuation
from sttm_cli.runtime import answer_log
from sttm_cli.runtime.answer_log import log_path
from sttm_cli.settings.settings import Settings
from tests.cli.process import sttm, sttm_here
from tests.cli.test_ask import QUESTION, SAMPLE
from tests.cli.test_chat import spoken

SECOND = "which digit flashes?"


def logged(*arguments: object) -> list[dict[str, Any]]:
    report = sttm_here("log", *arguments, "--json").json
    assert report["schema"] == "sttm.log/1"
    found: list[dict[str, Any]] = report["entries"]
    return found


def test_every_answer_is_kept_with_what_it_was_about() -> None:
    sttm_here("ask", SAMPLE, QUESTION, SECOND, "-b", "0.3")
    first, second = logged()
    assert (first["question"], first["answer"]) == (QUESTION, "three")
    assert (second["question"], second["answer"]) == (SECOND, "4")
    assert {e["video"] for e in (first, second)} == {str(SAMPLE.absolute())}
    assert (first["model"], first["budget"]) == ("tiny", 0.3)
    assert first["seconds"] > second["seconds"] > 0
    assert first["conversation"] == second["conversation"]
    assert stat.S_IMODE(log_path().stat().st_mode) == 0o600
    assert stat.S_IMODE(log_path().parent.stat().st_mode) == 0o700


def test_the_log_is_shown_for_people_of_one_video_and_of_late(tmp_path: Path) -> None:
    assert "0 answers in the log" in sttm_here("log").err
    other = shutil.copy(SAMPLE, tmp_path / "other.mp4")
    sttm_here("ask", SAMPLE, QUESTION)
    sttm_here("ask", other, SECOND)
    text = sttm_here("log").out
    assert text.index(QUESTION) < text.index(SECOND)
    assert [e["question"] for e in logged(other)] == [SECOND]
    assert [e["question"] for e in logged("-n", 1)] == [SECOND]
    assert sttm_here("log", "--path").out.strip() == str(log_path())


def test_nothing_is_kept_where_that_is_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sttm_here("ask", SAMPLE, QUESTION, "--no-log")
    sttm_here("chat", SAMPLE, "--no-log", stdin=spoken(QUESTION))
    (tmp_path / "config.toml").write_text("no_log = true\n")
    monkeypatch.setenv("STTM_CONFIG", str(tmp_path / "config.toml"))
    sttm_here("ask", SAMPLE, QUESTION)
    assert logged() == []
    assert not log_path().exists()


def test_a_chat_is_kept_turn_by_turn_and_ask_goes_on_with_it() -> None:
    sttm_here("chat", SAMPLE, stdin=spoken(QUESTION, SECOND))
    assert [e["question"] for e in logged()] == [QUESTION, SECOND]
    assert sttm_here("ask", "-c", QUESTION).out == "three\n"
    assert len({e["conversation"] for e in logged()}) == 1


def test_c_goes_on_with_video_settings_and_turns(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        "--model",
        random_model,
        "--max-new-tokens",
        6,
        "--budget",
        0.3,
        "--system",
        "be short",
    )
    first = sttm_here("ask", SAMPLE, QUESTION, *flags, "--json").json
    seen = []
    ask = Asker.ask

    def spied(self: Asker, questions: Any) -> Any:
        seen.append((self.settings, questions))
        return ask(self, questions)

    monkeypatch.setattr(Asker, "ask", spied)
    again = sttm_here("ask", "-c", SECOND, "and then?", "--json").json
    assert again["cache"]["hit"]
    assert again["cache"]["key"] == first["cache"]["key"]
    assert [a["question"] for a in again["answers"]] == [SECOND, "and then?"]
    turn = (QUESTION, first["answers"][0]["answer"])
    assert [list(q.history) for _, q in seen] == [
        [turn],
        [turn, (SECOND, again["answers"][0]["answer"])],
    ]
    other = sttm_here("ask", "-c", QUESTION, "--budget", 0.2, "--json").json
    assert other["tokens"]["budget"] == 0.2
    assert other["model"]["name"] == str(random_model)


def test_c_with_a_video_goes_on_with_the_last_conversation_about_it(tmp_path: Path) -> None:
    other = shutil.copy(SAMPLE, tmp_path / "other.mp4")
    sttm_here("ask", other, QUESTION)
    sttm_here("ask", SAMPLE, QUESTION)
    sttm_here("ask", other, SECOND, "-c")
    sttm_here("ask", "-c", "is there a circle?")
    assert [Path(e["video"]).name for e in logged()] == [
        "other.mp4", "sample.mp4", "other.mp4", "other.mp4",
    ]  # fmt: skip
    assert len({e["conversation"] for e in logged(other)}) == 1


def test_without_a_conversation_c_says_so(tmp_path: Path) -> None:
    ended = sttm_here("ask", "-c", SECOND)
    assert (ended.code, ended.out) == (2, "")
    assert "no conversation" in ended.err
    sttm_here("ask", SAMPLE, QUESTION)
    other = shutil.copy(SAMPLE, tmp_path / "other.mp4")
    assert "no conversation about" in sttm_here("ask", "-c", other, SECOND).err


def test_the_turns_that_the_context_has_no_room_for_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(KVContinuation, "room", property(lambda self: 60))
    talk = answer_log.new_talk(str(SAMPLE), Settings())
    answer_log.add(talk, [("many words " * 50, "so many", 1.0), (QUESTION, "three", 1.0)], 0.5)
    ended = sttm_here("ask", "-c", SECOND)
    assert ended.out == "4\n", ended.err
    assert "the first 1 turns were left out" in ended.err


@pytest.mark.parametrize("damage", ["no database", "folder"])
def test_a_log_that_cannot_be_written_costs_no_answer(damage: str) -> None:
    log_path().parent.mkdir(parents=True)
    if damage == "folder":
        log_path().mkdir()
    else:
        log_path().write_text("this is no database at all, and longer than a header" * 9)
    ended = sttm_here("ask", SAMPLE, QUESTION)
    assert (ended.code, ended.out) == (0, "three\n")
    assert "not in the log" in ended.err
    shown = sttm_here("log")
    assert shown.code == 1
    assert str(log_path()) in shown.err


def test_what_was_answered_before_an_interruption_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from sttm_cli.runtime.session import VideoQA

    answer = VideoQA.answer

    def interrupted(self: VideoQA, prepared: Any, question: str, **more: Any) -> Any:
        if question == SECOND:
            raise KeyboardInterrupt
        return answer(self, prepared, question, **more)

    monkeypatch.setattr(VideoQA, "answer", interrupted)
    assert sttm_here("ask", SAMPLE, QUESTION, SECOND).code == 130
    assert [e["question"] for e in logged()] == [QUESTION]


def test_processes_that_write_at_once_lose_nothing() -> None:
    code = (
        "import sys; from sttm_cli.runtime import answer_log as log\n"
        "from sttm_cli.settings.settings import Settings\n"
        "for n in range(10):\n"
        "    log.add(log.new_talk('a.mp4', Settings()), [(sys.argv[1], str(n), 0.1)], 0.5)"
    )

    def write(number: int) -> int:
        done = subprocess.run([sys.executable, "-c", code, str(number)], env=dict(os.environ))
        return done.returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [0] * 4
    found = [(e["question"], e["answer"]) for e in logged()]
    assert sorted(found) == sorted((str(w), str(n)) for w in range(4) for n in range(10))


def test_each_video_is_a_conversation_of_its_own(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(SAMPLE, tmp_path / name)
    sttm_here("ask", tmp_path, QUESTION, "--each")
    assert [Path(e["video"]).name for e in logged()] == ["a.mp4", "b.mp4"]
    assert len({e["conversation"] for e in logged()}) == 2


def test_a_fresh_process_writes_the_log_of_the_user(tmp_path: Path) -> None:
    assert sttm("ask", SAMPLE, QUESTION, XDG_STATE_HOME=str(tmp_path)).code == 0
    (file,) = tmp_path.rglob("*.sqlite")
    with sqlite3.connect(file) as database:
        assert database.execute("SELECT question, answer FROM answers").fetchall() == [
            (QUESTION, "three")
        ]


@pytest.mark.parametrize(
    ("damage", "command"),
    [
        ("UPDATE answers SET budget = '{'", ("log",)),
        ("UPDATE answers SET budget = x'ff'", ("log",)),
        ("UPDATE conversations SET settings = '['", ("ask", "-c", SECOND)),
        ("UPDATE conversations SET settings = '[]'", ("ask", "-c", SECOND)),
        ("DELETE FROM conversations", ("ask", "-c", SECOND)),
    ],
)
def test_a_damaged_row_of_the_log_is_one_clear_line(damage: str, command: tuple[str, ...]) -> None:
    sttm_here("ask", SAMPLE, QUESTION)
    with closing(sqlite3.connect(log_path())) as database, database:
        database.execute(damage)
    ended = sttm_here(*command)
    assert ended.code == 1
    assert f"the log {log_path()} cannot be read" in ended.err


def test_nothing_older_is_gone_on_with_where_the_last_answer_was_not_kept(tmp_path: Path) -> None:
    other = shutil.copy(SAMPLE, tmp_path / "other.mp4")
    sttm_here("ask", SAMPLE, QUESTION)
    sttm_here("ask", other, QUESTION, "--no-log")
    ended = sttm_here("ask", "-c", SECOND)
    assert (ended.code, ended.out) == (2, "")
    assert "is not kept (--no-log)" in ended.err
    assert f"sttm ask {SAMPLE.absolute()} QUESTION -c" in ended.err
    # By name it is gone on with, and that is said.
    named = sttm_here("ask", SAMPLE, SECOND, "-c", "-q")
    assert (named.code, named.out) == (0, "4\n")
    assert "what was asked later is not kept" in named.err
    # That answer is kept: it is the last conversation again.
    again = sttm_here("ask", "-c", QUESTION, "-q")
    assert (again.code, again.out, again.err) == (0, "three\n", "")
    with sqlite3.connect(log_path()) as database:
        assert "other.mp4" not in "\n".join(database.iterdump())


def test_a_path_through_another_folder_is_the_same_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, beside = tmp_path / "clips", tmp_path / "beside"
    clips.mkdir()
    beside.mkdir()
    video = shutil.copy(SAMPLE, clips / "a.mp4")
    sttm_here("ask", video, QUESTION)
    monkeypatch.chdir(beside)
    assert QUESTION in sttm_here("log", "../clips/a.mp4").out
    assert sttm_here("ask", "-c", "../clips/a.mp4", SECOND, "-q").code == 0
    removed = sttm_here("cache", "rm", "../clips")
    assert removed.code == 0, removed.err


def test_no_log_makes_no_file() -> None:
    sttm_here("ask", SAMPLE, QUESTION, "--no-log")
    assert not log_path().exists()


def test_a_path_that_is_not_there_and_was_never_asked_about_is_an_error(tmp_path: Path) -> None:
    sttm_here("ask", SAMPLE, QUESTION)
    ended = sttm_here("log", "nope.mp4")
    assert (ended.code, ended.out) == (3, "")
    assert "there is no file nope.mp4, and nothing was asked about it" in ended.err
    moved = shutil.copy(SAMPLE, tmp_path / "moved.mp4")
    assert sttm_here("log", moved).code == 0
    sttm_here("ask", moved, QUESTION)
    Path(moved).unlink()
    assert QUESTION in sttm_here("log", moved).out
