"""`merge_tokens`: merges the visual tokens of a video in space, then in time.

Source: "Multi-Granular Spatio-Temporal Token Merging for Training-Free Acceleration of Video
LLMs", ICCV 2025, arXiv 2507.07990.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from sttm_cli.merge.checks import check_features, check_finite, check_settings, too_small
from sttm_cli.merge.quadtree.budget import fit, token_limit
from sttm_cli.merge.quadtree.grouping import (
    Candidates,
    Nodes,
    follow,
    join_in_rounds,
    link_to_first,
    link_to_most_similar,
    pair_up,
    split,
    spread,
)
from sttm_cli.merge.quadtree.pyramid import Pyramid, build_pyramid
from sttm_cli.merge.quadtree.repetition import settle_repetition
from sttm_cli.merge.quadtree.similarity import Similarities, measure
from sttm_cli.merge.tokens import MergedTokens, Sources

SPATIAL, TEMPORAL = 0.8, 0.6
"""The default thresholds, used if no budget is given."""


@dataclass(frozen=True)
class Grouping:
    """Nodes, the name of each finest cell's root [T*P], and the thresholds used."""

    nodes: Nodes
    root: torch.Tensor
    spatial: float | None = None
    temporal: float | None = None


@torch.no_grad()
def merge_tokens(
    features: torch.Tensor,
    spatial_threshold: float | None = None,
    temporal_threshold: float | None = None,
    *,
    budget: float | int | None = None,
    root_level: int = 1,
    weighted: bool = False,
    head_dim: int | None = None,
    semantics: Literal["paper", "reference"] = "paper",
    link: Literal["first", "most_similar"] = "first",
) -> MergedTokens:
    """Merge a video's visual tokens `features` [T, H, W, C] in space, then in time.

    Thresholds are cosines in [-1, 1], by default 0.8 and 0.6; a temporal one <= 0 disables merging
    in time. `budget` sets both instead: a share in (0, 1] or a number of tokens >= 16, an upper
    bound met as closely as the video allows; a budget that allows every token merges nothing.
    `root_level` 0 starts the quadtree at the coarsest level, 1 one level finer; it is lowered if
    the roots of one frame exceed the budget. `weighted` averages nodes by their patch counts;
    `head_dim` takes the mean of per-head cosines. `semantics="reference"` reproduces the released
    code exactly, quirks included; `link` selects the candidate that a node merges into.

    Accepts float16, bfloat16 or float32 on any device; similarities are computed in float32.
    Raises UsageError, a ValueError, for invalid arguments. Sections 3.2 and 3.3.
    """
    check_features(features)
    check_settings(
        {"spatial_threshold": spatial_threshold, "temporal_threshold": temporal_threshold},
        budget=budget,
        root_level=root_level,
        head_dim=head_dim,
        channels=features.shape[3],
        weighted=weighted,
        choices={"semantics": semantics, "link": link},
    )
    features = features.contiguous()
    rule = Rule(
        root_level=root_level,
        head_dim=head_dim,
        reference=semantics == "reference",
        most_similar=link == "most_similar",
    )
    if budget is None:
        spatial = SPATIAL if spatial_threshold is None else float(spatial_threshold)
        temporal = TEMPORAL if temporal_threshold is None else float(temporal_threshold)
        grouping, pyramid = _at_thresholds(features, rule, spatial, temporal)
    else:
        grouping, pyramid = _to_budget(features, rule, budget)
    return _collect(features, grouping, pyramid, weighted=weighted)


@dataclass(frozen=True)
class Rule:
    """The options of `merge_tokens` for measuring similarities and linking nodes."""

    root_level: int
    head_dim: int | None
    reference: bool
    most_similar: bool

    def pyramid(self, features: torch.Tensor, *, lowered: int = 0) -> Pyramid:
        height, width = features.shape[1:3]
        return build_pyramid(height, width, self.root_level - lowered, features.device)

    def measure(
        self, features: torch.Tensor, pyramid: Pyramid, *, threshold: float
    ) -> Similarities:
        """Measure all similarities; `threshold` is the highest that they are compared with."""
        heads = features.shape[3] // self.head_dim if self.head_dim else 1
        cosines = measure(features, pyramid, heads=heads, padding=self.reference)
        check_finite(cosines.norm, features)
        return (
            cosines if self.reference else settle_repetition(features, pyramid, cosines, threshold)
        )

    def roots(self, nodes: Nodes, pairs: Candidates, passes: torch.Tensor) -> torch.Tensor:
        """Return, by finest cell, the name of the root of its node."""
        count = len(nodes.name)
        if self.reference:
            return join_in_rounds(pairs, passes, count)[nodes.name]
        link = link_to_most_similar if self.most_similar else link_to_first
        return follow(link(pairs, passes, count), len(nodes.level))[nodes.name]


