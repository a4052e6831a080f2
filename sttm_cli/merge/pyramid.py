"""The pyramid over one frame's grid: which finest cells each coarser cell covers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Level:
    """One level, described per finest cell (P = H*W, row-major).

    `size` (h, w) of the level's own grid; `rows` [H] and `columns` [W] the level's row and
    column of each finest one; `corner` [P] int64 the finest index of the top-left cell of the
    box around each finest cell; `weight` [P] float32 its share in the box's pooled feature;
    `box` [P, 4] int32 that box: top, left, bottom, right.
    """

    size: tuple[int, int]
    rows: torch.Tensor
    columns: torch.Tensor
    corner: torch.Tensor
    weight: torch.Tensor
    box: torch.Tensor


@lru_cache(maxsize=64)
def build_pyramid(
    height: int, width: int, root_level: int, device: torch.device
) -> tuple[Level, ...]:
    """The levels from the finest to the one that the search starts at.

    `root_level` 0 starts at the coarsest level (a side is 2), each step one level finer; beyond
    the finest it stays there. Section 3.2.
    """
    sides = [(_Side.finest(height), _Side.finest(width))]
    while 2 not in (size := (sides[-1][0].length, sides[-1][1].length)) and size != (1, 1):
        sides.append((sides[-1][0].coarser(), sides[-1][1].coarser()))
    return tuple(_level(*pair, device) for pair in sides[: max(1, len(sides) - root_level)])


@dataclass(frozen=True)
class _Side:
    """One side of a level: the starts of its intervals on the finest grid, and their shares."""

    starts: tuple[int, ...]
    end: int
    shares: tuple[float, ...]

    @classmethod
    def finest(cls, length: int) -> _Side:
        return cls(tuple(range(length)), length, (1.0,) * length)

    @property
    def length(self) -> int:
        return len(self.starts)

    def coarser(self) -> _Side:
        """Pair neighbours; with an odd length the first one stays alone."""
        alone = self.length % 2
        starts = self.starts[:alone] + self.starts[alone::2]
        single = starts[1] if alone and len(starts) > 1 else self.end * alone
        shares = tuple(s if i < single else s / 2 for i, s in enumerate(self.shares))
        return _Side(starts, self.end, shares)

    def spread(self) -> tuple[list[int], list[int], list[int]]:
        """Per finest row: the index, start and end of the interval around it."""
        ends = (*self.starts[1:], self.end)
        spans = enumerate(zip(self.starts, ends, strict=True))
        cells = [(i, start, end) for i, (start, end) in spans for _ in range(start, end)]
        index, start, end = zip(*cells, strict=True)
        return list(index), list(start), list(end)


def _level(vertical: _Side, horizontal: _Side, device: torch.device) -> Level:
    row, top, bottom = (torch.tensor(v)[:, None] for v in vertical.spread())
    column, left, right = (torch.tensor(v)[None, :] for v in horizontal.spread())
    box = torch.stack(torch.broadcast_tensors(top, left, bottom, right), -1)
    weight = torch.tensor(vertical.shares)[:, None] * torch.tensor(horizontal.shares)
    return Level(
        size=(vertical.length, horizontal.length),
        rows=row.flatten().to(device),
        columns=column.flatten().to(device),
        corner=(top * horizontal.end + left).flatten().to(device),
        weight=weight.flatten().to(device),
        box=box.reshape(-1, 4).to(device, torch.int32),
    )
