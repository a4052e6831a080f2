"""Each half of the method alone: merging in space only, and in time only."""

from __future__ import annotations

import torch

from sttm_cli.bench.peers.kept import Kept, cosines, evenly, grouped
from sttm_cli.merge.grouping import follow, split, spread
from sttm_cli.merge.pyramid import build_pyramid
from sttm_cli.merge.similarity import measure


def spatial_only(features: torch.Tensor, keep: int) -> Kept:
    """The quadtree of each frame of `features` [T, H, W, C] at the one threshold for `keep`.

    A split makes several tokens at once: what is over the number joins the neighbour before it
    in the frame, the most similar first.
    """
    frames, height, width = features.shape[:3]
    pyramids = [build_pyramid(height, width, level, features.device) for level in (1, 0)]
    pyramid = next((p for p in pyramids if p.root_count * frames <= keep), pyramids[-1])
    found = measure(features, pyramid)
    least = spread(found.least, pyramid)
    values = torch.cat([found.least.flatten(), least.new_tensor([2.0, -2.0])]).sort().values
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        enough = int(split(least, pyramid, values[middle]).is_node.sum()) >= keep
        low, high = (low, middle) if enough else (middle + 1, high)
    return _join_neighbours(features, split(least, pyramid, values[low]).name, keep)


def temporal_only(features: torch.Tensor, keep: int) -> Kept:
    """Link each cell of `features` [T, H, W, C] to the one before it in time, the most similar
    first, as many as it takes; what is left of a single frame is thinned evenly."""
    frames, cells = features.shape[0], features.shape[1] * features.shape[2]
    names = torch.arange(frames * cells, device=features.device)
    similar = cosines(features[1:], features[:-1]).flatten()
    order = similar.argsort(descending=True, stable=True)[: frames * cells - keep]
    names[order + cells] = order
    names = follow(names, frames)
    if keep < cells:
        kept = torch.isin(names, evenly(keep, cells, names.device))
        names = torch.where(kept, names, -1)
    return grouped(features, names)


def _join_neighbours(features: torch.Tensor, names: torch.Tensor, keep: int) -> Kept:
    nodes = grouped(features, names)
    count, cells = len(nodes.roots), features.shape[1] * features.shape[2]
    similar = cosines(nodes.features[1:], nodes.features[:-1])
    frame = nodes.roots // cells
    similar = torch.where(frame[1:] == frame[:-1], similar, similar - 4)
    joined = similar.argsort(descending=True, stable=True)[: count - keep] + 1
    starts = torch.ones(count, dtype=torch.bool, device=names.device)
    starts[joined] = False
    first = nodes.roots[starts][starts.cumsum(0) - 1]
    return grouped(features, first[torch.searchsorted(nodes.roots, names)])
