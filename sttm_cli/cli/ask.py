"""`sttm ask`: questions about one video."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm_cli.base.errors import UsageError
from sttm_cli.base.events import (
    Answered,
    Noted,
    Progressed,
    Restarted,
    Shown,
    TextPiece,
    Warned,
)
from sttm_cli.base.reports import AnswerReport, AskReport
from sttm_cli.cli.asker import Asker, Questions
from sttm_cli.cli.flags import (
    ANSWERS,
    RUN,
    SOURCE,
    VIDEO,
    KeepAlive,
    NoServer,
    Output,
    Subtitles,
    check_keep_alive,
    examples,
    settings_from,
    takes,
    typed,
)
from sttm_cli.cli.output import (
    NAME_A_MODEL,
    StageProgress,
    cut_off,
    one_line,
    print_answer,
    print_json,
    say,
    share,
    size,
    spent,
    warn,
)
from sttm_cli.decode.subtitles import subtitles_text
from sttm_cli.settings.fields import check_question, parse_choices
from sttm_cli.settings.settings import DEFAULT_MODEL, STDIN

GENERATING = ("--temperature", "--seed", "--top-p", "--max-new-tokens")
"""Flags that mean nothing together with --choices."""

EXAMPLES = examples(
    'sttm ask talk.mp4 "what is it about?" "who speaks?" -m llava-onevision-7b',
    'sttm ask talk.mp4 "which city is it?" --choices "Rome|Paris|Oslo" --start 1:30',
    "sttm ask talk.mp4 --questions questions.txt --json > answers.json",
)


@takes(RUN, SOURCE, ANSWERS)
def ask(
    context: typer.Context,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help=VIDEO)],
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION", help="Questions; '-' reads them from stdin, a line each."
        ),
    ] = None,
    *,
    questions_file: Annotated[
        Path | None,
        typer.Option(
            "--questions", metavar="FILE", show_default=False, help="Read questions, a line each."
        ),
    ] = None,
    choices: Annotated[
        str | None,
        typer.Option(
            "--choices",
            metavar="A|B|...",
            show_default=False,
            help="Print the likeliest of these answers and its probability among them.",
        ),
    ] = None,
    subtitles: Subtitles = None,
    no_server: NoServer = False,
    keep_alive: KeepAlive = None,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Answer questions about a video, one answer a line.

    The model reads a video once. What it made of it, its KV cache, is kept on disk, and later calls
    with the same video and settings start from there.
    """
    settings = settings_from(flags)
    if video == STDIN and STDIN in (questions or []):
        raise UsageError(
            "VIDEO - and QUESTION - cannot both be read from stdin", "give one of them otherwise"
        )
    options = None if choices is None else parse_choices(choices)
    if options and (drawn := typed(context, GENERATING)):
        raise UsageError(
            f"--choices and {drawn[0]} cannot be combined", "options are weighed, not generated"
        )
    asked = _questions(questions or [], questions_file)
    # All of them before the first answer: a script gets every line or none.
    for question in asked:
        check_question(question)
    _check_order(video, asked)
    before = subtitles_text(subtitles, settings.start, settings.end, warn=warn)
    if settings.model == DEFAULT_MODEL and not output.quiet:
        say(NAME_A_MODEL)
    stays = check_keep_alive(context, keep_alive, no_server=no_server)
    with StageProgress(output) as progress:
        screen = _Screen(output, progress, settings.max_new_tokens)
        with Asker(settings, screen.show, server=not no_server, keep_alive=stays) as asker:
            report = asker.ask(Questions(video, asked, options=options or (), before=before))
    report["video"]["subtitles"] = None if subtitles is None else str(subtitles)
    if output.as_json:
        print_json(report)
    if output.debug:
        _explain(report)
    if not output.quiet:
        for note in report["video"]["notes"]:
            say(note)
        say(_summary(report))


def _check_order(video: str, questions: list[str]) -> None:
    if not os.path.exists(video) and (files := [q for q in questions if os.path.exists(q)]):
        raise UsageError(
            f"VIDEO {video!r} is not a file, but QUESTION {files[0]!r} is", "give the video first"
        )


