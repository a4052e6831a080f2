"""VidCom2: Video Compression Commander (Liu et al., EMNLP 2025, arXiv 2505.14454).

Tokens are compared by the half of their channels that varies least. A frame's share of the budget
grows with the distance of its tokens from the video's mean; each frame keeps the tokens that are
least like the frame's and the video's mean.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from sttm_cli.merge.groups import chosen, shared_out, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.tokens import MergedTokens

SCALES = tuple(2.0**power for power in range(-3, 2))
"""Widths of the Gaussian kernels that are summed to a likeness."""
TEMPERATURE = 0.01


def vidcom2(features: torch.Tensor, keep: int) -> MergedTokens:
    """Keep `keep` tokens of `features` [T, H, W, C]."""
    rows = normalize(_steady(features.flatten(1, 2).float()), dim=-1)
    frames, cells = rows.shape[:2]
    to_video = _likeness(rows, rows.mean((0, 1)))
    to_frame = _likeness(rows, rows.mean(1, keepdim=True))
    uniqueness = -to_video.mean(1)
    share = 1 + (uniqueness / TEMPERATURE).softmax(0) - 1 / frames
    counts = shared_out(share, keep, cells)
    order = (to_video + to_frame).argsort(dim=1, stable=True)
    taken = torch.arange(cells, device=rows.device) < counts[:, None]
    start = cells * torch.arange(frames, device=rows.device)[:, None]
    return chosen(features, (order + start)[taken])


def _steady(rows: torch.Tensor) -> torch.Tensor:
    """The half of the channels with the least variance over the video."""
    order = rows.var((0, 1), correction=0).argsort(stable=True)
    return rows[..., order[: max(1, rows.shape[2] // 2)]]


def _likeness(rows: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    distance = (rows - centre).square().sum(-1)
    return torch.stack([(-distance / (2 * scale)).exp() for scale in SCALES]).sum(0)


METHOD = Method("vidcom2", 2, within_budget(vidcom2))
