"""Functions shared by the methods: budgets, and tokens from kept or grouped cells."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sttm_cli.base.errors import UsageError
from sttm_cli.merge.checks import check_budget, check_features, check_finite, is_whole
from sttm_cli.merge.quadtree.budget import token_limit
from sttm_cli.merge.quadtree.merging import merge_tokens
from sttm_cli.merge.tokens import MergedTokens, Sources

ToCount = Callable[[torch.Tensor, int], MergedTokens]
"""Merges features [T, H, W, C] to a number of tokens from 1 to T*H*W - 1."""


def within_budget(merge: ToCount) -> Callable[[torch.Tensor, float | int], MergedTokens]:
    """Wrap `merge` to take a budget as in `Method`.

    The result raises UsageError for an invalid budget, and for features that are not finite.
    """

    @torch.no_grad()
    def to_budget(features: torch.Tensor, budget: float | int) -> MergedTokens:
        check_features(features)
        check_budget(budget, 1)
        total = features.shape[:3].numel()
        most = int(budget) if is_whole(budget) else token_limit(budget, total).most
        if most >= total:
            return merge_tokens(features, budget=1.0)
        # A sum that is not finite has such a term, or is too large: one pass over the features.
        if not bool(features.sum(-1, dtype=torch.float32).isfinite().all()):
            check_finite(features, features)
        return merge(features.contiguous(), max(1, most))

    return to_budget


def chosen(features: torch.Tensor, cells: torch.Tensor) -> MergedTokens:
    """Keep the `cells` [N] (flat indices, any order) of `features` [T, H, W, C]."""
    names = torch.full((features.shape[:3].numel(),), -1, device=features.device)
    names[cells] = cells
    return grouped(features, names)


def grouped(features: torch.Tensor, names: torch.Tensor) -> MergedTokens:
    """Average the cells of each group.

    `names` [T*H*W] int64: the flat index of the group's representative, -1 for a dropped cell.
    """
    used = names >= 0
    roots, sizes = names[used].unique(return_counts=True)
    place = torch.searchsorted(roots, names.clamp(min=0)).clamp(max=len(roots) - 1)
    index = torch.where(used, place, -1)
    weight = torch.where(used, sizes[place].float().reciprocal(), 0.0)
    grid = features.shape[:3]
    dropped = len(names) - int(sizes.sum())
    sources = Sources(
        index=index.view(grid), weight=weight.view(grid), count=len(roots), dropped=dropped
    )
    return MergedTokens(
        features=sources(features),
        boxes=_boxes(index, roots, grid),
        patch_counts=sizes.int(),
        roots=roots,
        sources=sources,
        after_spatial=len(roots),
        spatial_threshold=None,
        temporal_threshold=None,
    )


def _boxes(index: torch.Tensor, roots: torch.Tensor, grid: torch.Size) -> torch.Tensor:
    """Compute the boxes [N, 5] int32 of groups.

    A box covers the group's cells in the root's frame if they fill a rectangle whose top-left cell
    is the root, else the root alone. `index` [T*H*W] by cell, `roots` [N].
    """
    _, height, width = grid
    frame = roots // (height * width)
    cells = torch.arange(len(index), device=index.device)
    cells = cells[(index >= 0) & (cells // (height * width) == frame[index])]
    token, place = index[cells], cells % (height * width)
    top, left = roots % (height * width) // width, roots % width
    bottom = (top + 1).scatter_reduce(0, token, place // width + 1, "amax")
    right = (left + 1).scatter_reduce(0, token, place % width + 1, "amax")
    # Cells above the root or to its left are outside the rectangle.
    inside = (place // width >= top[token]) & (place % width >= left[token])
    count = torch.zeros_like(roots)
    filled = count.index_add(0, token, inside.long()) == (bottom - top) * (right - left)
    whole = filled & (count.index_add(0, token, (~inside).long()) == 0)
    ends = torch.where(whole, bottom, top + 1), torch.where(whole, right, left + 1)
    return torch.stack([frame, top, left, *ends], 1).int()


def filled_up(merged: MergedTokens, count: int) -> tuple[torch.Tensor, Sources]:
    """Return `count` roots, ascending, and sources: those of `merged`, and of further cells.

    For a number of tokens that is fixed in advance, where exact repetition left fewer. The further
    cells, spaced evenly among those without a token of their own, leave their groups. Raises
    UsageError, a ValueError, where `merged` has more tokens.
    """
    sources, roots = merged.sources, merged.roots
    missing = count - len(roots)
    if missing < 0:
        raise UsageError(f"{len(roots)} tokens are more than {count}", "the method must keep less")
    if not missing:
        return roots, sources
    index, grid = sources.index.flatten(), sources.index.shape
    owner = torch.where(index >= 0, roots[index.clamp(min=0)], -1)
    weight = torch.where(index >= 0, sources.weight.flatten(), 0.0)
    free = owner != torch.arange(len(owner), device=owner.device)
    added = free.nonzero()[:, 0]
    added = added[evenly(missing, len(added), added.device)]
    owner[added], weight[added] = added, 1.0
    roots = torch.cat([roots, added]).sort().values
    index = torch.where(owner >= 0, torch.searchsorted(roots, owner.clamp(min=0)), -1)
    total = torch.zeros(count, device=weight.device).index_add_(0, index.clamp(min=0), weight)
    weight = weight / total[index.clamp(min=0)]
    dropped = int((index < 0).sum())
    return roots, Sources(index.view(grid), weight.view(grid), count, dropped)


def evenly(count: int, total: int, device: torch.device | None = None) -> torch.Tensor:
    """Return `count` of the numbers 0 to `total` - 1, spaced evenly, ascending."""
    return ((2 * torch.arange(count, device=device) + 1) * total) // (2 * count)


def shared_out(weights: torch.Tensor, total: int, most: int) -> torch.Tensor:
    """Divide `total` in proportion to `weights` [T] into whole numbers of at most `most` each.

    Shares are rounded down; the rest goes to the largest remainders.
    """
    shares = torch.zeros_like(weights, dtype=torch.float64)
    open_, left = torch.ones_like(weights, dtype=torch.bool), float(total)
    while left > 1e-9 and open_.any():
        part = weights.double() * open_
        shares += left * part / part.sum()
        left = float((shares - most).clamp(min=0).sum())
        shares = shares.clamp(max=most)
        open_ = shares < most
    whole = (shares + 1e-9).floor().long()
    short = total - int(whole.sum())
    rest = torch.where(whole < most, shares - whole, -1.0)
    whole[rest.argsort(descending=True, stable=True)[:short]] += 1
    return whole


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Compute cosine similarities along the last axis, in float32."""
    return torch.nn.functional.cosine_similarity(one.float(), other.float(), dim=-1)