def _questions(given: list[str], file: Path | None) -> list[str]:
    if given and file is not None:
        raise UsageError("QUESTION and --questions cannot be combined", "give one of them")
    if file is None and not given:
        raise UsageError("no QUESTION was given", "ask something about the video")
    if file is None and "-" not in given:
        return given
    if file is None and given != ["-"]:
        raise UsageError("'-' cannot be combined with other questions", "give '-' alone, or none")
    lines = _lines(file) if file else list(sys.stdin)
    asked = [stripped for line in lines if (stripped := line.strip())]
    if not asked:
        where = f"is in --questions {file}" if file else "came from stdin"
        raise UsageError(f"no question {where}", "write one question a line")
    return asked


def _lines(file: Path) -> list[str]:
    try:
        # Editors on Windows begin a file with a mark that belongs to no question.
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"--questions {file} cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--questions {file} is not UTF-8 text") from error


class _Screen:
    """Prints what happens: answers in pieces on a terminal, else as a line each."""

    def __init__(self, output: Output, progress: StageProgress, max_new_tokens: int) -> None:
        self._output, self._progress, self._limit = output, progress, max_new_tokens
        self._streamed = sys.stdout.isatty() and not output.as_json
        self._printed = self._skip = 0
        self._open = False

    def show(self, event: Shown) -> None:
        if isinstance(event, Progressed):
            self._progress(event.stage, event.done, event.of)
            return
        self._progress.stop()
        match event:
            case Warned(line):
                warn(line)
            case Noted(line) if not self._output.quiet:
                say(line)
            case Restarted(why):
                self._restart(why)
            case TextPiece(text) if self._streamed and not self._skip:
                self._open = True
                print_answer(one_line(text))
            case Answered(answer):
                self._answer(answer)

    def _restart(self, why: str) -> None:
        """All answers come once more: those that were printed already are skipped."""
        if self._open:
            print_answer("\n")
        warn(why)
        self._skip, self._open = self._printed, False

    def _answer(self, answer: AnswerReport) -> None:
        if self._skip:
            self._skip -= 1
            return
        self._printed += 1
        if not self._output.as_json:
            print_answer(self._ending(answer))
        self._open = False
        if not self._output.quiet and (cut := cut_off(answer.get("ending"), self._limit)):
            warn(cut)

    def _ending(self, answer: AnswerReport) -> str:
        """The part of an answer that is not printed yet."""
        if choices := answer.get("choices"):
            best = max(choices, key=lambda option: option["probability"])
            return f"{best['text']}\t{best['probability']:.3f}\n"
        return "\n" if self._streamed else one_line(answer["answer"]) + "\n"


def _explain(report: AskReport) -> None:
    """Facts for a bug report: how the video was read, why it was a miss, seconds by stage."""
    video, cache = report["video"], report["cache"]
    say(f"debug: read with {video['reader']}, {video['frames_asked']} frames asked")
    if video["fallback"]:
        say(f"debug: the other reader took over: {video['fallback']}")
    if cache["miss_reason"]:
        say(f"debug: not from the cache: {cache['miss_reason']}")
    if (restore := report["seconds"]["restore"]) is not None:
        say(f"debug: {_worth(restore, cache['cold_seconds'])}")
    say("debug: seconds: " + spent(report["seconds"]))


def _worth(restore: float, cold: float) -> str:
    """Whether the cache was worth it, by what was measured: now, and when the entry was made."""
    what = f"restoring took {restore:.3f} s, computing {cold:.3f} s when this was stored"
    if restore < cold:
        return f"{what}: {cold / max(restore, 1e-9):.1f} times as long"
    return f"{what}: recomputing would have been faster, see docs/cache.md"


def _summary(report: AskReport) -> str:
    tokens, cache = report["tokens"], report["cache"]
    saved = f"{cache['kv_dtype']} saves {size(cache['saved_bytes'])}"
    if cache["hit"]:
        what = "cache hit" + (f" ({saved})" if cache["saved_bytes"] else "")
    elif cache["bytes"]:
        more = f", {saved}" if cache["saved_bytes"] else ""
        what = f"computed and stored ({size(cache['bytes'])}{more})"
    else:
        what = "computed, not stored"
    return f"{what} · {share(tokens['video_kept'], tokens['video_full'])} · {_waited(report)}"


def _waited(report: AskReport) -> str:
    seconds, cache = report["seconds"], report["cache"]
    first = seconds["first_token"]
    if first is None:
        return f"options weighed in {seconds['answer'] or 0.0:.2f} s"
    if not cache["hit"]:
        return f"first token {first:.2f} s"
    # Cold: this question on top of what computing the prefix took when it was stored.
    cold = cache["cold_seconds"] + first - (seconds["restore"] or 0.0)
    return f"first token {first:.2f} s (cold: {cold:.2f} s)"
