"""EVS: Efficient Video Sampling (arXiv 2510.14624; `--video-pruning-rate` of vLLM).

Drops the patches that change least from one frame to the next, at an exact rate over the whole
video; the first frame counts as changed. Tokens keep their positions.
"""

from __future__ import annotations

import torch

from sttm_cli.merge.groups import chosen, cosines, evenly, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.tokens import MergedTokens


def evs(features: torch.Tensor, keep: int) -> MergedTokens:
    """Keep the `keep` tokens of `features` [T, H, W, C] that change most.

    If `keep` is smaller than the first frame, that frame is thinned evenly.
    """
    cells = features.shape[1] * features.shape[2]
    if keep < cells:
        return chosen(features, evenly(keep, cells, features.device))
    change = 1 - cosines(features[1:], features[:-1]).flatten()
    order = change.argsort(descending=True, stable=True)[: keep - cells]
    first = torch.arange(cells, device=features.device)
    return chosen(features, torch.cat([first, order + cells]))


METHOD = Method("evs", 1, within_budget(evs))
