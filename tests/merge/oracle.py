"""The merging, slow and plain: written from the method's description, in float64, with loops.

It shares nothing with the package and is what the package must agree with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise, product

import torch

Box = tuple[int, int, int, int, int]
"""t, top, left, bottom, right."""


@dataclass
class Cell:
    """A cell of one frame's pyramid: its box, pooled feature, and children one level below."""

    box: Box
    feature: torch.Tensor
    children: list[Cell] = field(default_factory=list)
    padding: Cell | None = None

    @property
    def area(self) -> int:
        _, top, left, bottom, right = self.box
        return (bottom - top) * (right - left)

    def nests(self, other: Cell) -> bool:
        return self.covers(other) or other.covers(self)

    def covers(self, other: Cell) -> bool:
        (_, top, left, bottom, right), (_, top_, left_, bottom_, right_) = self.box, other.box
        return top <= top_ and left <= left_ and bottom_ <= bottom and right_ <= right


@dataclass
class Oracle:
    """One merge. `margin` is how near any similarity came to a threshold: where it is tiny, the
    result hangs on rounding and says nothing."""

    spatial: float
    temporal: float
    root_level: int = 1
    weighted: bool = False
    head_dim: int | None = None
    reference: bool = False
    most_similar: bool = False
    margin: float = 2.0

    def merge(self, video: torch.Tensor) -> list[tuple[Box, int, torch.Tensor]]:
        """Box, patch count and feature of every token, in order, of `video` [T, H, W, C]."""
        frames = [self.nodes(frame.double(), t) for t, frame in enumerate(video)]
        nodes = [node for frame in frames for node in frame]
        if self.temporal <= 0:
            roots = list(range(len(nodes)))
        elif self.reference:
            roots = self.rounds(nodes, frames)
        else:
            roots = self.forest(nodes, frames)
        return [self.token(nodes, roots, root) for root in sorted(set(roots))]

    def token(
        self, nodes: list[Cell], roots: list[int], root: int
    ) -> tuple[Box, int, torch.Tensor]:
        group = [node for node, its in zip(nodes, roots, strict=True) if its == root]
        weights = [node.area if self.weighted else 1 for node in group]
        total = sum(weight * node.feature for weight, node in zip(weights, group, strict=True))
        return nodes[root].box, sum(node.area for node in group), total / sum(weights)

    # In space --------------------------------------------------------------------------------

    def nodes(self, frame: torch.Tensor, t: int) -> list[Cell]:
        """The cells that the search from the roots keeps, top-left first."""
        height, width, _ = frame.shape
        level = {
            (y, x): Cell((t, y, x, y + 1, x + 1), frame[y, x])
            for y, x in product(range(height), range(width))
        }
        levels = [level]
        while 2 not in (height, width) and (height, width) != (1, 1):
            level = self.coarser(level, height, width)
            height, width = (height + 1) // 2, (width + 1) // 2
            levels.append(level)
        roots = levels[max(0, len(levels) - 1 - self.root_level)]
        return sorted(
            (n for cell in roots.values() for n in self.search(cell)), key=lambda n: n.box
        )

    def coarser(
        self, level: dict[tuple[int, int], Cell], height: int, width: int
    ) -> dict[tuple[int, int], Cell]:
        """Pool 2 x 2; of an odd number the first row or column stays alone."""
        coarse = {}
        for y, x in product(range((height + 1) // 2), range((width + 1) // 2)):
            rows, columns = self.pooled(y, height), self.pooled(x, width)
            children = [level[p] for p in product(rows, columns)]
            feature = torch.stack([child.feature for child in children]).mean(0)
            (t, top, left, _, _), (_, _, _, bottom, right) = children[0].box, children[-1].box
            cell = Cell((t, top, left, bottom, right), feature, children)
            lacks = (len(rows) == 1 and height > 1) or (len(columns) == 1 and width > 1)
            cell.padding = level[0, 0] if lacks else None
            coarse[y, x] = cell
        return coarse

    @staticmethod
    def pooled(index: int, length: int) -> list[int]:
        if length % 2:
            return [2 * index - 1, 2 * index] if index else [0]
        return [2 * index, 2 * index + 1]

    def search(self, cell: Cell) -> list[Cell]:
        compared = list(cell.children)
        if self.reference and cell.padding is not None:
            compared.append(cell.padding)
        if all(self.passes(cell, child, self.spatial) for child in compared):
            return [cell]
        return [node for child in cell.children for node in self.search(child)]

    # In time ---------------------------------------------------------------------------------

    def links(self, frames: list[list[Cell]]) -> list[tuple[int, int]]:
        """All (later, earlier) nodes of consecutive frames that nest and are similar enough."""
        found, start = [], 0
        for earlier, later in pairwise(frames):
            for (i, old), (j, new) in product(enumerate(earlier), enumerate(later)):
                if new.nests(old) and self.passes(new, old, self.temporal):
                    found.append((start + len(earlier) + j, start + i))
            start += len(earlier)
        return found

    def forest(self, nodes: list[Cell], frames: list[list[Cell]]) -> list[int]:
        """Every node has one parent at most; its root is where the parents end."""
        parent: dict[int, int] = {}
        for later, earlier in self.links(frames):
            old = parent.get(later, earlier)
            if self.most_similar:
                here, there = (self.cosine(nodes[later], nodes[e]) for e in (earlier, old))
                if earlier != old:
                    self.margin = min(self.margin, abs(here - there))
                parent[later] = earlier if here > there else old
            else:
                parent[later] = min(earlier, old)
        roots = list(range(len(nodes)))
        for node in roots:
            if node in parent:
                roots[node] = roots[parent[node]]
        return roots

    def rounds(self, nodes: list[Cell], frames: list[list[Cell]]) -> list[int]:
        """The released code's groups: labels spread along links until they point to themselves."""
        labels, links = list(range(len(nodes))), self.links(frames)
        while True:
            joined = list(labels)
            for later, earlier in links:
                joined[later] = min(joined[later], labels[earlier])
                joined[earlier] = min(joined[earlier], labels[later])
            labels = [joined[label] for label in joined]
            if all(labels[label] == label for label in labels):
                return labels

    # Similarity ------------------------------------------------------------------------------

    def passes(self, one: Cell, other: Cell, threshold: float) -> bool:
        similarity = self.cosine(one, other)
        if one.box[1:] != other.box[1:] or one.box[0] != other.box[0]:
            self.margin = min(self.margin, abs(similarity - threshold))
        return similarity >= threshold

    def cosine(self, one: Cell, other: Cell) -> float:
        size = self.head_dim or len(one.feature)
        a, b = one.feature.view(-1, size), other.feature.view(-1, size)
        norms = a.norm(dim=1) * b.norm(dim=1)
        return float(torch.where(norms > 0, (a * b).sum(1) / norms, 0.0).mean().clamp(-1, 1))
