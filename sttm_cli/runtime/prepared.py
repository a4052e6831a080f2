"""Ask questions about a prepared video, continuing earlier turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sttm_cli.answer import generate, score
from sttm_cli.base.errors import ContextError, UsageError
from sttm_cli.base.reports import AnswerReport, AskReport, OptionReport, SecondsReport
from sttm_cli.base.results import Answer, CacheUse, Choice, Option
from sttm_cli.base.types import Continuation, Ending, OnToken, Sampling
from sttm_cli.settings.fields import check_options, check_question

if TYPE_CHECKING:
    from sttm_cli.base.results import Clock
    from sttm_cli.base.types import Continuation, PrefixKV
    from sttm_cli.models.family import VideoLLM
    from sttm_cli.runtime.model_plan import ModelPlan
    from sttm_cli.runtime.request import Request
    from sttm_cli.settings.settings import Settings

TO_PREFIX = ("decode", "encode", "merge", "prefill")
"""The stages that a cache hit skips."""


@dataclass(frozen=True)
class Prepared:
    """A video with a prefilled prefix, ready for questions.

    `model` answers them. `seconds`: of each stage of the preparation, without loading the model.
    """

    request: Request
    model: VideoLLM
    kv: PrefixKV
    cache: CacheUse
    clock: Clock
    prefix: Continuation
    seconds: float

    @property
    def frame_times_s(self) -> list[float]:
        """The times of the frames read, in seconds from the first frame."""
        return list(self.kv.facts["decode"]["times_s"])

    @property
    def cold_seconds(self) -> float:
        """The result of `seconds_to_prefix`."""
        return seconds_to_prefix(self.kv)


def seconds_to_prefix(kv: PrefixKV) -> float:
    """Return the seconds of decode, encode, merge and prefill in the run that computed the KV."""
    return sum(kv.facts["seconds"].get(name) or 0.0 for name in TO_PREFIX)


@dataclass(frozen=True)
class Asked:
    """A question, with the earlier questions and answers of the same conversation."""

    question: str
    history: Sequence[tuple[str, str]] = ()


def answer(
    prepared: Prepared,
    asked: Asked,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    on_text: Callable[[str], None] | None,
    on_token: OnToken | None,
    stop: Callable[[], bool],
) -> Answer:
    """Generate an answer, at most as long as the model's context allows; raises as `_ids`."""
    prefix, model, clock = prepared.prefix, prepared.model, prepared.clock
    ids = _ids(prefix, model, asked)
    room = prefix.room - len(ids)
    made = generate(
        prefix,
        ids,
        model,
        max_new_tokens=min(max_new_tokens, room),
        sampling=sampling,
        on_text=on_text,
        on_token=on_token,
        stop=stop,
    )
    full = made.ending is Ending.LENGTH and room < max_new_tokens
    times = {"first_token": prepared.seconds + made.first_token_s, "answer": made.seconds}
    return Answer(
        question=asked.question,
        text=made.text,
        cache_hit=prepared.cache.hit,
        tokens=prepared.kv.tokens,
        new_tokens=len(made.ids),
        ending=Ending.CONTEXT if full else made.ending,
        seconds={**clock.seconds(), **times, "total": clock.total()},
        seed=made.seed,
    )


def choose(prepared: Prepared, asked: Asked, options: Sequence[str]) -> Choice:
    """Weigh `options` as answers; raises as `_ids`, and UsageError for fewer than two options, an
    empty one, and two with the same tokens."""
    started, prefix, model = time.perf_counter(), prepared.prefix, prepared.model
    check_options(options)
    tokens = [model.answer(option) for option in options]
    _check_distinct(options, tokens)
    ids = _ids(prefix, model, asked, room_for=max(len(each) for each in tokens))
    scores = score(prefix, ids, tokens, model.end_ids)
    shares = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
    weighed = tuple(
        Option(text=text, probability=share, log_likelihood=scored, tokens=len(each))
        for text, share, scored, each in zip(options, shares, scores, tokens, strict=True)
    )
    times = {"first_token": None, "answer": time.perf_counter() - started}
    seconds = {**prepared.clock.seconds(), **times, "total": prepared.clock.total()}
    return Choice(
        question=asked.question,
        options=weighed,
        cache_hit=prepared.cache.hit,
        tokens=prepared.kv.tokens,
        seconds=seconds,
    )


