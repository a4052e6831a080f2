"""From similarities to groups: the quadtree's nodes, their links in time, and common roots.

A node is named by the flat index, in the [T, H, W] grid, of the top-left cell of its box. Names
ascend by t, then top, then left: the smallest of several names is the top-left one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sttm_cli.merge.pyramid import Level
from sttm_cli.merge.similarity import Similarities


@dataclass(frozen=True)
class Nodes:
    """The quadtree's nodes, per finest cell (P = H*W).

    `level` [T, P] int64: the level of the node around the cell; `name` [T*P] int64: its name.
    """

    level: torch.Tensor
    name: torch.Tensor


@dataclass(frozen=True)
class Candidates:
    """Nodes that can be linked in time, per finest cell of frames 1..T-1.

    `later`, `earlier` [(T-1)*P] int64 names; `similarity` [(T-1)*P] float32 of the two nodes.
    """

    later: torch.Tensor
    earlier: torch.Tensor
    similarity: torch.Tensor


def split(keep: torch.Tensor, levels: Sequence[Level], threshold: float) -> Nodes:
    """The coarsest cells of which all children reach `threshold`; section 3.2."""
    ranks = torch.arange(len(levels), device=keep.device)[:, None, None]
    level = torch.where(keep >= threshold, ranks, 0).amax(0)
    corners = torch.stack([level.corner for level in levels])
    frames, cells = level.shape
    offset = torch.arange(frames, device=keep.device)[:, None] * cells
    corner = corners[level, torch.arange(cells, device=keep.device)]
    return Nodes(level, (corner + offset).flatten())


def candidates(nodes: Nodes, similarities: Similarities) -> Candidates:
    """Which nodes of consecutive frames nest, and how similar they are.

    Cells of one quadtree nest, so overlapping boxes always do: two label maps give all pairs.
    """
    frames, cells = nodes.level.shape
    count = int(similarities.keep.shape[0])
    which = nodes.level[1:] * count + nodes.level[:-1]
    similarity = similarities.pair.gather(0, which[None])[0]
    return Candidates(nodes.name[cells:], nodes.name[: (frames - 1) * cells], similarity.flatten())


def link_first(found: Candidates, passes: torch.Tensor, count: int) -> torch.Tensor:
    """Each node's parent [count]: the top-left candidate that `passes`, else itself; section 3.3."""
    parents = torch.arange(count, device=found.later.device)
    earlier = torch.where(passes, found.earlier, found.later)
    return parents.scatter_reduce_(0, found.later, earlier, "amin")


def link_most_similar(found: Candidates, passes: torch.Tensor, count: int) -> torch.Tensor:
    """Each node's parent [count]: the most similar candidate that `passes`, else itself."""
    best = best_similarity(found, count)[found.later]
    return link_first(found, passes & (found.similarity >= best), count)


def best_similarity(found: Candidates, count: int) -> torch.Tensor:
    """Per node [count] the similarity of its most similar candidate, -inf where it has none."""
    best = torch.full((count,), -torch.inf, device=found.later.device)
    return best.scatter_reduce_(0, found.later, found.similarity, "amax")


def follow(parents: torch.Tensor, frames: int) -> torch.Tensor:
    """The root of every node: parents of parents, doubling until the first frame is reached."""
    for _ in range(max(1, (frames - 1).bit_length())):
        parents = parents[parents]
    return parents


def join_rounds(found: Candidates, passes: torch.Tensor, count: int) -> torch.Tensor:
    """Groups as the released code forms them.

    In each round both ends of every link take the smaller of their labels, then every label is
    replaced by its label's label; the rounds end when that has become stable, which can be
    before all links are satisfied: the first round gives the top-left forest, each further one
    also joins nodes that share a later neighbour.
    """
    labels = torch.arange(count, device=found.later.device)
    later, earlier = found.later[passes], found.earlier[passes]
    while True:
        joined = labels.scatter_reduce(0, later, labels[earlier], "amin")
        joined.scatter_reduce_(0, earlier, labels[later], "amin")
        labels = joined[joined]
        if torch.equal(labels, labels[labels]):
            return labels
