"""From similarities to groups: quadtree nodes, their links in time, and the roots of the groups.

A node's name is the flat index, in the [T, H, W] grid, of the top-left cell of its box. Names
ascend by t, then top, then left, so the smallest name is that of the top-left node.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_cli.merge.quadtree.pyramid import Pyramid
from sttm_cli.merge.quadtree.similarity import Similarities


@dataclass(frozen=True)
class Nodes:
    """The quadtree's nodes: level [T, P] and name [T*P], int64, of each finest cell's node.

    P = H*W.
    """

    level: torch.Tensor
    name: torch.Tensor

    @property
    def is_node(self) -> torch.Tensor:
        """Mask [T*P] of the names in use."""
        return self.name == torch.arange(len(self.name), device=self.name.device)


@dataclass(frozen=True)
class Candidates:
    """Candidate links in time: one pair of nodes per finest cell of the frames after the first.

    `later`, `earlier` [(T-1)*P] int64: names; `similarity` [(T-1)*P] float32.
    """

    later: torch.Tensor
    earlier: torch.Tensor
    similarity: torch.Tensor


def spread(least: torch.Tensor, pyramid: Pyramid) -> torch.Tensor:
    """Expand `Similarities.least` to [L+1, T, P], by level and finest cell.

    The finest level, where every cell may be a node, has +inf.
    """
    levels = least[:, pyramid.parent_at].transpose(0, 1)
    return torch.cat([levels.new_full((1, *levels.shape[1:]), torch.inf), levels])


def split(keep: torch.Tensor, pyramid: Pyramid, threshold: float | torch.Tensor) -> Nodes:
    """Return the coarsest cells whose children all reach `threshold`; section 3.2.

    `keep` [L+1, T, P]: the result of `spread`.
    """
    ranks = torch.arange(len(keep), dtype=torch.int8, device=keep.device)[:, None, None]
    level = torch.where(keep >= threshold, ranks, 0).amax(0).long()
    frames, cells = level.shape
    first = torch.arange(frames, device=keep.device)[:, None] * cells
    return Nodes(level, (pyramid.corner.gather(0, level) + first).flatten())


def pair_up(nodes: Nodes, similarities: Similarities, pyramid: Pyramid) -> Candidates:
    """Pair the nested nodes of consecutive frames; section 3.3.

    Boxes of one quadtree are nested or disjoint, so each finest cell gives one pair.
    """
    cells = nodes.level.shape[1]
    pair = nodes.level[1:] * (pyramid.depth + 1) + nodes.level[:-1]
    similarity = similarities.cross.gather(1, pyramid.pair_at.gather(0, pair))
    return Candidates(nodes.name[cells:], nodes.name[:-cells], similarity.flatten())


def best_similarity(pairs: Candidates, count: int) -> torch.Tensor:
    """Return, by name [count], the similarity of the best candidate; -inf without candidates."""
    best = pairs.similarity.new_full((count,), -torch.inf)
    return best.scatter_reduce_(0, pairs.later, pairs.similarity, "amax")


def link_to_first(pairs: Candidates, passes: torch.Tensor, count: int) -> torch.Tensor:
    """Return parents by name [count]: the top-left candidate that `passes`, else the node."""
    parents = torch.arange(count, device=pairs.later.device)
    earlier = torch.where(passes, pairs.earlier, pairs.later)
    return parents.scatter_reduce_(0, pairs.later, earlier, "amin")


def link_to_most_similar(pairs: Candidates, passes: torch.Tensor, count: int) -> torch.Tensor:
    """Return parents by name [count]: the most similar candidate that `passes`, else the node."""
    best = best_similarity(pairs, count)[pairs.later]
    return link_to_first(pairs, passes & (pairs.similarity == best), count)


def follow(parents: torch.Tensor, frames: int) -> torch.Tensor:
    """Return roots by name: the ends of the chains of parents, at most one link per frame."""
    for _ in range((frames - 1).bit_length()):
        parents = parents[parents]
    return parents


def join_in_rounds(pairs: Candidates, passes: torch.Tensor, count: int) -> torch.Tensor:
    """Return roots by name, as the released code computes them.

    In each round both ends of every link take the smaller of their labels, then every label is
    replaced by its label's label. The rounds end when all labels point to themselves, even if
    some links are not satisfied. The first round gives the same forest as `link_to_first`;
    further rounds, needed if any chain of links spans three frames, also join nodes that share a
    later neighbour.
    """
    labels = torch.arange(count, device=pairs.later.device)
    later, earlier = pairs.later[passes], pairs.earlier[passes]
    while True:
        joined = labels.scatter_reduce(0, later, labels[earlier], "amin")
        joined.scatter_reduce_(0, earlier, labels[later], "amin")
        labels = joined[joined]
        if torch.equal(labels, labels[labels]):
            return labels
