"""Prefill: one run of the prefix through the decoder, with video tokens merged before layer k.

Source: STTM (arXiv 2507.07990), section 3: merging at the input of an early decoder layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sttm_cli.base.device import wait_for
from sttm_cli.base.types import Merged, PrefixKV, Prompt, TokenCounts
from sttm_cli.prefill.ragged import Above, BufferLayer, Layer, buffers_of, lengths_of, run
from sttm_cli.prefill.states import StateLayer, of_prefix, recurrent_layers
from sttm_cli.prefill.windows import check_merging, layout_of

ROOM = 512
"""Free rows behind the prefix in each layer, for the question and the answer."""


@dataclass(frozen=True)
class MergeConfig:
    """How prefill merges: before decoder layer `layer`, by `merge` ([T, H, W, C] -> Merged).

    `positions`: "reassigned" renumbers the tokens consecutively after merging, "survivors" keeps
    the rotary ids of each token's root (paper, table 8 and section 4.1). Models with M-RoPE
    always use "survivors". `sizes`: a merged token counts in attention as often as the cells
    behind it (`prefill/sizes.py`).
    """

    layer: int
    merge: Callable[[torch.Tensor], Merged]
    positions: str
    sizes: bool = False


@torch.inference_mode()
def prefill(
    decoder: Any,
    prompt: Prompt,
    embeds: torch.Tensor,
    merging: MergeConfig,
    *,
    deep: Sequence[torch.Tensor] = (),
    extras: Mapping[str, torch.Tensor] | None = None,
    merging_stage: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> PrefixKV:
    """Run the prefix `embeds` [L, C] through the decoder and return its KV, without logits.

    `deep[i]` [T, H, W, C] is added to the visual tokens after decoder layer i (deepstack), merged
    in the same way from the merge layer on. `extras`: further arguments of the decoder for the
    prompt's tokens. `merging_stage` is a context around merging alone, for timing. Raises
    UsageError for a merge layer or positions that the decoder's layers do not allow.
    """
    state, layout = MergeState(prompt, merging, merging_stage), layout_of(decoder.config)
    check_merging(layout, merging.layer, merging.positions)
    layers = _empty_layers(decoder, layout.holding)
    with suppress(_Filled), _deepstack(decoder, state, deep):
        run(
            decoder,
            embeds,
            layers,
            positions=prompt.positions,
            merge_layer=merging.layer,
            deeper=state.apply,
            counts=merging.sizes,
            blocks=prompt.blocks,
            extras=extras,
        )
    for index, layer in enumerate(layers):
        if isinstance(layer, BufferLayer):
            layer.keep_last(layout.rows(index, layer.length))
    keys, values = buffers_of(layers)
    return PrefixKV(
        keys=keys,
        values=values,
        lengths=lengths_of(layers),
        merge_layer=merging.layer,
        next_positions=(prompt.next_position, state.next_position),
        tokens=state.counts(),
        grid=prompt.grid,
        facts={"token_ids": prompt.ids.unique().tolist()},
        sizes=None if state.sizes is None else state.sizes.cpu(),
        states=of_prefix(layers),
    )


def _empty_layers(decoder: Any, count: int) -> list[Layer]:
    """Layers for the first `count` of the decoder's, which hold tokens or states."""
    recurrent = recurrent_layers(decoder)
    kinds = [_LastLayer if index == count - 1 else BufferLayer for index in range(count)]
    return [
        StateLayer() if index in recurrent else kind(room=ROOM) for index, kind in enumerate(kinds)
    ]


class _Filled(Exception):
    """Ends the decoder run once the last layer has its keys and values."""


