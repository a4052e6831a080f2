"""PruneVid, first stage: merging in time, then in space (Huang et al., 2024, arXiv 2412.16117).

Frames are clustered into segments of consecutive ones. In a segment, a place whose tokens are alike
over all its frames is static, and becomes one token. The static tokens of a segment, and the other
tokens of each frame, are then clustered, and each cluster averaged (section 3.2). The second stage,
which prunes by the attention of a question, is no part of it.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch.nn.functional import normalize

from sttm_cli.merge.groups import grouped, shared_out, within_budget
from sttm_cli.merge.method import Method
from sttm_cli.merge.tokens import MergedTokens

SEGMENTS = 0.25
"""Segments for each frame."""
STATIC = 0.8
"""The least mean cosine of a static place's tokens."""
NEIGHBOURS = 5
"""The nearest neighbours that make up a density."""


def prunevid(features: torch.Tensor, keep: int) -> MergedTokens:
    """Merge `features` [T, H, W, C] to `keep` clusters, in proportion to the sizes of the sets.

    Places are static only as far as enough tokens are left; a set without a share is dropped.
    """
    rows = features.flatten(1, 2).float()
    total, cells = rows.shape[0] * rows.shape[1], rows.shape[1]
    place = torch.arange(total, device=rows.device).view(-1, cells)
    segments = _segments(rows.mean(1))
    static = _static(rows, segments, total - keep)
    names = torch.full((total,), -1, device=rows.device)
    sets = []
    for (start, end), still in zip(segments, static, strict=True):
        sets.append((rows[start:end, still].mean(0), place[start:end, still]))
        sets += [(rows[t, ~still], place[t, ~still][None]) for t in range(start, end)]
    sets = [(vectors, members) for vectors, members in sets if len(vectors)]
    sizes = torch.tensor([float(len(vectors)) for vectors, _ in sets])
    for (vectors, members), count in zip(
        sets, shared_out(sizes, keep, total).tolist(), strict=True
    ):
        if count:
            names[members] = members[0][_clusters(vectors, count)].expand_as(members)
    return grouped(features, names)


def _segments(frames: torch.Tensor) -> list[tuple[int, int]]:
    """Segments (start, end) of the frames' means [T, C]: clusters, of which the longest run stays,
    and shorter runs join the longer run beside them."""
    label = _clusters(frames, max(1, round(SEGMENTS * len(frames)))).tolist()
    runs = [[name, len(list(run))] for name, run in groupby(label)]
    longest = {name: max(n for other, n in runs if other == name) for name, _ in runs}
    taken: set[int] = set()
    joined: list[int] = []
    for name, length in runs:
        stays = name not in taken and length == longest[name]
        taken |= {name} if stays else set()
        joined.append(name if stays else -1)
    stay = [index for index, name in enumerate(joined) if name >= 0]
    for index, name in enumerate(joined):
        if name < 0:
            before, after = [i for i in stay if i < index][-1:], [i for i in stay if i > index][:1]
            joined[index] = joined[max(before + after, key=lambda i: runs[i][1])]
    frame, segments = 0, []
    for _, group in groupby(zip(joined, runs, strict=True), key=lambda pair: pair[0]):
        length = sum(run[1] for _, run in group)
        segments.append((frame, frame + length))
        frame += length
    return segments


def _static(rows: torch.Tensor, segments: list[tuple[int, int]], spare: int) -> list[torch.Tensor]:
    """By segment, which places [P] are static; together they save at most `spare` tokens."""
    alike, saved = [], []
    for start, end in segments:
        count = end - start
        both = normalize(rows[start:end], dim=2).sum(0).square().sum(1) - count
        alike.append(both / max(1, count * (count - 1)))
        saved.append(torch.full_like(both, count - 1, dtype=torch.int64))
    every, saves = torch.cat(alike), torch.cat(saved)
    order = every.argsort(descending=True, stable=True)
    fits = torch.empty_like(every, dtype=torch.bool)
    fits[order] = saves[order].cumsum(0) <= spare
    return list((fits & (every >= STATIC) & (saves > 0)).split(rows.shape[1]))


def _clusters(rows: torch.Tensor, count: int) -> torch.Tensor:
    """The index of each row's cluster centre, [n], for `count` clusters of `rows` [n, C].

    Density peaks with nearest neighbours: centres are dense, and far from denser rows.
    """
    apart = torch.cdist(rows, rows) / rows.shape[1] ** 0.5
    nearest = apart.topk(min(NEIGHBOURS, len(rows)), largest=False).values
    density = (-nearest.square().mean(1)).exp()
    # Of equally dense rows the first counts as denser.
    rank = density.argsort(descending=True, stable=True).argsort()
    far = apart.masked_fill(rank >= rank[:, None], torch.inf).amin(1)
    far = torch.where(far.isinf(), apart.max(), far)
    centres = (far * density).argsort(descending=True, stable=True)[:count]
    names: torch.Tensor = centres[apart[:, centres].argmin(1)]
    names[centres] = centres
    return names


METHOD = Method("prunevid", 1, within_budget(prunevid))
