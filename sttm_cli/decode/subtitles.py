"""Subtitles of a video (SubRip, WebVTT) as text before the first question.

They follow the video in the prompt, so video tokens never attend to them: one stored KV serves with
and without subtitles, and they are not part of its identity.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.errors import UsageError

MAX_BYTES = 10 << 20
MAX_CHARACTERS = 20_000
"""About 5,000 tokens of English, which are run with every question without earlier turns."""
ROLLING_S = 0.05
"""Cues this close are continuous speech, in which repeated lines only scroll up."""

# The introduction that benchmarks use for their subtitles.
HEAD = "This video's subtitles are listed below:"

_TIME = r"(?:(\d{1,3}):)?([0-5]?\d):([0-5]?\d)[.,](\d{1,3})"
_CUE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
# No brackets inside: linear time, however many brackets are never closed.
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_NO_CUES = ("WEBVTT", "NOTE", "STYLE", "REGION")


@dataclass(frozen=True)
class Cue:
    """The text from `start_s` to `end_s`, in seconds, without markup."""

    start_s: float
    end_s: float
    text: str


def subtitles_text(
    path: Path | None,
    start_s: float | None = None,
    end_s: float | None = None,
    *,
    warn: Callable[[str], None],
) -> str:
    """Return the subtitles shown between two times, one line each with its time, or "".

    Warns if there are none, or more than MAX_CHARACTERS. Raises UsageError, naming the line, for a
    file that is not SubRip or WebVTT.
    """
    if path is None:
        return ""
    start, end = start_s or 0.0, math.inf if end_s is None else end_s
    cues = sorted(read_subtitles(path), key=lambda cue: cue.start_s)
    lines = list(_lines(cue for cue in cues if cue.end_s > start and cue.start_s < end))
    if not lines:
        warn(f"--subtitles {path} has none between --start and --end")
        return ""
    shown, length = 0, 0
    while shown < len(lines) and (length := length + len(lines[shown]) + 1) <= MAX_CHARACTERS:
        shown += 1
    if shown < len(lines):
        warn(
            f"only the first {shown} of {len(lines)} subtitles are used ({MAX_CHARACTERS:,} "
            "characters): choose a part of the video with --start and --end"
        )
    return "\n".join([HEAD, *lines[:shown]])


def read_subtitles(path: Path) -> list[Cue]:
    """Return all cues of a SubRip or WebVTT file in order.

    Stricter than players, which skip what they cannot read: here nothing may be dropped silently.
    Raises UsageError, naming the line.
    """
    lines = _text(path).splitlines()
    cues = [cue for first, block in _blocks(lines) for cue in _cue(path, first, block)]
    if not cues:
        raise UsageError(f"--subtitles {path} holds no subtitles", "give an .srt or .vtt file")
    return cues


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"--subtitles {path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise UsageError(f"--subtitles {path} is larger than {MAX_BYTES >> 20} MiB")
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"--subtitles {path}, line {line}: this is not UTF-8", "convert the file to UTF-8"
        ) from None


def _blocks(lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines between blank ones, with the number of the first."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.strip():
            block.append(line)
        elif block:
            yield number - len(block), block
            block = []


def _cue(path: Path, first: int, block: list[str]) -> Iterator[Cue]:
    """Yield the cue of a block if it has text: at most a number or a name precedes its times."""
    if block[0].startswith(_NO_CUES):
        return
    at = 0 if "-->" in block[0] else 1
    found = _CUE.fullmatch(block[at]) if at < len(block) else None
    if found is None:
        line = first + (at if at < len(block) and "-->" in block[at] else 0)
        raise UsageError(
            f"--subtitles {path}, line {line}: {block[line - first].strip()[:60]!r} stands where "
            "times such as 00:00:01,000 --> 00:00:02,500 should",
            "give an .srt or .vtt file",
        )
    start, end = _seconds(found.groups()[:4]), _seconds(found.groups()[4:])
    if end < start:
        raise UsageError(f"--subtitles {path}, line {first + at}: it ends before it begins")
    for number, said in enumerate(block[at + 1 :], first + at + 1):
        if _CUE.fullmatch(said):
            raise UsageError(f"--subtitles {path}, line {number}: no blank line is before this one")
    text = [_said(path, n, line) for n, line in enumerate(block[at + 1 :], first + at + 1)]
    if any(text):
        yield Cue(start, end, "\n".join(filter(None, text)))


def _said(path: Path, number: int, line: str) -> str:
    """Return a line without markup and character references."""
    try:
        return html.unescape(_MARKUP.sub("", line)).strip()
    except ValueError:
        # Python refuses to parse numbers of more than a few thousand digits.
        raise UsageError(
            f"--subtitles {path}, line {number}: a reference to a character is too long"
        ) from None


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


def _lines(cues: Iterator[Cue]) -> Iterator[str]:
    """Yield a line per cue; in recognised speech, each cue repeats the last line before it."""
    last, end = "", 0.0
    for cue in cues:
        follows = cue.start_s <= end + ROLLING_S
        fresh = [line for line in cue.text.split("\n") if not (follows and line == last)]
        end = cue.end_s
        if fresh:
            last = fresh[-1]
            yield f"[{_clock(cue.start_s)}] {' '.join(fresh)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
