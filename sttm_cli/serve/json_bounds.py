"""Bounds on JSON that others wrote, checked before anything is built from it."""

from __future__ import annotations

import re

MOST_BYTES = 1 << 20
"""Of a body without the contents of the data: urls in it."""
MOST_DEPTH = 32
MOST_PARTS = 50_000
"""Strings, commas, brackets, and escaped quotes."""
_PART = re.compile(rb'["\[\]{},]')
_URL = re.compile(rb'"url"\s{0,8}:\s{0,8}"data:\Z')
_LOOK_BACK = 40
_BACKSLASH = 0x5C


class TooLarge(ValueError):
    """JSON with more bytes or more parts than allowed."""


class TooDeep(ValueError):
    """JSON with more levels than allowed."""


def check_json(body: bytes) -> None:
    """Raise TooLarge or TooDeep for a body beyond the bounds. Whether it is JSON is not checked.

    The body is read once, and no further than to the first bound, so that this takes milliseconds.
    """
    position = depth = parts = free = 0
    # `free`: bytes of data: urls so far.
    while part := _PART.search(body, position, MOST_BYTES + free):
        position = part.end()
        depth += (part[0] in b"[{") - (part[0] in b"]}")
        parts += 1
        if part[0] == b'"':
            is_video = _URL.search(body, max(0, position - _LOOK_BACK), position + len(b"data:"))
            start = position
            position, quotes = _string_end(body, start, MOST_PARTS - parts)
            parts += quotes
            free += position - start if is_video else 0
        if depth > MOST_DEPTH:
            raise TooDeep
        if parts >= MOST_PARTS:
            raise TooLarge
    if len(body) - free > MOST_BYTES:
        raise TooLarge


def _string_end(body: bytes, start: int, most: int) -> tuple[int, int]:
    """The position behind the string whose text begins at `start`, and the escaped quotes in it,
    of which at most `most` are passed."""
    end, quotes = body.find(b'"', start), 0
    while end >= 0 and quotes < most and _is_escaped(body, start, end):
        end, quotes = body.find(b'"', end + 1), quotes + 1
    return (end + 1 if end >= 0 else len(body)), quotes


def _is_escaped(body: bytes, start: int, end: int) -> bool:
    first = end
    while first > start and body[first - 1] == _BACKSLASH:
        first -= 1
    return (end - first) % 2 == 1
