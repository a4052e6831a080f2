"""Subtitle files -> lines with their times."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sttm_cli.base.errors import UsageError
from sttm_cli.decode.subtitles import HEAD, MAX_CHARACTERS, read_subtitles, subtitles_text

SRT = """\
1
00:00:01,000 --> 00:00:02,500
<i>Hello</i> there.

2
00:00:04,000 --> 00:00:06,000 X1:10 X2:20
{\\an8}Where is
the &amp; key?

3
01:00:00,000 --> 01:00:01,000
Late.
"""
VTT = """\
WEBVTT - made by hand

STYLE
::cue { color: red }

NOTE a comment --> with an arrow

intro
00:01.000 --> 00:02.500 align:start
<v Ann>Hello there.</v>

01:00:00.000 --> 01:00:01.000
Late.
"""


def text(path: Path, start: float = 0, end: float = 1e5) -> tuple[list[str], list[str]]:
    """The lines after the head, and the warnings."""
    warned: list[str] = []
    found = subtitles_text(path, start, end, warn=warned.append).splitlines()
    assert found[:1] in ([], [HEAD])
    return found[1:], warned


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_subrip_gives_a_line_for_each_cue(tmp_path: Path, encoding: str, ends: str) -> None:
    path = write(tmp_path / "a.srt", SRT.replace("\n", ends), encoding)
    lines, warned = text(path)
    assert lines == ["[00:01] Hello there.", "[00:04] Where is the & key?", "[1:00:00] Late."]
    assert warned == []


def test_webvtt_gives_cues_and_leaves_notes_and_styles_out(tmp_path: Path) -> None:
    assert text(write(tmp_path / "a.vtt", VTT))[0] == ["[00:01] Hello there.", "[1:00:00] Late."]


def test_only_what_is_on_show_in_the_range_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.srt", SRT)
    assert text(path, 2, 5)[0] == ["[00:01] Hello there.", "[00:04] Where is the & key?"]
    assert text(path, 2.5, 4)[0] == []
    assert "none between" in text(path, 2.5, 4)[1][0]


def test_lines_that_recognised_speech_repeats_come_once(tmp_path: Path) -> None:
    cues = ["one", "one\ntwo", "two\nthree"]
    rolling = "\n\n".join(f"0:0{i}.0 --> 0:0{i + 1}.0\n{cue}" for i, cue in enumerate(cues))
    assert text(write(tmp_path / "a.vtt", f"WEBVTT\n\n{rolling}\n"))[0] == [
        "[00:00] one", "[00:01] two", "[00:02] three",
    ]  # fmt: skip


def test_length_is_bounded_and_said(tmp_path: Path) -> None:
    cues = [f"00:{i // 60:02}:{i % 60:02},0 --> 00:59:59,0\n{f'word{i} ' * 20}" for i in range(900)]
    lines, warned = text(write(tmp_path / "a.srt", "\n\n".join(cues)))
    assert 100 < len(lines) < 900
    assert sum(map(len, lines)) <= MAX_CHARACTERS
    assert f"{len(lines)} of 900" in warned[0]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("just a text\nwith lines\n", "line 1"),
        (SRT.replace("00:00:04,000", "00:99:04,000"), "line 6"),
        (SRT.replace("00:00:06,000", "00:00:03,000"), "line 6"),
        (SRT.replace("\nthe &amp;", "\n\nthe &amp;"), "line 9"),
        (SRT.replace("\n\n2\n", "\n2\n"), "line 5"),
        ("WEBVTT\n\n", "no subtitles"),
        ("", "no subtitles"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, content: str, line: str) -> None:
    path = write(tmp_path / "a.srt", content)
    with pytest.raises(UsageError, match=r"a\.srt") as report:
        read_subtitles(path)
    assert line in report.value.message


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    latin = write(tmp_path / "latin.srt", SRT.replace("Late", "Spät"), "latin-1")
    with pytest.raises(UsageError, match="line 12: this is not UTF-8"):
        read_subtitles(latin)
    for path in (tmp_path / "none.srt", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="--subtitles"):
            read_subtitles(path)


@pytest.mark.parametrize("unit", ["<", "{\\", "<a", "&", "&#1", "-->", " "])
def test_markup_that_is_never_closed_takes_no_time(tmp_path: Path, unit: str) -> None:
    head = "00:00:01,000 --> 00:00:02,000\nhello "
    path = write(tmp_path / "a.srt", head + unit * ((5 << 20) // len(unit)))
    started = time.monotonic()
    read_subtitles(path)
    # Quadratic time would be hours.
    assert time.monotonic() - started < 60


def test_a_reference_to_a_character_that_is_too_long_is_refused_with_its_line(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "a.srt", f"00:00:01,000 --> 00:00:02,000\nhello\n&#{'9' * 5000};")
    with pytest.raises(UsageError, match="line 3: a reference to a character is too long"):
        read_subtitles(path)
