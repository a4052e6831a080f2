"""`sttm ask`: questions about one video."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm_cli.base.errors import ContextError, UsageError, VideoError
from sttm_cli.base.reports import AskReport
from sttm_cli.cli.ask_each import ask_each, find_each
from sttm_cli.cli.ask_screen import Screen
from sttm_cli.cli.asker import Asker, Questions
from sttm_cli.cli.flags import (
    ANSWERS,
    RUN,
    SOURCE,
    VIDEO,
    KeepAlive,
    NoLog,
    NoServer,
    Output,
    Subtitles,
    check_keep_alive,
    examples,
    settings_from,
    takes,
    typed,
)
from sttm_cli.cli.log import Record
from sttm_cli.cli.notes import notes_on
from sttm_cli.cli.output import (
    StageProgress,
    print_json,
    printable,
    say,
    share,
    size,
    spent,
    warn,
)
from sttm_cli.cli.questions import is_path, questions_of
from sttm_cli.decode.source import is_address
from sttm_cli.decode.subtitles import subtitles_text
from sttm_cli.runtime.answer_log import Talk, last_talk, last_unkept, new_talk
from sttm_cli.settings.fields import parse_choices
from sttm_cli.settings.settings import STDIN

GENERATING = ("--temperature", "--seed", "--top-p", "--max-new-tokens")
"""Flags that have no effect with --choices."""

EXAMPLES = examples(
    'sttm ask talk.mp4 "what is it about?" "who speaks?" -m llava-onevision-7b',
    'sttm ask talk.mp4 "which city is it?" --choices "Rome|Paris|Oslo" --start 1:30',
    'sttm ask -c "and who answers?"',
    'sttm ask clips/ "what happens?" --each --json > answers.jsonl',
)


@takes(RUN, SOURCE, ANSWERS)
def ask(
    context: typer.Context,
    video: Annotated[
        str, typer.Argument(metavar="VIDEO", help=f"{VIDEO} With --each: a folder or a pattern.")
    ],
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION", help="Questions; '-' reads them from stdin, a line each."
        ),
    ] = None,
    *,
    each: Annotated[
        bool,
        typer.Option(
            "--each",
            help="Ask about every video of a folder, a quoted pattern, or a list on stdin ('-'): "
            "a line 'name<TAB>answer' for each answer.",
        ),
    ] = False,
    go_on: Annotated[
        bool,
        typer.Option(
            "-c",
            "--continue",
            help="Continue the last conversation, or the last one about VIDEO, with its video, "
            "settings and turns.",
        ),
    ] = False,
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
    no_log: NoLog = False,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Answer questions about a video, one answer per line.

    The model reads a video once. The resulting KV cache is kept on disk, and later calls with the
    same video and settings start from it.
    """
    for flag in (name for name, given in (("-c", go_on), ("--subtitles", subtitles)) if given):
        if each:
            raise UsageError(f"--each and {flag} cannot be combined", "ask about one video")
    given, talk = list(questions or []), None
    if go_on:
        video, given, talk = _last(context, video, given, subtitles)
        flags = {**talk.settings, **_typed(context, flags)}
        if not output.quiet:
            say(f"about {printable(video)}")
    settings = settings_from(flags)
    if video == STDIN and STDIN in given:
        raise UsageError(
            "VIDEO - and QUESTION - cannot both be read from stdin", "give one of them otherwise"
        )
    options = None if choices is None else parse_choices(choices)
    if options and (drawn := typed(context, GENERATING)):
        raise UsageError(
            f"--choices and {drawn[0]} cannot be combined", "options are weighed, not generated"
        )
    asked = questions_of(video, given, questions_file)
    before = subtitles_text(subtitles, settings.start, settings.end, warn=warn)
    found = find_each(video) if each else None
    stays = check_keep_alive(context, keep_alive, no_server=no_server, warn=warn)
    with StageProgress(output) as progress:
        screen = Screen(output, progress, settings.max_new_tokens)
        with Asker(settings, screen.show, server=not no_server, keep_alive=stays) as asker:
            if found is not None:
                done = ask_each(asker, found, asked, options or (), screen=screen, keeps=not no_log)
                if not done:
                    raise typer.Exit(1)
                return
            record = Record(talk or new_talk(video, settings, before), keeps=not no_log)
            try:
                if talk is not None:
                    report = continued(asker, talk, asked, options or ())
                else:
                    report = asker.ask(
                        Questions(video, asked, options=options or (), before=before)
                    )
                report["video"]["subtitles"] = None if subtitles is None else str(subtitles)
                if output.as_json:
                    print_json(report)
            finally:
                # Including answers given before an interruption.
                record.add(screen.answered(asked), settings.budget)
    if output.debug:
        _explain(report)
    if not output.quiet:
        for note in report["video"]["notes"]:
            say(note)
        say(summary(report))
        for note in notes_on(settings, report["tokens"]["video_full"]):
            say(note)


