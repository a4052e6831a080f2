"""Random dropping, a baseline."""

from __future__ import annotations

import torch

from sttm_cli.merge.groups import chosen, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.tokens import MergedTokens


def dropped_at_random(features: torch.Tensor, keep: int) -> MergedTokens:
    """Keep `keep` tokens of `features` [T, H, W, C], drawn with a seed made from the features."""
    seed = int(features.double().sum().abs() * 1e6) % 2**62
    order = torch.randperm(
        features.shape[:3].numel(), generator=torch.Generator().manual_seed(seed)
    )
    return chosen(features, order[:keep].to(features.device))


METHOD = Method("random", 1, within_budget(dropped_at_random))
