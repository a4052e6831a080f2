"""The chart of a benchmark's report. As a program, it reads the `--json` output:

python -m sttm_cli.bench.charts REPORT.json CHART.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sttm_cli.base.types import Json
from sttm_cli.bench.plot import Chart, Line, Point
from sttm_cli.settings.settings import DEFAULT_METHOD


def chart_of(report: Json) -> Chart:
    """Make the chart of a report of `bench accuracy` or `bench speed`."""
    charts = {
        "sttm.bench.accuracy/1": accuracy_chart,
        "sttm.bench.speed/1": speed_chart,
        "sttm.eval/1": evaluation_chart,
    }
    return charts[report["schema"]](report)


def accuracy_chart(report: Json) -> Chart:
    """Chart accuracy by budget, a line per method; at budget 1 all methods are equal."""
    full, *shortened = report["rows"]
    lines = {full["method"]: [_accuracy(full)]}
    for row in shortened:
        lines.setdefault(row["method"], [_accuracy(full)]).append(_accuracy(row))
    known = [name for name, points in lines.items() if points[-1].low is not None]
    of = "" if len(known) == len(lines) else f" of {', '.join(known)}"
    intervals = f"; bars and band: 95 % intervals{of}" if known else ""
    return Chart(
        title=f"Accuracy by budget: {report['model']}, {report['frames']} frames, "
        f"backgrounds: {backgrounds(report)}",
        note=f"{report['questions']['all']:,} questions about {report['videos']:,} scenes, "
        f"{report['split']} split; merged before layer {report['merge_layer']}{intervals}",
        across="budget: % of the video tokens kept at most (logarithmic)",
        up="% of the answers right",
        lines=[
            Line(name=name, points=points, emphasised=name == DEFAULT_METHOD)
            for name, points in lines.items()
        ],
        falling=True,
    )


def evaluation_chart(report: Json) -> Chart:
    """Accuracy by budget of `sttm eval paper`: a line for each benchmark, dashed as published."""
    known = [row for row in report["rows"] if row.get("accuracy")]
    by_hand = [row for row in known if row.get("thresholds") and row["tokens"]["full"]]
    # A number of tokens has no place among shares.
    rows = [row for row in known if row["budget"] is not None and row["budget"] <= 1]
    lines = []
    for number, name in enumerate(dict.fromkeys(row["benchmark"] for row in rows)):
        of = [row for row in rows if row["benchmark"] == name]
        points = [Point(100 * row["budget"], **row["accuracy"]) for row in of]
        lines.append(Line(name=name, points=points, emphasised=len(rows) == len(of), colour=number))
        beside = [row for row in of if row["published"] is not None]
        theirs = [Point(100 * row["budget"], row["published"]) for row in beside]
        if theirs:
            lines.append(Line(name=f"{name}, published", points=theirs, dashed=True, colour=number))
    for number, name in enumerate(dict.fromkeys(row["benchmark"] for row in by_hand)):
        of = [row for row in by_hand if row["benchmark"] == name]
        points = [Point(_kept(row), **row["accuracy"]) for row in of]
        lines.append(Line(name=f"{name}, thresholds by hand", points=points, colour=number))
    return Chart(
        title=f"Accuracy by budget: {report['model']}, {report['method']}",
        note=f"measured with lmms-eval; published: {report['source']}; bars: 95 % intervals",
        across="budget: % of the video tokens kept at most (logarithmic)",
        up="% of the answers right",
        lines=lines,
        falling=True,
    )


def _kept(row: Json) -> float:
    """What thresholds kept, in % of the tokens."""
    return 100 * float(row["tokens"]["kept"] / row["tokens"]["full"])


def speed_chart(report: Json) -> Chart:
    """Chart the seconds from the video, or from the stored KV, to the first token, by frames."""
    cold: dict[float, list[Point]] = {}
    cached: dict[float, list[Point]] = {}
    alone = []
    for part in report["frames"]:
        for row in part["rows"]:
            seconds = row["to_first_token"]
            cold.setdefault(row["budget"], []).append(Point(part["frames"], seconds["cold"]))
            cached.setdefault(row["budget"], []).append(Point(part["frames"], seconds["cached"]))
        if part["transformers"]:
            before = sum(part["rows"][0]["seconds"][name] for name in ("decode", "encode"))
            alone.append(Point(part["frames"], before + part["transformers"]["generate"]))
    lines = [
        Line(name=f"{name}, budget {budget:g}", points=points, dashed=dashed, colour=number)
        for name, of, dashed in (("cold", cold, False), ("cached", cached, True))
        for number, (budget, points) in enumerate(of.items())
    ]
    if alone:
        lines.append(Line(name="transformers", points=alone, colour=len(cold)))
    return Chart(
        title=f"From video to first token: {model_words(report)}",
        note=f"{report['device']}, {report['dtype']}; merged by {report['method']} before layer "
        f"{report['merge_layer']}; medians. cold: decoding to first token; "
        "cached: from the stored KV",
        across="frames (logarithmic)",
        up="seconds (logarithmic)",
        lines=lines,
        log=True,
    )


def model_words(report: Json) -> str:
    """Describe the model of a report of `bench speed` and its differences from the real one."""
    shrunk = report["shrunk"] or {"layers": None, "scale": 1}
    words = [str(report["model"])]
    if report["weights"] == "random":
        words.append("random weights")
    if shrunk["layers"]:
        words.append(f"{report['layers']} layers")
    if shrunk["scale"] != 1:
        words.append(f"widths / {shrunk['scale']}")
    return ", ".join(words)


def backgrounds(report: Json) -> str:
    """Describe the backgrounds in a report of `bench accuracy`."""
    where = report["backgrounds"]
    return where if isinstance(where, str) else f"{len(where)} films"


def _accuracy(row: Json) -> Point:
    share = row["accuracy"]
    low, high = (None if share.get(end) is None else 100 * share[end] for end in ("low", "high"))
    return Point(at=100 * row["budget"], value=100 * share["value"], low=low, high=high)


def main() -> None:
    report, path = sys.argv[1:]
    chart_of(json.loads(Path(report).read_text(encoding="utf-8"))).save(Path(path))


if __name__ == "__main__":
    main()
