"""Decoders whose layers differ: some see a window of the last tokens, some reuse another's keys.

A window counts rotary ids: a layer with it never meets a distance that it was not trained for. Ids
are renumbered after merging, so a window spans as many merged tokens, which are more frames. A
window layer keeps the rows that a token behind the prefix can still see, the last `window - 1`.
Layers that reuse keys and values hold none, and a prefix need not pass through them. The tokens
of a picture may see each other, in every layer or in window layers only.
Source: transformers' `Gemma4TextModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import create_causal_mask

from sttm_cli.base.errors import UsageError

FULL, WINDOW, STATES = "full_attention", "sliding_attention", "linear_attention"


@dataclass(frozen=True)
class Layout:
    """What a decoder's layers see and hold.

    `kinds[i]`: FULL, WINDOW or STATES; `window`: how many tokens a window spans, with the token
    that looks; `holding`: the layers, from the first on, that hold keys and values of their own, or
    states; `near_blocks`: blocks count in window layers only, and end where the window does.
    """

    kinds: tuple[str, ...]
    window: int
    holding: int
    near_blocks: bool = False

    @property
    def mixed(self) -> bool:
        """Whether any layer has a window."""
        return WINDOW in self.kinds

    @property
    def deepest(self) -> int:
        """The last layer before which tokens can be merged: layers that reuse keys and values must
        find merged ones."""
        reused = set(self.kinds[self.holding :])
        last = {kind: i for i, kind in enumerate(self.kinds[: self.holding])}
        return min([len(self.kinds) - 1, *(last[kind] for kind in reused)])

    def rows(self, index: int, length: int) -> int:
        """How many of a prefix's `length` tokens layer `index` keeps."""
        if self.kinds[index] == STATES:
            return 0
        return min(length, self.window - 1) if self.kinds[index] == WINDOW else length

    def lengths(self, merge_layer: int, full: int, merged: int) -> tuple[int, ...]:
        """What all holding layers keep of a prefix: of `full` tokens below the merge layer."""
        return tuple(self.rows(i, full if i < merge_layer else merged) for i in range(self.holding))


def layout_of(config: Any) -> Layout:
    """The layout of a decoder, from transformers' config of it."""
    layers = int(config.num_hidden_layers)
    kinds = tuple(getattr(config, "layer_types", None) or [FULL] * layers)
    window = int(config.sliding_window) if WINDOW in kinds else 0
    shared = int(getattr(config, "num_kv_shared_layers", None) or 0)
    near = getattr(config, "model_type", "") == "gemma4_text"
    return Layout(kinds, window, layers - shared, near)


def kv_shapes(config: Any) -> list[tuple[int, int]]:
    """Heads and head size of the keys of each layer that holds any; values have the same."""
    count = layout_of(config).holding
    differ = getattr(config, "is_heterogeneous", False)
    each = [config.per_layer_config[i] if differ else config for i in range(count)]
    return [
        (
            layer.num_key_value_heads,
            getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads,
        )
        for layer in each
    ]


def check_merging(layout: Layout, merge_layer: int, positions: str) -> None:
    """Raise UsageError where a decoder cannot merge before that layer, or with those positions."""
    if merge_layer > layout.deepest:
        raise UsageError(
            f"merge layer {merge_layer} is not possible: later layers reuse the keys and values of "
            f"layer {layout.deepest}",
            f"give 0 to {layout.deepest}",
        )
    if layout.mixed and positions != "reassigned":
        raise UsageError(
            f"--positions {positions} cannot be combined with layers that see a window, which "
            "counts consecutive ids",
            "give --positions reassigned",
        )


@dataclass(frozen=True)
class Behind:
    """Tokens that a run appends, by their distance from the end of the prefix.

    `places` [m]: of all tokens behind the prefix, of which the run's own n are the last; `sees`
    [n, m] bool: which of them each of its own attends to, None for all before it; `blocks` [n]: as
    in `Prompt`, where there is no prefix yet.
    """

    places: torch.Tensor
    sees: torch.Tensor | None = None
    blocks: torch.Tensor | None = None


def masks(
    decoder: Any, held: Mapping[str, CacheLayerMixin], hidden: torch.Tensor, behind: Behind
) -> dict[str, torch.Tensor | None]:
    """The attention masks, by kind of layer, of the tokens `hidden` [B, n, C].

    `held`: a layer of each kind that there is, with the rows that it holds already.
    """
    layout, made = layout_of(decoder.config), dict[str, torch.Tensor | None]()
    made[FULL] = made[WINDOW] = None
    if FULL in held:
        everywhere = None if layout.near_blocks else behind.blocks
        made[FULL] = full_mask(decoder, held[FULL], hidden, behind.sees, everywhere)
    if WINDOW in held:
        made[WINDOW] = _window_mask(layout, held[WINDOW], hidden, behind)
    if not decoder.config._attn_implementation.endswith("eager"):
        return made
    return {kind: _additive(mask, hidden.dtype) for kind, mask in made.items()}


def _additive(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def full_mask(
    decoder: Any,
    layer: CacheLayerMixin,
    hidden: torch.Tensor,
    sees: torch.Tensor | None,
    blocks: torch.Tensor | None,
) -> torch.Tensor | None:
    """Build the mask [1, 1, n, held + n] of tokens `hidden` appended to a layer without a window;
    None where attention is causal. `sees`, `blocks`: as in `ragged.run`."""
    if sees is not None:
        held = layer.get_seq_length()
        before = sees.new_ones((len(sees), held + len(sees) - sees.shape[1]))
        return torch.cat([before, sees], dim=1).to(hidden.device)[None, None]
    mask: torch.Tensor | None = create_causal_mask(
        decoder.config,
        hidden,
        None,
        Cache(layers=[layer]),
        block_sequence_ids=None if blocks is None else blocks.to(hidden.device)[None],
    )
    return mask


def _window_mask(
    layout: Layout, layer: CacheLayerMixin, hidden: torch.Tensor, behind: Behind
) -> torch.Tensor | None:
    """[1, 1, n, held + n], None where attention is causal and the window hides nothing."""
    device, count, held = hidden.device, hidden.shape[1], layer.get_seq_length()
    places = behind.places.to(device)
    prefix, own = held + count - len(places), places[len(places) - count :]
    keys = torch.cat([torch.arange(-prefix, 0, device=device), places])
    near = keys[None] > own[:, None] - layout.window
    if behind.sees is not None:
        before = behind.sees.new_ones((count, prefix))
        return (near & torch.cat([before, behind.sees], dim=1).to(device))[None, None]
    sees = torch.ones_like(near).tril(held)
    if behind.blocks is None:
        # Where it is causal and hides nothing, attention needs no mask.
        hides = (count > 1 and held) or not bool(near[-1].all())
        return (near & sees)[None, None] if hides else None
    blocks = behind.blocks.to(device)
    together = (blocks[:, None] == blocks) & (blocks >= 0)
    seen = near & (sees | together) if layout.near_blocks else (near & sees) | together
    return seen[None, None]


def rotary(decoder: Any, hidden: torch.Tensor, ids: torch.Tensor) -> dict[str, Any]:
    """The rotary embeddings of `ids` [1, n] by kind of layer."""
    embed = partial(decoder.rotary_emb, hidden, ids)
    return {kind: embed(kind) for kind in set(layout_of(decoder.config).kinds)}
