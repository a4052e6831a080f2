"""Temporal merging alone, the second half of the paper's method (arXiv 2507.07990)."""

from __future__ import annotations

import torch

from sttm_cli.merge.groups import cosines, evenly, grouped, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.quadtree.grouping import follow
from sttm_cli.merge.tokens import MergedTokens


def temporal_only(features: torch.Tensor, keep: int) -> MergedTokens:
    """Link cells of `features` [T, H, W, C] to the cell before them in time, most similar first.

    If `keep` is smaller than one frame, that frame is thinned evenly.
    """
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


METHOD = Method("temporal", 1, within_budget(temporal_only))
