"""Generating an answer after a prefix: sampling, the token loop, streaming as text."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from sttm_cli.base.errors import ModelError
from sttm_cli.base.types import GREEDY, Continuation, Ending, OnToken, Sampling

# Sampling: from logits to the next token.


class Sampler:
    """Chooses tokens according to `sampling`. `seed`: the seed in use, None for greedy decoding.

    Samples on the CPU, so that a seed gives the same result on every device.
    """

    def __init__(self, sampling: Sampling, *, top_p: float) -> None:
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p or top_p
        self.seed: int | None = None
        if sampling.temperature > 0:
            self.seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
            self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        """Choose a token id from logits [V]."""
        if self.seed is None:
            return int(logits.argmax())
        # With the largest logit at 0, no temperature can overflow.
        scaled = (logits - logits.max()).cpu().double() / self._temperature
        probabilities, ids = nucleus(scaled.softmax(0), self._top_p)
        reached = probabilities.cumsum(0)
        drawn = torch.rand(1, generator=self._generator, dtype=torch.float64) * reached[-1]
        place = torch.searchsorted(reached, drawn, right=True).clamp(max=len(ids) - 1)
        return int(ids[place])


def nucleus(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest of `probabilities` [V] that together reach `top_p`, and their indices.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, section 3.1.
    """
    if top_p >= 1.0:
        return probabilities, torch.arange(len(probabilities))
    # Usually a few tokens suffice; sorting the whole vocabulary for every token would be slow.
    for count in (64, 4096, len(probabilities)):
        ordered, places = probabilities.topk(min(count, len(probabilities)))
        before = ordered.cumsum(0) - ordered
        if before[-1] >= top_p:
            break
    kept = before < top_p
    return ordered[kept], places[kept]


class Reading(Protocol):
    """The model interface of the token loop; `VideoLLM` documents the members."""

    @property
    def end_ids(self) -> frozenset[int]: ...
    @property
    def top_p(self) -> float: ...
    def text(self, ids: Sequence[int]) -> str: ...
    def pieces(self) -> Callable[[int], str]: ...
    def weighed(
        self, logits: torch.Tensor, prompt: Sequence[int], made: Sequence[int]
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class Generated:
    """An answer: text, token ids without the end token, seconds to the first token and in total.

    `seed`: the seed of a sampled answer.
    """

    text: str
    ids: tuple[int, ...]
    ending: Ending
    first_token_s: float
    seconds: float
    seed: int | None = None


def generate(
    prefix: Continuation,
    question: torch.Tensor,
    model: Reading,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    on_text: Callable[[str], None] | None = None,
    on_token: OnToken | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generated:
    """Answer `question` (token ids [n]); the prefix is always rewound.

    `on_text` receives the text in pieces, `on_token` every token; their exceptions propagate.
    `stop` is called before each token and ends the answer if true.
    """
    started = time.perf_counter()
    stream = _TextStream(model, on_text)
    choose = Sampler(sampling, top_p=model.top_p)
    ending, first = Ending.LENGTH, 0.0
    prompt = [*prefix.token_ids, *question.tolist()]
    try:
        logits = prefix.extend(question)
        if bool(logits.isnan().any()):
            raise ModelError(
                "the model computes logits that are not numbers",
                "its weights are damaged, or need another --dtype",
            )
        for count in range(max_new_tokens):
            if stop():
                ending = Ending.STOPPED
                break
            token = choose(model.weighed(logits, prompt, stream.ids))
            first = first or time.perf_counter() - started
            if token in model.end_ids:
                ending = Ending.END
                break
            if on_token is not None:
                on_token(token, logits)
            stream.add(token)
            if count + 1 < max_new_tokens:
                logits = prefix.extend(torch.tensor([token]))
    finally:
        prefix.rewind()
    text, seconds = stream.close(), time.perf_counter() - started
    return Generated(
        text=text,
        ids=tuple(stream.ids),
        ending=ending,
        first_token_s=first,
        seconds=seconds,
        seed=choose.seed,
    )


class _TextStream:
    """Converts token ids to text pieces, without white space at the start and the end."""

    def __init__(self, model: Reading, on_text: Callable[[str], None] | None) -> None:
        self._model, self._on_text = model, on_text
        self._read = model.pieces()
        self._text = self._shown = ""
        self.ids: list[int] = []

    def add(self, token: int) -> None:
        self.ids.append(token)
        if self._on_text is not None:
            self._text = (self._text + self._read(token)).lstrip()
            self._show(self._text.rstrip())

    def close(self) -> str:
        text = self._model.text(self.ids).strip()
        self._show(text)
        return text

    def _show(self, text: str) -> None:
        if self._on_text is not None and len(text) > len(self._shown):
            self._on_text(text[len(self._shown) :])
            self._shown = text
