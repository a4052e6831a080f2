"""A question put to a prefilled video: earlier turns are continued, the context is respected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from sttm_cli.answer import Generated, generate
from sttm_cli.errors import UsageError
from sttm_cli.types import Continuation, Ending, Sampling

if TYPE_CHECKING:
    from sttm_cli.models import VideoLLM


def question_ids(
    prefix: Continuation, model: VideoLLM, question: str, history: Sequence[tuple[str, str]]
) -> torch.Tensor:
    """The token ids [n] with which `prefix` is to be continued; earlier turns that it still
    holds are taken back and are not among them.

    Raises UsageError for an empty question and for one that does not fit the model's context.
    """
    if not question.strip():
        raise UsageError("the question is empty", "ask something about the video")
    ids = model.question(question, history)
    if len(ids) >= prefix.room:
        turns = f" with {len(history)} earlier turns" if history else ""
        raise UsageError(
            f"the question{turns} takes {len(ids):,} tokens, and the model's context has room "
            f"for {max(prefix.room, 0):,} after the video",
            "leave earlier turns out, ask less, or use fewer --frames",
        )
    # Only turns are taken back: questions that stand alone are run whole, so that the order in
    # which they are asked cannot change a bit of their answers.
    return ids[prefix.resume(ids) :] if history else ids


def reply(
    prefix: Continuation,
    ids: torch.Tensor,
    model: VideoLLM,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    on_text: Callable[[str], None] | None,
    stop: Callable[[], bool],
) -> Generated:
    """Generate after `ids`, at most as much as the model's context takes."""
    room = prefix.room - len(ids)
    made = generate(
        prefix,
        ids,
        model,
        max_new_tokens=min(max_new_tokens, room),
        sampling=sampling,
        on_text=on_text,
        stop=stop,
    )
    if made.ending is Ending.LENGTH and room < max_new_tokens:
        return replace(made, ending=Ending.CONTEXT)
    return made
