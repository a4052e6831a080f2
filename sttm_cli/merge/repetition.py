"""Exact repetition: cells that are equal are told from cells that only look so after rounding.

Equal cells merge without loss, so they do under any budget. Their cosines come out as 1 give or
take a rounding error, as do those of cells that differ in their last digits; what is equal can
only be seen in the features themselves.
"""

from __future__ import annotations

import torch

from sttm_cli.merge.products import frames_at_once
from sttm_cli.merge.pyramid import Pyramid, level_pairs
from sttm_cli.merge.similarity import Similarities

NEAR = 1 - 1e-5
"""Cosines of equal vectors are above this, in whatever order their products were summed."""

BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1."""


def settle_repetition(
    features: torch.Tensor, pyramid: Pyramid, found: Similarities
) -> Similarities:
    """`found` with exactly 1 between equal cells, zero vectors included, and less elsewhere.

    A cell equals its children, or a cell inside it in the next frame, where all finest cells in
    them are one and the same vector; cells with the same box are equal where each finest cell
    repeats. Reads the features again only where something is near.
    """
    near = (found.cross >= NEAR).any() | (found.least[:, pyramid.several] >= NEAR).any()
    if not bool(near | (found.norm == 0).any()):
        return found
    repeats, uniform = _equal_cells(features, pyramid)
    least = torch.cat([found.least.new_zeros(len(features), 0, dtype=torch.bool), *uniform[1:]], 1)
    cross = [_equal_pair(repeats, uniform, *pair) for pair in level_pairs(pyramid.depth)]
    return Similarities(
        torch.where(least, 1.0, found.least.clamp(max=BELOW_ONE)),
        torch.where(torch.cat(cross, 1), 1.0, found.cross.clamp(max=BELOW_ONE)),
        found.norm,
    )


def _equal_cells(
    features: torch.Tensor, pyramid: Pyramid
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Which finest cells repeat the frame before [T-1, Z], which cells are uniform inside.

    The latter per level, [T, cells].
    """
    repeats, follows = [], []
    step = frames_at_once(features, pyramid)
    for start in range(0, len(features), step):
        known = min(start, 1)
        chunk = features[start - known : start + step].flatten(1, 2)
        cells = chunk.index_select(1, pyramid.order)
        repeats.append((cells[1:] == cells[:-1]).all(2))
        follows.append((cells == cells.roll(1, 1)).all(2)[known:])
    # The first finest cell of each box follows one of another box: it is not asked.
    chain, uniform = torch.cat(follows), []
    for level in range(pyramid.depth + 1):
        boxes = chain.view(len(chain), pyramid.cells(level), -1)
        uniform.append(boxes[:, :, 1:].all(2))
    return torch.cat(repeats), uniform


def _equal_pair(
    repeats: torch.Tensor, uniform: list[torch.Tensor], later: int, earlier: int
) -> torch.Tensor:
    """Which cells of level `later` equal the `earlier` ones before; [T-1, cells of the finer]."""
    after, before = uniform[later][1:], uniform[earlier][:-1]
    cells = max(after.shape[1], before.shape[1])
    repeat = repeats.view(len(repeats), cells, repeats.shape[1] // cells)
    if later == earlier:
        return repeat.all(2)
    after = after.repeat_interleave(cells // after.shape[1], 1)
    before = before.repeat_interleave(cells // before.shape[1], 1)
    return torch.logical_and(after & before, repeat[:, :, 0])
