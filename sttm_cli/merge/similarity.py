"""Every cosine similarity that a merge can ask for, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_cli.merge.products import Products, multiply
from sttm_cli.merge.pyramid import Pyramid, level_pairs

BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1; 1 itself is kept for cells that are equal to the last bit."""


@dataclass(frozen=True)
class Similarities:
    """Cosines in float32 between the cells of a video's pyramids, laid out as `Pyramid` says.

    `least` [T, cells of levels 1..L]: of each cell, the least similarity to a child;
    `cross` [T-1, cells of pairs of levels]: between nested cells of consecutive frames;
    `norm` [T, heads, Z]: the squared norms of the finest cells.
    """

    least: torch.Tensor
    cross: torch.Tensor
    norm: torch.Tensor


def measure(
    features: torch.Tensor, pyramid: Pyramid, *, heads: int = 1, padding: bool = False
) -> Similarities:
    """Similarities of `features` [T, H, W, C]: of the pooled cells, the mean over `heads`.

    `padding`: compare the children that a border cell of an odd grid lacks as if they were the
    child at (0, 0) of the frame, as the released code does. Time is linear in T*H*W*C.
    """
    found = multiply(features, pyramid, heads=heads, padding=padding)
    # By linearity the products of a coarser cell are the means of those of the cells in it.
    norms = [*found.norm, *(_means(dots, pyramid.fan) for dots in found.children)]
    # The inverse of the norm; a zero vector is similar to nothing.
    scales = [torch.where(norm > 0, norm.rsqrt(), 0) for norm in norms]
    return Similarities(
        _least_to_children(found, scales, pyramid),
        _between_frames(found, scales, pyramid),
        norms[0],
    )


def _least_to_children(
    found: Products, scales: list[torch.Tensor], pyramid: Pyramid
) -> torch.Tensor:
    parts = [scales[0].new_empty(len(scales[0]), 0)]
    for k, lacking in enumerate(pyramid.lacking):
        cosine = _cosine(found.children[k], scales[k], scales[k + 1])
        least = cosine.view(len(cosine), -1, pyramid.fan).amin(2)
        if found.padding:
            quirk = _cosine(found.padding[k], scales[k + 1][:, :, lacking], scales[k][:, :, :1])
            least[:, lacking] = torch.minimum(least[:, lacking], quirk)
        parts.append(least)
    least = torch.cat(parts, 1)
    # A lone child is its parent, whatever rounding makes of their cosine.
    return torch.where(pyramid.several, least, BELOW_ONE) if not found.padding else least


def _between_frames(found: Products, scales: list[torch.Tensor], pyramid: Pyramid) -> torch.Tensor:
    if not found.later:
        return scales[0].new_empty(0, int(pyramid.pair_at.max()) + 1)
    later, earlier = [scale[1:] for scale in scales], [scale[:-1] for scale in scales]
    parts = []
    for a, b in level_pairs(pyramid.depth):
        if a <= b:
            dots, fine, coarse = found.later[b], later[a], earlier[b]
        else:
            dots, fine, coarse = found.earlier[a - 1], earlier[b], later[a]
        parts.append(_cosine(_means(dots, pyramid.fan ** min(a, b)), fine, coarse))
    return torch.cat(parts, 1)


def _means(values: torch.Tensor, count: int) -> torch.Tensor:
    """The means of `count` neighbours each, [t, heads, n*count] -> [t, heads, n]."""
    return values.view(*values.shape[:2], values.shape[2] // count, count).mean(3)


def _cosine(dots: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Cosines [t, n*k] from dot products and the inverse norms of both sides; mean over heads.

    `dots` and `fine` [t, heads, n*k], `coarse` [t, heads, n].
    """
    around = coarse.repeat_interleave(fine.shape[2] // coarse.shape[2], 2)
    return (dots * fine * around).mean(1).clamp(-1, 1)
