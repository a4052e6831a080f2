"""Replies in OpenAI's chat protocol, whole or in chunks.

https://platform.openai.com/docs/api-reference/chat/object
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from sttm_cli.base.results import Answer
from sttm_cli.base.types import Json

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
    """Token counts in OpenAI's form, and the video's tokens before and after merging."""
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
