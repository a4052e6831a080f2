"""What any method has to beat: fewer frames, coarser frames, and dropping by chance."""

from __future__ import annotations

from itertools import pairwise

import torch

from sttm_cli.bench.peers.kept import Kept, chosen, evenly, grouped, shared_out


def fewer_frames(features: torch.Tensor, keep: int) -> Kept:
    """Keep evenly spaced frames of `features` [T, H, W, C]; the last one is thinned evenly to
    what is left of `keep`."""
    frames, cells = features.shape[0], features.shape[1] * features.shape[2]
    count = -(-keep // cells)
    start = cells * evenly(count, frames, features.device)[:, None]
    whole = (start[:-1] + torch.arange(cells, device=features.device)).flatten()
    rest = evenly(keep - len(whole), cells, features.device)
    return chosen(features, torch.cat([whole, start[-1] + rest]))


def pooled(features: torch.Tensor, keep: int) -> Kept:
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


def dropped_at_random(features: torch.Tensor, keep: int) -> Kept:
    """Keep `keep` tokens of `features` [T, H, W, C], drawn with a seed from the features."""
    seed = int(features.double().sum().abs() * 1e6) % 2**62
    order = torch.randperm(
        features.shape[:3].numel(), generator=torch.Generator().manual_seed(seed)
    )
    return chosen(features, order[:keep].to(features.device))