class _LastLayer(BufferLayer):
    """Ends the run as soon as it is filled, since the rest of the last layer is not needed."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        super().update(*args, **kwargs)
        raise _Filled


@contextmanager
def _deepstack(decoder: Any, state: MergeState, deep: Sequence[torch.Tensor]) -> Iterator[None]:
    def add(level: torch.Tensor, *called: Any) -> torch.Tensor:
        return state.add(called[-1], level)

    handles = [
        layer.register_forward_hook(partial(add, level))
        for layer, level in zip(decoder.layers, deep, strict=False)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class MergeState:
    """Merges the visual tokens at the merge layer, and keeps the result for later layers.

    `kept` [L] bool: the tokens that go on, or that a merged one replaces; `length`: their number;
    `next_position`: the rotary id of the next token from the merge layer on.
    """

    def __init__(
        self,
        prompt: Prompt,
        merging: MergeConfig,
        stage: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._prompt, self._merging, self._stage = prompt, merging, stage
        self._merged: Merged | None = None
        self._places = prompt.video
        self.kept = torch.ones(0, dtype=torch.bool)
        self.length = 0
        self.next_position = 0
        self.sizes: torch.Tensor | None = None

    def apply(self, hidden: torch.Tensor) -> Above:
        """Merge hidden states [1, L, C] -> [1, N, C], with rotary ids, blocks and sizes."""
        wait_for(hidden.device)
        with self._stage():
            above = self._shortened(hidden)
            wait_for(hidden.device)
        return above

    def _shortened(self, hidden: torch.Tensor) -> Above:
        video = self._prompt.video.to(hidden.device)
        merged = self._merging.merge(hidden[0, video].unflatten(0, self._prompt.grid))
        # A merged token takes the place of its root, its first appearance (section 3.3).
        roots = video[merged.roots]
        kept = torch.ones(hidden.shape[1], dtype=torch.bool, device=hidden.device)
        kept[video] = False
        kept[roots] = True
        hidden = hidden.clone()
        hidden[0, roots] = merged.features.to(hidden.dtype)
        hidden = hidden[:, kept]
        self._places = kept.cumsum(0)[roots] - 1
        self._merged, self.kept, self.length = merged, kept, hidden.shape[1]
        if self._merging.sizes:
            self.sizes = self._counts(merged.patch_counts)
        blocks, positions = self._prompt.blocks, self._prompt.positions.to(hidden.device)
        return Above(
            hidden=hidden,
            positions=self._renumber(positions[:, kept]),
            blocks=None if blocks is None else blocks.to(hidden.device)[kept],
            sizes=self.sizes,
            shorten=self.shorten,
        )

    def _counts(self, behind: torch.Tensor) -> torch.Tensor | None:
        """The sizes of all tokens; text counts once."""
        if bool((behind == 1).all()):
            return None
        sizes = torch.ones(self.length, dtype=torch.int32, device=behind.device)
        sizes[self._places.to(behind.device)] = behind.to(torch.int32)
        return sizes

    def add(self, hidden: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Add features [T, H, W, C] to the visual tokens among the hidden states [B, L, C]."""
        level = level.to(hidden)
        rows = level.flatten(0, 2) if self._merged is None else self._merged.sources(level)
        hidden = hidden.clone()
        hidden[:, self._places.to(hidden.device)] += rows
        return hidden

    def shorten(self, states: torch.Tensor) -> torch.Tensor:
        """Merge states [1, L, C] of the same tokens in the same groups -> [1, N, C]."""
        if self._merged is None:
            raise RuntimeError("nothing is merged yet")
        video = self._prompt.video.to(states.device)
        merged = self._merged.sources(states[0, video].unflatten(0, self._prompt.grid))
        states = states[:, self.kept.to(states.device)]
        states[:, self._places.to(states.device)] = merged.to(states)
        return states

    def _renumber(self, survivors: torch.Tensor) -> torch.Tensor:
        self.next_position = self._prompt.next_position
        if self._merging.positions == "reassigned" and len(survivors) == 1:
            self.next_position -= len(self.kept) - self.length
            return survivors - (~self.kept).cumsum(0)[self.kept]
        return survivors

    def counts(self) -> TokenCounts:
        if self._merged is None:
            raise RuntimeError("the decoder never reached the merge layer")
        return TokenCounts(
            video_full=self._prompt.video.numel(),
            video_kept=self._merged.roots.numel(),
            prefix=self.length,
            after_spatial=self._merged.after_spatial,
            spatial_threshold=self._merged.spatial_threshold,
            temporal_threshold=self._merged.temporal_threshold,
        )
