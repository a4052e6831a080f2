"""Charts: every line labelled and no label over another, the whole truth in the title."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image
from typer.testing import CliRunner

from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.bench.charts import accuracy_chart, chart_of, main, speed_chart
from sttm_cli.bench.plot import INCHES, Chart, Line, Point, spread
from sttm_cli.cli import app

DOCS = Path(__file__).parents[2] / "docs"
BUDGETS = (1.0, 0.5, 0.3, 0.15, 0.1)
TEN = "sttm,tome,dycoke,evs,vidcom2,frames,pooling,random,spatial,temporal".split(",")


def accuracy(methods: list[str], *, end: float = 0.5, interval: bool = True) -> dict[str, Any]:
    """A report of `bench accuracy` in which all methods end at the same accuracy."""
    rows = []
    for budget in BUDGETS:
        for method in methods[:1] if budget == 1 else methods:
            value = 1 - (1 - end) * (1 - budget) / 0.9
            share = {"value": value}
            if interval:
                share |= {"low": value - 0.02, "high": value + 0.01}
            rows.append({"method": method, "budget": budget, "accuracy": share})
    about = {"model": "tiny", "frames": 8, "backgrounds": "textures", "merge_layer": 1}
    asked = {"split": "test", "videos": 298, "questions": {"all": 2006}}
    return {"schema": "sttm.bench.accuracy/1", **about, **asked, "rows": rows}


def speed(frames: tuple[int, ...] = (32, 64), **about: Any) -> dict[str, Any]:
    parts = [
        {
            "frames": count,
            "rows": [
                {
                    "budget": budget,
                    "seconds": {"decode": 0.1, "encode": 1.0},
                    "to_first_token": {"cold": 5.0 + budget, "cached": 0.01 + budget / 100},
                }
                for budget in (1.0, 0.5, 0.3, 0.15)
            ],
            "transformers": {"generate": 4.0},
        }
        for count in frames
    ]
    plain = {"model": "llava-video-7b", "weights": "the model's", "layers": 28, "shrunk": None}
    plain |= {"method": "sttm", "merge_layer": 2, "device": "cpu", "dtype": "float32"}
    return {"schema": "sttm.bench.speed/1", **plain, **about, "frames": parts}


def drawn(chart: Chart) -> tuple[Figure, Axes]:
    figure = chart.figure()
    figure.draw_without_rendering()
    return figure, figure.axes[0]


def labels(axes: Axes) -> dict[str, Bbox]:
    """Where the labels are, in pixels, without their leaders."""
    found = [text for text in axes.texts if isinstance(text, Annotation)]
    return {text.get_text(): Text.get_window_extent(text) for text in found}


@pytest.mark.parametrize(
    "chart",
    [
        accuracy_chart(accuracy(TEN)),
        accuracy_chart(accuracy(TEN, end=0.97)),
        accuracy_chart(accuracy(TEN, end=0.02)),
        accuracy_chart(accuracy(TEN[:2])),
        accuracy_chart(accuracy([f"method-{n}" for n in range(40)])),
        speed_chart(speed()),
        speed_chart(speed((32,))),
    ],
    ids=["ten", "ten above", "ten below", "two", "forty", "speed", "one place"],
)
def test_every_line_has_a_label_on_the_right_and_none_overlaps_another(chart: Chart) -> None:
    figure, axes = drawn(chart)
    found = labels(axes)
    assert list(found) == [line.name for line in chart.lines]
    assert not [pair for pair in combinations(found.values(), 2) if pair[0].overlaps(pair[1])]
    page = figure.bbox
    for box in found.values():
        assert axes.bbox.x1 < box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
    title, note = figure.texts
    heads = [title.get_window_extent(), note.get_window_extent()]
    assert not heads[0].overlaps(heads[1])
    assert all(axes.bbox.y1 < head.y0 and head.x1 <= page.x1 for head in heads)
    assert not any(head.overlaps(box) for head in heads for box in found.values())


def test_labels_stay_near_their_lines() -> None:
    assert spread([5, 1, 3], 1, (0, 10)) == [5, 1, 3]
    assert spread([2, 2], 1, (0, 10)) == [1.5, 2.5]
    assert spread([9.9, 9.8, 1], 1, (0, 10)) == pytest.approx([10, 9, 1])
    assert spread([0, 0, 0], 4, (0, 10)) == [0, 4, 8]


def test_the_budget_axis_is_logarithmic_with_the_budgets_as_ticks_in_percent() -> None:
    _, axes = drawn(accuracy_chart(accuracy(TEN)))
    assert axes.get_xscale() == "log"
    assert axes.xaxis_inverted()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["100", "50", "30", "15", "10"]


def test_intervals_are_drawn_where_they_were_computed() -> None:
    _, axes = drawn(accuracy_chart(accuracy(TEN[:3])))
    bars = [made for made in axes.containers if isinstance(made, ErrorbarContainer)]
    assert len(bars) == 3
    (segments,) = bars[1].lines[2]
    low, high = segments.get_segments()[0][:, 1]
    assert (high - low) == pytest.approx(3)
    bare = accuracy_chart(accuracy(TEN[:3], interval=False))
    _, axes = drawn(bare)
    assert not axes.containers
    assert "interval" not in bare.note


def test_the_default_method_stands_out_and_no_two_lines_look_the_same() -> None:
    _, axes = drawn(accuracy_chart(accuracy(TEN, interval=False)))
    own, *others = axes.lines
    assert own.get_linewidth() > max(line.get_linewidth() for line in others)
    assert own.get_zorder() > max(line.get_zorder() for line in others)
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines]
    assert len({colour for colour, _, _ in looks}) == len({mark for _, mark, _ in looks}) == 10
    _, axes = drawn(speed_chart(speed()))
    looks = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines]
    assert len(set(looks)) == len(looks) == 9


def test_titles_say_model_frames_and_backgrounds() -> None:
    found = accuracy_chart({**accuracy(TEN), "backgrounds": ["a.mp4", "b.mp4"]})
    assert found.title == "Accuracy by budget: tiny, 8 frames, backgrounds: 2 films"
    assert "2,006 questions about 298 scenes" in found.note


@pytest.mark.parametrize(
    ("about", "ending"),
    [
        ({}, "llava-video-7b"),
        ({"weights": "random"}, "llava-video-7b, random weights"),
        (
            {"weights": "random", "layers": 4, "shrunk": {"layers": 4, "scale": 4}},
            "llava-video-7b, random weights, 4 layers, widths / 4",
        ),
        (
            {"weights": "random", "shrunk": {"layers": None, "scale": 2}},
            "llava-video-7b, random weights, widths / 2",
        ),
        (
            {"weights": "random", "layers": 3, "shrunk": {"layers": 3, "scale": 1}},
            "llava-video-7b, random weights, 3 layers",
        ),
    ],
)
def test_the_title_says_what_is_not_the_real_model(about: dict[str, Any], ending: str) -> None:
    assert speed_chart(speed(**about)).title == f"From video to first token: {ending}"


def test_a_png_has_twice_the_pixels_and_svg_and_pdf_are_drawings(tmp_path: Path) -> None:
    chart = accuracy_chart(accuracy(TEN))
    for name in ("a.png", "a.svg", "a.PDF"):
        chart.save(tmp_path / name)
    assert Image.open(tmp_path / "a.png").size == tuple(round(200 * side) for side in INCHES)
    assert (tmp_path / "a.png").stat().st_size < 300_000
    assert ET.parse(tmp_path / "a.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert (tmp_path / "a.PDF").read_bytes().startswith(b"%PDF")


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    for name in ("_$x^2$", "$\\frac{$", "\u732b"):
        line = Line(name, [Point(1, 2)])
        chart = Chart(title=name, note=name, across="at", up="value", lines=[line])
        chart.save(tmp_path / "a.png")
        if name.isascii():
            _, axes = drawn(chart)
            assert list(labels(axes)) == [name]


def test_a_line_goes_from_left_to_right_whatever_the_order_of_its_points() -> None:
    points = [Point(1, 2), Point(2, 5), Point(4, 1)]
    made = []
    for line in (points, points[::-1]):
        chart = Chart(title="t", note="n", across="x", up="y", lines=[Line("line", line)])
        _, axes = drawn(chart)
        made.append(axes.lines[0].get_xydata().tolist())
    assert made[0] == made[1]


def test_a_chart_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(SttmError, match=r"a\.png cannot be written"):
        accuracy_chart(accuracy(TEN)).save(tmp_path / "a.png")


@pytest.mark.parametrize("command", ["accuracy", "speed"])
def test_plots_that_cannot_be_made_are_refused_before_anything_is_measured(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(path: Path) -> None:
        arguments = ["bench", command, "--model", "/not/there", "--plot", str(path)]
        CliRunner().invoke(app, arguments, catch_exceptions=False)

    with pytest.raises(UsageError, match=r"a PNG, SVG or PDF file \(give .* \.png, \.svg or \.pdf"):
        run(tmp_path / "a.jpg")
    with pytest.raises(SttmError, match=r"the folder .* is missing"):
        run(tmp_path / "missing" / "a.png")
    monkeypatch.setattr("sttm_cli.bench.plot.find_spec", lambda name: None)
    with pytest.raises(SttmError, match="needs matplotlib") as refused:
        run(tmp_path / "a.svg")
    assert refused.value.hint == "pip install matplotlib"


def test_charts_leave_no_global_state() -> None:
    drawn(accuracy_chart(accuracy(TEN)))
    assert "matplotlib.pyplot" not in sys.modules


@pytest.mark.parametrize("name", ["accuracy", "accuracy-films"])
def test_the_charts_of_the_documents_are_drawn_from_the_figures_beside_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))
    _, axes = drawn(chart_of(report))
    assert list(labels(axes)) == TEN
    monkeypatch.setattr("sys.argv", ["charts", str(DOCS / f"{name}.json"), str(tmp_path / "a.png")])
    main()
    again, shown = Image.open(tmp_path / "a.png"), Image.open(DOCS / f"{name}.png")
    assert again.size == shown.size
