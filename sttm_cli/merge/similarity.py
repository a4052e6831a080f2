"""Every cosine similarity that a merge can ask for, computed once.

Vectors are read a few frames at a time and leave dot products behind; those of the whole video
are made cosines together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from sttm_cli.merge.pyramid import Pyramid, level_pairs

CACHE_BYTES = 4 << 20
"""On a CPU so many frames are taken at once that they stay in its cache for all comparisons."""

Levels = list[torch.Tensor]
"""The cells of some frames, level by level: [t, heads, cells, C/heads], in quadtree order."""


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
    chunks: list[_Dots] = []
    before: Levels = []
    for levels in _levels(features, pyramid, heads):
        chunks.append(_dots(before, levels, pyramid, padding))
        before = [level[-1:] for level in levels]
    norms = _join(chunk.norms for chunk in chunks)
    # A zero vector is similar to nothing.
    scales = [torch.where(norm > 0, norm.rsqrt(), 0) for norm in norms]
    return Similarities(
        _least(chunks, scales, pyramid, padding),
        _cross(chunks, scales, pyramid),
        norms[0],
    )


def frames_at_once(features: torch.Tensor, pyramid: Pyramid) -> int:
    """How many frames to take at a time: few enough for the cache, and for the memory."""
    if features.device.type != "cpu":
        # Twice an eighth of a bfloat16 video, as float32 with its coarser levels, is one input.
        return max(1, -(-len(features) // 8))
    return max(1, CACHE_BYTES // (4 * len(pyramid.order) * features.shape[3]))


def _levels(features: torch.Tensor, pyramid: Pyramid, heads: int) -> Iterator[Levels]:
    """The cells of all levels, a few frames at a time; each is overwritten by the next but one."""
    step = min(frames_at_once(features, pyramid), len(features))
    sizes = [pyramid.cells(level) for level in range(pyramid.depth + 1)]
    width = features.shape[3] // heads
    # Two sets of buffers in turn, so that the frame before is still there: allocating anew would
    # cost more than the reading.
    spaces = [
        [features.new_empty(step, heads, size, width, dtype=torch.float32) for size in sizes]
        for _ in range(2)
    ]
    for count, frames in enumerate(features.flatten(1, 2).split(step)):
        levels = [level[: len(frames)] for level in spaces[count % 2]]
        _read(frames, pyramid.order, levels[0])
        for finer, coarser in pairwise(levels):
            torch.mean(finer.view(*coarser.shape[:3], pyramid.fan, width), 3, out=coarser)
        yield levels


def _read(frames: torch.Tensor, order: torch.Tensor, finest: torch.Tensor) -> None:
    """Put `frames` [t, P, C] into `finest` [t, heads, Z, C/heads], in quadtree order."""
    if finest.shape[1] == 1 and frames.dtype == finest.dtype:
        torch.index_select(frames, 1, order, out=finest[:, 0])
    else:
        cells = frames.index_select(1, order)
        finest.copy_(cells.view(*cells.shape[:2], finest.shape[1], -1).transpose(1, 2))


@dataclass(frozen=True)
class _Dots:
    """Dot products within a chunk of frames, and with the frame before it; [t, heads, cells].

    `norms`, per level: of cells with themselves. `children`, per level from 1 on: with each
    child. `padding`, likewise: of the cells that lack a child with the cell at (0, 0) one level
    below. `cross`, per pair of levels: of nested cells in consecutive frames.
    """

    norms: list[torch.Tensor]
    children: list[torch.Tensor]
    padding: list[torch.Tensor]
    cross: list[torch.Tensor]


def _dots(before: Levels, levels: Levels, pyramid: Pyramid, padding: bool) -> _Dots:
    """Dot products of some frames; `before` is the frame before them, if there is one."""
    steps = [_nested(before, [level[:1] for level in levels])] if before else []
    if len(levels[0]) > 1:
        pair = [level[:-1] for level in levels], [level[1:] for level in levels]
        steps.append(_nested(*pair))
    firsts = []
    for parent, child, cells in zip(levels[1:], levels, pyramid.lacking, strict=False):
        firsts.append(_dot(parent[:, :, cells if padding else []], child[:, :, :1]))
    return _Dots(
        norms=[_dot(level, level) for level in levels],
        children=[_dot(child, parent) for child, parent in pairwise(levels)],
        padding=firsts,
        cross=_join(steps),
    )


def _nested(earlier: Levels, later: Levels) -> list[torch.Tensor]:
    """Per pair of levels, dot products of nested cells of `earlier` and `later` frames."""
    return [
        _dot(later[a], earlier[b]) if a <= b else _dot(earlier[b], later[a])
        for a, b in level_pairs(len(later) - 1)
    ]


def _dot(fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Each coarse cell with the fine ones in it: [t, h, n*k, c], [t, h, n, c] -> [t, h, n*k]."""
    vectors = coarse.reshape(-1, 1, coarse.shape[3])
    blocks = fine.reshape(len(vectors), fine.shape[2] // coarse.shape[2], coarse.shape[3])
    # A row times a matrix: as a column vector it would miss the fast path of the CPU's library.
    return torch.bmm(vectors, blocks.mT).view(fine.shape[:3])


def _join(parts: Iterator[list[torch.Tensor]] | Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
    """Lists of tensors joined along the frames, item by item."""
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


def _cosine(dots: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Cosines [t, n*k] from dot products and the inverse norms of both sides; mean over heads."""
    around = coarse.repeat_interleave(fine.shape[2] // coarse.shape[2], 2)
    return (dots * fine * around).mean(1).clamp(-1, 1)


def _least(
    chunks: list[_Dots], scales: list[torch.Tensor], pyramid: Pyramid, padding: bool
) -> torch.Tensor:
    children, firsts = (_join(c.children for c in chunks), _join(c.padding for c in chunks))
    found = [scales[0].new_empty(len(scales[0]), 0)]
    for k, cells in enumerate(pyramid.lacking):
        cosine = _cosine(children[k], scales[k], scales[k + 1])
        least = cosine.view(len(cosine), -1, pyramid.fan).amin(2)
        if padding and len(cells):
            first = _cosine(firsts[k], scales[k + 1][:, :, cells], scales[k][:, :, :1])
            least[:, cells] = torch.minimum(least[:, cells], first)
        found.append(least)
    return torch.cat(found, 1)


def _cross(chunks: list[_Dots], scales: list[torch.Tensor], pyramid: Pyramid) -> torch.Tensor:
    later, earlier = (
        [scale[frames] for scale in scales] for frames in (slice(1, None), slice(None, -1))
    )
    dots = _join(chunk.cross for chunk in chunks if chunk.cross)
    found = [
        _cosine(dot, later[a], earlier[b]) if a <= b else _cosine(dot, earlier[b], later[a])
        for dot, (a, b) in zip(dots, level_pairs(pyramid.depth), strict=False)
    ]
    return torch.cat(found, 1) if found else scales[0].new_empty(0, int(pyramid.pair_at.max()) + 1)
