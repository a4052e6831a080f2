"""The thresholds that meet a budget, found by rank work over similarities computed once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sttm_cli.merge.grouping import Nodes, best_similarity, candidates, split
from sttm_cli.merge.pyramid import Level
from sttm_cli.merge.similarity import Similarities

PATH = ((1.0, 1.0), (0.94, 0.82), (0.85, 0.60), (0.75, 0.55), (-1.0, -1.0))
"""Published pairs of (spatial, temporal) thresholds, from nothing merged to everything."""


def temporal_on_path(spatial: torch.Tensor) -> torch.Tensor:
    """The temporal threshold that goes with a spatial one: straight lines between `PATH`."""
    value = torch.full_like(spatial, PATH[-1][1])
    for (s1, t1), (s0, t0) in zip(PATH, PATH[1:], strict=False):
        line = t0 + (spatial - s0) * ((t1 - t0) / (s1 - s0))
        value = torch.where((spatial > s0) & (spatial <= s1), line, value)
    return value


@dataclass(frozen=True)
class Fit:
    """What meets a budget: the nodes, which of them are linked in time [T*P] bool, thresholds."""

    nodes: Nodes
    linked: torch.Tensor
    spatial: float
    temporal: float


def token_limit(budget: float | int, total: int) -> int:
    """The most tokens that `budget` allows: a whole number, or a share rounded down."""
    return int(budget) if isinstance(budget, int) else math.floor(budget * total + 1e-9)


def fit(found: Similarities, levels: Sequence[Level], limit: int) -> Fit:
    """Move both thresholds along `PATH` until `limit` is met, then the temporal one alone."""
    values = torch.cat([found.keep[1:].flatten(), found.keep.new_ones(1)])
    values = values[values <= 1].unique().flip(0)
    low, high = 0, values.numel() - 1
    while low < high:
        middle = (low + high) // 2
        spatial = values[middle]
        nodes = split(found.keep, levels, spatial)
        best = _best(nodes, found)
        left = _count(nodes) - int((best >= temporal_on_path(spatial)).sum())
        low, high = (low, middle) if left <= limit else (middle + 1, high)
    for at in (low - 1, low):
        if at < 0:
            continue
        nodes = split(found.keep, levels, values[at])
        if int((nodes.name[: nodes.level.shape[1]].unique()).numel()) <= limit:
            break
    best = _best(nodes, found)
    need = max(_count(nodes) - limit, 0)
    order = best.argsort(descending=True, stable=True)
    linked = best >= 1
    linked[order[:need]] = True
    temporal = float(best[order[need - 1]]) if need else 1.0
    return Fit(nodes, linked, float(values[at]), min(temporal, 1.0))


def _best(nodes: Nodes, found: Similarities) -> torch.Tensor:
    return best_similarity(candidates(nodes, found), nodes.name.numel())


def _count(nodes: Nodes) -> int:
    return int((nodes.name == torch.arange(nodes.name.numel(), device=nodes.name.device)).sum())
