"""Spatial merging alone, the first half of the paper's method (arXiv 2507.07990)."""

from __future__ import annotations

import torch

from sttm_cli.merge.groups import cosines, grouped, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.quadtree.grouping import split, spread
from sttm_cli.merge.quadtree.pyramid import build_pyramid
from sttm_cli.merge.quadtree.similarity import measure
from sttm_cli.merge.tokens import MergedTokens


def spatial_only(features: torch.Tensor, keep: int) -> MergedTokens:
    """Merge each frame of `features` [T, H, W, C] by its quadtree, at one threshold for `keep`.

    A split adds several tokens at once; excess tokens join their predecessor in the frame, most
    similar first.
    """
    frames, height, width = features.shape[:3]
    pyramids = [build_pyramid(height, width, level, features.device) for level in (1, 0)]
    pyramid = next((p for p in pyramids if p.root_count * frames <= keep), pyramids[-1])
    measured = measure(features, pyramid)
    least = spread(measured.least, pyramid)
    values = torch.cat([measured.least.flatten(), least.new_tensor([2.0, -2.0])]).sort().values
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        enough = int(split(least, pyramid, values[middle]).is_node.sum()) >= keep
        low, high = (low, middle) if enough else (middle + 1, high)
    return _join_neighbours(features, split(least, pyramid, values[low]).name, keep)


def _join_neighbours(features: torch.Tensor, names: torch.Tensor, keep: int) -> MergedTokens:
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


METHOD = Method("spatial", 1, within_budget(spatial_only))
