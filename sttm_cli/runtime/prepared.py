"""A video that questions can be asked of, and asking them; earlier turns are continued."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sttm_cli.answer import generate, score
from sttm_cli.base.errors import ContextError, UsageError
from sttm_cli.base.results import Answer, CacheUse, Choice, Option
from sttm_cli.base.types import Continuation, Ending, OnToken, Sampling
from sttm_cli.settings.parse import check_options, check_question

if TYPE_CHECKING:
    from sttm_cli.base.clock import Clock
    from sttm_cli.base.types import Continuation, PrefixKV
    from sttm_cli.models.video_llm import VideoLLM
    from sttm_cli.runtime.request import Request


TO_PREFIX = ("decode", "encode", "merge", "prefill")
"""The stages that a cache hit skips."""


@dataclass(frozen=True)
class Prepared:
    """A video whose prefix is prefilled: questions can be asked of it at once.

    `model` answers them. `seconds`: what it took to get there, the loading of the model left
    out.
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
        """The times of the frames that were read, in seconds from the first frame."""
        return list(self.kv.facts["decode"]["times_s"])

    @property
    def cold_seconds(self) -> float:
        """As `seconds_to_prefix`."""
        return seconds_to_prefix(self.kv)


def seconds_to_prefix(kv: PrefixKV) -> float:
    """What a user waited for the KV when it was computed, the loading of the model left out; where
    nobody did, what decode, encode, merge and prefill took."""
    if (waited := kv.facts.get("waited_s")) is not None:
        return float(waited)
    return sum(kv.facts["seconds"].get(name) or 0.0 for name in TO_PREFIX)


@dataclass(frozen=True)
class Asked:
    """A question, and the questions and answers before it in the same conversation."""

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
    """Generate an answer, at most as long as the model's context takes; raises as `_ids`."""
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
    """Weigh `options` as answers; raises as `_ids`, and UsageError for fewer than two options,
    an empty one, and two that are the same to the model."""
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
    """The token ids [n] with which `prefix` is to be continued; earlier turns that it still
    holds are taken back and are not among them.

    Raises UsageError for an empty question, ContextError where it and `room_for` tokens of an
    answer do not fit the model's context.
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
    # Only turns are taken back: questions that stand alone are run whole, so that the order in
    # which they are asked cannot change a bit of their answers.
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
