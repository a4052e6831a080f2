"""Why a frame cannot be had."""

from __future__ import annotations

DAMAGED, ENDED = "damaged", "ended"


class Lost(Exception):
    """The frame on show at the wanted time is damaged, or the data end before it."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause
