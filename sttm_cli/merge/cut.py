"""One frame's quadtree cut to a number of tokens, where every threshold jumps over it.

A knapsack on a tree: what the cells in a cell can add up to is worked out from the finest level
upward, and which of them are split is read back from the roots downward.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import numpy as np
import torch

from sttm_cli.merge.pyramid import Pyramid

Table = np.ndarray
"""By number of tokens, how well it agrees with the threshold; -inf where it cannot be had."""
Cell = tuple[int, int]
"""A level, and the number of the cell in quadtree order."""

WHOLE: Table = np.array([-np.inf, 0.0])
"""A cell that stays whole is one token."""


class Cuts:
    """The numbers of tokens, up to `most`, that the cells of a frame can add up to.

    `least` [cells of levels 1..L]: each cell's similarity to the child least like it. A split
    cell counts by how far it is below `spatial`, so that the best cut of all is the threshold's
    own; cells equal to all their children stay whole.
    """

    def __init__(self, least: torch.Tensor, pyramid: Pyramid, *, spatial: float, most: int) -> None:
        self._pyramid, self._most = pyramid, most
        sizes = [pyramid.cells(level) for level in range(1, pyramid.depth + 1)]
        self._start = [0, 0, *accumulate(sizes)]
        self._gain: list[float] = (spatial - least.double()).tolist()
        # A lone child always equals its parent: that is not a repetition.
        self._divides: list[bool] = (~pyramid.several | (least < 1)).tolist()
        self._order: list[int] = pyramid.order.tolist()
        self._roots = [(pyramid.depth, root) for root in range(pyramid.root_count)]
        self._shares: dict[Cell, list[np.ndarray]] = {}
        self.table = self._added((0, -1), self._roots)

    def nearest(self, fewest: int) -> int:
        """The best number of tokens from `fewest` to `most`, else the largest below."""
        wanted = self.table[fewest:]
        if np.isfinite(wanted).any():
            return fewest + int(wanted.argmax())
        return int(np.isfinite(self.table).nonzero()[0][-1])

    def split(self, count: int) -> torch.Tensor:
        """Which cells of levels 1..L are split in the best cut to `count` tokens: a mask."""
        mask = torch.zeros(len(self._gain), dtype=torch.bool)
        left = [((0, -1), self._roots, count)]
        while left:
            cell, parts, tokens = left.pop()
            for part, shares in zip(reversed(parts), reversed(self._shares[cell]), strict=True):
                share = int(shares[tokens])
                tokens -= share
                if share > 1:
                    mask[self._place(part)] = True
                    left.append((part, self._children(part), share))
        return mask

    def _options(self, cell: Cell) -> Table:
        level, _ = cell
        if level == 0 or not self._divides[self._place(cell)]:
            return WHOLE
        table = self._added(cell, self._children(cell)) + self._gain[self._place(cell)]
        table[1:2] = 0.0
        return table

    def _added(self, cell: Cell, parts: Iterable[Cell]) -> Table:
        """What the parts add up to; how many tokens each one then has is noted under `cell`."""
        table: Table = np.zeros(1)
        noted = self._shares[cell] = []
        for part in parts:
            options = self._options(part)
            size = min(len(table) + len(options) - 1, self._most + 1)
            added, share = np.full(size, -np.inf), np.zeros(size, np.int64)
            for tokens in np.isfinite(options).nonzero()[0].tolist():
                reached = slice(tokens, min(tokens + len(table), size))
                value = table[: reached.stop - tokens] + options[tokens]
                better = value > added[reached]
                added[reached][better], share[reached][better] = value[better], tokens
            table = added
            noted.append(share)
        return table

    def _children(self, cell: Cell) -> list[Cell]:
        """The cells in a cell; what fills the place of one that an odd side lacks is none."""
        level, number = cell
        fan = self._pyramid.fan
        step = fan ** (level - 1)
        found = {
            self._order[child * step]: (level - 1, child)
            for child in reversed(range(number * fan, number * fan + fan))
        }
        return list(found.values())

    def _place(self, cell: Cell) -> int:
        """Where the levels, laid one after another, have the cell."""
        level, number = cell
        return self._start[level] + number
