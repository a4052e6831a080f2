"""All cosine similarities that a merge may need, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_cli.merge.quadtree.products import Products, multiply
from sttm_cli.merge.quadtree.pyramid import Pyramid, level_pairs

BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1; 1 is reserved for cells that are equal bit by bit."""


@dataclass(frozen=True)
class Similarities:
    """Cosines in float32 between the cells of a video's pyramids, in the layout of `Pyramid`.

    `least` [T, cells of levels 1..L]: each cell's lowest similarity to a child; `cross` [T-1,
    cells of pairs of levels]: between nested cells of consecutive frames; `norm` [T, heads, Z]:
    squared norms of the finest cells.
    """

    least: torch.Tensor
    cross: torch.Tensor
    norm: torch.Tensor


def measure(
    features: torch.Tensor, pyramid: Pyramid, *, heads: int = 1, padding: bool = False
) -> Similarities:
    """Measure the similarities of pooled cells of `features` [T, H, W, C], averaged over `heads`.

    `padding`: replace the missing children of a border cell of an odd grid by the child at (0, 0)
    of the frame, as the released code does. Time is linear in T*H*W*C.
    """
    products = multiply(features, pyramid, heads=heads, padding=padding)
    # By linearity the products of a coarser cell are the means of those of its cells.
    norms = [*products.norm, *(_means(dots, pyramid.fan) for dots in products.children)]
    # The inverse norm; a zero vector has similarity 0 to everything.
    scales = [torch.where(norm > 0, norm.rsqrt(), 0) for norm in norms]
    return Similarities(
        _least_to_children(products, scales, pyramid),
        _between_frames(products, scales, pyramid),
        norms[0],
    )


def _least_to_children(
    products: Products, scales: list[torch.Tensor], pyramid: Pyramid
) -> torch.Tensor:
    parts = [scales[0].new_empty(len(scales[0]), 0)]
    for k, lacking in enumerate(pyramid.lacking):
        cosine = _cosine(products.children[k], scales[k], scales[k + 1])
        least = cosine.view(len(cosine), -1, pyramid.fan).amin(2)
        if products.padding:
            quirk = _cosine(products.padding[k], scales[k + 1][:, :, lacking], scales[k][:, :, :1])
            least[:, lacking] = torch.minimum(least[:, lacking], quirk)
        parts.append(least)
    least = torch.cat(parts, 1)
    # A lone child equals its parent, whatever the rounding of their cosine.
    return torch.where(pyramid.several, least, BELOW_ONE) if not products.padding else least


def _between_frames(
    products: Products, scales: list[torch.Tensor], pyramid: Pyramid
) -> torch.Tensor:
    if not products.later:
        return scales[0].new_empty(0, int(pyramid.pair_at.max()) + 1)
    later, earlier = [scale[1:] for scale in scales], [scale[:-1] for scale in scales]
    parts = []
    for a, b in level_pairs(pyramid.depth):
        if a <= b:
            dots, fine, coarse = products.later[b], later[a], earlier[b]
        else:
            dots, fine, coarse = products.earlier[a - 1], earlier[b], later[a]
        parts.append(_cosine(_means(dots, pyramid.fan ** min(a, b)), fine, coarse))
    return torch.cat(parts, 1)


def _means(values: torch.Tensor, count: int) -> torch.Tensor:
    """Average `count` neighbours each, [t, heads, n*count] -> [t, heads, n]."""
    return values.view(*values.shape[:2], values.shape[2] // count, count).mean(3)


def _cosine(dots: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Compute cosines [t, n*k] from dot products and inverse norms, averaged over heads.

    `dots` and `fine` [t, heads, n*k], `coarse` [t, heads, n].
    """
    around = coarse.repeat_interleave(fine.shape[2] // coarse.shape[2], 2)
    return (dots * fine * around).mean(1).clamp(-1, 1)
