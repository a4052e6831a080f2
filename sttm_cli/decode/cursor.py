"""The frame on show at a time: decoded frames in display order, with their times repaired."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import Any

from sttm_cli.decode.container import decode
from sttm_cli.decode.lost import DAMAGED, ENDED, Lost
from sttm_cli.decode.packets import Packets

END_SLACK_S = 1.0
"""How long after the end of the last frame it still counts as on show, where nothing says that
frames are missing: sound is often a little longer than the picture."""


class Cursor:
    """Moves forward through a stream; `at` gives the frame on show, `now` where it has got to."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._packets = Packets(container, stream)
        self._context = stream.codec_context
        self.base: Fraction = stream.time_base
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self._step = max(1, round(1 / (rate * self.base)))
        # AVI has no presentation times: FFmpeg makes them up in decoding order.
        self._unordered = container.format.name == "avi"
        self._shown: tuple[int, Any] | None = None
        self._ahead: tuple[int, Any] | None = None
        self.errors = 0
        self.ended = False
        self._start_over()

    def _start_over(self) -> None:
        self._frames: deque[Any] = deque()
        self._sent: set[int] = set()
        self._jumped = self._broken = False
        self._last: int | None = None

    @property
    def end(self) -> int:
        """The pts at which the last frame that came ends."""
        if self._shown is None:
            return 0
        return self._shown[0] + (self._shown[1].duration or self._step)

    def at(self, time: int) -> tuple[int, Any]:
        """The pts and the frame on show at pts `time`; raises Lost. Times must not go back."""
        self._jump(time)
        if self._ahead is None and not self.ended:
            self._ahead = self._next()
        while self._ahead is not None and self._ahead[0] <= time:
            self._shown, self._ahead = self._ahead, self._next()
        return self._checked(time)

    def _jump(self, time: int) -> None:
        if self.ended or (self._ahead is not None and self._ahead[0] > time):
            return
        now = self._ahead[0] if self._ahead is not None else -1
        if self._packets.jump(now, time):
            self._context.flush_buffers()
            self._shown = self._ahead = None
            self._start_over()
            self._jumped = True

    def _checked(self, time: int) -> tuple[int, Any]:
        found = self._shown
        if found is None:
            # Before the first frame the first one stands; after a jump it is not the first.
            if self._jumped or self._ahead is None:
                raise Lost(ENDED if self._ahead is None else DAMAGED)
            found = self._ahead
        if found[1].is_corrupt or (self._broken and self._missing(found[0], time)):
            raise Lost(DAMAGED)
        if self.ended and time > self.end + self._slack():
            raise Lost(ENDED)
        return found

    def _slack(self) -> float:
        return 0.0 if self._packets.cut_off() else float(END_SLACK_S / self.base)

    def _missing(self, shown: int, time: int) -> bool:
        """Whether a packet between the frame on show and `time` gave no frame."""
        self._sent = {pts for pts in self._sent if pts > shown}
        return any(pts <= time for pts in self._sent)

    def _next(self) -> tuple[int, Any] | None:
        """The next frame in display order with its repaired pts."""
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
        if packet.pts is not None and packet.size and not packet.is_discard:
            self._sent.add(packet.pts)
        frames, well = decode(packet)
        self._frames.extend(frames)
        if not well:
            self.errors += 1
            self._broken = True

    def _repaired(self, frame: Any) -> int:
        """A frame's pts, or what it must be where the file does not tell."""
        if self._unordered and self._sent:
            pts = min(self._sent)
        elif frame.pts is not None:
            pts = int(frame.pts)
        else:
            pts = 0 if self._last is None else self._last + self._step
        self._sent.discard(pts)
        return pts
