"""Average pooling to coarser frames, a baseline."""

from __future__ import annotations

from itertools import pairwise

import torch

from sttm_cli.merge.groups import grouped, shared_out, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.tokens import MergedTokens


def pooled(features: torch.Tensor, keep: int) -> MergedTokens:
    """Average `features` [T, H, W, C] over `keep` nearly square rectangles.

    The numbers of rectangles per frame differ by at most one.
    """
    frames, height, width = features.shape[:3]
    counts = shared_out(torch.ones(frames), keep, height * width).tolist()
    names = []
    for frame, count in enumerate(counts):
        inside = _rectangles(height, width, count)
        names.append(torch.where(inside < 0, -1, inside + frame * height * width))
    return grouped(features, torch.cat(names).to(features.device))


def _rectangles(height: int, width: int, count: int) -> torch.Tensor:
    """Return, by cell [H*W], the top-left cell of its rectangle; -1 if `count` is 0."""
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
