"""A KV cache whose layers differ in length, the decoder run over it, and continuations of it.

Layers below the merge layer hold every video token, the others the merged ones. transformers
computes one causal mask and one set of rotary embeddings for all layers; from the merge layer
on, temporary hooks replace them by those of the shorter sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import signature
from typing import Any, NamedTuple, Protocol

import torch
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import create_causal_mask, create_recurrent_attention_mask

from sttm_cli.base.types import PrefixKV
from sttm_cli.prefill.sizes import counting, logs_of
from sttm_cli.prefill.states import (
    Apart,
    Kept,
    StateLayer,
    in_rows,
    recurrent_layers,
    rows_apart,
)
from sttm_cli.prefill.windows import Behind, Layout, full_mask, layout_of, masks, rotary


class Above(NamedTuple):
    """The input of the layers from the merge layer on: hidden states [1, N, C], rotary ids [A, N],
    `blocks` [N] as in `Prompt`, and `sizes` [P]: the number of cells behind each of the first keys,
    None where all are 1. `shorten` merges other states [1, L, C] as those were, None where nothing
    is merged."""

    hidden: torch.Tensor
    positions: torch.Tensor
    blocks: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    shorten: Callable[[torch.Tensor], torch.Tensor] | None = None


Deeper = Callable[[torch.Tensor], Above]
"""Maps hidden states [1, L, C] at the merge layer's input to the input of the deeper layers."""


class BufferLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer in buffers with free rows.

    Buffers are [capacity, kv_heads, head_dim], token-major: appending a token writes one
    contiguous piece, whereas transformers' dynamic layer copies the whole cache per token.
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
        """Append [1, heads, n, dim] and return views of all rows: [1, heads, length, dim]."""
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

    def keep_last(self, count: int) -> None:
        """Give up all rows but the last `count`."""
        if self.keys is None or self.values is None or count >= self.length:
            return
        rows = slice(self.length - count, self.length)
        for name, held in (("keys", self.keys), ("values", self.values)):
            kept = held.new_empty((count + self.room, *held.shape[1:]))
            kept[:count] = held[rows]
            setattr(self, name, kept)
        self.length = count

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


Layer = BufferLayer | StateLayer


def run(
    decoder: Any,
    embeds: torch.Tensor,
    layers: Sequence[Layer],
    *,
    positions: torch.Tensor,
    merge_layer: int,
    deeper: Deeper,
    sees: torch.Tensor | None = None,
    blocks: torch.Tensor | None = None,
    counts: bool = False,
    places: torch.Tensor | None = None,
    extras: Mapping[str, torch.Tensor] | None = None,
    rows: int = 1,
) -> torch.Tensor:
    """Run `embeds` [L, C] through the decoder after the tokens in `layers`, and append to them.

    `positions` [A, L]: rotary ids below the merge layer. Returns the normed hidden states [N, C]
    after the last layer. Several sequences at the same positions can run as one batch, [B, L, C]
    -> [B, N, C].

    `sees` [L, M] bool: attention of each token to the last M tokens, including these L; earlier
    tokens are always attended to. None: causal attention; where `layers` are empty, `blocks` [L]
    marks tokens that attend to each other in both directions, as in `Prompt`.

    `counts`: each key counts in attention as often as `Above.sizes` says, from the merge layer on.
    `places` [m]: those of all tokens behind the prefix, as in `Behind`; None where `layers` are
    empty. `extras`: further arguments of the decoder's call, for these tokens. `rows`: so many
    sequences stand one after the other in `embeds`, equally long; recurrent layers have a state
    for each.
    """
    batch = embeds.reshape(-1, *embeds.shape[-2:])
    layout = layout_of(decoder.config)
    behind = None if places is None else len(places)
    given: Callable[[int], dict[str, Any]]
    shorten: Callable[[torch.Tensor], torch.Tensor] | None = None

    def inputs(index: int, hidden: torch.Tensor, kwargs: Any) -> tuple[torch.Tensor, Any]:
        nonlocal given, shorten
        if index == merge_layer:
            above = deeper(hidden)
            hidden, shorten = above.hidden, above.shorten
            if layout.mixed:
                given = _mixed_inputs(
                    decoder,
                    above,
                    held=_held(layout, layers, merge_layer, len(layers)),
                    behind=_behind(hidden, places, sees, above.blocks),
                )
            else:
                next_held = _with_tokens(layers[merge_layer:])
                mask = _mask(decoder, next_held, hidden, sees, above.blocks)
                cache = None if next_held is None else Cache(layers=[next_held])
                given = deeper_inputs(decoder, hidden, _rotary_input(above.positions), mask, cache)
            if counted is not None and above.sizes is not None:
                counted.logs, counted.behind = logs_of(above.sizes), behind
        kwargs = {**kwargs, **given(index)}
        if shorten is not None and kwargs.get("per_layer_input") is not None:
            kwargs["per_layer_input"] = shorten(kwargs["per_layer_input"])
        return hidden, kwargs

    count = counting(decoder, merge_layer) if counts else nullcontext()
    with (
        count as counted,
        hooked_layers(decoder, merge_layer, inputs),
        rows_apart(decoder, rows),
    ):
        first: Any
        if layout.mixed:
            held = _held(layout, layers, 0, merge_layer)
            first = masks(decoder, held, batch, _behind(batch, places, sees, blocks))
        else:
            first = _mask(decoder, _with_tokens(layers), batch, sees, blocks)
        out = decoder(
            **(extras or {}),
            inputs_embeds=batch,
            attention_mask=first,
            position_ids=_rotary_input(positions.to(embeds.device)),
            past_key_values=Cache(layers=list(layers)),
            use_cache=True,
        )
    hidden: torch.Tensor = out.last_hidden_state
    return hidden if embeds.dim() == 3 else hidden[0]


