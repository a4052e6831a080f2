"""`sttm ask`: questions about one video."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.cli.options import ANSWERS, RUN, SOURCE, VIDEO, Output, settings_from, takes, typed
from sttm_cli.cli.output import (
    StageProgress,
    cut_off,
    one_line,
    print_json,
    say,
    share,
    size,
    warn,
)
from sttm_cli.config import DEFAULT_MODEL, STDIN, Settings, parse_choices
from sttm_cli.errors import UsageError
from sttm_cli.results import Answer, Choice
from sttm_cli.types import Json

if TYPE_CHECKING:
    from sttm_cli.pipeline import VideoQA
    from sttm_cli.prepared import Prepared

NAME_A_MODEL = (
    "using the small embedded model 'tiny', which knows generated scenes of coloured shapes only; "
    "name a real one with --model, such as llava-onevision-7b"
)
GENERATING = ("--temperature", "--seed", "--top-p", "--max-new-tokens")
"""Flags that would mean nothing beside --choices."""


@takes(RUN, SOURCE, ANSWERS)
def ask(
    context: typer.Context,
    video: Annotated[str, typer.Argument(metavar="VIDEO", help=VIDEO)],
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION...", help="Questions; '-' reads them from stdin, a line each."
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
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Answer questions about a video, one answer a line.

    The first call decodes, encodes, merges and prefills the video and keeps the result; later
    calls with the same video and settings start from there.
    """
    settings = settings_from(flags)
    if video == STDIN and STDIN in (questions or []):
        raise UsageError(
            "VIDEO - and QUESTION - cannot both be read from stdin", "give one of them otherwise"
        )
    options = None if choices is None else parse_choices(choices)
    if options and (drawn := typed(context, GENERATING)):
        raise UsageError(
            f"--choices and {drawn[0]} cannot hold together", "options are weighed, not generated"
        )
    asked = _questions(questions or [], questions_file)
    if settings.model == DEFAULT_MODEL and not output.quiet:
        say(NAME_A_MODEL)
    from sttm_cli.pipeline import VideoQA

    with StageProgress(output) as progress, VideoQA(settings, warn=warn, progress=progress) as qa:
        prepared = qa.prepare(video)
        progress.stop()
        answers = [_reply(qa, prepared, question, options, output) for question in asked]
    if output.as_json:
        print_json(_json(qa, prepared, settings, answers))
    if output.debug:
        _explain(prepared, answers[0])
    if not output.quiet:
        say(_summary(prepared, answers[0]))


def _questions(given: list[str], file: Path | None) -> list[str]:
    if given and file is not None:
        raise UsageError("QUESTION and --questions cannot hold together", "give one of them")
    if file is None and not given:
        raise UsageError("no QUESTION was given", "ask something about the video")
    if file is None and "-" not in given:
        return given
    if file is None and given != ["-"]:
        raise UsageError("'-' stands among other questions", "give '-' alone, or none")
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
        raise UsageError(f"--questions {file} is no text in UTF-8") from error


def _reply(
    qa: VideoQA, prepared: Prepared, question: str, options: list[str] | None, output: Output
) -> Answer | Choice:
    if options is None:
        return _answer(qa, prepared, question, output)
    choice = qa.choose(prepared, question, options)
    if not output.as_json:
        sys.stdout.write(f"{choice.best.text}\t{choice.best.probability:.3f}\n")
        sys.stdout.flush()
    return choice


def _answer(qa: VideoQA, prepared: Prepared, question: str, output: Output) -> Answer:
    """Answer and print: in pieces on a terminal, else as one line."""
    streamed = sys.stdout.isatty() and not output.as_json
    answer = qa.answer(prepared, question, on_text=_write if streamed else None)
    if not output.as_json:
        sys.stdout.write("\n" if streamed else one_line(answer.text) + "\n")
        sys.stdout.flush()
    if not output.quiet and (cut := cut_off(answer, qa.settings.max_new_tokens)):
        warn(cut)
    return answer


def _write(text: str) -> None:
    sys.stdout.write(one_line(text))
    sys.stdout.flush()


def _explain(prepared: Prepared, first: Answer | Choice) -> None:
    """What a bug report needs: how the video was read, why it was a miss, seconds by stage."""
    plan, decode = prepared.request.plan, prepared.kv.facts["decode"]
    say(f"debug: read with {plan.reader} {plan.reader_version}, {len(plan.times_s)} frames asked")
    if decode.get("fallback"):
        say(f"debug: the other reader took over: {decode['fallback']}")
    if prepared.cache.miss_reason:
        say(f"debug: not from the cache: {prepared.cache.miss_reason}")
    spent = ((name, value) for name, value in first.seconds.items() if value is not None)
    say("debug: seconds: " + ", ".join(f"{name} {value:.3f}" for name, value in spent))


def _summary(prepared: Prepared, first: Answer | Choice) -> str:
    tokens, cache = prepared.kv.tokens, prepared.cache
    if cache.hit:
        what = "cache hit"
    elif cache.bytes:
        what = f"computed and stored ({size(cache.bytes)})"
    else:
        what = "computed, not stored"
    return f"{what} · {share(tokens.video_kept, tokens.video_full)} · {_waited(prepared, first)}"


def _waited(prepared: Prepared, first: Answer | Choice) -> str:
    seconds = first.seconds["first_token"]
    if seconds is None:
        return f"options weighed in {first.seconds['answer']:.2f} s"
    if not prepared.cache.hit:
        return f"first token {seconds:.2f} s"
    # Cold: this question on top of what computing the prefix took when it was stored.
    cold = prepared.cold_seconds + seconds - (first.seconds["restore"] or 0.0)
    return f"first token {seconds:.2f} s (cold: {cold:.2f} s)"


def _json(
    qa: VideoQA, prepared: Prepared, settings: Settings, answers: list[Answer | Choice]
) -> Json:
    request, tokens, cache = prepared.request, prepared.kv.tokens, prepared.cache
    return {
        "schema": "sttm.ask/1",
        "video": {
            "path": request.source.name,
            "digest": request.digest,
            "duration_s": request.info.duration_s,
            "frame_times_s": prepared.frame_times_s,
        },
        "model": {
            "name": settings.model,
            "revision": settings.revision,
            "device": qa.choice.device,
            "dtype": qa.choice.dtype,
        },
        "tokens": {
            "budget": settings.budget,
            "video_full": tokens.video_full,
            "video_kept": tokens.video_kept,
            "prefix": tokens.prefix,
        },
        "cache": {
            "hit": cache.hit,
            "key": cache.key,
            "bytes": cache.bytes,
            "restored_tokens": cache.restored_tokens,
            "prefilled_tokens": cache.prefilled_tokens,
            "miss_reason": cache.miss_reason,
        },
        "answers": [_answer_json(answer) for answer in answers],
        "seconds": {
            **answers[0].seconds,
            "answer": sum(a.seconds["answer"] or 0.0 for a in answers),
            "total": answers[-1].seconds["total"],
        },
    }


def _answer_json(answer: Answer | Choice) -> Json:
    if isinstance(answer, Choice):
        weighed = [asdict(option) for option in answer.options]
        best = answer.best.text
        return {"question": answer.question, "answer": best, "new_tokens": 0, "choices": weighed}
    told = {
        "question": answer.question,
        "answer": answer.text,
        "new_tokens": answer.new_tokens,
        "ending": str(answer.ending),
    }
    return told if answer.seed is None else {**told, "seed": answer.seed}
