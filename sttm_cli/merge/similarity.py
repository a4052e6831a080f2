"""Every cosine similarity that a merge can ask for, computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from sttm_cli.merge.pyramid import Pyramid, level_pairs

CACHE_BYTES = 16 << 20
"""On a CPU so many frames are taken at once that they stay in its cache for all comparisons."""


@dataclass(frozen=True)
class Similarities:
    """Cosines in float32 between the cells of a video's pyramids, laid out as `Pyramid` says.

    `least` [T, cells of levels 1..L]: of each cell, the least similarity to a child;
    `cross` [T-1, cells of pairs of levels]: between nested cells of consecutive frames;
    `norm` [T, Z]: the squared norm of the finest cells, the least over the heads.
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
    least, cross, norm = [], [], []
    for start, levels in _frames_by_level(features, pyramid, heads):
        cosine = _Cosines(levels, pyramid.fan)
        least.append(_least_to_children(cosine, pyramid, padding)[start:])
        cross.append(torch.cat(list(_between_frames(cosine)), 1))
        norm.append(cosine.norms[0].amin(1)[start:])
    return Similarities(torch.cat(least), torch.cat(cross), torch.cat(norm))


def _frames_by_level(
    features: torch.Tensor, pyramid: Pyramid, heads: int
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Chunks of frames: the cells of each level, [t, heads, cells, C/heads] in quadtree order.

    All chunks but the first begin with the last frame of the one before; with each chunk comes
    the number of frames that were there already.
    """
    step = frames_at_once(features, pyramid)
    for start in range(0, len(features), step):
        known = min(start, 1)
        chunk = features[start - known : start + step].flatten(1, 2)
        finest = chunk.index_select(1, pyramid.order).float().unflatten(2, (heads, -1))
        levels = [finest.transpose(1, 2).contiguous()]
        for _ in range(pyramid.depth):
            levels.append(levels[-1].unflatten(2, (-1, pyramid.fan)).mean(3))
        yield known, levels


def frames_at_once(features: torch.Tensor, pyramid: Pyramid) -> int:
    """How many frames to take at a time: few enough for the cache, and for the memory."""
    if features.device.type != "cpu":
        # As float32 with its coarser levels a quarter of a bfloat16 video is about one input.
        return max(1, -(-len(features) // 4))
    return max(1, CACHE_BYTES // (4 * len(pyramid.order) * features.shape[3]))


class _Cosines:
    """Cosines between the cells of one chunk; `levels` as from `_frames_by_level`."""

    def __init__(self, levels: list[torch.Tensor], fan: int) -> None:
        self.levels, self.fan = levels, fan
        self.norms = [_dot(level, level) for level in levels]
        # A zero vector is similar to nothing.
        self._scales = [torch.where(n > 0, n.rsqrt(), 0) for n in self.norms]

    def nested(self, fine: int, coarse: int, frames: slice, around: slice) -> torch.Tensor:
        """Of the cells of level `fine` in `frames` and the `coarse` ones in the frames `around`.

        Returns [t, cells of the finer level].
        """
        dots = _dot(self.levels[fine][frames], self.levels[coarse][around])
        outer = self._scales[coarse][around].repeat_interleave(self.fan ** (coarse - fine), 2)
        return (dots * self._scales[fine][frames] * outer).mean(1).clamp(-1, 1)

    def to_first_child(self, coarse: int, cells: torch.Tensor) -> torch.Tensor:
        """Of `cells` of level `coarse` and the cell at (0, 0) one level below, [t, cells]."""
        dots = _dot(self.levels[coarse][:, :, cells], self.levels[coarse - 1][:, :, :1])
        scale = self._scales[coarse][:, :, cells] * self._scales[coarse - 1][:, :, :1]
        return (dots * scale).mean(1).clamp(-1, 1)


def _dot(fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Each coarse cell with the fine ones in it: [t, h, n*k, c], [t, h, n, c] -> [t, h, n*k]."""
    inside = fine.shape[2] // coarse.shape[2]
    blocks = fine.reshape(-1, inside, fine.shape[3])
    return torch.bmm(blocks, coarse.reshape(-1, coarse.shape[3], 1)).view(fine.shape[:3])


def _least_to_children(cosine: _Cosines, pyramid: Pyramid, padding: bool) -> torch.Tensor:
    every = slice(None)
    found = [cosine.levels[0].new_empty(len(cosine.levels[0]), 0)]
    for child, parent in pairwise(range(pyramid.depth + 1)):
        least = cosine.nested(child, parent, every, every).unflatten(1, (-1, pyramid.fan)).amin(2)
        lacking = pyramid.lacking[child]
        if padding and len(lacking):
            quirk = cosine.to_first_child(parent, lacking)
            least[:, lacking] = torch.minimum(least[:, lacking], quirk)
        found.append(least)
    return torch.cat(found, 1)


def _between_frames(cosine: _Cosines) -> Iterator[torch.Tensor]:
    later, earlier = slice(1, None), slice(None, -1)
    for a, b in level_pairs(len(cosine.levels) - 1):
        if a <= b:
            yield cosine.nested(a, b, later, earlier)
        else:
            yield cosine.nested(b, a, earlier, later)
