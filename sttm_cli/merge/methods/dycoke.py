"""DyCoke, stage 1: temporal token merging (Tao et al., CVPR 2025, arXiv 2411.15024).

In groups of four frames, the second frame is compared with the first, the fourth with the third
and the third with the first, cell by cell; each compared frame loses its most similar tokens, the
same share of each. The first frame of a group stays whole, so at least a quarter is kept.
"""

from __future__ import annotations

import torch

from sttm_cli.merge.groups import chosen, cosines, evenly, shared_out, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.tokens import MergedTokens

GROUP = 4


def dycoke(features: torch.Tensor, keep: int) -> MergedTokens:
    """Keep `keep` tokens of `features` [T, H, W, C].

    For smaller budgets the groups are doubled by the same rule; if even one whole frame exceeds
    `keep`, that frame is thinned evenly.
    """
    rows = features.flatten(1, 2)
    frames, cells = rows.shape[:2]
    group = GROUP
    while group < frames and -(-frames // group) * cells > keep:
        group *= 2
    index = torch.arange(frames, device=rows.device)
    whole = index % group == 0
    if int(whole.sum()) * cells > keep:
        return chosen(features, evenly(keep, cells, rows.device))
    # The frame to compare with has the lowest set bit cleared: 1 -> 0, 2 -> 0, 3 -> 2.
    place = index % group
    similar = cosines(rows, rows[index - place + (place & (place - 1))])
    counts = torch.full_like(index, cells)
    spare = keep - int(whole.sum()) * cells
    counts[~whole] = shared_out(torch.ones_like(index[~whole]), spare, cells)
    order = similar.argsort(dim=1, stable=True)
    taken = torch.arange(cells, device=rows.device) < counts[:, None]
    return chosen(features, (order + cells * index[:, None])[taken])


METHOD = Method("dycoke", 1, within_budget(dycoke))
