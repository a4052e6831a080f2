"""The frame on show at a time: decoded frames in display order, with repaired times."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Any

from sttm_cli.decode.container import decode
from sttm_cli.decode.lost import DAMAGED, ENDED, Lost
from sttm_cli.decode.packets import Packets

END_SLACK_S = 1.0
"""Seconds after its end for which the last frame counts as on show, unless frames are known to be
missing: audio is often slightly longer than video."""


class Cursor:
    """Moves forward through a stream: `at` returns the frame on show at a time.

    `damaged`: a packet was damaged on the way; `ended`: no frames are left.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self._packets = Packets(container, stream)
        self._context = stream.codec_context
        self.base: Fraction = stream.time_base
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._step = max(1, round(1 / (rate * self.base)))
        # AVI has no presentation times: FFmpeg derives them from the decoding order.
        self._unordered = container.format.name == "avi"
        self._shown: tuple[int, Any] | None = None
        self._ahead: tuple[int, Any] | None = None
        self.ended = self.damaged = False
        self._start_over()

    def _start_over(self) -> None:
        self._frames: deque[Any] = deque()
        self._sent: set[int] = set()
        self._jumped = self._broken = False
        self._last: int | None = None
        self._first: int | None = None
        self._delay: int | None = None

    @property
    def end(self) -> int:
        """The pts at which the latest frame ends."""
        if self._shown is None:
            return 0
        return self._shown[0] + int(self._shown[1].duration or self._step)

    def at(self, time: int) -> tuple[int, Any]:
        """Return the pts and the frame on show at `time`; raises Lost. Times must not decrease."""
        self._jump(time)
        if self._ahead is None and not self.ended:
            self._ahead = self._next()
        while self._ahead is not None and self._ahead[0] <= time:
            self._shown, self._ahead = self._ahead, self._next()
        return self._checked(time)

    def _jump(self, time: int) -> None:
        if self._ahead is not None and self._ahead[0] > time:
            return
        reached = self._ahead or self._shown
        if self._packets.jump(None if reached is None else reached[0], time):
            self._context.flush_buffers()
            self._shown = self._ahead = None
            self.ended = False
            self._start_over()
            self._jumped = True

    def _checked(self, time: int) -> tuple[int, Any]:
        if self.ended and (self._shown is None or time > self.end + self._slack()):
            raise Lost(DAMAGED if self.damaged and not self._packets.cut_off() else ENDED)
        # Before the first frame, the first one counts as shown; after a jump, the next frame is not
        # the first.
        found = self._shown or (None if self._jumped else self._ahead)
        if found is None or found[1].is_corrupt or self._is_gone(found[0], time):
            self.damaged = True
            raise Lost(DAMAGED)
        return found

    def _is_gone(self, shown: int, time: int) -> bool:
        """Return whether the frame at pts `shown` only covers for a later one that was damaged."""
        if self._broken:
            # A packet between the two produced no frame.
            self._sent = {pts for pts in self._sent if pts > shown}
            if any(pts <= time for pts in self._sent):
                return True
        # A gap in a stream that is known to be damaged.
        return self.damaged and self._ahead is not None and time >= self.end + self._step

    def _slack(self) -> float:
        return 0.0 if self._packets.cut_off() else float(END_SLACK_S / self.base)

    def _next(self) -> tuple[int, Any] | None:
        """Return the next frame in display order with its repaired pts."""
        while not self.ended:
            while self._frames:
                frame = self._frames.popleft()
                pts = self._repaired(frame)
                if self._last is None or pts >= self._last:
                    self._last = pts
                    return pts, frame
            self._decode_on()
        return None

    def _decode_on(self) -> None:
        packet = next(self._packets, None)
        if packet is None:
            self.ended = True
            return
        if packet.size and not packet.is_discard:
            time = packet.dts if packet.pts is None else packet.pts
            if self._first is None:
                self._first = time
            if time is not None:
                self._sent.add(time)
        frames, well = decode(packet)
        self._frames.extend(frames)
        self._broken = self._broken or not well
        self.damaged = self.damaged or not well or self._packets.damaged

    def _repaired(self, frame: Any) -> int:
        """Return a frame's pts, reconstructed if the file has none."""
        pts = self._counted(frame) if self._unordered or frame.pts is None else int(frame.pts)
        self._sent.discard(pts)
        return pts

    def _counted(self, frame: Any) -> int:
        """Return the pts derived from the decoding time of the frame's packet."""
        if frame.dts is None or self._first is None:
            return 0 if self._last is None else self._last + self._step
        if self._delay is None:
            self._delay = frame.dts - self._first
        return int(frame.dts) - self._delay
