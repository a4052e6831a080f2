"""HDR pictures as BT.709: the tables beside the formulas of the standards, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sttm_cli.decode.tone import to_sdr

M1, M2, C1, C2, C3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
Colour = tuple[float, float, float]


def from_pq(code: float) -> float:
    """BT.2100, table 4: code -> nits."""
    power = code ** (1 / M2)
    return 10000 * (max(power - C1, 0) / (C2 - C3 * power)) ** (1 / M1)


def to_pq(nits: float) -> float:
    power = (nits / 10000) ** M1
    return ((C1 + C2 * power) / (1 + C3 * power)) ** M2


def from_hlg(code: float) -> float:
    """BT.2100, table 5: code -> the scene's light in [0, 1]."""
    if code <= 0.5:
        return code**2 / 3
    return (math.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12


def rolled_off(nits: float) -> float:
    """BT.2390, section 5.4.1: light of up to 1,000 nits as light of up to 203."""
    top, code = to_pq(1000), to_pq(min(nits, 1000)) / to_pq(1000)
    white = to_pq(203) / top
    knee = 1.5 * white - 0.5
    if code >= knee:
        t = (code - knee) / (1 - knee)
        code = (
            (2 * t**3 - 3 * t**2 + 1) * knee
            + (t**3 - 2 * t**2 + t) * (1 - knee)
            + (-2 * t**3 + 3 * t**2) * white
        )
    return from_pq(code * top)


def shown(coded: Colour, transfer: str) -> list[float]:
    """The sRGB codes of one pixel, from 0 to 255."""
    if transfer == "pq":
        nits = [from_pq(c) for c in coded]
    else:
        scene = [from_hlg(c) for c in coded]
        luminance = 0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]
        nits = [1000 * luminance**0.2 * light for light in scene]
    brightest = max(nits)
    light = [n * rolled_off(brightest) / brightest / 203 for n in nits]
    to_709 = (
        (1.6605, -0.5876, -0.0728),
        (-0.1246, 1.1329, -0.0083),
        (-0.0182, -0.1006, 1.1187),
    )
    linear = [min(1, max(0, sum(f * v for f, v in zip(r, light, strict=True)))) for r in to_709]
    return [255 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055) for v in linear]


GREYS = [(0.2, 0.2, 0.2), (0.4, 0.4, 0.4), (0.55, 0.55, 0.55), (0.75, 0.75, 0.75)]
COLOURS = [(0.6, 0.3, 0.3), (0.3, 0.55, 0.2), (0.3, 0.3, 0.7), (0.7, 0.65, 0.2)]


@pytest.mark.parametrize("coded", [*GREYS, *COLOURS])
@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_a_pixel_is_what_the_standards_formulas_give(coded: Colour, transfer: str) -> None:
    picture = np.round(np.full((2, 3, 3), coded) * 65535).astype(np.uint16)
    found = to_sdr(picture, transfer)[0, 0].astype(float)
    assert np.abs(found - shown(coded, transfer)).max() < 2.5
