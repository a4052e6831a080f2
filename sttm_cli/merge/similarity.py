"""Every cosine similarity that a merge can ask for, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sttm_cli.merge.pyramid import Level


@dataclass(frozen=True)
class Similarities:
    """Cosines, spread over the finest cells (P = H*W; levels 0..L, 0 the finest).

    `keep` [L+1, T, P]: the least similarity between the cell of that level around the finest cell
    and its children (level 0: +inf). `pair` [(L+1)**2, T-1, P]: between the later frame's cell of
    level a and the earlier frame's of level b, at index a*(L+1)+b.
    """

    keep: torch.Tensor
    pair: torch.Tensor


def measure(
    features: torch.Tensor, levels: Sequence[Level], *, heads: int, padding: bool
) -> Similarities:
    """Similarities in float32 of `features` [T, H, W, C]; mean of the cosines of `heads`.

    `padding`: compare the children that a border cell of an odd grid lacks as if they were the
    child at (0, 0) of the frame, as the released code does.
    """
    frames = [_measure_frame(frame, levels, heads, padding) for frame in features]
    keep = torch.stack([torch.stack(frame.keep) for frame in frames], 1)
    pairs = [
        _measure_pair(later, earlier, levels)
        for earlier, later in zip(frames, frames[1:], strict=False)
    ]
    shape = (len(levels) ** 2, 0, keep.shape[2])
    return Similarities(keep, torch.stack(pairs, 1) if pairs else keep.new_empty(shape))


@dataclass(frozen=True)
class _Frame:
    """Per level: the cells' unit vectors, spread, and `keep` as above."""

    units: list[torch.Tensor]
    keep: list[torch.Tensor]


def _measure_frame(
    frame: torch.Tensor, levels: Sequence[Level], heads: int, padding: bool
) -> _Frame:
    cells = frame.float().flatten(0, 1).unflatten(1, (heads, -1))
    units, keep = [], [cells.new_full(cells.shape[:1], torch.inf)]
    for level in levels:
        pooled = torch.zeros_like(cells).index_add_(
            0, level.corner, cells * level.weight[:, None, None]
        )
        units.append(torch.nn.functional.normalize(pooled[level.corner], dim=-1))
    for child, parent, level in zip(units, units[1:], levels[1:], strict=False):
        cosine = (child * parent).sum(-1).mean(-1)
        least = cosine.new_full(cosine.shape, torch.inf)
        least.scatter_reduce_(0, level.corner, cosine, "amin")
        keep.append(least[level.corner])
    if padding:
        _compare_padding(units, keep, levels)
    return _Frame(units, keep)


def _compare_padding(
    units: list[torch.Tensor], keep: list[torch.Tensor], levels: Sequence[Level]
) -> None:
    for k, (child, parent) in enumerate(zip(levels, levels[1:], strict=False), 1):
        first_row = (parent.rows == 0) & bool(child.size[0] % 2)
        first_column = (parent.columns == 0) & bool(child.size[1] % 2)
        lacks = (first_row[:, None] | first_column[None, :]).flatten()
        cosine = (units[k] * units[k - 1][0]).sum(-1).mean(-1)
        keep[k] = torch.where(lacks, torch.minimum(keep[k], cosine), keep[k])


def _measure_pair(later: _Frame, earlier: _Frame, levels: Sequence[Level]) -> torch.Tensor:
    return torch.stack([(a * b).sum(-1).mean(-1) for a in later.units for b in earlier.units])
