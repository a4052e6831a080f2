"""`MergedTokens`, the result of a merge, and `Sources`, its grouping of cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import embedding_bag

from sttm_cli.base.errors import UsageError


@dataclass(frozen=True, eq=False, repr=False)
class Sources:
    """The grouping of a merge: the output token of every finest cell and the cell's weight in it.

    `index` [T, H, W] int64: the output token, -1 for a dropped cell; `weight` [T, H, W] float32:
    the cell's share of the token; the shares of a token sum to 1; `count`: the number of tokens;
    `dropped`: the number of dropped cells.
    """

    index: torch.Tensor
    weight: torch.Tensor
    count: int
    dropped: int = 0

    def __repr__(self) -> str:
        return f"Sources({_grid(self.index)} cells -> {self.count} tokens)"

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Merge `values` [T, H, W, ...] -> [count, ...] in the same way as the features.

        Sums in float32 (float64 for float64); the result has the dtype of `values`. Raises
        UsageError, a ValueError, for another grid or an integer dtype.
        """
        if values.shape[:3] != self.index.shape:
            raise UsageError(
                f"values on a {_grid(values)} grid do not belong to a merge of a "
                f"{_grid(self.index)} grid"
            )
        if not values.is_floating_point():
            raise UsageError(f"values of {values.dtype} have no mean", "take them at .roots")
        rows = values.reshape(self.index.numel(), -1)
        return self._sums(rows).view(self.count, *values.shape[3:])

    @cached_property
    def _by_token(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The kept cells sorted by token, each token's first place [count], and the weights."""
        index = self.index.flatten()
        # Dropped cells (-1) sort first; `dropped` avoids a device synchronization.
        order = index.argsort(stable=True)[self.dropped :]
        # bincount would synchronize with the device.
        sizes = self.index.new_zeros(self.count)
        sizes.index_add_(0, index[order], torch.ones_like(order))
        return order, sizes.cumsum(0) - sizes, self.weight.flatten()[order]

    def _sums(self, rows: torch.Tensor) -> torch.Tensor:
        order, starts, weight = self._by_token
        if rows.dtype in (torch.float32, torch.float64):
            weight = weight.to(rows.dtype)
            return embedding_bag(order, rows, starts, mode="sum", per_sample_weights=weight)
        # The sums need float32; converting a slice of the channels at a time saves memory.
        out = rows.new_empty(self.count, rows.shape[1])
        width = max(64, -(-rows.shape[1] // 8))
        space = rows.new_empty(len(rows), width, dtype=torch.float32)
        for first in range(0, rows.shape[1], width):
            part = rows[:, first : first + width]
            table = space[:, : part.shape[1]].copy_(part)
            sums = embedding_bag(order, table, starts, mode="sum", per_sample_weights=weight)
            out[:, first : first + width] = sums
        return out


@dataclass(frozen=True, eq=False, repr=False)
class MergedTokens:
    """The merged tokens, in the order of their roots: t, then top, then left.

    `features` [N, C], dtype and device of the input; `boxes` [N, 5] int32 of the roots (t, top,
    left, bottom, right), half-open, in finest-grid units; `patch_counts` [N] int32: finest cells
    behind each token; `roots` [N] int64, ascending: flat index in the [T, H, W] grid of the
    top-left cell of each root's box; `sources`: the grouping, to apply to other tensors;
    `after_spatial`: tokens after the spatial step alone. The thresholds are those used; None if
    the budget allowed every token, and for methods without thresholds.
    """

    features: torch.Tensor
    boxes: torch.Tensor
    patch_counts: torch.Tensor
    roots: torch.Tensor
    sources: Sources
    after_spatial: int
    spatial_threshold: float | None
    temporal_threshold: float | None

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        cells, how = _grid(self.sources.index), (self.spatial_threshold, self.temporal_threshold)
        return f"MergedTokens({cells} cells -> {len(self)} tokens at thresholds {how})"


def _grid(values: torch.Tensor) -> str:
    return " x ".join(str(side) for side in values.shape[:3])
