"""`merge_tokens`: a video's visual tokens merged at known thresholds, or to a budget.

Source: Multi-Granular Spatio-Temporal Token Merging, ICCV 2025, arXiv 2507.07990.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sttm_cli.merge.budget import fit, token_limit
from sttm_cli.merge.grouping import (
    Nodes,
    candidates,
    follow,
    join_rounds,
    link_first,
    link_most_similar,
    split,
)
from sttm_cli.merge.pyramid import Level, build_pyramid
from sttm_cli.merge.similarity import Similarities, measure
from sttm_cli.merge.tokens import MergedTokens, Sources


@torch.no_grad()
def merge_tokens(
    features: torch.Tensor,
    *,
    spatial_threshold: float | None = None,
    temporal_threshold: float | None = None,
    budget: float | int | None = None,
    root_level: int = 1,
    weighted: bool = False,
    head_dim: int | None = None,
    semantics: str = "paper",
    link: str = "first",
) -> MergedTokens:
    """Merge `features` [T, H, W, C] in space, then in time."""
    frames, height, width, channels = features.shape
    levels = build_pyramid(height, width, root_level, features.device)
    heads = channels // head_dim if head_dim else 1
    padding = semantics == "reference"
    found = measure(features, levels, heads=heads, padding=padding)
    if budget is not None:
        while (
            root_level
            and frames
            and levels[-1].size[0] * levels[-1].size[1]
            > token_limit(budget, frames * height * width)
        ):
            root_level -= 1
            levels = build_pyramid(height, width, root_level, features.device)
            found = measure(features, levels, heads=heads, padding=padding)
        return _to_budget(features, found, levels, budget, link, weighted)
    spatial = 0.8 if spatial_threshold is None else spatial_threshold
    temporal = 0.6 if temporal_threshold is None else temporal_threshold
    nodes = split(found.keep, levels, spatial)
    roots = _roots(nodes, found, temporal, semantics=semantics, link=link)
    return _gather(features, levels, nodes, roots, weighted, spatial, temporal)


def _roots(
    nodes: Nodes, found: Similarities, threshold: float, *, semantics: str, link: str
) -> torch.Tensor:
    frames, count = nodes.level.shape[0], nodes.name.numel()
    if threshold <= 0 or frames == 1:
        return torch.arange(count, device=nodes.name.device)
    pairs = candidates(nodes, found)
    passes = pairs.similarity >= threshold
    if semantics == "reference":
        return join_rounds(pairs, passes, count)
    choose = link_first if link == "first" else link_most_similar
    return follow(choose(pairs, passes, count), frames)


def _gather(features, levels, nodes, roots, weighted, spatial, temporal):  # type: ignore[no-untyped-def]
    shape = features.shape[:3]
    frames, cells = nodes.level.shape
    device = features.device
    here = torch.arange(cells, device=device)
    share = torch.stack([level.weight for level in levels])[nodes.level, here].flatten()
    is_node = nodes.name == torch.arange(nodes.name.numel(), device=device)
    group = roots[nodes.name]
    is_root = is_node & (group == nodes.name)
    rank = is_root.cumsum(0) - 1
    kept = is_root.nonzero()[:, 0]
    count = kept.numel()
    index = rank[group]
    area = torch.zeros_like(share).index_add_(0, nodes.name, torch.ones_like(share))
    mass = torch.where(is_node, area if weighted else 1.0, 0.0)
    total = torch.zeros(count, device=device).index_add_(0, index, mass)
    weight = share * mass[nodes.name] / total[index]
    boxes = torch.stack([level.box for level in levels])[nodes.level.flatten()[kept], kept % cells]
    boxes = torch.cat([(kept // cells).int()[:, None], boxes], 1)
    sources = Sources(index.reshape(shape), weight.reshape(shape), count)
    return MergedTokens(
        sources(features),
        boxes,
        torch.bincount(index, minlength=count).int(),
        kept,
        sources,
        int(is_node.sum()),
        spatial,
        temporal,
    )


def _to_budget(features, found, levels, budget, link, weighted):  # type: ignore[no-untyped-def]
    frames, height, width, _ = features.shape
    total = frames * height * width
    limit = token_limit(budget, total)
    if limit >= total:
        return _identity(features, levels)
    fitted = fit(found, levels, limit)
    nodes, count = fitted.nodes, fitted.nodes.name.numel()
    roots = torch.arange(count, device=features.device)
    if frames > 1:
        pairs = candidates(nodes, found)
        passes = fitted.linked[pairs.later] & (pairs.similarity >= fitted.temporal)
        choose = link_first if link == "first" else link_most_similar
        roots = follow(choose(pairs, passes, count), frames)
    return _gather(features, levels, nodes, roots, weighted, fitted.spatial, fitted.temporal)


def _identity(features: torch.Tensor, levels: Sequence[Level]) -> MergedTokens:
    frames, height, width, _ = features.shape
    name = torch.arange(frames * height * width, device=features.device)
    nodes = Nodes(torch.zeros_like(name).reshape(frames, -1), name)
    return _gather(features, levels, nodes, name, False, None, None)
