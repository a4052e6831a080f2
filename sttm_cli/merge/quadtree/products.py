"""Dot products between the cells of all levels, in a single pass over the features.

A few cells at a time are copied in quadtree order, pooled level by level, and compared while
they are in the CPU cache. Only a few numbers per cell are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise

import torch

from sttm_cli.merge.quadtree.pyramid import Pyramid

CACHE_BYTES = 4 << 20
"""Bytes of cells processed at once on a CPU, so that they stay in its cache."""

Levels = list[torch.Tensor]
"""The cells of some frames by level: [t, heads, cells, C/heads], in quadtree order."""


@dataclass(frozen=True)
class Products:
    """Dot products [t, heads, cells] between the cells of some frames.

    `norm`: finest cells with themselves. `children`, per level from 1 on: its cells with each
    child. `later` and `earlier`, per level: the finest cells of the later (earlier) of two
    consecutive frames with the cells around them in the other frame, [t-1, ..]; `earlier` starts
    at level 1, since both agree at level 0. `padding`, per level from 1 on: the cells that lack a
    child with the cell at (0, 0) one level below; empty unless requested. Products of coarser
    cells follow by linearity.
    """

    norm: list[torch.Tensor]
    children: list[torch.Tensor]
    later: list[torch.Tensor]
    earlier: list[torch.Tensor]
    padding: list[torch.Tensor]


def multiply(features: torch.Tensor, pyramid: Pyramid, *, heads: int, padding: bool) -> Products:
    """Compute the dot products of `features` [T, H, W, C], per head, in float32."""
    frames, roots = _at_once(features, pyramid)
    options = (frames, heads, padding)
    below_roots = pyramid.order.view(pyramid.root_count, -1)
    # `padding` needs the cell at (0, 0), which only the first root covers: all roots at once.
    parts = below_roots.split(pyramid.root_count if padding else roots)
    with full_float32(features.device.type):
        products = [_multiply(features, pyramid, places.flatten(), options) for places in parts]
    return _join(products, axis=2)


@contextmanager
def full_float32(device: str) -> Iterator[None]:
    """Multiply float32 matrices in full precision: disable autocast and TF32."""
    with torch.autocast(device, enabled=False):
        if device != "cuda":
            yield
            return
        matmul = torch.backends.cuda.matmul
        # torch 2.8 has the older name only.
        new = hasattr(matmul, "fp32_precision")
        name = "fp32_precision" if new else "allow_tf32"
        before = getattr(matmul, name)
        setattr(matmul, name, "ieee" if new else False)
        try:
            yield
        finally:
            setattr(matmul, name, before)


def frames_at_once(features: torch.Tensor, pyramid: Pyramid) -> int:
    """Return the number of frames to copy at a time, bounded by cache and memory."""
    return _at_once(features, pyramid)[0]


def _at_once(features: torch.Tensor, pyramid: Pyramid) -> tuple[int, int]:
    """Return the number of frames at a time, and of roots (with their subtrees) in each."""
    if features.device.type != "cpu":
        # Two buffers of an eighth of a bfloat16 video, in float32 with coarser levels, take about
        # as much memory as the input.
        return max(1, -(-len(features) // 8)), pyramid.root_count
    below_root = 4 * len(pyramid.order) * features.shape[3] // pyramid.root_count
    roots = max(1, min(pyramid.root_count, CACHE_BYTES // below_root))
    return max(1, CACHE_BYTES // (below_root * pyramid.root_count)), roots


def _multiply(
    features: torch.Tensor, pyramid: Pyramid, places: torch.Tensor, options: tuple[int, int, bool]
) -> Products:
    frames, heads, padding = options
    chunks: list[Products] = []
    before: Levels = []
    for levels in _levels(features, places, pyramid, frames=frames, heads=heads):
        chunks.append(_within(levels, pyramid, padding))
        if before:
            chunks.append(_across(before, [level[:1] for level in levels]))
        if len(levels[0]) > 1:
            chunks.append(
                _across([level[:-1] for level in levels], [level[1:] for level in levels])
            )
        before = [level[-1:] for level in levels]
    return _join(chunks, axis=0)


def _within(levels: Levels, pyramid: Pyramid, padding: bool) -> Products:
    """Compute the products within each frame."""
    children = [_dot(child, parent) for child, parent in pairwise(levels)]
    return Products(
        norm=[_dot(levels[0], levels[0])],
        children=children,
        later=[],
        earlier=[],
        padding=_with_first(levels, pyramid) if padding else [],
    )


def _across(earlier: Levels, later: Levels) -> Products:
    """Compute the products of frames with the frames after them."""
    return Products(
        norm=[],
        children=[],
        later=[_dot(later[0], level) for level in earlier],
        earlier=[_dot(earlier[0], level) for level in later[1:]],
        padding=[],
    )


def _levels(
    features: torch.Tensor, places: torch.Tensor, pyramid: Pyramid, *, frames: int, heads: int
) -> Iterator[Levels]:
    """Yield the cells at `places` and their ancestors, some frames at a time.

    Buffers alternate: an item is overwritten by the one after the next.
    """
    width, step = features.shape[3] // heads, min(frames, len(features))
    sizes = [len(places) // int(pyramid.fan**level) for level in range(pyramid.depth + 1)]
    # Two sets of buffers keep the previous frame; allocating new ones costs more than the copy.
    spaces = [
        [features.new_empty(step, heads, size, width, dtype=torch.float32) for size in sizes]
        for _ in range(2)
    ]
    # Rows of one table: gathering along the second axis runs on a single thread.
    cells = features.shape[1] * features.shape[2]
    rows = (torch.arange(step, device=places.device)[:, None] * cells + places).flatten()
    taken = features.new_empty(len(rows), features.shape[3])
    for count, chunk in enumerate(features.flatten(0, 2).split(step * cells)):
        levels = [level[: len(chunk) // cells] for level in spaces[count % 2]]
        _read(chunk, rows[: len(levels[0]) * len(places)], levels[0], taken)
        for finer, coarser in pairwise(levels):
            _pool(finer, coarser, pyramid.fan)
        yield levels


def _read(
    table: torch.Tensor, rows: torch.Tensor, finest: torch.Tensor, taken: torch.Tensor
) -> None:
    """Copy `rows` of `table` [t*P, C] into `finest` [t, heads, cells, C/heads].

    Goes through the buffer `taken` if the layout or the dtype differs.
    """
    frames, heads, cells, width = finest.shape
    if heads == 1 and table.dtype == finest.dtype:
        torch.index_select(table, 0, rows, out=finest.view(-1, width))
    else:
        torch.index_select(table, 0, rows, out=taken[: len(rows)])
        split = taken[: len(rows)].view(frames, cells, heads, width)
        finest.copy_(split.transpose(1, 2))


def _pool(finer: torch.Tensor, coarser: torch.Tensor, fan: int) -> None:
    """Write the means of `fan` cells each to `coarser`; bmm is twice as fast as mean."""
    cells, width = coarser.shape[:3].numel(), coarser.shape[3]
    shares = finer.new_full((1, 1, fan), 1 / fan).expand(cells, 1, fan)
    torch.bmm(shares, finer.view(cells, fan, width), out=coarser.view(cells, 1, width))


def _with_first(levels: Levels, pyramid: Pyramid) -> list[torch.Tensor]:
    """Compute `Products.padding`."""
    return [
        _dot(parent[:, :, lacking], child[:, :, :1])
        for (child, parent), lacking in zip(pairwise(levels), pyramid.lacking, strict=True)
    ]


def _dot(fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Multiply coarse cells with their fine cells: [t, h, n*k, c], [t, h, n, c] -> [t, h, n*k]."""
    vectors = coarse.reshape(-1, 1, coarse.shape[3])
    blocks = fine.reshape(len(vectors), fine.shape[2] // coarse.shape[2], coarse.shape[3])
    # A row times a matrix; a matrix times a column misses the fast path of some CPUs.
    return torch.bmm(vectors, blocks.mT).view(fine.shape[:3])


def _join(parts: Iterable[Products], *, axis: int) -> Products:
    parts = list(parts)
    lists = [[getattr(part, field.name) for part in parts] for field in fields(Products)]
    return Products(*(_concatenate(tensors, axis) for tensors in lists))


def _concatenate(lists: Iterable[list[torch.Tensor]], axis: int) -> list[torch.Tensor]:
    """Concatenate lists of tensors item by item, ignoring empty lists."""
    return [torch.cat(items, axis) for items in zip(*filter(None, lists), strict=True)]
