"""Replies in OpenAI's chat protocol, whole or in chunks.

https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from sttm_cli.base.results import Answer
from sttm_cli.base.types import Json

if TYPE_CHECKING:
    import torch

# Log-probabilities of an answer's tokens, in OpenAI's form.


MOST = 20
"""Maximum number of alternatives, as in OpenAI's protocol."""
_LEAST = -9999.0


class LogProbs:
    """Collects the tokens of one answer as they are chosen, each with its `most` likeliest
    alternatives. The values are the model's own, before temperature, top-p and penalties.

    `text` decodes token ids. If `most` is None, nothing is collected and `taken` returns None.
    """

    def __init__(self, text: Callable[[Sequence[int]], str], most: int | None) -> None:
        self._text, self._most = text, most
        self._new: list[Json] = []

    def add(self, token: int, logits: torch.Tensor) -> None:
        """Add a token, and the logits [V] that it was chosen from."""
        if self._most is None:
            return
        logs = logits.float().log_softmax(-1)
        values, ids = logs.topk(self._most)
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        others = [self._entry(other, value) for other, value in pairs]
        self._new.append({**self._entry(token, float(logs[token])), "top_logprobs": others})

    def taken(self) -> Json | None:
        """Return the tokens since the last call."""
        if self._most is None:
            return None
        new, self._new = self._new, []
        return {"content": new, "refusal": None}

    def _entry(self, token: int, value: float) -> Json:
        text = self._text([token])
        # A token that is part of a character has no text of its own.
        raw = None if "�" in text else list(text.encode())
        return {"token": text, "logprob": max(value, _LEAST), "bytes": raw}


def joined(parts: Iterable[Json | None]) -> Json | None:
    """Join the pieces into one object; None if none were collected."""
    contents = [part["content"] for part in parts if part is not None]
    return {"content": list(chain(*contents)), "refusal": None} if contents else None


_FINISH = {"end": "stop", "stopped": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class Writer:
    """Writes the reply to one request."""

    id: str
    model: str
    created: int

    @classmethod
    def new(cls, model: str) -> Writer:
        return cls(f"chatcmpl-{secrets.token_hex(12)}", model, int(time.time()))

    def whole(self, answer: Answer, usage: Json, extra: Json, logprobs: Json | None = None) -> Json:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": _FINISH[answer.ending],
        }
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage, "sttm": extra}

    def first(self) -> Json:
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str, logprobs: Json | None = None) -> Json:
        return self._chunk({"content": text}, logprobs=logprobs)

    def last(self, answer: Answer, extra: Json, logprobs: Json | None = None) -> Json:
        chunk = self._chunk({}, _FINISH[answer.ending], logprobs=logprobs)
        return {**chunk, "sttm": extra}

    def usage(self, usage: Json) -> Json:
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunk(
        self, delta: Json, finish: str | None = None, *, logprobs: Json | None = None
    ) -> Json:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_of(answer: Answer, *, prompt_tokens: int, cached_tokens: int) -> Json:
    """Return token counts in OpenAI's form, and the video's tokens before and after merging."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": answer.new_tokens,
        "total_tokens": prompt_tokens + answer.new_tokens,
        "prompt_tokens_details": {
            "cached_tokens": cached_tokens,
            "video_tokens": answer.tokens.video_kept,
            "video_tokens_full": answer.tokens.video_full,
        },
    }
