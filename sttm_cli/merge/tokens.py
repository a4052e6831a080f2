"""What a merge gives back, and the grouping by which it can be applied again."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sources:
    """The grouping of a merge: where every finest cell went, and with which weight.

    `index` [T, H, W] int64: the output token; `weight` [T, H, W] float32: the cell's share in
    it, so that the shares of one token sum to 1; `count` the number of output tokens.
    """

    index: torch.Tensor
    weight: torch.Tensor
    count: int

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Merge `values` [T, H, W, ...] -> [count, ...], in the same way as the features.

        Sums in float32 (float64 for float64), result in the dtype of `values`. Raises
        ValueError where the grid differs or the values are not floating point.
        """
        if values.shape[:3] != self.index.shape:
            raise ValueError(
                f"values are on a grid {tuple(values.shape[:3])}, "
                f"the merge was made on {tuple(self.index.shape)}"
            )
        if not values.is_floating_point():
            raise ValueError(f"values of {values.dtype} cannot be averaged; take them at .roots")
        rows = values.reshape(self.index.numel(), -1)
        total = torch.float64 if rows.dtype == torch.float64 else torch.float32
        out = torch.zeros(self.count, rows.shape[1], dtype=total, device=rows.device)
        out.index_add_(0, self.index.flatten(), rows.to(total) * self.weight.reshape(-1, 1))
        return out.to(values.dtype).reshape(self.count, *values.shape[3:])


@dataclass(frozen=True)
class MergedTokens:
    """The tokens that are left, in the order of their roots: t, then top, then left.

    `features` [N, C], dtype and device of the input; `boxes` [N, 5] int32 of the roots (t, top,
    left, bottom, right), half-open, in finest-grid units; `patch_counts` [N] int32: finest cells
    behind each token; `roots` [N] int64, ascending: flat index in the [T, H, W] grid of each root
    box's top-left cell. `after_spatial`: tokens after the spatial step alone. The thresholds are
    those really used, None where nothing was merged at all.
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
        return self.features.shape[0]
