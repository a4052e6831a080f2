"""What vLLM's flags ask for, and the merge that it stands for: pure, without vLLM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import torch

from sttm_cli.base.errors import UsageError
from sttm_cli.base.names import METHODS
from sttm_cli.merge.groups import filled_up
from sttm_cli.merge.method import Method, find_method
from sttm_cli.merge.quadtree.budget import token_limit
from sttm_cli.merge.tokens import Sources

NAME = "sttm"
FLAG = "--video-pruning-method"

Grid = tuple[int, int, int]
"""Steps, rows and columns of a video's visual tokens."""


def pruning_names() -> list[str]:
    """List the values that `--video-pruning-method` gains: sttm, and sttm:NAME for the others."""
    return [NAME, *(f"{NAME}:{name}" for name in METHODS.names() if name != NAME)]


@dataclass(frozen=True)
class Merger:
    """A merging method with the share of tokens that it keeps of every video."""

    method: Method
    share: float

    @property
    def identity(self) -> str:
        """What must be equal for a KV to be used again."""
        return f"{self.method.identity} {self.share!r}"

    def count(self, grid: Grid) -> int:
        """Return the number of tokens kept of a video of this grid.

        Raises UsageError, a ValueError, where the method cannot merge such a video to this share.
        """
        count = token_limit(self.share, math.prod(grid)).most
        # A budget of a whole frame is within reach of every method.
        if count < grid[1] * grid[2]:
            _try(self, grid)
        return count

    def merge(self, features: torch.Tensor) -> tuple[torch.Tensor, Sources]:
        """Merge `features` [T, H, W, C]: the roots [count], ascending, and their sources."""
        steps, height, width, _ = features.shape
        merged = self.method.merge(features, self.share)
        return filled_up(merged, self.count((steps, height, width)))


@lru_cache(maxsize=64)
def merger_of(spec: tuple[str, float] | None) -> Merger | None:
    """Return the merger for vLLM's (method, pruning rate), None for a method of vLLM's own.

    Raises UsageError for an unknown method.
    """
    if spec is None or spec[0].partition(":")[0] != NAME:
        return None
    name = spec[0].partition(":")[2] or NAME
    # Exact: 1 - 0.7 would be below 0.3.
    return Merger(find_method(name, FLAG), float(1 - Decimal(repr(float(spec[1])))))


@lru_cache(maxsize=1024)
def _try(merger: Merger, grid: Grid) -> None:
    """Merge a made-up video of this grid: what fails must fail before the video is encoded."""
    if token_limit(merger.share, math.prod(grid)).most < 1:
        raise UsageError(
            f"a budget of {merger.share:g} keeps no token of a video of {math.prod(grid)}",
            "serve with a lower --video-pruning-rate",
        )
    features = torch.randn(*grid, 8, generator=torch.Generator().manual_seed(0))
    merger.method.merge(features, merger.share)
