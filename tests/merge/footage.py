"""Made-up visual tokens: scenes that persist, change in places, repeat, or are noise."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate


def footage(
    frames: int,
    height: int,
    width: int,
    channels: int = 16,
    *,
    seed: int = 0,
    change: float = 0.1,
    noise: float = 0.3,
) -> torch.Tensor:
    """[T, H, W, C] float32: a smooth background; in each frame a share `change` of the cells
    becomes something else, and all get a little `noise` of their own."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, 3, 3, generator=random)
    scene = interpolate(coarse, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    shown = []
    for _ in range(frames):
        changed = torch.rand(height, width, 1, generator=random) < change
        other = torch.randn(height, width, channels, generator=random)
        scene = torch.where(changed, other, scene)
        shown.append(scene + noise * torch.randn(height, width, channels, generator=random))
    return torch.stack(shown)


def static(frames: int, height: int, width: int, channels: int = 16) -> torch.Tensor:
    """One frame of `footage`, again and again."""
    return footage(1, height, width, channels).expand(frames, -1, -1, -1).clone()
