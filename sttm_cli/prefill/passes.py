"""Forward passes of a decoder that transformers itself runs, merged on the way.

`prefill` and `KVContinuation` run the decoder themselves. Here it is called by the model it
belongs to, with a cache of transformers' own: what a pass hands to the layers from the merge layer
on is the same, worked out from what the decoder was called with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache

from sttm_cli.base.errors import UsageError
from sttm_cli.prefill.merged_cache import Held, MergedLayer, MergedStates, merge_layers
from sttm_cli.prefill.prefix import MergeState
from sttm_cli.prefill.ragged import BufferLayer, deeper_inputs
from sttm_cli.prefill.sizes import Counted, logs_of
from sttm_cli.prefill.states import recurrent_layers


class Pass:
    """One pass of `decoder`, whose layers from `first` on get fewer tokens than those below.

    `positions` [A, B, L]: rotary ids below; `mask` [B, past + L]: the attention mask by which the
    caller marks padding, None without; `counted`: where this pass puts the sizes with which its
    tokens count in attention, None where all count once.
    """

    def __init__(
        self,
        decoder: Any,
        first: int,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        counted: Counted | None = None,
    ) -> None:
        self._decoder, self._first, self._mask = decoder, first, mask
        self._positions, self._counted = positions, counted
        self._shared: Callable[[int], dict[str, Any]] = lambda index: {}

    def inputs(
        self, index: int, hidden: torch.Tensor, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """What layer `index` gets; see `hooked_layers`."""
        cache: Cache | None = kwargs.get("past_key_values")
        if index == self._first:
            hidden = self._enter(hidden, cache)
        if cache is not None and isinstance(cache.layers[index], MergedLayer | MergedStates):
            cache.layers[index].expected = True
        return hidden, {**kwargs, **self._shared(index)}

    def after(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """What goes on from layer `index` [B, N, C]."""
        return hidden

    def leave(self, hidden: torch.Tensor) -> torch.Tensor:
        """The decoder's output [B, N, C], as long as its input [B, L, C]."""
        return hidden

    def _enter(self, hidden: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        raise NotImplementedError

    def _share(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        held: Held,
        count: int,
        blocks: torch.Tensor | None = None,
    ) -> None:
        """Keep what the layers get with `hidden` [B, N, C] at rotary ids `positions` [A, B, N],
        the last of `count` tokens held; `blocks` [B, past + L] as in `Prompt`."""
        columns, padded = held.until(count), held.padded
        ids = positions[0] if len(positions) == 1 else positions
        mask = self._mask
        if mask is not None or padded:
            there = columns >= 0
            mask = there if mask is None else there & _taken(mask, columns).bool()
        if blocks is not None:
            blocks = torch.where(columns >= 0, _taken(blocks, columns), -1)
        earlier = Cache(layers=[BufferLayer(length=count - hidden.shape[1])])
        self._shared = deeper_inputs(self._decoder, hidden, ids, mask, earlier, blocks)
        if self._counted is not None:
            self._counted.logs = held.logs


class Continuing(Pass):
    """Tokens that follow merged ones in a cache, of which `held` tells."""

    def __init__(self, *given: Any, held: Held) -> None:
        super().__init__(*given)
        self._held = held

    def _enter(self, hidden: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        # A recurrent layer does not count its tokens.
        above = cache.layers[self._first :] if cache is not None else []
        earlier = next((each.count for each in above if isinstance(each, MergedLayer)), 0)
        behind = self._held.behind[:, None].to(self._positions.device)
        count = earlier + hidden.shape[1]
        self._share(hidden, self._positions - behind, self._held, count)
        return hidden


class MergingPass(Pass):
    """A prompt with a video; with `past` tokens before it in the cache, none of them merged.

    `merges`: one for each row of the batch, or a single one for rows that are all the same;
    `levels[i]` [B', T, H, W, C]: features that are added to the visual tokens after layer i, with
    a row for each merge; `deltas` as in `Held`; `blocks` [B, past + L] as in `Prompt`.
    """

    def __init__(
        self,
        *given: Any,
        merges: Sequence[MergeState],
        past: int,
        levels: Sequence[torch.Tensor] = (),
        deltas: torch.Tensor | None = None,
        blocks: torch.Tensor | None = None,
    ) -> None:
        super().__init__(*given)
        self.merges, self._past, self._levels, self._deltas = merges, past, levels, deltas
        self._blocks = blocks
        self.merged = False

    def after(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        if index >= len(self._levels):
            return hidden
        parts = zip(self.merges, self._each(hidden), self._levels[index], strict=True)
        return torch.cat([merge.add(part, level) for merge, part, level in parts])

    def leave(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self.merged:
            return hidden
        rows, _, channels = hidden.shape
        whole = hidden.new_full((rows, self._positions.shape[2], channels), float("nan"))
        times = rows // len(self.merges)
        for index, (merge, part) in enumerate(self._pairs(hidden)):
            whole[index * times : (index + 1) * times, merge.kept] = part[:, : merge.length]
        return whole

    def _each(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """The rows [B, ...] that each merge is for."""
        parts: Sequence[torch.Tensor] = rows.split(len(rows) // len(self.merges))
        return parts

    def _enter(self, hidden: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        if torch.is_grad_enabled() and hidden.requires_grad:
            hidden = _NoGradient.apply(hidden)
        # Rows that are the same may differ in their last bits: the first one speaks for all.
        done = [merge.apply(part[:1]) for merge, part in self._pairs(hidden)]
        count = max(merge.length for merge in self.merges)
        if recurrent_layers(self._decoder) and len({merge.length for merge in self.merges}) > 1:
            raise UsageError(
                "the prompts of this batch keep different numbers of tokens, and a recurrent layer "
                "would take the padding for more",
                "give them one after the other",
            )
        self.merged = count < hidden.shape[1]
        if not self.merged:
            return hidden
        times = len(hidden) // len(self.merges)
        shorter = _padded([above.hidden[0] for above in done], times)
        positions = _padded([above.positions.T for above in done], times).permute(2, 0, 1)
        held = self._holds(times)
        self._share(shorter, positions, held, self._past + count, self._blocks)
        if cache is not None:
            merge_layers(cache, self._first, len(self._decoder.layers), held)
        return shorter

    def _pairs(self, rows: torch.Tensor) -> list[tuple[MergeState, torch.Tensor]]:
        return list(zip(self.merges, self._each(rows), strict=True))

    def _holds(self, times: int) -> Held:
        device = self.merges[0].kept.device
        before = torch.arange(self._past, device=device)
        kept = [merge.kept.nonzero()[:, 0] + self._past for merge in self.merges]
        columns = [torch.cat([before, each])[:, None] for each in kept]
        seen = self._past + self._positions.shape[2]
        if len(columns) == 1:
            # The text behind the last token merged away can be cropped.
            seen = self._past + int((~self.merges[0].kept).nonzero()[-1]) + 1
            columns = [columns[0][columns[0][:, 0] < seen]]
        behind = torch.tensor([-merge.next_position for merge in self.merges], device=device)
        return Held(
            columns=_padded(columns, times, -1)[..., 0],
            padded=len({len(each) for each in kept}) > 1,
            seen=seen,
            behind=behind.repeat_interleave(times),
            deltas=self._deltas,
            logs=self._logs(times),
        )

    def _logs(self, times: int) -> torch.Tensor | None:
        """See `Held`; up to the last token of this pass."""
        if all(merge.sizes is None for merge in self.merges):
            return None
        rows = [
            logs_of(merge.kept.new_ones(merge.length) if merge.sizes is None else merge.sizes)
            for merge in self.merges
        ]
        return pad(_padded([row[:, None] for row in rows], times)[..., 0], (self._past, 0))


class _NoGradient(torch.autograd.Function):
    """Which tokens merge has no gradient: a part of it would be a wrong one."""

    @staticmethod
    def forward(context: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.view_as(hidden)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        raise NotImplementedError(
            "merged video tokens have no gradient: leave sttm_cli.merging to train"
        )


def _padded(rows: list[torch.Tensor], times: int, value: float = 0.0) -> torch.Tensor:
    """Rows [N, ...] of several lengths as one tensor, filled up behind; each `times` times."""
    whole: torch.Tensor = pad_sequence(rows, batch_first=True, padding_value=value)
    return whole.repeat_interleave(times, dim=0) if times > 1 else whole


def _taken(mask: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The columns [B, M] of values [B, L]; -1 takes any."""
    return mask.to(columns.device).gather(1, columns.clamp(min=0))