def _last(
    context: typer.Context, video: str, questions: list[str], subtitles: Path | None
) -> tuple[str, list[str], Talk]:
    """Return VIDEO or the conversation's video, the questions, and the conversation that -c
    continues; VIDEO is a question unless it names a video."""
    if subtitles is not None:
        raise UsageError("-c and --subtitles cannot be combined", "the conversation has its own")
    named = os.path.exists(video) or is_address(video)
    if not named and is_path(video):
        raise VideoError(f"there is no file {video}", "check the path")
    talk = last_talk(video if named else None)
    if talk is None:
        about = f" about {video}" if named else ""
        raise UsageError(
            f"-c: there is no conversation{about} to go on with", "'sttm log' shows what was asked"
        )
    if talk.video == STDIN:
        raise UsageError("-c: the last conversation is about a video from stdin", "name a video")
    _check_kept(talk, named=named)
    return talk.video, questions if named else [video, *questions], talk


def _check_kept(talk: Talk, *, named: bool) -> None:
    """Raise UsageError where a conversation that is not kept is later than `talk`; where the user
    named its video, say so."""
    if last_unkept() <= talk.time:
        return
    when = datetime.fromtimestamp(talk.time).isoformat(" ", "minutes")
    if named:
        warn(f"going on from {when}: what was asked later is not kept (--no-log)")
        return
    raise UsageError(
        "-c: the last conversation is not kept (--no-log), and cannot be gone on with",
        f"the last one that is kept, of {when}: sttm ask {shlex.quote(talk.video)} QUESTION -c",
    )


def _typed(context: typer.Context, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in flags}
    return {
        name: value
        for name, value in flags.items()
        if (source := sources[name]) is not None and source.name == "COMMANDLINE"
    }


def continued(asker: Asker, talk: Talk, asked: Sequence[str], options: Sequence[str]) -> AskReport:
    """Return the report of further questions of a conversation, each asked with the turns before
    it; the oldest turns are dropped once the model's context is full."""
    turns, left_out, whole = list(talk.turns), 0, None
    for question in asked:
        while True:
            history = turns[left_out:]
            try:
                report = asker.ask(
                    Questions(talk.video, [question], history, options, before=talk.before)
                )
                break
            except ContextError:
                if not history:
                    raise
                left_out += 1
        turns.append((question, report["answers"][0]["answer"]))
        whole = report if whole is None else _joined(whole, report)
    if left_out:
        warn(f"the model's context is full: the first {left_out} turns were left out")
    assert whole is not None
    return whole


def _joined(whole: AskReport, report: AskReport) -> AskReport:
    """Return one report: the first, with the answers and seconds of the second added."""
    whole["answers"] += report["answers"]
    for name in ("answer", "total"):
        whole["seconds"][name] = (whole["seconds"][name] or 0) + (report["seconds"][name] or 0)
    return whole


def _explain(report: AskReport) -> None:
    """Print facts for a bug report: the reader, the reason for a miss, and the seconds by stage."""
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
    """Say whether the cache was worth it, comparing this restore with the entry's computation."""
    what = f"restoring took {restore:.3f} s, computing {cold:.3f} s when this was stored"
    if restore < cold:
        return f"{what}: {cold / max(restore, 1e-9):.1f} times as long"
    return f"{what}: recomputing would have been faster, see docs/cache.md"


def summary(report: AskReport) -> str:
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
    wait = seconds.get("wait") or 0.0
    took = f"first token {first - wait:.2f} s"
    if cache["hit"]:
        # Both cover the same work: from the video to the beginning of the question.
        restored = seconds["restore"] or 0.0
        took += f" · video restored in {restored:.2f} s (cold: {cache['cold_seconds']:.2f} s)"
    return took + (f" · after {wait:.1f} s of waiting for another process" if wait else "")
