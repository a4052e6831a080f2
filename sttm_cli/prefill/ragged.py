"""A KV cache whose layers differ in length, and a decoder run over it.

Layers below the merge layer see every video token, the others the merged ones. transformers
computes one causal mask and one set of rotary embeddings for all layers; from the merge layer
on, hooks put in those that belong to the shorter sequence, and are removed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import create_causal_mask

from sttm_cli.base.types import PrefixKV


class Above(NamedTuple):
    """What goes on at the merge layer: hidden states [1, N, C], rotary ids [A, N], and `blocks`
    [N] as in `Prompt`."""

    hidden: torch.Tensor
    positions: torch.Tensor
    blocks: torch.Tensor | None = None


Deeper = Callable[[torch.Tensor], Above]
"""Hidden states [1, L, C] at the merge layer's input -> those that go on."""


class BufferLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer in buffers with room behind them.

    Buffers are [capacity, kv_heads, head_dim], token-major: appending a token writes one piece
    and copies nothing, where transformers' own dynamic layer copies the whole cache per token.
    """

    is_sliding = False
    is_croppable = True

    def __init__(
        self,
        keys: torch.Tensor | None = None,
        values: torch.Tensor | None = None,
        length: int = 0,
        *,
        room: int = 0,
    ) -> None:
        super().__init__()
        self.keys, self.values, self.length, self.room = keys, values, length, room
        self.is_initialized = keys is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        capacity = key_states.shape[2] + self.room
        self.keys = _buffer(key_states, capacity)
        self.values = _buffer(value_states, capacity)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [1, heads, n, dim] and return views of all: [1, heads, length, dim]."""
        if self.keys is None:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[2]
        self._make_room(end)
        self.length = end
        return self._append(self.keys, key_states, start), self._append(
            self.values, value_states, start
        )

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)

    def _append(self, buffer: Any, states: torch.Tensor, start: int) -> torch.Tensor:
        buffer[start : self.length] = states[0].transpose(0, 1)
        view: torch.Tensor = buffer[: self.length].transpose(0, 1)[None]
        return view

    def _make_room(self, end: int) -> None:
        for name in ("keys", "values"):
            buffer = getattr(self, name)
            if end > len(buffer):
                grown = buffer.new_empty((end + end // 4 + 64, *buffer.shape[1:]))
                grown[: self.length] = buffer[: self.length]
                setattr(self, name, grown)


def run(
    decoder: Any,
    embeds: torch.Tensor,
    layers: list[BufferLayer],
    *,
    positions: torch.Tensor,
    merge_layer: int,
    deeper: Deeper,
    sees: torch.Tensor | None = None,
    blocks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run `embeds` [L, C] through the decoder on top of what `layers` hold.

    `positions` [A, L]: rotary ids below the merge layer. Returns the normed hidden states
    [N, C] of the tokens that reached the end; `layers` have grown accordingly. Several
    sequences at the same positions may run as one batch, [B, L, C] -> [B, N, C].

    `sees` [L, M] bool: which of the last M tokens, these L included, each token attends to; it
    attends to all tokens before those as well. Without it, attention is causal; where `layers` are
    empty, `blocks` [L] marks tokens that see each other in both directions, as in `Prompt`.
    """
    batch = embeds.reshape(-1, *embeds.shape[-2:])
    with _deeper_layers(decoder, layers, merge_layer, deeper, sees):
        out = decoder(
            inputs_embeds=batch,
            attention_mask=_mask(decoder, layers[0], batch, sees, blocks),
            position_ids=_rotary_input(positions.to(embeds.device)),
            past_key_values=Cache(layers=layers),
            use_cache=True,
        )
    hidden: torch.Tensor = out.last_hidden_state
    return hidden if embeds.dim() == 3 else hidden[0]


@contextmanager
def _deeper_layers(
    decoder: Any,
    layers: list[BufferLayer],
    merge_layer: int,
    deeper: Deeper,
    sees: torch.Tensor | None,
) -> Iterator[None]:
    shared: dict[str, Any] = {}
    rotaries = _rotaries(decoder)[merge_layer:]
    rotated: dict[Any, Any] = {}

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, positions, kept_blocks = deeper(args[0])
        for rotary in set(rotaries):
            rotated[rotary] = rotary(hidden, _rotary_input(positions))
        shared["attention_mask"] = create_causal_mask(
            decoder.config,
            hidden,
            _mask(decoder, layers[merge_layer], hidden, sees, kept_blocks),
            Cache(layers=layers[merge_layer:]),
        )
        # Flash attention would take gaps in the ids for the borders of packed sequences.
        shared["position_ids"] = None
        return follow(rotaries[0], module, (hidden, *args[1:]), kwargs)

    def follow(rotary: Any, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, **shared, "position_embeddings": rotated[rotary]}

    first, *rest = decoder.layers[merge_layer:]
    handles = [first.register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [
        layer.register_forward_pre_hook(partial(follow, rotary), with_kwargs=True)
        for layer, rotary in zip(rest, rotaries[1:], strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rotaries(decoder: Any) -> list[Any]:
    """The rotary embedding of each layer: one of two where the decoder has `rope_types`."""
    kinds = getattr(decoder, "rope_types", ["scaled"] * len(decoder.layers))
    return [
        decoder.rotary_emb if kind == "scaled" else decoder.rotary_emb_unscaled for kind in kinds
    ]


def _mask(
    decoder: Any,
    layer: BufferLayer,
    hidden: torch.Tensor,
    sees: torch.Tensor | None,
    blocks: torch.Tensor | None,
) -> torch.Tensor | None:
    """The attention mask [1, 1, L, length + L] of tokens that are appended to `layer`; None where
    they are all causal."""
    if sees is None and blocks is None:
        return None
    if sees is None:
        mask: torch.Tensor = create_causal_mask(
            decoder.config,
            hidden,
            None,
            Cache(layers=[layer]),
            block_sequence_ids=None if blocks is None else blocks.to(hidden.device)[None],
        )
        return mask
    count, recent = sees.shape
    before = sees.new_ones((count, layer.length + count - recent))
    return torch.cat([before, sees], dim=1).to(hidden.device)[None, None]


def _rotary_input(positions: torch.Tensor) -> torch.Tensor:
    """[1, L] as it is for 1-D models, [3, L] -> [3, 1, L] for M-RoPE."""
    return positions if positions.shape[0] == 1 else positions[:, None]


def buffers_of(layers: list[BufferLayer]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The buffers of keys and of values that a run has written to, layer by layer."""
    keys = [layer.keys for layer in layers if layer.keys is not None]
    values = [layer.values for layer in layers if layer.values is not None]
    if not len(keys) == len(values) == len(layers):
        raise RuntimeError("a decoder layer wrote no keys and values")
    return keys, values


def _buffer(states: torch.Tensor, capacity: int) -> torch.Tensor:
    _, heads, _, dim = states.shape
    return states.new_empty((capacity, heads, dim))


# Going on after a prefilled prefix: the question, the answer, and back to the prefix's end.


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
                deeper=lambda states: Above(states, above.to(states.device)),
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
