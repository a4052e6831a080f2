"""Going on after a prefilled prefix: the question, the answer, and back to the prefix's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from sttm_cli.prefill.ragged import BufferLayer, run
from sttm_cli.types import PrefixKV


class Decoding(Protocol):
    """What continuing needs of a model; every `VideoLLM` has it."""

    decoder: Any

    def embed(self, ids: torch.Tensor) -> torch.Tensor: ...
    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


class KVContinuation:
    """Tokens appended to a prefix KV; implements `types.Continuation`.

    The KV's own buffers are written to, behind the prefix, and the prefix is never touched, so
    that after `rewind` the next question finds it as it was.
    """

    def __init__(self, model: Decoding, kv: PrefixKV) -> None:
        self._model, self._kv = model, kv
        self._layers = [
            BufferLayer(k, v, n) for k, v, n in zip(kv.keys, kv.values, kv.lengths, strict=True)
        ]
        self._axes = 3 if getattr(model.decoder.rotary_emb, "mrope_section", None) else 1
        self._appended = 0

    @property
    def token_ids(self) -> Sequence[int]:
        ids: list[int] = self._kv.facts["token_ids"]
        return ids

    @torch.inference_mode()
    def extend(self, ids: torch.Tensor) -> torch.Tensor:
        embeds = self._model.embed(ids)
        below, above = (self._positions(start, len(ids)) for start in self._kv.next_positions)
        hidden = run(
            self._model.decoder,
            embeds,
            self._layers,
            positions=below,
            merge_layer=self._kv.merge_layer,
            deeper=lambda states: (states, above.to(states.device)),
        )
        self._appended += len(ids)
        return self._model.logits(hidden[-1])

    def rewind(self) -> None:
        for layer, length in zip(self._layers, self._kv.lengths, strict=True):
            layer.crop(length)
        self._appended = 0

    def _positions(self, start: int, count: int) -> torch.Tensor:
        first = start + self._appended
        return torch.arange(first, first + count).expand(self._axes, -1)
