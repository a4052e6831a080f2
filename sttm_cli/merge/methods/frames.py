"""Fewer frames, a baseline."""

from __future__ import annotations

import torch

from sttm_cli.merge.groups import chosen, evenly, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.tokens import MergedTokens


def fewer_frames(features: torch.Tensor, keep: int) -> MergedTokens:
    """Keep evenly spaced frames of `features` [T, H, W, C]; the last one is thinned evenly to
    the rest of `keep`."""
    frames, cells = features.shape[0], features.shape[1] * features.shape[2]
    count = -(-keep // cells)
    start = cells * evenly(count, frames, features.device)[:, None]
    whole = (start[:-1] + torch.arange(cells, device=features.device)).flatten()
    rest = evenly(keep - len(whole), cells, features.device)
    return chosen(features, torch.cat([whole, start[-1] + rest]))


METHOD = Method("frames", 1, within_budget(fewer_frames))
