"""`sttm ask`: questions about one video."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.cli.options import ANSWERS, RUN, SOURCE, VIDEO, Output, settings_from, takes
from sttm_cli.cli.output import StageProgress, print_json, say, share, size, warn
from sttm_cli.config import DEFAULT_MODEL, STDIN, Settings
from sttm_cli.errors import UsageError
from sttm_cli.types import Json

if TYPE_CHECKING:
    from sttm_cli.pipeline import Prepared, VideoQA
    from sttm_cli.results import Answer

NAME_A_MODEL = (
    "using the small embedded model 'tiny', which knows generated scenes of coloured shapes only; "
    "name a real one with --model, such as llava-onevision-7b"
)


@takes(RUN, SOURCE, ANSWERS)
def ask(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help=VIDEO)],
    questions: Annotated[
        list[str],
        typer.Argument(
            metavar="QUESTION...", help="Questions; '-' reads them from stdin, a line each."
        ),
    ],
    *,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Answer questions about a video, one answer a line.

    The first call decodes, encodes, merges and prefills the video and keeps the result; later
    calls with the same video and settings start from there.
    """
    settings = settings_from(flags)
    if video == STDIN and STDIN in questions:
        raise UsageError(
            "VIDEO - and QUESTION - cannot both be read from stdin", "give one of them otherwise"
        )
    asked = list(_questions(questions))
    if settings.model == DEFAULT_MODEL and not output.quiet:
        say(NAME_A_MODEL)
    from sttm_cli.pipeline import VideoQA

    with StageProgress(output) as progress, VideoQA(settings, warn=warn, progress=progress) as qa:
        prepared = qa.prepare(video)
        progress.stop()
        answers = [_answer(qa, prepared, question, output) for question in asked]
    if output.as_json:
        print_json(_json(qa, prepared, settings, answers))
    if output.debug:
        _explain(prepared, answers[0])
    if not output.quiet:
        say(_summary(prepared, answers[0]))


def _questions(given: list[str]) -> list[str]:
    if given != ["-"]:
        if "-" in given:
            raise UsageError("'-' stands among other questions", "give '-' alone, or none")
        return given
    lines = [line.strip() for line in sys.stdin]
    asked = [line for line in lines if line]
    if not asked:
        raise UsageError("no question came from stdin", "write one question a line")
    return asked


def _answer(qa: VideoQA, prepared: Prepared, question: str, output: Output) -> Answer:
    """Answer and print: in pieces on a terminal, else as one line."""
    streamed = sys.stdout.isatty() and not output.as_json
    answer = qa.answer(prepared, question, on_text=_write if streamed else None)
    if not output.as_json:
        sys.stdout.write("\n" if streamed else _one_line(answer.text) + "\n")
        sys.stdout.flush()
    if not answer.finished and not output.quiet:
        limit = f"--max-new-tokens {qa.settings.max_new_tokens}"
        full = answer.ending == "context"
        warn(
            f"an answer was cut off {'by the end of the model context' if full else f'at {limit}'}"
        )
    return answer


def _write(text: str) -> None:
    sys.stdout.write(_one_line(text))
    sys.stdout.flush()


def _one_line(text: str) -> str:
    # One answer a line: a script reads the lines, a line break within would shift them.
    return text.replace("\r", " ").replace("\n", " ")


def _explain(prepared: Prepared, first: Answer) -> None:
    """What a bug report needs: how the video was read, why it was a miss, seconds by stage."""
    plan, decode = prepared.request.plan, prepared.kv.facts["decode"]
    say(f"debug: read with {plan.reader} {plan.reader_version}, {len(plan.times_s)} frames asked")
    if decode.get("fallback"):
        say(f"debug: the other reader took over: {decode['fallback']}")
    if prepared.cache.miss_reason:
        say(f"debug: not from the cache: {prepared.cache.miss_reason}")
    spent = ((name, value) for name, value in first.seconds.items() if value is not None)
    say("debug: seconds: " + ", ".join(f"{name} {value:.3f}" for name, value in spent))


def _summary(prepared: Prepared, first: Answer) -> str:
    tokens, cache = prepared.kv.tokens, prepared.cache
    seconds = first.seconds["first_token"] or 0.0
    waited = f"first token {seconds:.2f} s"
    if cache.hit:
        # Cold: this question on top of what computing the prefix took when it was stored.
        question = seconds - (first.seconds["restore"] or 0.0)
        what = "cache hit"
        waited += f" (cold: {prepared.cold_seconds + question:.2f} s)"
    elif cache.bytes:
        what = f"computed and stored ({size(cache.bytes)})"
    else:
        what = "computed, not stored"
    return f"{what} · {share(tokens.video_kept, tokens.video_full)} · {waited}"


def _json(qa: VideoQA, prepared: Prepared, settings: Settings, answers: list[Answer]) -> Json:
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


def _answer_json(answer: Answer) -> Json:
    told = {
        "question": answer.question,
        "answer": answer.text,
        "new_tokens": answer.new_tokens,
        "ending": str(answer.ending),
    }
    return told if answer.seed is None else {**told, "seed": answer.seed}
