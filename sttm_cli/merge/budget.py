"""The thresholds that meet a budget: rank work over similarities that are computed once.

Both thresholds move together along a path until the budget is met; then the temporal one alone
is tuned, where each link is one token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from sttm_cli.merge.grouping import Nodes, best_similarity, pair_up, split, spread
from sttm_cli.merge.pyramid import Pyramid
from sttm_cli.merge.similarity import Similarities

PATH = ((1.0, 1.0), (0.94, 0.82), (0.85, 0.60), (0.75, 0.55), (-1.0, -1.0))
"""(spatial, temporal) thresholds that go together. Between the ends, where only equal cells and
where all cells merge, are pairs that the paper's authors set by hand: for LLaVA-Video-72B at 50 %,
and for LLaVA-Video-7B and Qwen2-VL-7B at 50 % and 30 %."""

TRIES = 32
"""How many cells that overshoot a budget are barred before it is left at that."""


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


def token_limit(budget: float | int, total: int) -> Limit:
    """The tokens that `budget` allows of `total`: a share in (0, 1], or a whole number."""
    exact = float(budget) if isinstance(budget, int) else budget * total
    return Limit(math.floor(exact), min(math.floor(exact), math.ceil(exact - total / 100)))


def temporal_on_path(spatial: torch.Tensor) -> torch.Tensor:
    """The temporal threshold that goes with a spatial one: straight lines between `PATH`."""
    temporal = torch.full_like(spatial, PATH[-1][1])
    for (s1, t1), (s0, t0) in pairwise(PATH):
        line = t1 + (spatial - s1) * ((t1 - t0) / (s1 - s0))
        temporal = torch.where((spatial > s0) & (spatial <= s1), line, temporal)
    return temporal


def fit(found: Similarities, pyramid: Pyramid, limit: Limit) -> Fit:
    """Thresholds at which `limit` is met, and the nodes and links that they give.

    There must be no fewer tokens to spend than roots in a frame. Links as similar as the
    temporal threshold are made in order, t first, then top, then left, as far as they are needed.
    """
    search = _Search(found, pyramid, limit)
    at = search.along_path()
    # The step before is still over the budget: more links in time bring it down to it.
    for near in (at - 1, at):
        if near >= 0 and (state := search.state(near)).meets(limit):
            return state.fit(limit)
    state = search.state(at)
    return (state if state.most >= limit.most else search.around(at)).fit(limit)


@dataclass(frozen=True)
class _State:
    """The nodes at one spatial threshold; `best` [T*P]: of the candidates of each node's name.

    `least` tokens are left where every later node is linked, `most` where only equal ones are.
    """

    nodes: Nodes
    best: torch.Tensor
    spatial: float
    least: int
    most: int

    def meets(self, limit: Limit) -> bool:
        """Whether links in time can be chosen so that the limit is met exactly."""
        return self.least <= limit.most <= self.most

    def fit(self, limit: Limit) -> Fit:
        order = self.best.argsort(descending=True, stable=True)
        linked = self.best >= 1
        temporal, surplus = 1.0, self.most - limit.most
        if surplus > 0:
            equal = int(linked.sum())
            chosen = order[: equal + surplus]
            linked[chosen] = True
            temporal = float(self.best[chosen[-1]])
        return Fit(self.nodes, linked, self.spatial, temporal)


class _Search:
    """Probes of one video: which spatial threshold, and what it leaves."""

    def __init__(self, found: Similarities, pyramid: Pyramid, limit: Limit) -> None:
        self.found, self.pyramid, self.limit = found, pyramid, limit
        self.keep = spread(found, pyramid)
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
        spatial = self.values[at]
        nodes, best = self._probe(spatial)
        is_node = nodes.is_node
        first = is_node[: nodes.level.shape[1]].sum()
        most = is_node.sum() - (best >= 1).sum()
        left = torch.stack([first.double(), most.double(), spatial.double()]).tolist()
        return _State(nodes, best, left[2], int(left[0]), int(left[1]))

    def around(self, at: int) -> _State:
        """Where one cell merged too many tokens and links in time cannot make up for it.

        Such cells stay split, and less similar ones merge instead; mostly videos of one frame.
        """
        nearest = self.state(at)
        for _ in range(TRIES):
            if nearest.most >= self.limit.enough:
                break
            self.keep = torch.where(self.keep == self.values[at], -torch.inf, self.keep)
            at = self._first_below(at)
            state = self.state(at)
            if state.least > self.limit.most:
                break
            nearest = max(nearest, state, key=lambda s: min(s.most, self.limit.most))
        return nearest

    def _first_below(self, low: int) -> int:
        """The first value from `low` on at which all links in time would meet the budget."""
        high = len(self.values) - 1
        while low < high:
            middle = (low + high) // 2
            meets = self.state(middle).least <= self.limit.most
            low, high = (low, middle) if meets else (middle + 1, high)
        return low

    def _probe(self, spatial: torch.Tensor) -> tuple[Nodes, torch.Tensor]:
        nodes = split(self.keep, self.pyramid, spatial)
        pairs = pair_up(nodes, self.found, self.pyramid)
        return nodes, best_similarity(pairs, len(nodes.name))
