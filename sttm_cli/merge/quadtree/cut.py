"""`Cuts`: one frame's quadtree cut to an exact number of tokens that no threshold gives.

A knapsack on a tree: a bottom-up pass computes the reachable token counts of every cell, and a
top-down pass reads back which cells are split.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import numpy as np
import torch

from sttm_cli.merge.quadtree.pyramid import Pyramid

Table = np.ndarray
"""Score by number of tokens: agreement with the threshold, -inf where unreachable."""
Cell = tuple[int, int]
"""A cell: its level and its index in quadtree order."""

WHOLE: Table = np.array([-np.inf, 0.0])
"""The table of an unsplit cell: one token."""


class Cuts:
    """All token counts up to `most` that one frame's quadtree can be cut to.

    `least` [cells of levels 1..L]: each cell's similarity to its least similar child. A split
    cell scores `spatial` minus that similarity, so the best cut overall is the one at the
    threshold `spatial`; cells equal to all their children are never split.
    """

    def __init__(self, least: torch.Tensor, pyramid: Pyramid, *, spatial: float, most: int) -> None:
        self._pyramid, self._most = pyramid, most
        sizes = [pyramid.cells(level) for level in range(1, pyramid.depth + 1)]
        self._start = [0, 0, *accumulate(sizes)]
        self._gain: list[float] = (spatial - least.double()).tolist()
        # A lone child always equals its parent; that does not count as repetition.
        self._divides: list[bool] = (~pyramid.several | (least < 1)).tolist()
        self._order: list[int] = pyramid.order.tolist()
        self._roots = [(pyramid.depth, root) for root in range(pyramid.root_count)]
        self._shares: dict[Cell, list[np.ndarray]] = {}
        self.table = self._added((0, -1), self._roots)

    def nearest(self, fewest: int) -> int:
        """Return the best number of tokens from `fewest` to `most`, else the largest below."""
        wanted = self.table[fewest:]
        if np.isfinite(wanted).any():
            return fewest + int(wanted.argmax())
        return int(np.isfinite(self.table).nonzero()[0][-1])

    def split(self, count: int) -> torch.Tensor:
        """Return the mask [cells of levels 1..L] of split cells in the best cut to `count`."""
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
        """Combine the tables of `parts`, and record each part's token counts under `cell`."""
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
        """Return the cells in a cell, without the copies that stand in for missing children."""
        level, number = cell
        fan = self._pyramid.fan
        step = fan ** (level - 1)
        by_corner = {
            self._order[child * step]: (level - 1, child)
            for child in reversed(range(number * fan, number * fan + fan))
        }
        return list(by_corner.values())

    def _place(self, cell: Cell) -> int:
        """Return the cell's index in the concatenated levels 1..L."""
        level, number = cell
        return self._start[level] + number
