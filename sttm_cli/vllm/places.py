"""Placeholders and rotary positions of merged videos in a prompt: pure, without vLLM.

vLLM knows a prompt's positions before the video is encoded, and which tokens remain only after.
Text is placed at once, by the unmerged video. Each row that the encoder gives carries its marks:
its row in the medium, the rows before the medium's first placeholder, and its ids (t, h, w),
counted from the medium's first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_DIGITS = 3
"""Bytes of a mark. A mark travels beside the features, in their dtype; bfloat16 holds whole
numbers up to 256."""
MARKS = 5
WIDTH = MARKS * _DIGITS


@dataclass(frozen=True)
class Medium:
    """An image or a video in a prompt: `length` tokens from `offset` on.

    `steps` and `each`: how many runs of visual tokens it has unmerged, and their length.
    """

    offset: int
    length: int
    steps: int
    each: int


@dataclass(frozen=True)
class Unmerged:
    """A prompt as it is without merging: its tokens, its media's (offset, length), and for each
    token of the merged prompt the place of one here."""

    ids: list[int]
    media: list[tuple[int, int]]
    keep: list[int]


def resized(ids: Sequence[int], token: int, count: int) -> list[int]:
    """Give the only run of `token` in `ids` this length. Raises ValueError for several runs."""
    held = ids.count(token)
    first = ids.index(token)
    if any(other != token for other in ids[first : first + held]):
        raise ValueError("a video's placeholders are not in one run")
    return [*ids[:first], *[token] * count, *ids[first + held :]]


def unmerged(ids: list[int], media: Sequence[Medium], *, token: int, start: int) -> Unmerged:
    """Undo the merging of a prompt's placeholders.

    `media`: ascending. A run of `token`s follows every `start` token of a medium; a medium without
    `start` tokens is one run.
    """
    full: list[int] = []
    keep: list[int] = []
    places: list[tuple[int, int]] = []
    done = 0
    for medium in media:
        end = medium.offset + medium.length
        keep += range(len(full), len(full) + medium.offset - done)
        full += ids[done : medium.offset]
        part = ids[medium.offset : end]
        whole = _whole(part, medium, token, start)
        at = len(full)
        seen = iter([at + i for i, one in enumerate(whole) if one == token])
        text = iter([at + i for i, one in enumerate(whole) if one != token])
        keep += [next(seen) if one == token else next(text) for one in part]
        places.append((at, len(whole)))
        full += whole
        done = end
    keep += range(len(full), len(full) + len(ids) - done)
    return Unmerged(full + ids[done:], places, keep)


def _whole(part: list[int], medium: Medium, token: int, start: int) -> list[int]:
    if part.count(token) in (0, medium.steps * medium.each):
        return part
    if start not in part:
        return [token] * (medium.steps * medium.each)
    whole: list[int] = []
    for one in part:
        if one != token:
            whole.append(one)
        if one == start:
            whole += [token] * medium.each
    return whole


def marked(features: torch.Tensor, ids: torch.Tensor, lead: int = 0) -> torch.Tensor:
    """Append marks to `features` [N, C]: [N, C + WIDTH]; `ids` [3, N], on any device."""
    return torch.cat([features, marks(ids, lead).to(features)], 1)


def marks(ids: torch.Tensor, lead: int = 0) -> torch.Tensor:
    """Return the marks [N, WIDTH] of a medium's rows with the relative `ids` [3, N]."""
    rows = torch.arange(ids.shape[1], device=ids.device)
    values = torch.stack([rows, torch.full_like(rows, lead), *ids.long()], 1)
    shifts = torch.arange(8 * (_DIGITS - 1), -1, -8, device=ids.device)
    return (values[:, :, None].bitwise_right_shift(shifts) & 255).flatten(1)


def unmarked(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split rows [N, C + WIDTH] into features [N, C] and marks [N, MARKS]."""
    digits = rows[:, -WIDTH:].round().long().view(-1, MARKS, _DIGITS)
    shifts = torch.arange(8 * (_DIGITS - 1), -1, -8, device=rows.device)
    return rows[:, :-WIDTH], digits.bitwise_left_shift(shifts).sum(2)


def placed(
    positions: torch.Tensor, is_place: torch.Tensor, computed: int, media: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Write the positions of encoded rows into `positions` [3, L], and return the result.

    `is_place` [L]: which tokens are placeholders; `computed`: how many tokens precede the rows'
    window; `media`: the marks of each medium's rows in that window, in their order.
    """
    positions = positions.clone()
    places = is_place.nonzero()[:, 0].tolist()
    at = computed
    for values in media:
        if not len(values):
            continue
        row, lead = values[0, :2].tolist()
        # A medium that began before the window goes on at its very beginning.
        begin = at if row else next(place for place in places if place >= at + lead) - lead
        before = begin - row - 1
        base = positions[0, before] + 1 if before >= 0 else 0
        positions[:, begin : begin + len(values)] = values[:, 2:].T + base
        at = begin + len(values)
    return positions
