"""The log-probabilities of an answer's tokens, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from sttm_cli.base.types import Json

if TYPE_CHECKING:
    import torch

MOST = 20
"""Alternatives that may be asked for, as in OpenAI's protocol."""
_LEAST = -9999.0


class LogProbs:
    """Collects the tokens of one answer as they are chosen, each with its `most` likeliest
    alternatives. The values are the model's own, before temperature, top-p and penalties.

    `text` decodes token ids. With `most` None, nothing is collected and `taken` returns None.
    """

    def __init__(self, text: Callable[[Sequence[int]], str], most: int | None) -> None:
        self._text, self._most = text, most
        self._new: list[Json] = []

    def add(self, token: int, logits: torch.Tensor) -> None:
        """One token, and the logits [V] that it was chosen from."""
        if self._most is None:
            return
        logs = logits.float().log_softmax(-1)
        values, ids = logs.topk(self._most)
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        others = [self._entry(other, value) for other, value in pairs]
        self._new.append({**self._entry(token, float(logs[token])), "top_logprobs": others})

    def taken(self) -> Json | None:
        """The tokens since the last call."""
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
    """The pieces as one object; None if none were collected."""
    contents = [part["content"] for part in parts if part is not None]
    return {"content": list(chain(*contents)), "refusal": None} if contents else None