def _ids(prefix: Continuation, model: VideoLLM, asked: Asked, *, room_for: int = 1) -> torch.Tensor:
    """Return the token ids [n] with which to continue `prefix`; `prefix` keeps matching earlier
    turns, which are not among the ids.

    Raises UsageError for an empty question, ContextError if it and `room_for` tokens of an answer
    do not fit the model's context.
    """
    check_question(asked.question)
    ids = model.question(asked.question, asked.history)
    if len(ids) + room_for > prefix.room:
        turns = f" with {len(asked.history)} earlier turns" if asked.history else ""
        raise ContextError(
            f"the question{turns} takes {len(ids):,} tokens, and the model's context has room "
            f"for {max(prefix.room, 0):,} after the video",
            "leave earlier turns out, ask less, or use fewer --frames",
        )
    # Only conversation turns reuse buffered tokens; independent questions are recomputed, so their
    # order cannot affect the answers.
    return ids[prefix.resume(ids) :] if asked.history else ids


def _check_distinct(options: Sequence[str], tokens: Sequence[torch.Tensor]) -> None:
    seen: dict[tuple[int, ...], str] = {}
    for option, ids in zip(options, tokens, strict=True):
        other = seen.setdefault(tuple(ids.tolist()), option)
        if other is not option:
            raise UsageError(
                f"options {other!r} and {option!r} are the same tokens to this model",
                "give options that it can tell apart",
            )


# The JSON report of `sttm ask`.


def ask_report(
    prepared: Prepared,
    answers: Sequence[Answer | Choice],
    *,
    settings: Settings,
    plan: ModelPlan,
) -> AskReport:
    """Return the `sttm.ask/1` object of the documentation for `answers` about one video, none if it
    was only prepared. `room`: the tokens that the model's context has left after the video."""
    request, tokens, cache = prepared.request, prepared.kv.tokens, prepared.cache
    chosen, decode = request.plan, prepared.kv.facts["decode"]
    return {
        "schema": "sttm.ask/1",
        "video": {
            "path": request.source.name,
            "digest": request.digest,
            "duration_s": request.info.duration_s,
            "frame_times_s": prepared.frame_times_s,
            "frames_asked": len(chosen.times_s),
            "reader": f"{chosen.reader} {chosen.reader_version}",
            "fallback": decode.get("fallback"),
            "has_audio": request.info.has_audio,
            "notes": list(request.info.notes),
        },
        "model": {
            "name": settings.model,
            "revision": settings.revision,
            "device": plan.device,
            "dtype": plan.dtype,
        },
        "tokens": {
            "budget": settings.budget,
            "method": settings.method,
            "video_full": tokens.video_full,
            "video_kept": tokens.video_kept,
            "prefix": tokens.prefix,
            "after_spatial": tokens.after_spatial,
            "room": prepared.prefix.room,
        },
        "cache": {
            "hit": cache.hit,
            "tier": cache.tier,
            "key": cache.key,
            "bytes": cache.bytes,
            "kv_dtype": request.identity["kv_dtype"],
            "saved_bytes": cache.saved_bytes,
            "restored_tokens": cache.restored_tokens,
            "prefilled_tokens": cache.prefilled_tokens,
            "miss_reason": cache.miss_reason,
            "cold_seconds": prepared.cold_seconds,
        },
        "answers": [answer_json(answer) for answer in answers],
        "seconds": _seconds(prepared, answers),
    }


def _seconds(prepared: Prepared, answers: Sequence[Answer | Choice]) -> SecondsReport:
    clock = prepared.clock
    spent = answers[0].seconds if answers else clock.seconds()
    return {
        "load_model": spent["load_model"],
        "decode": spent["decode"],
        "encode": spent["encode"],
        "merge": spent["merge"],
        "prefill": spent["prefill"],
        "restore": spent["restore"],
        "wait": clock.spent("wait") or None,
        "first_token": spent.get("first_token"),
        "answer": sum(a.seconds["answer"] or 0.0 for a in answers) if answers else None,
        "total": answers[-1].seconds["total"] if answers else clock.total(),
    }


def answer_json(answer: Answer | Choice) -> AnswerReport:
    """Convert an answer to the report's form."""
    if isinstance(answer, Choice):
        return {
            "question": answer.question,
            "answer": answer.best.text,
            "new_tokens": 0,
            "choices": [_option_json(option) for option in answer.options],
        }
    made: AnswerReport = {
        "question": answer.question,
        "answer": answer.text,
        "new_tokens": answer.new_tokens,
        "ending": answer.ending.value,
    }
    if answer.seed is not None:
        made["seed"] = answer.seed
    return made


def _option_json(option: Option) -> OptionReport:
    return {
        "text": option.text,
        "probability": option.probability,
        "log_likelihood": option.log_likelihood,
        "tokens": option.tokens,
    }
