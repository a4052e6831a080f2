"""`Pyramid`: the index tables of the quadtree over one frame's grid.

They depend on the grid's size alone and are built once per size and device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Pyramid:
    """Levels 0..L of a grid of P = H*W finest cells; level 0 is the finest, level L the roots.

    Per level and finest cell (row-major): `corner` [L+1, P] int64, the finest index of the
    top-left cell of the box around the cell; `share` [L+1, P] float32, the cell's weight in the
    pooled feature of that box; `box` [L+1, P, 4] int32, the box: top, left, bottom, right.

    Quadtree order keeps the `fan` children of a cell together: cell i of a level covers the cells
    i*fan to i*fan+fan-1 of the level below. Where an odd side leaves a child out, its neighbour
    is repeated, which changes neither a mean nor a minimum. `order` [Z] int64: the finest index
    at each place; `lacking`: for each level from 1 on, the cells with a missing child.

    Arrays over the cells of levels 1..L concatenate the levels: `several` [cells] bool marks the
    cells with more than one child, `parent_at` [L, P] int64 is the index of each finest cell's
    ancestor at each level. Arrays over pairs of levels concatenate the pairs in the order of
    `level_pairs`, each with the cells of its finer level: `pair_at` [(L+1)**2, P] int64.
    """

    corner: torch.Tensor
    share: torch.Tensor
    box: torch.Tensor
    fan: int
    order: torch.Tensor
    lacking: tuple[torch.Tensor, ...]
    several: torch.Tensor
    parent_at: torch.Tensor
    pair_at: torch.Tensor

    @property
    def depth(self) -> int:
        """L, the level of the roots."""
        return len(self.corner) - 1

    @property
    def root_count(self) -> int:
        """The number of roots of a frame, the fewest tokens that it can be merged to."""
        return self.cells(self.depth)

    def cells(self, level: int) -> int:
        """Return the number of cells of a level, repeated neighbours included."""
        return len(self.order) // int(self.fan**level)


def build_pyramid(height: int, width: int, root_level: int, device: torch.device) -> Pyramid:
    """Build the pyramid of a grid: sides are halved until one is 2; a side of 1 stays 1.

    `root_level` 0 puts the roots at the coarsest level, each step one level finer, down to the
    finest. Section 3.2.
    """
    return _build(height, width, max(0, _halvings(height, width) - root_level), str(device))


def level_pairs(depth: int) -> Iterator[tuple[int, int]]:
    """Yield all pairs (level in the later frame, level in the earlier frame)."""
    return ((later, earlier) for later in range(depth + 1) for earlier in range(depth + 1))


def _halvings(height: int, width: int) -> int:
    count = 0
    while 2 not in (height, width) and (height, width) != (1, 1):
        height, width, count = (height + 1) // 2, (width + 1) // 2, count + 1
    return count


@lru_cache(maxsize=32)
def _build(height: int, width: int, depth: int, device: str) -> Pyramid:
    down, across = _side(height, depth), _side(width, depth)
    spans = [down.start, across.start, down.end, across.end]
    grids = [s[:, None, :] if i % 2 else s[:, :, None] for i, s in enumerate(spans)]
    fan = (2 if height > 1 else 1) * (2 if width > 1 else 1)
    order = _quadtree_order(down.slots, across.slots, width)
    parent_at, pair_at = _lookups(order, height * width, fan, depth)
    return Pyramid(
        corner=(grids[0] * width + grids[1]).flatten(1).to(device),
        share=(down.share[:, :, None] * across.share[:, None, :]).flatten(1).to(device),
        box=torch.stack(torch.broadcast_tensors(*grids), -1).flatten(1, 2).int().to(device),
        fan=fan,
        order=order.to(device),
        lacking=tuple(cells.to(device) for cells in _lacking(order, fan, down, across)),
        several=_several(order, fan, depth).to(device),
        parent_at=parent_at.to(device),
        pair_at=pair_at.to(device),
    )


@dataclass(frozen=True)
class _Side:
    """One side of the pyramid, n finest rows long.

    `start`, `end` [L+1, n]: the interval of each level around each row; `share` [L+1, n]: the
    row's weight in it; `slots` [roots, S]: the row at each place below each root; `alone` [L+1]:
    whether the level's first interval has one child only.
    """

    start: torch.Tensor
    end: torch.Tensor
    share: torch.Tensor
    slots: torch.Tensor
    alone: tuple[bool, ...]


def _side(length: int, depth: int) -> _Side:
    """Pair neighbours, level after level; where their number is odd, the first stays alone."""
    rows = torch.arange(length)
    index, share, slots, alone = (
        [rows],
        [torch.ones(length, dtype=torch.float32)],
        rows[:, None],
        [False],
    )
    for _ in range(depth):
        odd = len(slots) % 2 if length > 1 else 0
        halves = length > 1 and ~((index[-1] == 0) & bool(odd))
        share.append(share[-1] / (1 + torch.as_tensor(halves, dtype=torch.float32)))
        index.append((index[-1] + odd) // 2 if length > 1 else index[-1])
        if length > 1:
            filled = torch.cat([slots[:odd], slots])
            slots = torch.cat([filled[0::2], filled[1::2]], 1)
        alone.append(bool(odd))
    together = torch.stack(index)[:, :, None] == torch.stack(index)[:, None, :]
    start = torch.where(together, rows, length).amin(-1)
    end = torch.where(together, rows + 1, 0).amax(-1)
    return _Side(start=start, end=end, share=torch.stack(share), slots=slots, alone=tuple(alone))


def _quadtree_order(rows: torch.Tensor, columns: torch.Tensor, width: int) -> torch.Tensor:
    """Return the finest indices [Z] in depth-first order of the quadtree."""
    grid = (rows[:, None, :, None] * width + columns[None, :, None, :]).flatten(0, 1)
    while grid.shape[1:].numel() > 1:
        # Halve both sides: [cells, h, w] -> [cells * (children down) * (children across), ..]
        down, across = min(2, grid.shape[1]), min(2, grid.shape[2])
        halves = grid.unflatten(2, (across, -1)).unflatten(1, (down, -1))
        grid = halves.permute(0, 1, 3, 2, 4).flatten(0, 2)
    return grid.flatten()


def _lookups(
    order: torch.Tensor, cells: int, fan: int, depth: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `Pyramid.parent_at` and `Pyramid.pair_at`."""
    places = torch.arange(len(order))
    place = torch.full((cells,), len(order)).scatter_reduce_(0, order, places, "amin")
    around = [place // fan**level for level in range(depth + 1)]
    sizes = [len(order) // fan**level for level in range(depth + 1)]
    parents = [around[k] + sum(sizes[1:k]) for k in range(1, depth + 1)]
    pairs, offset = [], 0
    for finer in map(min, level_pairs(depth)):
        pairs.append(around[finer] + offset)
        offset += sizes[finer]
    return torch.stack(parents) if parents else place.new_empty(0, cells), torch.stack(pairs)


def _lacking(order: torch.Tensor, fan: int, down: _Side, across: _Side) -> Iterator[torch.Tensor]:
    """Yield, for each level from 1 on, the cells with a child missing on an odd side."""
    width = across.start.shape[1]
    first_row, first_column = order < width, order % width == 0
    for level in range(1, len(down.alone)):
        border = first_row & down.alone[level] | first_column & across.alone[level]
        yield border.view(-1, fan**level).any(1).nonzero()[:, 0]


def _several(order: torch.Tensor, fan: int, depth: int) -> torch.Tensor:
    """Compute `Pyramid.several`: whether the children of a cell differ."""
    masks = [torch.zeros(0, dtype=torch.bool)]
    for level in range(1, depth + 1):
        children = order.view(-1, fan, fan ** (level - 1))
        masks.append((children != children[:, :1]).flatten(1).any(1))
    return torch.cat(masks)
