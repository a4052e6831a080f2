"""Exact repetition: tells cells that are equal from cells that only look equal after rounding.

Equal cells merge without loss, so they do under any budget. Their cosines come out as 1 give or
take a rounding error, as do those of cells that differ in their last digits; what is equal can
only be seen in the features themselves.
"""

from __future__ import annotations

import torch

from sttm_cli.merge.products import frames_at_once
from sttm_cli.merge.pyramid import Pyramid, level_pairs
from sttm_cli.merge.similarity import BELOW_ONE, Similarities

NEAR = 1 - 1e-5
"""Cosines of equal vectors are above this, in whatever order their products were summed."""


def settle_repetition(
    features: torch.Tensor, pyramid: Pyramid, found: Similarities, threshold: float
) -> Similarities:
    """`found` with exactly 1 between equal cells, zero vectors included, and less elsewhere.

    A cell equals its children, or a cell inside it in the next frame, where all finest cells in
    them are one and the same vector; cells with the same box are equal where each finest cell
    repeats. The features are read again only where that can matter: where vectors are zero, or
    something is near and the highest `threshold` nearer.
    """
    near = (found.cross >= NEAR).any() | (found.least[:, pyramid.several] >= NEAR).any()
    asked = (found.norm == 0).any() | (near if threshold > NEAR else False)
    if not bool(asked):
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
    step = min(frames_at_once(features, pyramid), len(features))
    # Buffers, because allocating anew would cost more than comparing.
    shape = (step, len(pyramid.order), features.shape[3])
    now, before, space = (features.new_empty(shape) for _ in range(3))
    repeats, follows, last = [], [], before[:0]
    for frames in features.flatten(1, 2).split(step):
        cells = torch.index_select(frames, 1, pyramid.order, out=now[: len(frames)])
        repeats += [_equal(cells[: len(last)], last, space), _equal(cells[1:], cells[:-1], space)]
        follows.append(_equal(cells[:, 1:], cells[:, :-1], space))
        now, before, last = before, now, cells[-1:]
    chain = torch.nn.functional.pad(torch.cat(follows), (1, 0))
    # The first finest cell of each box follows one of another box: it is not asked.
    uniform = []
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


def _equal(one: torch.Tensor, other: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
    """Which vectors [..., C] are the same; `space` is overwritten.

    Differences take a third of the time of `==` and `all`.
    """
    difference = space.view(-1)[: one.numel()].view(one.shape)
    torch.sub(one, other, out=difference)
    return torch.eq(difference.abs_().amax(-1), 0)
