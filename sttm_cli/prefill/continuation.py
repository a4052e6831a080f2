"""Going on after a prefilled prefix: the question, the answer, and back to the prefix's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from sttm_cli.base.types import PrefixKV
from sttm_cli.prefill.ragged import BufferLayer, buffers_of, run


class Decoding(Protocol):
    """What continuing needs of a model; every `VideoLLM` has it."""

    decoder: Any

    def embed(self, ids: torch.Tensor) -> torch.Tensor: ...
    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


class KVContinuation:
    """Tokens appended to a prefix KV; implements `types.Continuation`.

    The KV's own buffers are written to, behind the prefix, and grow with what is appended; the
    prefix is never touched, so that after `rewind` the next question finds it as it was. What a
    rewind forgets stays in the buffers until it is written over: a conversation's next turn takes
    it back with `resume`.
    """

    def __init__(self, model: Decoding, kv: PrefixKV) -> None:
        self._model, self._kv = model, kv
        self._layers = [
            BufferLayer(k, v, n) for k, v, n in zip(kv.keys, kv.values, kv.lengths, strict=True)
        ]
        self._axes = 3 if getattr(model.decoder.rotary_emb, "mrope_section", None) else 1
        self.appended = 0
        # The tokens whose keys and values follow the prefix; a rewind leaves them there.
        self._held: list[int] = []

    @property
    def prefix_ids(self) -> Sequence[int]:
        """The distinct token ids of the prefix alone."""
        ids: list[int] = self._kv.facts["token_ids"]
        return ids

    @property
    def token_ids(self) -> Sequence[int]:
        return [*self.prefix_ids, *self._held[: self.appended]]

    @property
    def prefix_room(self) -> int:
        """How many tokens the model's context takes after the prefix alone."""
        limit: int = self._model.decoder.config.max_position_embeddings
        return limit - max(self._kv.next_positions)

    @property
    def room(self) -> int:
        return self.prefix_room - self.appended

    @torch.inference_mode()
    def extend(self, ids: torch.Tensor) -> torch.Tensor:
        return self._model.logits(self._run(ids)[-1])

    @torch.inference_mode()
    def extend_each(self, ids: torch.Tensor) -> torch.Tensor:
        return self._model.logits(self._run(ids))

    def resume(self, ids: torch.Tensor) -> int:
        count = 0
        for wanted, held in zip(ids[:-1].tolist(), self._held, strict=False):
            if wanted != held:
                break
            count += 1
        self._set_length(count)
        return count

    def rewind(self, to: int = 0) -> None:
        self._set_length(min(to, self.appended))

    def forget(self) -> None:
        """Forget everything after the prefix for good: nothing of it can be resumed."""
        self._held = []
        self._set_length(0)

    @torch.inference_mode()
    def extend_at(
        self, ids: torch.Tensor, places: torch.Tensor, sees: torch.Tensor
    ) -> torch.Tensor:
        """Append tokens `ids` [n] of several questions; return the logits [n, V] after each.

        `places` [n]: how many tokens of its own question come between the prefix and each;
        `sees` [n, m] bool: which of all m tokens after the prefix, these included, each sees.
        """
        return self._model.logits(self._at(ids, places, sees))

    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states [n, C] of tokens `ids` [n] on top of everything so far."""
        del self._held[self.appended :]
        return self._at(ids, torch.arange(self.appended, self.appended + len(ids)))

    def _at(
        self, ids: torch.Tensor, places: torch.Tensor, sees: torch.Tensor | None = None
    ) -> torch.Tensor:
        below, above = (
            (start + places).expand(self._axes, -1) for start in self._kv.next_positions
        )
        try:
            hidden = run(
                self._model.decoder,
                self._model.embed(ids),
                self._layers,
                positions=below,
                merge_layer=self._kv.merge_layer,
                deeper=lambda states: (states, above.to(states.device)),
                sees=sees,
            )
        finally:
            # Buffers that had to grow replace the KV's own.
            self._kv.keys[:], self._kv.values[:] = buffers_of(self._layers)
        self._held += ids.tolist()
        self.appended = len(self._held)
        return hidden

    def _set_length(self, appended: int) -> None:
        # Also after a run that was cut off half-way and left its layers unequal.
        for layer, length in zip(self._layers, self._kv.lengths, strict=True):
            layer.length = length + appended
        self.appended = appended
