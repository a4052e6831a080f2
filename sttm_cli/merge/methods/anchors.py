"""Anchors that are least alike, and all other tokens merged into the nearest of them.

In windows of a few frames the anchors are chosen farthest first, by cosine: each is the cell that
is least like all anchors before it (max-min diversity, as in DivPrune, Alvar et al., CVPR 2025,
arXiv 2503.02175, which drops the other tokens). Windows compete for the budget: an anchor is kept
where it is farther from the others of its window, so that a still window needs few. Every other
cell of the window merges into its nearest anchor, at whose place the token stands.

Time and memory are linear in the number of frames.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.functional import normalize, pad

from sttm_cli.merge.checks import check_finite
from sttm_cli.merge.groups import evenly, grouped, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.tokens import MergedTokens

FRAMES, CELLS = 8, 1024
"""A window has at most so many frames, and cells; a larger frame is several windows."""
WIDTH = 256
"""Rows of more channels are compared by sketches of so many, to about 9 % of their distance."""
MOST = 2
"""A window has at most so many times its even share of the anchors."""


def anchors(features: torch.Tensor, keep: int) -> MergedTokens:
    """Merge `features` [T, H, W, C] into `keep` anchors.

    If `keep` is smaller than the number of windows, evenly spaced windows keep one each, and the
    cells of the others are dropped.
    """
    rows = _windows(features)
    windows, cells = rows.shape[:2]
    total = features.shape[:3].numel()
    names = torch.full((windows, cells), -1, device=rows.device)
    used = evenly(min(keep, windows), windows, rows.device)
    start = used[:, None] * cells
    real = start + torch.arange(cells, device=rows.device) < total
    rows = rows[used]
    alike = rows @ rows.mT
    order, reach = _farthest_first(alike, real, min(cells, -(-MOST * keep // len(used))))
    names[used] = start + _nearest(alike, order, _shares(reach, keep))
    return grouped(features, names.flatten()[:total])


def _windows(features: torch.Tensor) -> torch.Tensor:
    """The directions of the cells by window, [W, n, at most WIDTH], the last filled with zeros."""
    per_frame = features.shape[1] * features.shape[2]
    frames = max(1, min(FRAMES, CELLS // per_frame, len(features)))
    cells = frames * per_frame if per_frame <= CELLS else -(-per_frame // -(-per_frame // CELLS))
    rows = torch.cat([_sketched(frame.flatten(0, 1)) for frame in features])
    check_finite(rows, features)
    filled: torch.Tensor = pad(normalize(rows, dim=1), (0, 0, 0, -len(rows) % cells))
    return filled.view(-1, cells, rows.shape[1])


def _sketched(rows: torch.Tensor) -> torch.Tensor:
    """Rows [n, C] -> rows [n, at most WIDTH] with nearly the same cosines.

    Each channel is a sum of several with fixed random signs (a count sketch).
    """
    if rows.shape[1] <= WIDTH:
        return rows.float()
    sums = rows.new_zeros(len(rows), WIDTH, dtype=torch.float32)
    parts = _signs(rows.shape[1]).to(rows.device).split(WIDTH)
    for part, signs in zip(rows.split(WIDTH, 1), parts, strict=True):
        sums[:, : len(signs)].addcmul_(part, signs)
    return sums


@lru_cache(maxsize=8)
def _signs(channels: int) -> torch.Tensor:
    drawn = torch.randint(0, 2, (channels,), generator=torch.Generator().manual_seed(0))
    return drawn.float() * 2 - 1


def _farthest_first(
    alike: torch.Tensor, real: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Order cells so that each is the least like those before it; `alike` [W, n, n] cosines.

    Returns cells and their distances from those before, [W, count]: infinity for the first, minus
    infinity for what is not `real` [W, n].
    """
    each = torch.arange(len(alike), device=alike.device)
    # The first anchor is the cell least like the mean of its window.
    cell = torch.where(real, alike.sum(2), torch.inf).argmin(1)
    near = torch.where(real, -torch.inf, torch.inf)
    order, reach = [], []
    for _ in range(count):
        order.append(cell)
        reach.append(-near[each, cell])
        near = torch.maximum(near, alike[each, cell])
        near[each, cell] = torch.inf
        cell = near.argmin(1)
    return torch.stack(order, 1), torch.stack(reach, 1)


def _shares(reach: torch.Tensor, keep: int) -> torch.Tensor:
    """How many anchors each window has, [W]: the `keep` farthest of all."""
    taken = reach.flatten().argsort(descending=True, stable=True)[:keep]
    return torch.bincount(taken // reach.shape[1], minlength=len(reach))


def _nearest(alike: torch.Tensor, order: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Each cell's most similar anchor in its window, [W, n]; an anchor's own is itself."""
    names = []
    for cosines, cells, share in zip(alike, order, shares.tolist(), strict=True):
        chosen = cells[:share]
        nearest = chosen[cosines[chosen].argmax(0)]
        nearest[chosen] = chosen
        names.append(nearest)
    return torch.stack(names)


METHOD = Method("anchors", 1, within_budget(anchors), sizes=True)
