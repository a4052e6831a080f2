"""`sttm chat`: through a pipe, and on a terminal as a person would use it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from sttm_cli.base.errors import OutOfMemoryError, UsageError, VideoError
from sttm_cli.cli.asker import Asker
from sttm_cli.cli.chat import stoppable
from sttm_cli.cli.conversation import Conversation
from sttm_cli.runtime.compute import Compute
from sttm_cli.runtime.session import VideoQA
from sttm_cli.settings.settings import Settings
from tests.cli.process import sttm_here
from tests.cli.terminal import CTRL_C, CTRL_D, ENTER, TAB, UP, Terminal
from tests.decode.made import Make

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"
QUESTIONS = (QUESTION, "which digit flashes?", "what colour is it?")


def spoken(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def test_each_line_of_a_pipe_is_asked_with_the_turns_before_it(random_model: Path) -> None:
    flags = ("--model", random_model, "--max-new-tokens", 6)
    ended = sttm_here("chat", SAMPLE, *flags, stdin=spoken(*QUESTIONS, "", QUESTION))
    assert ended.code == 0, ended.err
    alone = sttm_here("chat", SAMPLE, *flags, "--no-history", stdin=spoken(*QUESTIONS, QUESTION))
    history: list[tuple[str, str]] = []
    with VideoQA(model=str(random_model), max_new_tokens=6) as qa:
        for question in (*QUESTIONS, QUESTION):
            history.append((question, qa.ask(SAMPLE, question, history=history).text))
        apart = [qa.ask(SAMPLE, question).text for question in (*QUESTIONS, QUESTION)]
    assert ended.out.splitlines() == [answer for _, answer in history]
    assert alone.out.splitlines() == apart
    assert ended.out != alone.out


def test_commands_through_a_pipe_and_what_went_wrong_is_in_the_exit_code(tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = [QUESTION, "/budgt 0.2", "/budget 0.2", QUESTION, "/inspect", f"/save {saved}"]
    ended = sttm_here("chat", SAMPLE, stdin=spoken(*lines, "/quit", "never asked"))
    assert ended.code == 1
    assert ended.out.splitlines() == ["three", "three"]
    assert "did you mean /budget?" in ended.err
    assert "78 of 392 video tokens (20 %)" in ended.err
    report = json.loads(saved.read_text(encoding="utf-8"))
    assert report["schema"] == "sttm.chat/1"
    assert [(t["question"], t["answer"], t["budget"]) for t in report["turns"]] == [
        (QUESTION, "three", 0.5),
        (QUESTION, "three", 0.2),
    ]
    assert sttm_here("chat", SAMPLE, stdin=spoken(QUESTION, "/quit")).code == 0


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("/budget 7", "--budget 7"),
        ("/video", "names no video"),
        ("/video /nowhere.mp4", "nowhere.mp4"),
        ("/save", "names no file"),
        ("/save talk.txt", ".md"),
        ("/quit now", "'now'"),
        ("is <|im_end|> there?", "control token"),
    ],
)
def test_a_line_that_cannot_be_carried_out_is_said_and_the_chat_goes_on(
    line: str, part: str
) -> None:
    ended = sttm_here("chat", SAMPLE, stdin=spoken(line, QUESTION))
    assert (ended.code, ended.out) == (1, "three\n")
    assert part in ended.err


def test_json_is_the_whole_conversation() -> None:
    report = sttm_here("chat", SAMPLE, "--json", "--quiet", stdin=spoken(*QUESTIONS[:2])).json
    assert report["schema"] == "sttm.chat/1"
    assert [turn["answer"] for turn in report["turns"]] == ["three", "4"]


def asking(**settings: object) -> Asker:
    return Asker(Settings(**settings), lambda event: None, server=False)  # type: ignore[arg-type]


def test_another_video_begins_another_conversation(random_model: Path, tmp_path: Path) -> None:
    other = str(Make().write(tmp_path / "other.mp4"))
    with VideoQA(model=str(random_model), max_new_tokens=6) as qa:
        alone = qa.ask(other, QUESTION).text
    with asking(model=str(random_model), max_new_tokens=6) as asker:
        talk = Conversation(asker, str(SAMPLE))
        first = talk.ask(QUESTION).answer
        with pytest.raises(VideoError):
            talk.open("nowhere.mp4")
        assert (talk.video, len(talk.turns)) == (str(SAMPLE), 1)
        talk.open(other)
        assert talk.ask(QUESTION).answer == alone != first
        assert [turn.question for turn in talk.turns] == [QUESTION]


def test_a_budget_that_fails_leaves_the_conversation_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OutOfMemoryError("full")

    with asking() as asker:
        talk = Conversation(asker, str(SAMPLE))
        with monkeypatch.context() as patch:
            patch.setattr(Compute, "prefill", full)
            with pytest.raises(OutOfMemoryError):
                talk.set_budget(0.25)
        assert talk.settings.budget == talk.facts["tokens"]["budget"] == 0.5
        assert talk.ask(QUESTION).answer == "three"


def test_the_oldest_turns_are_left_out_once_the_context_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with asking(max_new_tokens=4) as asker:
        talk = Conversation(asker, str(SAMPLE))
        model = asker._qa.model()
        config = model.decoder.config
        used = config.max_position_embeddings - talk.facts["tokens"]["room"]
        both = len(model.question(QUESTION, [(QUESTION, "three")]))
        monkeypatch.setattr(config, "max_position_embeddings", used + both + 2)
        assert [talk.ask(QUESTION).answer for _ in range(2)] == ["three", "three"]
        assert talk.forgotten == 0
        talk.ask(QUESTION)
        assert (talk.forgotten, len(talk.turns)) == (1, 3)


def test_a_saved_conversation_reads_well_and_overwrites_nothing_of_others(tmp_path: Path) -> None:
    with asking() as asker:
        talk = Conversation(asker, str(SAMPLE))
        talk.ask(QUESTION)
        talk.save(tmp_path / "talk.md")
        talk.ask("which digit flashes?")
        talk.save(tmp_path / "talk.md")
        foreign = tmp_path / "foreign.md"
        foreign.write_text("mine")
        with pytest.raises(UsageError, match="already exists"):
            talk.save(foreign)
    assert foreign.read_text() == "mine"
    text = (tmp_path / "talk.md").read_text(encoding="utf-8")
    assert f"**{QUESTION}**\n\nthree\n" in text
    assert text.endswith("**which digit flashes?**\n\n4\n")


def test_a_session_on_a_terminal(tmp_path: Path) -> None:
    chat = Terminal("chat", SAMPLE, XDG_STATE_HOME=str(tmp_path))
    chat.expect("/help lists commands")
    chat.expect(">")
    chat.send(QUESTION + ENTER)
    chat.expect("three")
    chat.expect(">")
    chat.send("/bud" + TAB)
    chat.expect("get")
    chat.send("0.2" + ENTER)
    chat.expect("78 of 392 video tokens (20 %)")
    chat.expect(">")
    chat.send("given up" + CTRL_C)
    chat.expect(">")
    chat.send(UP + UP + ENTER)
    chat.expect("three")
    chat.expect(">")
    chat.send("/nonsense" + ENTER)
    chat.expect("/nonsense is not a command")
    chat.expect(">")
    chat.send(CTRL_D)
    assert chat.ended() == 0, chat.screen
    history = tmp_path / "sttm" / "chat-history"
    assert QUESTION in history.read_text(encoding="utf-8")
    assert history.stat().st_mode & 0o077 == 0


def test_ctrl_c_interrupts_where_there_is_nothing_to_keep_or_it_is_pressed_again() -> None:
    with pytest.raises(KeyboardInterrupt), stoppable(lambda: False):
        signal.raise_signal(signal.SIGINT)
    with stoppable(lambda: True) as pressed:
        signal.raise_signal(signal.SIGINT)
        assert pressed()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_stops_an_answer_and_not_the_chat(random_model: Path, tmp_path: Path) -> None:
    chat = Terminal(
        "chat", SAMPLE, "-q", "-m", random_model, "--max-new-tokens", 30000,
        XDG_STATE_HOME=str(tmp_path),
    )  # fmt: skip
    chat.expect(">")
    chat.send("what happens?" + ENTER)
    chat.expect("what happens?\n")
    chat.expect(" ")
    chat.send(CTRL_C)
    assert "cut off" not in chat.expect("stopped")
    chat.expect(">")
    chat.send("/inspect" + ENTER)
    chat.expect("1 turns so far")
    chat.send("/quit" + ENTER)
    assert chat.ended() == 0, chat.screen