Inputs = Callable[[int, torch.Tensor, dict[str, Any]], tuple[torch.Tensor, dict[str, Any]] | None]
"""A layer's index, the hidden states it would get and its keyword arguments -> those that it gets
in their place, None where they stay."""


@contextmanager
def hooked_layers(decoder: Any, merge_layer: int, inputs: Inputs) -> Iterator[None]:
    """While this lasts, the layers from `merge_layer` on get what `inputs` gives them."""

    def before(index: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > 1:
            # What else came by position has a name of its own.
            names = list(signature(module.forward).parameters)[1:]
            kwargs = {**dict(zip(names, args[1:], strict=False)), **kwargs}
        given = inputs(index, args[0], kwargs)
        # Where nothing is put in place of them, the layer gets what it was called with.
        return None if given is None else ((given[0],), given[1])

    handles: list[Any] = []
    try:
        for index in range(merge_layer, len(decoder.layers)):
            hook = partial(before, index)
            layer = decoder.layers[index]
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def deeper_inputs(
    decoder: Any,
    hidden: torch.Tensor,
    rotary_ids: torch.Tensor,
    mask: torch.Tensor | None,
    held: Cache | None,
    blocks: torch.Tensor | None = None,
) -> Callable[[int], dict[str, Any]]:
    """The arguments of decoder layer i that belong to the shorter sequence `hidden` [B, N, C].

    `mask`: the attention mask that transformers takes, 2-D or 4-D; `held`: a cache whose first
    layer has the length of the first layer with keys from the merge layer on, None without one;
    `blocks` [B, M] as in `Prompt`, of all tokens held.
    """
    rotaries = _rotaries(decoder)
    rotated = {rotary: rotary(hidden, rotary_ids) for rotary in set(rotaries)}
    causal = None
    if held is not None:
        causal = create_causal_mask(decoder.config, hidden, mask, held, block_sequence_ids=blocks)
    recurrent = recurrent_layers(decoder)
    # These know of padding alone.
    padding = create_recurrent_attention_mask(decoder.config, hidden, mask) if recurrent else None
    return lambda index: {
        "attention_mask": padding if index in recurrent else causal,
        # Flash attention would take gaps in the ids for the borders of packed sequences.
        "position_ids": None,
        "position_embeddings": rotated[rotaries[index]],
    }


def _with_tokens(layers: Sequence[Layer]) -> BufferLayer | None:
    """The first of `layers` that has keys and values."""
    return next((layer for layer in layers if isinstance(layer, BufferLayer)), None)


def _rotaries(decoder: Any) -> list[Any]:
    """The rotary embedding of each layer: one of two where the decoder has `rope_types`."""
    kinds = getattr(decoder, "rope_types", ["scaled"] * len(decoder.layers))
    return [
        decoder.rotary_emb if kind == "scaled" else decoder.rotary_emb_unscaled for kind in kinds
    ]


def _mixed_inputs(
    decoder: Any, above: Above, *, held: Mapping[str, Layer], behind: Behind
) -> Callable[[int], dict[str, Any]]:
    """As `deeper_inputs`, of a decoder whose layers are of several kinds."""
    kinds = layout_of(decoder.config).kinds
    seen = masks(decoder, held, above.hidden, behind)
    rotated = rotary(decoder, above.hidden, above.positions)
    return lambda index: {
        "attention_mask": seen[kinds[index]],
        "position_embeddings": rotated[kinds[index]],
        "position_ids": None,
    }


def _held(layout: Layout, layers: Sequence[Layer], start: int, end: int) -> dict[str, Layer]:
    """One of the layers from `start` to `end` of each kind: all of a kind hold as many rows."""
    return dict(zip(layout.kinds[start:end], layers[start:end], strict=False))


def _behind(
    hidden: torch.Tensor,
    places: torch.Tensor | None,
    sees: torch.Tensor | None,
    blocks: torch.Tensor | None,
) -> Behind:
    return Behind(torch.arange(hidden.shape[1]) if places is None else places, sees, blocks)


def _mask(
    decoder: Any,
    layer: BufferLayer | None,
    hidden: torch.Tensor,
    sees: torch.Tensor | None,
    blocks: torch.Tensor | None,
) -> torch.Tensor | None:
    """Build the attention mask [1, 1, L, length + L] of tokens appended to `layer`; None where
    attention is causal."""
    if (sees is None and blocks is None) or layer is None:
        return None
    return full_mask(decoder, layer, hidden, sees, blocks)


def _rotary_input(positions: torch.Tensor) -> torch.Tensor:
    """Return positions [1, L] unchanged for 1-D models, [3, L] as [3, 1, L] for M-RoPE."""
    return positions if positions.shape[0] == 1 else positions[:, None]


def buffers_of(layers: Sequence[Layer]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the buffers of keys and of values, by layer, without rows for layers with states;
    raise RuntimeError if a layer has neither."""
    like = _with_tokens(layers)
    pairs = [_buffers(layer, None if like is None else like.keys) for layer in layers]
    return [keys for keys, _ in pairs], [values for _, values in pairs]


def _buffers(layer: Layer, like: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(layer, StateLayer):
        if like is not None and layer.state is not None:
            none = like.new_empty((0, *like.shape[1:]), device=layer.state.conv.device)
            return none, none
    elif layer.keys is not None and layer.values is not None:
        return layer.keys, layer.values
    raise RuntimeError("a decoder layer wrote no keys and values")


def lengths_of(layers: Sequence[Layer]) -> tuple[int, ...]:
    """The number of tokens that each layer holds, 0 for those with states."""
    return tuple(layer.length if isinstance(layer, BufferLayer) else 0 for layer in layers)


def layers_of(
    kv: PrefixKV, buffers: type[BufferLayer] = BufferLayer, *, rows: int = 1
) -> list[Layer]:
    """The layers of a cache that holds `kv`; states for `rows` sequences that continue it."""
    states = in_rows(kv.states, rows)
    return [
        StateLayer(states[index]) if index in states else buffers(keys, values, length)
        for index, (keys, values, length) in enumerate(
            zip(kv.keys, kv.values, kv.lengths, strict=True)
        )
    ]


def _buffer(states: torch.Tensor, capacity: int) -> torch.Tensor:
    _, heads, _, dim = states.shape
    return states.new_empty((capacity, heads, dim))


# Continuation of a prefilled prefix with a question and its answer.


class Decoding(Protocol):
    """The part of `VideoLLM` that a continuation uses."""

    decoder: Any

    def embed(self, ids: torch.Tensor) -> torch.Tensor: ...
    def extras(self, ids: torch.Tensor) -> Mapping[str, torch.Tensor]: ...
    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


class KVContinuation:
    """Tokens appended to a prefix KV; implements `types.Continuation`.

    Tokens are written to the KV's own buffers behind the prefix, which grow if needed; the prefix
    itself never changes. Tokens removed by `rewind` stay in the buffers until they are
    overwritten, so the next turn of a conversation can restore them with `resume`.
    """

    def __init__(self, model: Decoding, kv: PrefixKV) -> None:
        self._model, self._kv = model, kv
        self._layers = layers_of(kv)
        self._kept = Kept(self._layers, kv.states)
        self._axes = 3 if getattr(model.decoder.rotary_emb, "mrope_section", None) else 1
        self.appended = 0
        # The tokens in the buffers behind the prefix, including those removed by a rewind, and the
        # place of each in its question.
        self._held: list[int] = []
        self._places: list[int] = []
        # How many of the last ones were appended in one run.
        self._last = 0

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
        """The number of tokens that the model's context takes after the prefix alone."""
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
        count = self._kept.go_back(count)
        self._set_length(count)
        return count

    @torch.inference_mode()
    def rewind(self, to: int = 0) -> None:
        to, held, places = min(to, self.appended), self._held, self._places
        # A later turn of a conversation resumes from here.
        self._kept.keep(self.appended)
        nearest = self._kept.go_back(to)
        self._set_length(nearest)
        if nearest < to:
            # No state was kept there: the tokens since the nearest one run once more.
            self._run(torch.tensor(held[nearest:to]))
            self._kept.keep(to)
            self._held, self._places = held, places

    def forget(self) -> None:
        """Remove everything after the prefix so that it cannot be resumed."""
        self._held, self._places = [], []
        self._kept.drop(0)
        self._kept.go_back(0)
        self._set_length(0)

    @property
    def state_bytes(self) -> int:
        """Bytes of the states beside the prefix's own."""
        return self._kept.nbytes

    @property
    def has_states(self) -> bool:
        """Whether the model has recurrent layers."""
        return bool(self._kv.states)

    def apart(self) -> Apart:
        """The states of several questions that `extend_at` runs together."""
        return Apart(self._layers, self._kv.states)

    @torch.inference_mode()
    def extend_at(
        self, ids: torch.Tensor, places: torch.Tensor, sees: torch.Tensor, *, rows: int = 1
    ) -> torch.Tensor:
        """Append tokens `ids` [n] of several questions; return the logits [n, V] after each.

        `places` [n]: each token's index in its own question; `sees` [n, m] bool: attention of each
        to all m tokens after the prefix, including these n; `rows`: of how many questions, each
        with as many tokens and its states in place (`apart`), where the model has any.
        """
        return self._model.logits(self._at(ids, places, sees, rows))

    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        """Append tokens `ids` [n] and return their hidden states [n, C]."""
        self._held = self._held[: self.appended]
        self._places = self._places[: self.appended]
        self._kept.drop(self.appended)
        if self._last > 1:
            # The end of a question, which several answers may be tried behind.
            self._kept.keep(self.appended)
        self._last = len(ids)
        with self._kept.unless_it_fails():
            return self._at(ids, torch.arange(self.appended, self.appended + len(ids)))

    def _at(
        self,
        ids: torch.Tensor,
        places: torch.Tensor,
        sees: torch.Tensor | None = None,
        rows: int = 1,
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
                deeper=lambda states: Above(states, above.to(states.device), sizes=self._kv.sizes),
                sees=sees,
                counts=self._kv.sizes is not None,
                places=torch.tensor([*self._places, *places.tolist()]),
                extras=self._model.extras(ids),
                rows=rows,
            )
        finally:
            # Buffers that grew replace those of the KV.
            self._kv.keys[:], self._kv.values[:] = buffers_of(self._layers)
        self._held += ids.tolist()
        self._places += places.tolist()
        self.appended = len(self._held)
        return hidden

    def _set_length(self, appended: int) -> None:
        # Each layer by itself: an interrupted run leaves them at different lengths.
        for layer, length in zip(self._layers, self._kv.lengths, strict=True):
            if isinstance(layer, BufferLayer):
                layer.length = length + appended
        self.appended = appended
