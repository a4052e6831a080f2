"""A video stream's packets, with jumps to the last keyframe before a requested time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import av

from sttm_cli.decode.container import packets_of

LOOKAHEAD_BYTES = 64 << 20
"""Bytes read ahead in search of a later keyframe before decoding continues instead."""

REORDER_S = 10
"""Maximum seconds between decoding and display order; a larger distance means a damaged time."""

INDEXED = {"mov", "matroska", "avi"}


class Packets:
    """The packets in file order; `jump` skips those that a requested time does not need.

    Formats with an index (MP4, Matroska with cues, AVI) are seeked. Others are read through, and
    packets before the last keyframe at or before the requested time are dropped undecoded: slower
    than seeking, but correct for every format. `damaged`: a packet read so far is known to be
    incomplete or has an impossible time.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._index = _index(container, stream)
        self._packets = packets_of(container, stream)
        self._ahead: deque[Any] = deque()
        self._read_dts: int | None = None
        self._most_reorder = REORDER_S / stream.time_base
        self.damaged = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._ahead.popleft() if self._ahead else self._read()

    def jump(self, now: int | None, goal: int) -> bool:
        """Continue at the last keyframe shown at or before `goal`, if that is later than `now`.

        `now` is the pts that decoding has reached, None at the start. Returns whether packets were
        skipped, so that the decoder must be reset.
        """
        return self._drop(goal) if self._index is None else self._seek(now, goal)

    def cut_off(self) -> bool:
        """Return whether the index lists packets after the last one that could be read."""
        if not self._index:
            return False
        last = self._index[len(self._index) - 1].timestamp
        return self._read_dts is None or self._read_dts < last

    def _read(self) -> Any:
        """Return the next packet of the file, with a repaired time; StopIteration at the end."""
        packet = next(self._packets)
        if packet.dts is not None:
            self._read_dts = packet.dts
            if packet.pts is not None and abs(packet.pts - packet.dts) > self._most_reorder:
                packet.pts, self.damaged = packet.dts, True
        self.damaged = self.damaged or packet.is_corrupt
        return packet

    def _seek(self, now: int | None, goal: int) -> bool:
        key, first = self._key_before(goal), self._index[0].timestamp if self._index else 0
        if key is None or key <= (first if now is None else now):
            return False
        self._go(goal)
        # The index uses decoding times; a keyframe is shown at that time or later.
        while self._ahead and (self._ahead[0].pts or 0) > goal and key is not None:
            key = self._key_before(key - 1)
            self._go(goal if key is None else key)
        return True

    def _key_before(self, time: int) -> int | None:
        at = self._index.search_timestamp(time) if self._index else -1
        return self._index[at].timestamp if self._index and at >= 0 else None

    def _go(self, time: int) -> None:
        try:
            self._container.seek(time, stream=self._stream)
        except av.FFmpegError:
            # The index is wrong: from here on, read sequentially.
            self._index, self.damaged = None, True
        self._packets = packets_of(self._container, self._stream)
        self._ahead = deque()
        with suppress(StopIteration):
            self._ahead.append(self._read())

    def _drop(self, goal: int) -> bool:
        found = seen = held = 0
        while held < LOOKAHEAD_BYTES:
            if seen == len(self._ahead):
                try:
                    self._ahead.append(self._read())
                except StopIteration:
                    break
            packet = self._ahead[seen]
            if packet.is_keyframe and packet.pts is not None and packet.pts <= goal:
                found = seen
            time = packet.pts if packet.dts is None else packet.dts
            if time is not None and time > goal:
                break
            seen, held = seen + 1, held + packet.size
        for _ in range(found):
            self._ahead.popleft()
        return found > 0


def _index(container: Any, stream: Any) -> Any | None:
    """Return the demuxer's index if known to be complete; a sequence with `search_timestamp`."""
    name = container.format.name.split(",")[0]
    entries = getattr(stream, "index_entries", None)
    if entries is None or name not in INDEXED:
        return None
    if name == "matroska":
        # Most files have the cues at their end, where they are read only on demand.
        with suppress(av.FFmpegError):
            container.seek(stream.start_time or 0, stream=stream)
        return entries if len(entries) > 1 else None
    # A fragmented MP4 has no frame count, and an AVI may have lost its index: the entries then only
    # grow as the file is read.
    return entries if len(entries) >= max(2, 0.8 * (stream.frames or math.inf)) else None
