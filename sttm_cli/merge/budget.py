"""The thresholds that meet a budget: rank work over similarities that are computed once.

Both thresholds move together along a path until the budget is met; then the temporal one alone
is tuned, where each link is one token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from sttm_cli.merge.cut import Cuts
from sttm_cli.merge.grouping import Nodes, best_similarity, pair_up, split, spread
from sttm_cli.merge.pyramid import Pyramid
from sttm_cli.merge.similarity import Similarities

PATH = ((1.0, 1.0), (0.94, 0.82), (0.85, 0.60), (0.75, 0.55), (-1.0, -1.0))
"""(spatial, temporal) thresholds that go together. Between the ends, where only equal cells and
where all cells merge, are pairs that the paper's authors set by hand: for LLaVA-Video-72B at 50 %,
and for LLaVA-Video-7B and Qwen2-VL-7B at 50 % and 30 %."""


@dataclass(frozen=True)
class Limit:
    """A budget in tokens: at most `most`, and if at all possible at least `enough`."""

    most: int
    enough: int


@dataclass(frozen=True)
class Fit:
    """What meets a budget: the nodes, those that are linked in time ([T*P] bool, by name), and
    the thresholds. Linked nodes have candidates that reach the temporal threshold."""

    nodes: Nodes
    linked: torch.Tensor
    spatial: float
    temporal: float

    @property
    def off_path(self) -> float:
        """How far the temporal threshold is from the one that goes with the spatial one."""
        return abs(self.temporal - float(temporal_on_path(torch.tensor(self.spatial))))


def token_limit(budget: float | int, total: int) -> Limit:
    """The tokens that `budget` allows of `total`: a share in (0, 1], or a larger number."""
    exact = float(budget) * total if budget <= 1 else float(budget)
    return Limit(math.floor(exact), min(math.floor(exact), math.ceil(exact - total / 100)))


def temporal_on_path(spatial: torch.Tensor) -> torch.Tensor:
    """The temporal threshold that goes with a spatial one: straight lines between `PATH`."""
    return _along(spatial, PATH)


def spatial_on_path(temporal: torch.Tensor) -> torch.Tensor:
    """The spatial threshold that goes with a temporal one: the same lines, read the other way."""
    return _along(temporal, tuple((temporal, spatial) for spatial, temporal in PATH))


def _along(at: torch.Tensor, path: tuple[tuple[float, float], ...]) -> torch.Tensor:
    value = torch.full_like(at, path[-1][1])
    for (x1, y1), (x0, y0) in pairwise(path):
        line = y1 + (at - x1) * ((y1 - y0) / (x1 - x0))
        value = torch.where((at > x0) & (at <= x1), line, value)
    return value


def fit(found: Similarities, pyramid: Pyramid, limit: Limit) -> Fit:
    """Thresholds at which `limit` is met, and the nodes and links that they give.

    There must be no fewer tokens to spend than roots in a frame. Links as similar as the
    temporal threshold are made in order, t first, then top, then left, as far as they are needed.
    """
    search = _Search(found, pyramid, limit)
    at = search.along_path()
    # The step before is still over the budget, where links in time can bring it down to it; this
    # one is below, where fewer of them can bring it up. The nearer to the path is taken.
    states = [search.state(near) for near in (at - 1, at) if near >= 0]
    fits = [state.fit(limit) for state in states if state.meets(limit)]
    if fits:
        return min(fits, key=lambda fit: fit.off_path)
    # At the start of the path only equal cells have merged, and that is free.
    return (search.around(at) if at else search.state(at)).fit(limit)


@dataclass(frozen=True)
class _State:
    """The nodes at a spatial threshold from `above` (itself out) to `spatial`.

    `best` [T*P], by name: the similarity of each node's best candidate. `least` tokens are left
    where every later node is linked, `most` where only equal ones are.
    """

    nodes: Nodes
    best: torch.Tensor
    above: torch.Tensor
    spatial: torch.Tensor
    least: int
    most: int

    def meets(self, limit: Limit) -> bool:
        """Whether links in time can be chosen so that the limit is met exactly."""
        return self.least <= limit.most <= self.most

    def fit(self, limit: Limit) -> Fit:
        """Link the most similar nodes, as many as it takes."""
        linked = self.best >= 1
        temporal, surplus = torch.ones_like(self.spatial), self.most - limit.most
        if surplus > 0:
            order = self.best.argsort(descending=True, stable=True)
            chosen = order[: int(linked.sum()) + surplus]
            linked[chosen] = True
            temporal = self.best[chosen[-1]]
        # Of the thresholds that give these nodes, the one nearest to the path.
        spatial = spatial_on_path(temporal).clamp(self.above.nextafter(self.spatial), self.spatial)
        return Fit(
            nodes=self.nodes, linked=linked, spatial=float(spatial), temporal=float(temporal)
        )


class _Search:
    """Probes of one video: which spatial threshold, and what it leaves."""

    def __init__(self, found: Similarities, pyramid: Pyramid, limit: Limit) -> None:
        self.found, self.pyramid, self.limit = found, pyramid, limit
        self.keep = spread(found.least, pyramid)
        ends = found.least.new_tensor([1.0, -1.0])
        self.values = torch.cat([ends, found.least.flatten()]).sort(descending=True).values

    def along_path(self) -> int:
        """The first value on the path at which the budget is met; no waiting for the device."""
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

    def state(self, at: int) -> _State:
        """What the value number `at` as the spatial threshold leaves."""
        spatial = self.values[at]
        nodes, best = self._probe(spatial)
        is_node = nodes.is_node
        least = is_node[: nodes.level.shape[1]].sum()
        most = is_node.sum() - (best >= 1).sum()
        above = torch.where(self.keep < spatial, self.keep, -1).amax()
        return _State(nodes, best, above, spatial, *torch.stack([least, most]).tolist())

    def around(self, at: int) -> _State:
        """Where the first frame alone jumps over the budget: it is cut to what is left for it.

        That is so for single frames, and for few that are all the same.
        """
        below, pyramid, least = self.state(at), self.pyramid, self.found.least
        others = below.most - int(below.nodes.is_node[: below.nodes.level.shape[1]].sum())
        cuts = Cuts(least[0], pyramid, spatial=float(below.spatial), most=self.limit.most)
        cut = cuts.split(cuts.nearest(self.limit.most - others)).to(least.device)
        same = (least == least[0]).all(1, keepdim=True)
        forced = torch.where(cut, -torch.inf, 1.0).to(least)
        self.keep = spread(torch.where(same, forced, least), pyramid)
        return self.state(at)

    def _probe(self, spatial: torch.Tensor) -> tuple[Nodes, torch.Tensor]:
        nodes = split(self.keep, self.pyramid, spatial)
        pairs = pair_up(nodes, self.found, self.pyramid)
        return nodes, best_similarity(pairs, len(nodes.name))
