"""Line charts as PNG, SVG or PDF: labelled lines, intervals, logarithmic axes."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sttm_cli.base.errors import SttmError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

ENDINGS = (".png", ".svg", ".pdf")
DPI = 200
"""Resolution of a PNG, twice that of an ordinary screen."""
INCHES = (8.4, 5.4)
INK, SOFT, GRID = "#222226", "#66666e", "#e2e2e8"
# Distinguishable on white with colour vision deficiencies (Wong 2011; then Tol's "muted").
FIRST = "#0072b2"
COLOURS = (
    "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#332288", "#882255", "#999933",
    "#44aa99", "#66666e",
)  # fmt: skip
MARKERS = "s^DvPX<>ph*d"
LABEL_GAP = 16
"""Points between the right edge of the axes and the labels."""


@dataclass(frozen=True)
class Point:
    """A measured `value` at the horizontal place `at`, with the ends of its interval, if any."""

    at: float
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """Points in any order; `emphasised`: drawn on top, with a band as its interval."""

    name: str
    points: Sequence[Point]
    emphasised: bool = False
    dashed: bool = False
    colour: int | None = None
    """Lines with the same number share a colour; None: a separate colour."""

    @property
    def ordered(self) -> list[Point]:
        return sorted(self.points, key=lambda point: point.at)


@dataclass(frozen=True)
class Chart:
    """Lines over a logarithmic horizontal axis with ticks at the points' places.

    `across` and `up`: axis labels; `log`: whether the vertical axis is logarithmic too; `falling`:
    whether the horizontal axis runs from large to small values.
    """

    title: str
    note: str
    across: str
    up: str
    lines: Sequence[Line]
    log: bool = False
    falling: bool = False

    def save(self, path: Path) -> None:
        """Write the chart in the format of the file's suffix; raises SttmError."""
        undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        metadata = undated.get(path.suffix.lower())
        try:
            with warnings.catch_warnings():
                # Letters that the font lacks are drawn as boxes.
                warnings.filterwarnings("ignore", "Glyph", UserWarning)
                self.figure().savefig(path, dpi=DPI, metadata=metadata)
        except OSError as error:
            raise SttmError(f"{path} cannot be written: {error.strerror or error}") from error

    def figure(self) -> Figure:
        """Draw the chart; the labels are annotations of its only axes."""
        from matplotlib.figure import Figure

        width, height = INCHES
        figure = Figure(figsize=(width, max(height, 1.6 + 0.18 * len(self.lines))))
        axes = figure.add_subplot()
        self._style(axes)
        for line, colour, marker in self._pens():
            _draw_line(axes, line, colour, marker)
        self._scale(axes)
        self._write(figure, axes)
        return figure

    def _pens(self) -> Iterator[tuple[Line, str, str]]:
        number = 0
        for line in self.lines:
            if line.emphasised:
                yield line, FIRST, "o"
                continue
            own = number if line.colour is None else line.colour
            yield line, COLOURS[own % len(COLOURS)], MARKERS[own % len(MARKERS)]
            number += 1

    def _style(self, axes: Axes) -> None:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, labelsize=9)
        axes.set_xlabel(self.across, color=INK)
        axes.set_ylabel(self.up, color=INK)

    def _scale(self, axes: Axes) -> None:
        from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

        places = sorted({point.at for line in self.lines for point in line.points})
        axes.set_xscale("log")
        margins = [1.06, 1.06] if len(places) > 1 else [1.06, 2] if self.falling else [2, 1.06]
        axes.set_xlim(places[0] / margins[0], places[-1] * margins[1])
        axes.xaxis.set_major_locator(FixedLocator(_readable(places)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
        if self.falling:
            axes.invert_xaxis()
        if self.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")

    def _write(self, figure: Figure, axes: Axes) -> None:
        """Draw title, note and labels, and fit the margins to them."""
        width, height = (72 * side for side in figure.get_size_inches())
        top = 12.0
        for text, wrapped, size, colour in ((self.title, 80, 13, INK), (self.note, 118, 9, SOFT)):
            lines = textwrap.wrap(text, wrapped, break_on_hyphens=False)
            figure.text(
                14 / width,
                1 - top / height,
                "\n".join(lines),
                size=size,
                color=colour,
                va="top",
                parse_math=False,
            )
            top += 1.3 * size * len(lines) + 4
        labels = [_label(axes, line, colour) for line, colour, _ in self._pens()]
        widest = max(_size(label)[0] for label in labels) * 72 / figure.dpi
        figure.subplots_adjust(
            left=56 / width,
            bottom=44 / height,
            right=1 - min(widest + LABEL_GAP + 10, 0.45 * width) / width,
            top=1 - (top + 8) / height,
        )
        ends = [line.ordered[0 if self.falling else -1] for line in self.lines]
        axes.get_ylim()  # Forces the computation of the limits.
        _place_labels(axes, labels, ends)


def require_matplotlib() -> None:
    """Raise SttmError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise SttmError("--plot needs matplotlib, which is not installed", "pip install matplotlib")


def _draw_line(axes: Axes, line: Line, colour: str, marker: str) -> None:
    points = line.ordered
    above = 3 if line.emphasised else 2
    axes.plot(
        [point.at for point in points],
        [point.value for point in points],
        color=colour,
        marker=marker,
        linestyle="--" if line.dashed else "-",
        linewidth=2.8 if line.emphasised else 1.4,
        markersize=7.5 if line.emphasised else 6.5,
        markeredgecolor="white",
        markeredgewidth=0.5,
        zorder=above,
    )
    known = [(p.at, p.value, p.low, p.high) for p in points if p.low is not None and p.high]
    if not known:
        return
    at, value, low, high = zip(*known, strict=True)
    if line.emphasised:
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0, zorder=1)
    errors = [
        [max(0.0, v - end) for v, end in zip(value, low, strict=True)],
        [max(0.0, end - v) for v, end in zip(value, high, strict=True)],
    ]
    axes.errorbar(
        at, value, errors, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5, zorder=above
    )


def _label(axes: Axes, line: Line, colour: str) -> Annotation:
    """Add the line's name, which `_place_labels` moves, with a leader to the line's end."""
    return axes.annotate(
        line.name,
        (0.0, 0.0),
        xytext=(0.0, 0.0),
        textcoords="axes fraction",
        va="center",
        size=9,
        color=INK,
        weight="bold" if line.emphasised else "normal",
        parse_math=False,
        annotation_clip=False,
        arrowprops={
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.8,
            "relpos": (0, 0.5),
            "shrinkA": 2,
            "shrinkB": 5,
        },
    )


def _place_labels(axes: Axes, labels: Sequence[Annotation], ends: Sequence[Point]) -> None:
    """Move the labels beside the lines' ends without overlaps."""
    to_fraction = axes.transAxes.inverted()
    box = axes.get_window_extent()
    places = axes.transData.transform([(end.at, end.value) for end in ends])
    heights = [_size(label)[1] / box.height for label in labels]
    wanted = [float(y) for _, y in to_fraction.transform(places)]
    gap = 1.05 * max(heights)
    scale = axes.figure.dpi / 72
    for label, end, y in zip(labels, ends, spread(wanted, gap, (0.0, 1.0)), strict=True):
        label.xy = (end.at, end.value)
        label.xyann = (1 + LABEL_GAP * scale / box.width, y)


def _size(label: Annotation) -> tuple[float, float]:
    """Return the width and height of the text in pixels, without its leader."""
    from matplotlib.text import Text

    box = Text.get_window_extent(label)
    return box.width, box.height


def _readable(places: Sequence[float]) -> list[float]:
    """Drop places whose tick labels would overlap a larger one."""
    least = (places[-1] / places[0]) ** (1 / 18)
    shown = [places[-1]]
    for place in reversed(places[:-1]):
        if shown[-1] / place >= least:
            shown.append(place)
    return shown


def spread(wanted: Sequence[float], gap: float, within: tuple[float, float]) -> list[float]:
    """Move places apart to at least `gap`, keeping their order, as little as possible.

    They stay inside `within` if it is large enough. Least squares: isotonic regression (pool
    adjacent violators) of the sorted places minus i * gap.
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, count = wanted[index] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            other, others = pools.pop()
            mean = (mean * count + other * others) / (count + others)
            count += others
        pools.append((mean, count))
    low, high = within
    most = max(low, high - (len(wanted) - 1) * gap)
    placed = [0.0] * len(wanted)
    flat = [min(max(mean, low), most) for mean, count in pools for _ in range(count)]
    for rank, (index, mean) in enumerate(zip(order, flat, strict=True)):
        placed[index] = mean + rank * gap
    return placed
