"""`sttm log`: show the log of answered questions; and add to it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from sttm_cli.base.errors import VideoError
from sttm_cli.base.reports import LogEntry, LogReport
from sttm_cli.cli.flags import Output, examples, takes
from sttm_cli.cli.output import one_line, print_json, print_text, print_words, printable, say
from sttm_cli.decode.source import is_address
from sttm_cli.runtime import answer_log
from sttm_cli.runtime.answer_log import Talk
from sttm_cli.settings.settings import Settings

EXAMPLES = examples("sttm log --last 5", "sttm log talk.mp4 --json")


@takes()
def log(
    video: Annotated[
        str | None,
        typer.Argument(metavar="VIDEO", help="A video; without it, all of them."),
    ] = None,
    *,
    last: Annotated[
        int | None,
        typer.Option(
            "-n", "--last", metavar="N", min=1, show_default=False, help="Only the last N answers."
        ),
    ] = None,
    path: Annotated[
        bool, typer.Option("--path", help="Print the path of the log's file and exit.")
    ] = False,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Show the questions answered so far, the last one at the end.

    Time, video, model, budget, question, answer and seconds of each are kept in one file of the
    user, which never leaves this machine; --no-log, or no_log in the config file, keeps none. 'sttm
    ask -c' continues the last conversation.
    """
    if path:
        print_text(str(answer_log.log_path()))
        return
    found = answer_log.entries(video, last)
    if video is not None and not found and not (os.path.exists(video) or is_address(video)):
        raise VideoError(
            f"there is no file {video}, and nothing was asked about it", "'sttm log' shows all"
        )
    if output.as_json:
        where = str(answer_log.log_path())
        listed: LogReport = {"schema": "sttm.log/1", "path": where, "entries": found}
        print_json(listed)
        return
    for line in (line for entry in found for line in _lines(entry)):
        print_words(line, indent=2)
    if not output.quiet:
        about = "" if video is None else f" about {video}"
        say(f"{len(found):,} {'answer' if len(found) == 1 else 'answers'}{about} in the log")


def _lines(entry: LogEntry) -> list[str]:
    when = datetime.fromtimestamp(entry["time"]).isoformat(" ", "minutes")
    took = "" if entry["seconds"] is None else f" · {entry['seconds']:.2f} s"
    head = f"{when} · {entry['video']} · {entry['model']} · budget {entry['budget']}{took}"
    return [printable(head), *(f"  {one_line(entry[part])}" for part in ("question", "answer"))]


class Record:
    """Logs a conversation's answers once they are printed. If the log cannot be written, a warning
    is printed and the answers are unaffected."""

    def __init__(self, talk: Talk, *, keeps: bool = True) -> None:
        self._talk, self._keeps, self._failed = talk, keeps, False

    @classmethod
    def of(cls, video: str, settings: Settings, *, before: str = "", keeps: bool) -> Record:
        """Return the record of a new conversation."""
        return cls(answer_log.new_talk(video, settings, before), keeps=keeps)

    def about(self, video: str, settings: Settings) -> Record:
        """Return the record of another conversation, about another video."""
        return Record.of(video, settings, keeps=self._keeps)

    def add(self, answers: Sequence[tuple[str, str, float | None]], budget: float | int) -> None:
        """Keep (question, answer, seconds) of each answer, or only that there was one."""
        if not answers or self._failed:
            return
        try:
            if self._keeps:
                answer_log.add(self._talk, answers, budget)
            else:
                answer_log.note_unkept()
        except (sqlite3.Error, OSError, ValueError) as error:
            self._failed = True
            say(f"not in the log, {answer_log.log_path()} cannot be written: {error}")
