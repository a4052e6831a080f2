"""The result of reading a frame: its true time and its picture, or the reason for its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DAMAGED, ENDED = "damaged", "ended"


class Lost(Exception):
    """The frame on show at the requested time is damaged, or the data end before it."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


Reading = tuple[float, "NDArray[np.uint8]"] | Lost
"""Seconds from the first frame and [H, W, 3] RGB, or the loss of that frame."""
