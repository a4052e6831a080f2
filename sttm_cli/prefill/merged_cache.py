"""The layers of transformers' own dynamic cache once video tokens have been merged into them.

Layers from the merge layer on hold fewer tokens than the caller has given. They answer with the
caller's count where transformers asks for a length; which of the caller's tokens they hold, and
how far their rotary ids are behind, goes with the cache wherever it is copied or reordered to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer

from sttm_cli.base.errors import UsageError


@dataclass(frozen=True)
class Held:
    """Which tokens the merged layers hold, up to the last one that was merged away.

    `columns` [B, M] int64: their indices among the caller's tokens, -1 where a row has fewer;
    `padded`: whether one has; `seen`: the caller's tokens up to there; `behind` [B]: the difference
    between the rotary ids that follow below the merge layer and from it on; `deltas` [B, 1]: M-RoPE
    ids of the text that follows minus a count of tokens, None without M-RoPE; `logs` [B, M]: the
    logarithms of the sizes with which the tokens count in attention, None where all count once.
    """

    columns: torch.Tensor
    padded: bool
    seen: int
    behind: torch.Tensor
    deltas: torch.Tensor | None
    logs: torch.Tensor | None = None

    def rows(self, index: torch.Tensor) -> Held:
        """The same for the rows `index` [B'] of the batch."""
        at = index.to(self.columns.device)
        deltas = None if self.deltas is None else self.deltas[index.to(self.deltas.device)]
        logs = None if self.logs is None else self.logs[at]
        return replace(
            self, columns=self.columns[at], behind=self.behind[at], deltas=deltas, logs=logs
        )

    def until(self, count: int) -> torch.Tensor:
        """The caller's indices [B, count] of the first `count` tokens held: all later ones are."""
        later = torch.arange(count - self.columns.shape[1], device=self.columns.device) + self.seen
        return torch.cat([self.columns, later.expand(len(self.columns), -1)], dim=1)


class MergedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer that lacks the tokens merged away.

    `missing`: how many they are; `least`: how many of those it holds cannot be cropped; `held`:
    which they are, in the merge layer's only. Takes new tokens only where `expected` was set right
    before: what does not know of the merging would put them at wrong positions.
    """

    def __init__(self, layer: DynamicLayer, missing: int, least: int, held: Held | None) -> None:
        super().__init__()
        self.__dict__.update(layer.__dict__)
        self.missing, self.least, self.held, self.expected = missing, least, held, False

    @property
    def count(self) -> int:
        """How many tokens the layer really holds."""
        return int(super().get_seq_length())

    def get_seq_length(self) -> int:
        return self.count + self.missing if self.is_initialized else 0

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if self.missing and not self.expected:
            raise _unexpected()
        self.expected = False
        pair: tuple[torch.Tensor, torch.Tensor] = super().update(*args, **kwargs)
        return pair

    def crop(self, tokens_to_remove: int) -> None:
        if self.missing and tokens_to_remove < 0 and self.count + tokens_to_remove < self.least:
            raise UsageError(
                f"the last {-tokens_to_remove} tokens of this cache reach into its merged video",
                "make a new cache",
            )
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.missing = self.least = 0
        self.held = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.held is not None:
            self._rows(torch.arange(len(self.held.columns)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._rows(indices)

    def _rows(self, index: torch.Tensor) -> None:
        if self.held is not None:
            self.held = self.held.rows(index)


class MergedStates(LinearAttentionLayer):  # type: ignore[misc]
    """The states of a recurrent layer of a merged cache.

    `missing`, `held` and `expected` as in `MergedLayer`; `missing` is 0 below the merge layer. The
    state takes new tokens only where they are expected, since it cannot be cropped afterwards.
    """

    def __init__(self, layer: LinearAttentionLayer, missing: int, held: Held | None) -> None:
        super().__init__()
        self.missing, self.held, self.expected = 0, None, True
        self.__dict__.update(layer.__dict__)
        self._before: dict[int, bool] = layer.has_previous_state
        self.missing, self.held, self.expected = missing, held, False

    @property
    def has_previous_state(self) -> dict[int, bool]:
        """What transformers asks for before it reads a state."""
        if not self.expected:
            raise _unexpected()
        return self._before

    @has_previous_state.setter
    def has_previous_state(self, value: dict[int, bool]) -> None:
        self._before = value

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        state: torch.Tensor = super().update_recurrent_state(*args, **kwargs)
        self.expected = False
        return state

    def reset(self) -> None:
        self.expected = True
        super().reset()
        self.missing, self.held = 0, None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.held is not None:
            self.held = self.held.rows(beam_idx)


def _unexpected() -> UsageError:
    return UsageError(
        "this cache holds merged video tokens, which the model alone cannot go on from",
        "use it inside of sttm_cli.merging with the same merge layer, or make a new one",
    )


def expect_tokens(cache: Cache | None) -> None:
    """Let the recurrent layers of a merged cache take the tokens of one pass."""
    for layer in cache.layers if cache else ():
        if isinstance(layer, MergedStates):
            layer.expected = True


def held_by(cache: Cache | None, layer: int) -> Held | None:
    """What of a video a cache holds in merged layers, None where nothing was merged into it.

    Raises UsageError for a cache that was merged before another layer than `layer`.
    """
    merged = [i for i, each in enumerate(cache.layers if cache else []) if _is_merged(each)]
    if not merged:
        return None
    if merged[0] != layer:
        raise UsageError(
            f"this cache was merged before layer {merged[0]}, not {layer}",
            f"give merge_layer={merged[0]}, or make a new cache",
        )
    found: Held | None = cache.layers[layer].held if cache else None
    return found


def check_cache(cache: Any) -> None:
    """Raise UsageError unless tokens can be merged into a cache: None, or a plain dynamic one."""
    layers = getattr(cache, "layers", [])
    known = (DynamicLayer, MergedLayer, LinearAttentionLayer, MergedStates)
    odd = [type(each).__name__ for each in layers if type(each) not in known]
    lazy = getattr(cache, "layer_class_to_replicate", None) or DynamicLayer
    if cache is not None and (not isinstance(cache, Cache) or lazy is not DynamicLayer):
        odd = odd or [type(cache).__name__]
    if odd or getattr(cache, "offloading", False):
        what = f"with {odd[0]}" if odd else "that is offloaded"
        raise UsageError(
            f"video tokens cannot be merged into a {type(cache).__name__} {what}",
            "use transformers' DynamicCache, which is the default (no cache_implementation)",
        )


def merge_layers(cache: Cache, first: int, layers: int, held: Held) -> None:
    """Make the layers of `cache` from `first` on, up to `layers`, merged ones that hold `held`."""
    least = held.columns.shape[1]
    while len(cache.layers) < layers:
        cache.layers.append(DynamicLayer())
    missing = held.seen - least
    for index, layer in enumerate(cache.layers[:layers]):
        own = held if index == first else None
        if isinstance(layer, LinearAttentionLayer):
            cache.layers[index] = MergedStates(layer, missing if index >= first else 0, own)
        elif index >= first:
            cache.layers[index] = MergedLayer(layer, missing, least, own)


def _is_merged(layer: Any) -> bool:
    return isinstance(layer, MergedLayer | MergedStates) and bool(layer.missing)
