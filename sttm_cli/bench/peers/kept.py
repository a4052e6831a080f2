"""What a peer gives back, made from the cells it chose or from its groups of cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_cli.merge import Sources


@dataclass(frozen=True)
class Kept:
    """The tokens that are left; implements `types.Merged`."""

    features: torch.Tensor
    roots: torch.Tensor
    sources: Sources
    after_spatial: int
    spatial_threshold: float | None = None
    temporal_threshold: float | None = None


def chosen(features: torch.Tensor, cells: torch.Tensor) -> Kept:
    """Keep the cells [N] (flat indices, any order) of `features` [T, H, W, C], drop the others."""
    names = torch.full((features.shape[:3].numel(),), -1, device=features.device)
    names[cells] = cells
    return grouped(features, names)


def grouped(features: torch.Tensor, names: torch.Tensor) -> Kept:
    """Average the cells of each group.

    `names` [T*H*W] int64: the flat index of the cell that stands for the group, -1 where a cell
    is dropped.
    """
    used = names >= 0
    roots, sizes = names[used].unique(return_counts=True)
    place = torch.searchsorted(roots, names.clamp(min=0)).clamp(max=len(roots) - 1)
    weight = torch.where(used, 1 / sizes[place], 0.0)
    grid = features.shape[:3]
    sources = Sources(place.view(grid), weight.view(grid), len(roots))
    return Kept(sources(features), roots, sources, after_spatial=len(roots))


def evenly(count: int, total: int, device: torch.device | None = None) -> torch.Tensor:
    """`count` of the numbers 0 to `total` - 1, as evenly spaced as they can be, ascending."""
    return ((2 * torch.arange(count, device=device) + 1) * total) // (2 * count)


def shared_out(weights: torch.Tensor, total: int, most: int) -> torch.Tensor:
    """Whole numbers [T], each at most `most`, that sum to `total`, in proportion to `weights`.

    What is lost by rounding down goes to the largest remainders.
    """
    shares = torch.zeros_like(weights, dtype=torch.float64)
    open_, left = torch.ones_like(weights, dtype=torch.bool), float(total)
    while left > 1e-9 and open_.any():
        part = weights.double() * open_
        shares += left * part / part.sum()
        left = float((shares - most).clamp(min=0).sum())
        shares = shares.clamp(max=most)
        open_ = shares < most
    whole = (shares + 1e-9).floor().long()
    short = total - int(whole.sum())
    rest = torch.where(whole < most, shares - whole, -1.0)
    whole[rest.argsort(descending=True, stable=True)[:short]] += 1
    return whole


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cosine similarities along the last axis, in float32."""
    return torch.nn.functional.cosine_similarity(one.float(), other.float(), dim=-1)
