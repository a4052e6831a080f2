"""STTM, the paper's method: a quadtree in space, links in time (ICCV 2025, arXiv 2507.07990)."""

from __future__ import annotations

import torch

from sttm_cli.merge.checks import FEWEST, is_whole
from sttm_cli.merge.method import Method
from sttm_cli.merge.quadtree.merging import merge_tokens
from sttm_cli.merge.tokens import MergedTokens


def sttm(features: torch.Tensor, budget: float | int) -> MergedTokens:
    """Merge `features` [T, H, W, C] at the two thresholds that meet the budget."""
    if is_whole(budget) and budget < FEWEST:
        # `merge_tokens` rejects numbers below 16, and reads 1 as a share.
        budget = min(1.0, (budget + 0.5) / features.shape[:3].numel())
    return merge_tokens(features, budget=budget)


METHOD = Method("sttm", 2, sttm)
