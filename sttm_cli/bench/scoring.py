"""Check whether greedy decoding would give exactly the true answers, without decoding.

Greedy decoding gives the true answer if and only if each of its tokens, and the end token, is the
most likely one after the tokens before it. A single pass checks this for all questions about a
video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sttm_cli.base.types import PrefixKV
from sttm_cli.prefill.ragged import Above, BufferLayer, layers_of, run
from sttm_cli.tiny.questions import Question

if TYPE_CHECKING:
    from sttm_cli.models.family import VideoLLM


@dataclass(frozen=True)
class Asked:
    """Token ids [n] after a video, and the spans (start, end) of the true answers in them; `end` is
    the place of the end token."""

    ids: torch.Tensor
    answers: tuple[tuple[int, int], ...]


def alone(model: VideoLLM, question: Question) -> Asked:
    """Tokenize a single question with its true answer."""
    return _joined(model, [question])


def in_conversation(model: VideoLLM, questions: Sequence[Question]) -> Asked:
    """Tokenize questions as turns of one conversation, each after the previous true answers."""
    return _joined(model, questions)


def mark(model: VideoLLM, kv: PrefixKV, asked: Sequence[Asked]) -> list[tuple[bool, ...]]:
    """Return, for each of `asked`, whether greedy decoding would give each of its answers."""
    longest = max(len(one.ids) for one in asked)
    ids = torch.zeros(len(asked), longest, dtype=torch.int64)
    for row, one in zip(ids, asked, strict=True):
        row[: len(one.ids)] = one.ids
    likely = _most_likely(model, kv, ids).cpu()
    return [
        tuple(_right(row, one.ids, span, model.end_ids) for span in one.answers)
        for row, one in zip(likely, asked, strict=True)
    ]


def _joined(model: VideoLLM, questions: Sequence[Question]) -> Asked:
    spans, ids = [], torch.empty(0, dtype=torch.int64)
    for index, question in enumerate(questions):
        history = [(q.text, q.answer) for q in questions[:index]]
        before = model.question(question.text, history)
        if not torch.equal(before[: len(ids)], ids):
            raise RuntimeError("the chat template writes earlier turns differently")
        ids = torch.cat([before, _answer_ids(model, question.answer)])
        spans.append((len(before), len(ids)))
    return Asked(ids, tuple(spans))


def _answer_ids(model: Any, answer: str) -> torch.Tensor:
    ids = model._tokenizer(answer, add_special_tokens=False).input_ids
    return torch.tensor(ids)


def _right(
    likely: torch.Tensor, ids: torch.Tensor, span: tuple[int, int], ends: frozenset[int]
) -> bool:
    start, end = span
    # The logits at i - 1 predict the token at i.
    same = torch.equal(likely[start - 1 : end - 1], ids[start:end])
    return same and int(likely[end - 1]) in ends


@torch.inference_mode()
def _most_likely(model: VideoLLM, kv: PrefixKV, ids: torch.Tensor) -> torch.Tensor:
    """Return the most likely next token [B, n] after each of `ids` [B, n]."""
    axes = 3 if getattr(model.decoder.rotary_emb, "mrope_section", None) else 1
    steps = torch.arange(ids.shape[1])
    below, above = ((start + steps).expand(axes, -1) for start in kv.next_positions)
    hidden = run(
        model.decoder,
        model.embed(ids),
        layers_of(kv, _Branches, rows=len(ids)),
        positions=below,
        merge_layer=kv.merge_layer,
        deeper=lambda states: Above(states, above.to(states.device), sizes=kv.sizes),
        counts=kv.sizes is not None,
        places=steps,
        extras=model.extras(ids),
    )
    return model.logits(hidden).argmax(-1)


class _Branches(BufferLayer):
    """A prefix that several sequences continue in one batch; their tokens are not stored."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._behind(self.keys, key_states), self._behind(self.values, value_states)

    def _behind(self, buffer: Any, states: torch.Tensor) -> torch.Tensor:
        prefix = buffer[: self.length].transpose(0, 1)[None]
        return torch.cat([prefix.expand(len(states), -1, -1, -1), states], 2)
