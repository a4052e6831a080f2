"""A decoded frame -> the picture to deliver: RGB, upright, square pixels, SDR, of a given size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from numpy.typing import NDArray

from sttm_cli.decode.tone import to_sdr

RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class Orientation:
    """How stored pixels are turned: transposed first, then mirrored horizontally and vertically."""

    transpose: bool = False
    mirror: bool = False
    flip: bool = False

    @property
    def rotation(self) -> int:
        """The clockwise rotation in degrees, ignoring mirroring."""
        if self.transpose:
            return 90 if self.mirror else 270
        return 180 if self.flip else 0

    def apply(self, picture: RGB) -> RGB:
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        if self.mirror:
            picture = picture[:, ::-1]
        if self.flip:
            picture = picture[::-1]
        return np.ascontiguousarray(picture)


def orientation(frame: Any) -> Orientation:
    """Return the orientation by a PyAV frame's display matrix, to the nearest quarter turn."""
    # `frame.side_data` would form a reference cycle with the frame and keep many megabytes until
    # the next garbage collection.
    data = SideDataContainer(frame).get("DISPLAYMATRIX")  # type: ignore[call-arg]
    if data is None:
        return Orientation()
    matrix = np.frombuffer(bytes(data), dtype=np.int32)
    if matrix.size < 5:
        return Orientation()
    # (x, y) is shown at (a x + c y, b x + d y), in 16.16 fixed point.
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def picture(frame: Any, size: tuple[int, int], transfer: str) -> RGB:
    """Convert a PyAV frame to [H, W, 3] uint8 RGB of `size` (width, height)."""
    turned = orientation(frame)
    rgb = frame.reformat(format="rgb24" if transfer == "sdr" else "rgb48le")
    if frame.interlaced_frame:
        rgb = av.VideoFrame.from_ndarray(_blended(rgb.to_ndarray()), format=rgb.format.name)
    width, height = reversed(size) if turned.transpose else size
    pixels = _resized(rgb, width, height)
    return turned.apply(pixels if transfer == "sdr" else to_sdr(pixels, transfer))


def fitted(rgb: RGB, size: tuple[int, int], transfer: str) -> RGB:
    """Bring an upright picture [H, W, 3] to `size` (width, height) and to SDR."""
    pixels = _resized(av.VideoFrame.from_ndarray(rgb, format="rgb24"), *size)
    return pixels if transfer == "sdr" else to_sdr(pixels, transfer)


def _resized(rgb: av.VideoFrame, width: int, height: int) -> Any:
    """Resample in RGB: libswscale's shortcut from subsampled colours darkens by a level."""
    if (width, height) != (rgb.width, rgb.height):
        rgb = rgb.reformat(width=width, height=height, interpolation="BICUBIC")
    # Rows of odd widths are padded.
    return np.ascontiguousarray(rgb.to_ndarray())


def _blended(rgb: NDArray[Any]) -> NDArray[Any]:
    """Blend each line with its neighbours, 1-2-1, to remove the combing of two fields."""
    wide = rgb.astype(np.uint32)
    above, below = np.roll(wide, 1, axis=0), np.roll(wide, -1, axis=0)
    above[0], below[-1] = wide[0], wide[-1]
    return ((above + 2 * wide + below + 2) // 4).astype(rgb.dtype)
