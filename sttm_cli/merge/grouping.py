"""From similarities to groups: the quadtree's nodes, their links in time, their common roots.

A node is named by the flat index, in the [T, H, W] grid, of the top-left cell of its box. Names
ascend by t, then top, then left: of several nodes the one with the smallest name is the top-left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_cli.merge.pyramid import Pyramid
from sttm_cli.merge.similarity import Similarities


@dataclass(frozen=True)
class Nodes:
    """The quadtree's nodes, per finest cell (P = H*W).

    `level` [T, P] int64: of the node around the cell; `name` [T*P] int64: the node's name.
    """

    level: torch.Tensor
    name: torch.Tensor

    @property
    def is_node(self) -> torch.Tensor:
        """[T*P] bool: which names are in use."""
        return self.name == torch.arange(len(self.name), device=self.name.device)


@dataclass(frozen=True)
class Candidates:
    """Nodes that could be linked in time, one pair per finest cell of the frames after the first.

    `later`, `earlier` [(T-1)*P] int64 names; `similarity` [(T-1)*P] float32 of the two nodes.
    """

    later: torch.Tensor
    earlier: torch.Tensor
    similarity: torch.Tensor


def spread(least: torch.Tensor, pyramid: Pyramid) -> torch.Tensor:
    """The least similarity to a child, by level and finest cell: [L+1, T, P].

    `least` as in `Similarities`. +inf at the finest level, of which every cell is kept.
    """
    levels = least[:, pyramid.parent_at].transpose(0, 1)
    return torch.cat([levels.new_full((1, *levels.shape[1:]), torch.inf), levels])


def split(keep: torch.Tensor, pyramid: Pyramid, threshold: float | torch.Tensor) -> Nodes:
    """The coarsest cells of which every child reaches `threshold`; section 3.2.

    `keep` [L+1, T, P] as from `spread`.
    """
    ranks = torch.arange(len(keep), dtype=torch.int8, device=keep.device)[:, None, None]
    level = torch.where(keep >= threshold, ranks, 0).amax(0).long()
    frames, cells = level.shape
    first = torch.arange(frames, device=keep.device)[:, None] * cells
    return Nodes(level, (pyramid.corner.gather(0, level) + first).flatten())


def pair_up(nodes: Nodes, similarities: Similarities, pyramid: Pyramid) -> Candidates:
    """Which nodes of consecutive frames nest, and how similar they are; section 3.3.

    Boxes of one quadtree nest or are apart, so the two label maps hold all pairs.
    """
    cells = nodes.level.shape[1]
    pair = nodes.level[1:] * (pyramid.depth + 1) + nodes.level[:-1]
    similarity = similarities.cross.gather(1, pyramid.pair_at.gather(0, pair))
    return Candidates(nodes.name[cells:], nodes.name[:-cells], similarity.flatten())


def best_similarity(pairs: Candidates, count: int) -> torch.Tensor:
    """By name [count], the similarity of the most similar candidate; -inf where there is none."""
    best = pairs.similarity.new_full((count,), -torch.inf)
    return best.scatter_reduce_(0, pairs.later, pairs.similarity, "amax")


def link_to_first(pairs: Candidates, passes: torch.Tensor, count: int) -> torch.Tensor:
    """By name [count], the parent: the top-left candidate that `passes`, else the node itself."""
    parents = torch.arange(count, device=pairs.later.device)
    earlier = torch.where(passes, pairs.earlier, pairs.later)
    return parents.scatter_reduce_(0, pairs.later, earlier, "amin")


def link_to_most_similar(pairs: Candidates, passes: torch.Tensor, count: int) -> torch.Tensor:
    """By name [count], the parent: the most similar candidate that `passes`, else the node."""
    best = best_similarity(pairs, count)[pairs.later]
    return link_to_first(pairs, passes & (pairs.similarity == best), count)


def follow(parents: torch.Tensor, frames: int) -> torch.Tensor:
    """By name, the root: the end of the chain of parents, one frame earlier with each link."""
    for _ in range((frames - 1).bit_length()):
        parents = parents[parents]
    return parents


def join_in_rounds(pairs: Candidates, passes: torch.Tensor, count: int) -> torch.Tensor:
    """By name, the root, as the released code finds it.

    A round: both ends of every link take the smaller of their labels, then every label is
    replaced by its label's label. The rounds end as soon as labels point to themselves, whether
    all links are satisfied or not. The first round makes the top-left forest; every further one,
    which a chain of links over three frames anywhere forces, also joins nodes that share a later
    neighbour.
    """
    labels = torch.arange(count, device=pairs.later.device)
    later, earlier = pairs.later[passes], pairs.earlier[passes]
    while True:
        joined = labels.scatter_reduce(0, later, labels[earlier], "amin")
        joined.scatter_reduce_(0, earlier, labels[later], "amin")
        labels = joined[joined]
        if torch.equal(labels, labels[labels]):
            return labels
