"""HDR to SDR: PQ and HLG pictures in BT.2020 as BT.709 shows them.

Sources: ITU-R BT.2100 (PQ and HLG transfer functions, HLG system gamma), BT.2390 (the highlight
roll-off), BT.2087 (BT.2020 to BT.709 primaries).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PEAK_NITS = 1000.0
"""The brightest light that is distinguished; the usual mastering peak of HDR10, nominal for HLG."""
WHITE_NITS = 203.0
"""The light of diffuse white in HDR (BT.2408), shown as SDR white."""

TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    dtype=np.float32,
)
LUMA_BT2020 = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
LEVELS = 4096
BAND_PIXELS = 1 << 18


def to_sdr(rgb: NDArray[np.uint8] | NDArray[np.uint16], transfer: str) -> NDArray[np.uint8]:
    """Tone-map HDR-coded `rgb` [H, W, 3] (uint8 or uint16, BT.2020) to SDR BT.709 uint8.

    `transfer` is "pq" or "hlg"; light is mapped by the brightest channel, which preserves hues.
    """
    coded = np.empty(rgb.shape, np.uint8)
    # In bands: the floats of a whole 8K picture would take gigabytes.
    step = max(1, BAND_PIXELS // rgb.shape[1])
    for row in range(0, len(rgb), step):
        coded[row : row + step] = _band_to_sdr(rgb[row : row + step], transfer)
    return coded


def _band_to_sdr(rgb: NDArray[np.uint8] | NDArray[np.uint16], transfer: str) -> NDArray[np.uint8]:
    top = np.iinfo(rgb.dtype).max
    codes = (rgb.astype(np.uint32) * (LEVELS - 1) + top // 2) // top
    light = _light(transfer)[codes]
    if transfer == "hlg":
        # System gamma 1.2 acts on the scene's luminance (BT.2100, table 5).
        light *= np.maximum(light @ LUMA_BT2020, 1e-6)[..., None] ** 0.2
        light *= PEAK_NITS
    brightest = light.max(axis=-1)
    position = np.sqrt(np.clip(brightest / PEAK_NITS, 0, 1)) * (LEVELS - 1)
    light *= _scale()[position.astype(np.int32)][..., None]
    linear = np.clip(light @ TO_BT709.T, 0, 1)
    coded: NDArray[np.uint8] = _encode()[(np.sqrt(linear) * (LEVELS - 1) + 0.5).astype(np.int32)]
    return coded


@cache
def _light(transfer: str) -> Floats:
    """Return a table, code value -> light: nits for PQ, scene light in [0, 1] for HLG."""
    code = np.linspace(0, 1, LEVELS)
    if transfer == "pq":
        return _from_pq(code).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


@cache
def _scale() -> Floats:
    """Return the factors of light, by the square root of the brightest channel's share of peak."""
    nits = np.maximum(np.linspace(0, 1, LEVELS) ** 2 * PEAK_NITS, 1e-4)
    return (_from_pq(_roll_off(_to_pq(nits))) / nits / WHITE_NITS).astype(np.float32)


@cache
def _encode() -> NDArray[np.uint8]:
    """Return a table, square root of linear light -> sRGB code value."""
    linear = np.linspace(0, 1, LEVELS) ** 2
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (coded * 255 + 0.5).astype(np.uint8)


def _roll_off(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply BT.2390's curve to PQ codes: linear up to a knee, then a spline that ends at white."""
    top = _to_pq(np.array(PEAK_NITS))
    white = _to_pq(np.array(WHITE_NITS)) / top
    knee = 1.5 * white - 0.5
    e = np.clip(code / top, 0, 1)
    t = np.clip((e - knee) / (1 - knee), 0, 1)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * white
    )
    return np.where(e < knee, e, spline) * top


def _from_pq(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert PQ codes in [0, 1] to nits."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = code ** (1 / m2)
    return 10000.0 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _to_pq(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert nits to PQ codes in [0, 1]."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (nits / 10000.0) ** m1
    result: NDArray[np.float64] = ((c1 + c2 * power) / (1 + c3 * power)) ** m2
    return result
