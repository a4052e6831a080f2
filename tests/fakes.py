"""Stand-ins for one stage in the tests of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


class DictMemo:
    """A memory that lasts as long as the test."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def get(self, key: str) -> dict[str, Any] | None:
        return self.rows.get(key)

    def set(self, key: str, value: dict[str, Any]) -> None:
        self.rows[key] = value


@dataclass(frozen=True)
class FakeMerged:
    features: torch.Tensor
    roots: torch.Tensor
    after_spatial: int = 0
    spatial_threshold: float | None = None
    temporal_threshold: float | None = None
    sources: Callable[[torch.Tensor], torch.Tensor] = lambda grid: grid.flatten(0, 2)
    cells: int = 1

    @property
    def patch_counts(self) -> torch.Tensor:
        return torch.full((len(self.roots),), self.cells)


def keep_all(grid: torch.Tensor) -> FakeMerged:
    """A merge that merges nothing."""
    flat = grid.flatten(0, 2)
    return FakeMerged(flat, torch.arange(len(flat)), len(flat))


def pair_up(grid: torch.Tensor) -> FakeMerged:
    """A merge that averages every two neighbouring cells of the flat grid."""
    flat = grid.flatten(0, 2)
    roots = torch.arange(0, len(flat), 2)
    odd = flat[1::2] if len(flat) % 2 == 0 else torch.cat([flat[1::2], flat[-1:]])
    return FakeMerged(
        (flat[::2] + odd) / 2,
        roots,
        len(roots),
        sources=lambda other: pair_up(other).features,
        cells=2,
    )
