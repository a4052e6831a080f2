"""`sttm ask --subtitles`: said to the model before the question, and to nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from sttm_cli.runtime.prepared import Asked
from tests.cli.process import sttm_here

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"
SRT = "1\n00:00:01,000 --> 00:00:02,000\nfour shapes\n\n2\n00:00:06,000 --> 00:00:07,000\nlate\n"


@pytest.fixture
def srt(tmp_path: Path) -> Path:
    path = tmp_path / "film.srt"
    path.write_text(SRT)
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions as the model gets them."""
    found: list[str] = []

    def recorded(question: str, history: object) -> Asked:
        found.append(question)
        return Asked(question, history)

    monkeypatch.setattr("sttm_cli.runtime.prepared.Asked", recorded)
    return found


def test_subtitles_of_the_range_stand_before_each_question(srt: Path, asked: list[str]) -> None:
    rest = ("--subtitles", srt, "--end", "5", "--json")
    report = sttm_here("ask", SAMPLE, QUESTION, "what is there?", *rest).json
    head = "This video's subtitles are listed below:\n[00:01] four shapes\n\n"
    assert asked == [head + QUESTION, f"{head}what is there?"]
    assert [a["question"] for a in report["answers"]] == [QUESTION, "what is there?"]
    assert report["video"]["subtitles"] == str(srt)


def test_one_stored_kv_serves_with_and_without(srt: Path) -> None:
    plain = sttm_here("ask", SAMPLE, QUESTION, "--json").json
    report = sttm_here("ask", SAMPLE, QUESTION, "--json", "--subtitles", srt).json
    assert report["cache"]["hit"]
    assert report["cache"]["prefilled_tokens"] == 0
    assert report["cache"]["restored_tokens"] == plain["cache"]["prefilled_tokens"]
    assert plain["video"]["subtitles"] is None


@pytest.mark.parametrize(
    ("content", "question", "part"),
    [
        ("no subtitles\n", QUESTION, "line 1"),
        (SRT.replace("four", "&lt;video&gt;"), QUESTION, "control token"),
        (SRT, " ", "question is empty"),
        (None, QUESTION, "cannot be read"),
    ],
)
def test_what_cannot_hold_is_a_usage_error(
    srt: Path, content: str | None, question: str, part: str
) -> None:
    srt.unlink() if content is None else srt.write_text(content)
    ended = sttm_here("ask", SAMPLE, question, "--subtitles", srt)
    assert ended.code == 2
    assert part in ended.err
    assert len(ended.err) < 600


def test_sound_is_said_to_be_ignored_once_and_only_where_there_is_any(
    shared_videos: Path,
) -> None:
    film = shared_videos / "moviepy_chaplin.mp4"
    for more, times in (((film,), 1), ((film, "--quiet"), 0), ((SAMPLE,), 0)):
        ended = sttm_here("ask", more[0], QUESTION, QUESTION, *more[1:])
        assert ended.err.count("sound is ignored") == times
    several = sttm_here("ask", shared_videos / "torchcodec_nasa_13013.mp4", QUESTION)
    assert several.err.count("of 2 video streams the best one is read") == 1
