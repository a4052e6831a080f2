"""`sttm chat` through a server: the same conversation as without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from sttm_cli.base.events import Shown, TextPiece
from sttm_cli.cli.asker import Asker
from sttm_cli.cli.conversation import Conversation, Stopped
from sttm_cli.settings.settings import Settings
from tests.cli.process import sttm_here
from tests.serve.running import Running
from tests.web import serving

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
COUNT, DIGIT = "how many shapes are there?", "which digit flashes?"


@pytest.fixture(autouse=True)
def _found(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)


def test_a_conversation_is_that_of_a_chat_without_a_server() -> None:
    lines = f"{COUNT}\n{DIGIT}\n/budget 0.2\n/inspect\n{COUNT}\n"
    through = sttm_here("chat", SAMPLE, stdin=lines)
    alone = sttm_here("chat", SAMPLE, "--no-server", stdin=lines)
    assert "asking this user's server" in through.err
    assert through.out == alone.out == "three\n4\nthree\n"
    assert "78 of 392 video tokens (20 %)" in through.err
    assert sttm_here("chat", "nowhere.mp4", stdin=lines).code == 3


def test_an_address_is_fetched_once_for_a_whole_chat() -> None:
    with serving(SAMPLE) as site:
        shown = sttm_here("chat", site.at("video.mp4"), stdin=f"{COUNT}\n{DIGIT}\n/inspect\n")
        assert "asking this user's server" in shown.err
        assert shown.out == "three\n4\n"
        assert site.asked == ["/video.mp4"]
        wrong = sttm_here("ask", site.at("text"), COUNT)
        assert wrong.code == 3
        assert f"{site.at('text')} is not a video" in wrong.err
        report = sttm_here("ask", site.at("video.mp4"), COUNT, "--json", "--budget", "0.37").json
        assert report["video"]["path"] == site.at("video.mp4")
        stored = sttm_here("cache", "show", report["cache"]["key"], "--json")
        assert site.at("video.mp4") in stored.out


def test_a_stopped_answer_stays_in_the_conversation_and_the_server_goes_on() -> None:
    shown: list[str] = []

    def show(event: Shown) -> None:
        if isinstance(event, TextPiece):
            shown.append(event.text)
            if len(shown) == 3:
                raise Stopped("".join(shown))

    drawn = Settings(temperature=50.0, seed=1, max_new_tokens=400)
    with Asker(drawn, show, server=True) as asker:
        talk = Conversation(asker, str(SAMPLE))
        turn = talk.ask(COUNT)
        assert (turn.ending, turn.answer) == ("stopped", "".join(shown[:3]))
        asker.use(Settings())
        assert talk.ask(DIGIT).ending == "end"
        assert len(talk.turns) == 2
