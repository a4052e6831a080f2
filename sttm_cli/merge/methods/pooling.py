"""Coarser frames: what any method has to beat."""

from __future__ import annotations

from itertools import pairwise

import torch

from sttm_cli.merge.groups import grouped, shared_out, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.tokens import MergedTokens


def pooled(features: torch.Tensor, keep: int) -> MergedTokens:
    """Cut every frame of `features` [T, H, W, C] into equally many rectangles, or one more or
    less, as square as they can be, and average each; `keep` in all."""
    frames, height, width = features.shape[:3]
    counts = shared_out(torch.ones(frames), keep, height * width).tolist()
    names = []
    for frame, count in enumerate(counts):
        inside = _rectangles(height, width, count)
        names.append(torch.where(inside < 0, -1, inside + frame * height * width))
    return grouped(features, torch.cat(names).to(features.device))


def _rectangles(height: int, width: int, count: int) -> torch.Tensor:
    """By cell, the top-left cell of its rectangle [H*W]; -1 everywhere where there are none."""
    names = torch.full((height, width), -1)
    if count == 0:
        return names.flatten()
    bands = min(height, max(round((count * height / width) ** 0.5), -(-count // width)))
    tops = [height * band // bands for band in range(bands + 1)]
    pieces = shared_out(torch.ones(bands), count, width).tolist()
    for (top, bottom), columns in zip(pairwise(tops), pieces, strict=True):
        lefts = [width * column // columns for column in range(columns + 1)]
        for left, right in pairwise(lefts):
            names[top:bottom, left:right] = top * width + left
    return names.flatten()


METHOD = Method("pooling", 1, within_budget(pooled))
