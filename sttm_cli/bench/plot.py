"""A line chart as PNG, drawn with Pillow: enough for a benchmark, and no further dependency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sttm_cli.base.errors import SttmError

WIDTH, HEIGHT = 960, 600
LEFT, TOP, RIGHT, BOTTOM = 90, 60, 240, 70
INK, PALE = (40, 40, 48), (222, 222, 228)
COLOURS = (
    (0, 92, 230), (230, 80, 30), (20, 150, 80), (150, 60, 180), (200, 150, 0), (0, 160, 190),
    (210, 40, 110), (110, 110, 120), (120, 80, 40), (90, 170, 20), (60, 60, 160), (240, 140, 160),
)  # fmt: skip

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """Lines by name, the first above the others; points in any order.

    `log`: whether the vertical axis is logarithmic.
    """

    title: str
    across: str
    up: str
    lines: Mapping[str, Points]
    log: bool = False

    def save(self, path: Path) -> None:
        """Write the chart as PNG; raises SttmError where that cannot be."""
        picture = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
        draw = ImageDraw.Draw(picture)
        x = _Axis.of([p[0] for line in self.lines.values() for p in line], False)
        y = _Axis.of([p[1] for line in self.lines.values() for p in line], self.log)
        self._frame(draw, x, y)
        for line, colour in reversed(list(zip(self.lines.values(), _colours(), strict=False))):
            self._line(draw, [_place(x.at(a), y.at(b)) for a, b in sorted(line)], colour)
        self._names(draw)
        try:
            picture.quantize(64).save(path, "PNG", optimize=True)
        except OSError as error:
            raise SttmError(f"{path} cannot be written: {error.strerror or error}") from error

    def _frame(self, draw: ImageDraw.ImageDraw, x: _Axis, y: _Axis) -> None:
        font = _font(15)
        for value in x.ticks():
            here, _ = _place(x.at(value), 0)
            draw.line((here, TOP, here, HEIGHT - BOTTOM), PALE)
            draw.text((here, HEIGHT - BOTTOM + 8), f"{value:g}", INK, font, anchor="ma")
        for value in y.ticks():
            _, there = _place(0, y.at(value))
            draw.line((LEFT, there, WIDTH - RIGHT, there), PALE)
            draw.text((LEFT - 8, there), f"{value:g}", INK, font, anchor="rm")
        draw.rectangle((LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM), outline=INK)
        draw.text((LEFT, 16), self.title, INK, _font(20))
        draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 34), self.across, INK, font, anchor="ma")
        draw.text((LEFT, TOP - 20), self.up, INK, font)

    def _line(
        self, draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: tuple[int, ...]
    ) -> None:
        draw.line([c for point in points for c in point], fill=colour, width=3, joint="curve")
        for a, b in points:
            draw.ellipse((a - 4, b - 4, a + 4, b + 4), fill=colour)

    def _names(self, draw: ImageDraw.ImageDraw) -> None:
        for row, (name, colour) in enumerate(zip(self.lines, _colours(), strict=False)):
            left, middle = WIDTH - RIGHT + 16, TOP + 12 + 22 * row
            draw.line((left, middle, left + 22, middle), fill=colour, width=3)
            draw.text((left + 30, middle), name, INK, _font(14), anchor="lm")


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Sequence[float], log: bool) -> _Axis:
        low, high = min(values), max(values)
        if log:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high))
            return cls(low, high if high > low else 10 * low, True)
        margin = 0.05 * (high - low) or 0.5
        return cls(low - margin, high + margin, False)

    def at(self, value: float) -> float:
        """0 at the lower end, 1 at the upper one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.log:
            count = round(math.log10(self.high / self.low))
            return [self.low * 10**power for power in range(count + 1)]
        rough = (self.high - self.low) / 6
        power = 10 ** math.floor(math.log10(rough))
        step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough)
        first = math.ceil(self.low / step)
        return [round(n * step, 10) for n in range(first, math.floor(self.high / step) + 1)]


def _place(x: float, y: float) -> tuple[float, float]:
    return LEFT + x * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y * (HEIGHT - TOP - BOTTOM)


def _colours() -> tuple[tuple[int, int, int], ...]:
    return COLOURS * 3


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