def _at_thresholds(
    features: torch.Tensor, rule: Rule, spatial: float, temporal: float
) -> tuple[Grouping, Pyramid]:
    pyramid = rule.pyramid(features)
    cosines = rule.measure(features, pyramid, threshold=max(spatial, temporal))
    nodes = split(spread(cosines.least, pyramid), pyramid, spatial)
    root = nodes.name
    if temporal > 0:
        pairs = pair_up(nodes, cosines, pyramid)
        root = rule.roots(nodes, pairs, pairs.similarity >= temporal)
    return Grouping(nodes=nodes, root=root, spatial=spatial, temporal=temporal), pyramid


def _to_budget(features: torch.Tensor, rule: Rule, budget: float | int) -> tuple[Grouping, Pyramid]:
    total = features.shape[:3].numel()
    limit, lowered = token_limit(budget, total), 0
    pyramid = rule.pyramid(features)
    if limit.most >= total:
        check_finite(features, features)
        name = torch.arange(total, device=features.device)
        return Grouping(Nodes(torch.zeros_like(name).view(len(features), -1), name), name), pyramid
    while pyramid.root_count > limit.most:
        if lowered == rule.root_level:
            raise too_small(budget, limit.most, total, pyramid.root_count)
        lowered += 1
        pyramid = rule.pyramid(features, lowered=lowered)
    cosines = rule.measure(features, pyramid, threshold=1.0)
    fitted = fit(cosines, pyramid, limit)
    pairs = pair_up(fitted.nodes, cosines, pyramid)
    passes = fitted.linked[pairs.later] & (pairs.similarity >= fitted.temporal)
    root = rule.roots(fitted.nodes, pairs, passes)
    return Grouping(
        nodes=fitted.nodes, root=root, spatial=fitted.spatial, temporal=fitted.temporal
    ), pyramid


def _collect(
    features: torch.Tensor, grouping: Grouping, pyramid: Pyramid, *, weighted: bool
) -> MergedTokens:
    """Compute the tokens of a grouping: one per root, the mean of the nodes in its group."""
    nodes, root, cells = grouping.nodes, grouping.root, grouping.nodes.level.shape[1]
    is_node = nodes.is_node
    is_root = root == torch.arange(len(root), device=root.device)
    roots = is_root.nonzero()[:, 0]
    index = (is_root.cumsum(0) - 1)[root]
    patches = torch.zeros(len(roots), dtype=torch.int32, device=root.device)
    patches.index_add_(0, index, torch.ones_like(index, dtype=torch.int32))
    sources = Sources(
        index.view(features.shape[:3]),
        _weights(nodes, is_node, root, pyramid, weighted).view(features.shape[:3]),
        len(roots),
    )
    boxes = pyramid.box[nodes.level.flatten()[roots], roots % cells]
    return MergedTokens(
        features=sources(features),
        boxes=torch.cat([(roots // cells)[:, None].int(), boxes], 1),
        patch_counts=patches,
        roots=roots,
        sources=sources,
        after_spatial=int(is_node.sum()),
        spatial_threshold=grouping.spatial,
        temporal_threshold=grouping.temporal,
    )


def _weights(
    nodes: Nodes, is_node: torch.Tensor, root: torch.Tensor, pyramid: Pyramid, weighted: bool
) -> torch.Tensor:
    """Return each finest cell's weight in its token: its share of the node, times the node's share
    of the group."""
    share = pyramid.share.gather(0, nodes.level).flatten()
    mass = is_node.float()
    if weighted:
        mass = torch.zeros_like(share).index_add_(0, nodes.name, torch.ones_like(share))
    total = torch.zeros_like(share).index_add_(0, root, torch.where(is_node, mass, 0.0))
    return share * mass[nodes.name] / total[root]
