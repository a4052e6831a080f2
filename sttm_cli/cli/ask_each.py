"""`sttm ask --each`: the same questions about every video of a library."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sttm_cli.base.errors import ModelError, OutOfMemoryError, SttmError, UsageError, VideoError
from sttm_cli.cli.asker import Asker, Questions
from sttm_cli.cli.log import Record
from sttm_cli.cli.notes import notes_on
from sttm_cli.cli.output import duration, error_report, print_json, printable, say
from sttm_cli.decode import in_bucket
from sttm_cli.decode.source import is_address
from sttm_cli.library.paths import Found, find_videos
from sttm_cli.settings.settings import STDIN

if TYPE_CHECKING:
    from sttm_cli.base.reports import AskReport
    from sttm_cli.cli.ask_screen import Screen


def find_each(path: str) -> Found:
    """Find the videos of a folder, a file, a pattern, or a list on stdin, one path per line.

    A bucket's folders and patterns are accepted too. Raises UsageError for any other address, and
    if no video is found.
    """
    if is_address(path) and not in_bucket(path):
        raise UsageError(f"--each {path} is one video", "leave --each out, or give a folder")
    if path != STDIN:
        return find_videos([path])
    lines = sys.stdin.buffer.read().split(b"\n")
    return find_videos([], [os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip()])


def ask_each(
    asker: Asker,
    found: Found,
    asked: Sequence[str],
    options: Sequence[str],
    *,
    screen: Screen,
    keeps: bool,
) -> bool:
    """Ask `asked` about every video, continuing after failures; return whether all succeeded.

    `keeps`: whether the answers are logged. Raises ModelError, and OutOfMemoryError if the model
    cannot be loaded: no other video could be answered.
    """
    started, done, failed = time.perf_counter(), 0, len(found.unreadable)
    for folder, reason in found.unreadable:
        why = reason if isinstance(folder, str) else f"the folder cannot be read: {reason}"
        say(f"{printable(str(folder))}: failed: {why}")
        _report(screen, folder, VideoError(why))
    total, report = len(found.videos), None
    try:
        for at, video in enumerate(found.videos, 1):
            try:
                report = _about(asker, video, asked, options, screen=screen, keeps=keeps)
                done += 1
                if screen.output.as_json:
                    print_json(report)
            except ModelError:
                raise
            except SttmError as error:
                if isinstance(error, OutOfMemoryError) and not asker.loaded:
                    raise
                failed += 1
                screen.stop()
                say(f"[{at}/{total}] {video}: failed: {_reason(error, video)}")
                _report(screen, video, error)
    finally:
        screen.stop()
        if not screen.output.quiet:
            left = total - done - failed + len(found.unreadable)
            parts = [f"{done} answered", f"{failed} failed", *([f"{left} left"] if left else [])]
            say(f"{', '.join(parts)}, {duration(time.perf_counter() - started)}")
    if report is not None and not screen.output.quiet:
        for note in notes_on(asker.settings):
            say(note)
    return not failed


def _about(
    asker: Asker,
    video: Path | str,
    asked: Sequence[str],
    options: Sequence[str],
    *,
    screen: Screen,
    keeps: bool,
) -> AskReport:
    screen.begin(str(video))
    record = Record.of(str(video), asker.settings, keeps=keeps)
    try:
        report = asker.ask(Questions(str(video), asked, options=options))
    finally:
        record.add(screen.answered(asked), asker.settings.budget)
    report["video"]["subtitles"] = None
    return report


def _report(screen: Screen, video: Path | str, error: SttmError) -> None:
    """With --json, a failed video's own line."""
    if screen.output.as_json:
        print_json({**error_report(error), "video": {"path": str(video)}})


def _reason(error: SttmError, video: Path | str) -> str:
    return error.message.removeprefix(f"{video} ").removeprefix(f"{video}: ")
