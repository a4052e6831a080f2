"""Search for the thresholds that meet a budget, over similarities that are computed once.

Both thresholds move together along a path until the budget is met; then the temporal threshold
alone is tuned, where each link changes the count by one token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from sttm_cli.merge.quadtree.cut import Cuts
from sttm_cli.merge.quadtree.grouping import Nodes, best_similarity, pair_up, split, spread
from sttm_cli.merge.quadtree.pyramid import Pyramid
from sttm_cli.merge.quadtree.similarity import Similarities

PATH = ((1.0, 1.0), (0.94, 0.82), (0.85, 0.60), (0.75, 0.55), (-1.0, -1.0))
"""Pairs of (spatial, temporal) thresholds. At the first only equal cells merge, at the last all
cells; the pairs between them are the paper's settings for LLaVA-Video-72B at 50 %, and for
LLaVA-Video-7B and Qwen2-VL-7B at 50 % and 30 %."""


@dataclass(frozen=True)
class Limit:
    """A budget in tokens: at most `most` and, if possible, at least `enough`."""

    most: int
    enough: int


@dataclass(frozen=True)
class Fit:
    """A solution for a budget: nodes, `linked` ([T*P] bool, by name: linked in time), thresholds.

    Linked nodes have candidates that reach the temporal threshold.
    """

    nodes: Nodes
    linked: torch.Tensor
    spatial: float
    temporal: float

    @property
    def off_path(self) -> float:
        """Distance of the temporal threshold from the path at the spatial threshold."""
        return abs(self.temporal - float(temporal_on_path(torch.tensor(self.spatial))))


def token_limit(budget: float | int, total: int) -> Limit:
    """Convert `budget`, a share in (0, 1] or a larger number, to a limit for `total` tokens."""
    exact = float(budget) * total if budget <= 1 else float(budget)
    return Limit(math.floor(exact), min(math.floor(exact), math.ceil(exact - total / 100)))


def temporal_on_path(spatial: torch.Tensor) -> torch.Tensor:
    """Return the temporal threshold for a spatial one by linear interpolation in `PATH`."""
    return _along(spatial, PATH)


def spatial_on_path(temporal: torch.Tensor) -> torch.Tensor:
    """Return the spatial threshold for a temporal one: the inverse of `temporal_on_path`."""
    return _along(temporal, tuple((temporal, spatial) for spatial, temporal in PATH))


def _along(x: torch.Tensor, path: tuple[tuple[float, float], ...]) -> torch.Tensor:
    value = torch.full_like(x, path[-1][1])
    for (x1, y1), (x0, y0) in pairwise(path):
        line = y1 + (x - x1) * ((y1 - y0) / (x1 - x0))
        value = torch.where((x > x0) & (x <= x1), line, value)
    return value


def fit(cosines: Similarities, pyramid: Pyramid, limit: Limit) -> Fit:
    """Find the thresholds that meet `limit`, and the nodes and links that they give.

    The budget must be at least the number of roots in one frame. Links exactly as similar as the
    temporal threshold are made in the order t, top, left, as many as needed.
    """
    search = _Search(cosines, pyramid, limit)
    first = search.along_path()
    # The step before exceeds the budget, and more links can lower it; this one is within the
    # budget, and fewer links can raise it. The one closer to the path wins.
    states = [search.state(step) for step in (first - 1, first) if step >= 0]
    fits = [state.fit(limit) for state in states if state.meets(limit)]
    if fits:
        return min(fits, key=lambda fit: fit.off_path)
    # At the start of the path only equal cells have merged, which loses nothing.
    return (search.around(first) if first else search.state(first)).fit(limit)


@dataclass(frozen=True)
class _State:
    """The nodes at the spatial thresholds from `above` (excluded) to `spatial`.

    `best` [T*P], by name: the similarity of each node's best candidate. `least`: the number of
    tokens with every later node linked; `most`: with only equal nodes linked.
    """

    nodes: Nodes
    best: torch.Tensor
    above: torch.Tensor
    spatial: torch.Tensor
    least: int
    most: int

    def meets(self, limit: Limit) -> bool:
        """Return whether some choice of links meets the limit exactly."""
        return self.least <= limit.most <= self.most

    def fit(self, limit: Limit) -> Fit:
        """Link as many of the most similar nodes as the limit requires."""
        linked = self.best >= 1
        temporal, surplus = torch.ones_like(self.spatial), self.most - limit.most
        if surplus > 0:
            order = self.best.argsort(descending=True, stable=True)
            chosen = order[: int(linked.sum()) + surplus]
            linked[chosen] = True
            temporal = self.best[chosen[-1]]
        # Of the thresholds that give these nodes, use the one closest to the path.
        spatial = spatial_on_path(temporal).clamp(self.above.nextafter(self.spatial), self.spatial)
        return Fit(
            nodes=self.nodes, linked=linked, spatial=float(spatial), temporal=float(temporal)
        )


class _Search:
    """Search over the spatial thresholds of one video: `values`, sorted from high to low."""

    def __init__(self, cosines: Similarities, pyramid: Pyramid, limit: Limit) -> None:
        self.cosines, self.pyramid, self.limit = cosines, pyramid, limit
        self.keep = spread(cosines.least, pyramid)
        ends = cosines.least.new_tensor([1.0, -1.0])
        self.values = torch.cat([ends, cosines.least.flatten()]).sort(descending=True).values

    def along_path(self) -> int:
        """Return the index of the first value that meets the budget on the path.

        Bisects on the device, without a synchronization per step.
        """
        low = torch.zeros((), dtype=torch.int64, device=self.values.device)
        high = torch.full_like(low, len(self.values) - 1)
        for _ in range(len(self.values).bit_length()):
            middle = (low + high) // 2
            spatial = self.values[middle]
            nodes, best = self._probe(spatial)
            linked = best >= temporal_on_path(spatial)
            meets = nodes.is_node.sum() - linked.sum() <= self.limit.most
            low, high = torch.where(meets, low, middle + 1), torch.where(meets, middle, high)
            low = torch.minimum(low, high)
        return int(high)

    def state(self, step: int) -> _State:
        """Return the state at the spatial threshold `values[step]`."""
        spatial = self.values[step]
        nodes, best = self._probe(spatial)
        is_node = nodes.is_node
        least = is_node[: nodes.level.shape[1]].sum()
        most = is_node.sum() - (best >= 1).sum()
        above = torch.where(self.keep < spatial, self.keep, -1).amax()
        return _State(nodes, best, above, spatial, *torch.stack([least, most]).tolist())

    def around(self, step: int) -> _State:
        """Cut the first frame to the tokens left for it, if no threshold meets the budget.

        This happens with a single frame, and with a few equal frames.
        """
        below, pyramid, least = self.state(step), self.pyramid, self.cosines.least
        others = below.most - int(below.nodes.is_node[: below.nodes.level.shape[1]].sum())
        cuts = Cuts(least[0], pyramid, spatial=float(below.spatial), most=self.limit.most)
        cut = cuts.split(cuts.nearest(self.limit.most - others)).to(least.device)
        same = (least == least[0]).all(1, keepdim=True)
        forced = torch.where(cut, -torch.inf, 1.0).to(least)
        self.keep = spread(torch.where(same, forced, least), pyramid)
        return self.state(step)

    def _probe(self, spatial: torch.Tensor) -> tuple[Nodes, torch.Tensor]:
        nodes = split(self.keep, self.pyramid, spatial)
        pairs = pair_up(nodes, self.cosines, self.pyramid)
        return nodes, best_similarity(pairs, len(nodes.name))
