"""`sttm bench accuracy`: the accuracy of the embedded model by budget and method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sttm_cli.base.errors import UsageError
from sttm_cli.base.names import METHODS as PLUGINS
from sttm_cli.base.types import Json
from sttm_cli.cli.flags import RUN, Output, completing, only, settings_from, takes
from sttm_cli.cli.output import (
    StageProgress,
    check_plot,
    print_json,
    print_text,
    print_words,
    starting,
    warn,
)
from sttm_cli.cli.tables import columns
from sttm_cli.settings.fields import parse_budget

BUDGETS = "1,0.5,0.3,0.15,0.1"
METHODS = "sttm,anchors,tome,dycoke,evs,vidcom2,frames,pooling,random,spatial,temporal"
_HERE = ("model", "revision", "device", "dtype", "merge_layer", "positions", "decoder")


@takes(only(RUN, *_HERE))
def accuracy(
    *,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            autocompletion=completing(lambda: ("test", "dev")),
            help="Which scenes: test, or dev to tune on.",
        ),
    ] = "test",
    questions: Annotated[
        int, typer.Option("--questions", min=1, help="Ask at least this many.")
    ] = 2000,
    frames: Annotated[
        int, typer.Option("--frames", min=1, help="Seconds of each scene, one frame a second.")
    ] = 8,
    films: Annotated[
        Path | None,
        typer.Option(
            "--films",
            metavar="FOLDER",
            show_default=False,
            help="Take backgrounds from the films in here. (default: drawn textures)",
        ),
    ] = None,
    budgets: Annotated[
        str, typer.Option("--budgets", metavar="B,B,...", help="Shares of the tokens.")
    ] = BUDGETS,
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="M,M,...",
            show_default=False,
            autocompletion=completing(PLUGINS.names),
            help="What to compare; NAME@L merges before decoder layer L; NAME+sizes "
            "and NAME-sizes say whether merged tokens count by their size in attention. "
            f"(default: {METHODS.replace(',', ', ')})",
        ),
    ] = METHODS,
    scenes: Annotated[
        Path | None,
        typer.Option(
            "--scenes",
            metavar="FOLDER",
            show_default=False,
            help="Keep the scenes' videos here, and use those that already exist.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            show_default=False,
            help="Draw a chart as .png, .svg or .pdf; needs matplotlib.",
        ),
    ] = None,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Measure what budgets cost the embedded model, compared with other methods.

    On held-out scenes, from the same visual tokens, keeping the same number of them. Scenes are
    written as MP4 and read like any video. Intervals are 95 %, from a bootstrap over videos in
    which all methods share the draws.
    """
    check_plot(plot)
    if split not in ("test", "dev"):
        raise UsageError(f"--split {split!r} is not known", "give test or dev")
    wanted = [_share(part) for part in budgets.split(",")]
    with starting(output):
        from sttm_cli.bench.accuracy import find_entrants, report, take_exam
        from sttm_cli.bench.exam import Exam
        from sttm_cli.bench.exam import films as read_films
        from sttm_cli.runtime.session import VideoQA

    if scenes is not None:
        scenes.mkdir(parents=True, exist_ok=True)
    settings = settings_from({**flags, "frames": frames, "no_cache": True})
    with StageProgress(output) as progress, VideoQA(settings, warn=warn) as qa:
        entrants = find_entrants(methods, layers=qa.model_plan.checkpoint.layers)
        exam = Exam(split, frames, read_films(films) if films else None)
        results = take_exam(
            qa,
            exam,
            entrants=entrants,
            budgets=wanted,
            questions=questions,
            scenes=scenes,
            progress=lambda done: progress("questions", min(done, questions), questions),
        )
        about = {
            "model": settings.model,
            "merge_layer": qa.model_plan.merge_layer,
            "positions": qa.model_plan.positions,
            "split": split,
            "frames": frames,
            "backgrounds": sorted(exam.films) if exam.films else "textures",
        }
    measured = {"schema": "sttm.bench.accuracy/1", **about, **report(results)}
    if plot is not None:
        from sttm_cli.bench.charts import accuracy_chart

        accuracy_chart(measured).save(plot)
    if output.as_json:
        print_json(measured)
    else:
        _tables(measured)


def _share(text: str) -> float:
    budget = parse_budget("--budgets", text)
    if not isinstance(budget, float):
        raise UsageError(f"--budgets {text} is not a share", "give shares above 0 and up to 1")
    return budget


def _tables(report: Json) -> None:
    from sttm_cli.bench.charts import backgrounds

    asked = report["questions"]
    print_words(
        f"{report['model']}, merged before layer {report['merge_layer']}, {report['positions']} "
        f"positions; {report['split']} split, {asked['all']:,} questions and "
        f"{asked.get('follow-up', 0):,} follow-ups about {report['videos']:,} scenes of "
        f"{report['frames']} frames over {backgrounds(report)}\n"
    )
    print_text("accuracy in %, with 95 % intervals")
    head = (
        "budget", "method", "kept %", "accuracy %", "% of budget 1", "sttm ahead by",
        "follow-ups, % of budget 1",
    )  # fmt: skip
    rows = [
        (
            f"{row['budget']:g}",
            row["method"],
            f"{100 * row['kept']:.1f}",
            _percent(row["accuracy"]),
            _percent(row["of_full"]),
            "" if row["ours_ahead"] is None else _percent(row["ours_ahead"]),
            _percent(row["follow_up_of_full"]),
        )
        for row in report["rows"]
    ]
    print_text(columns(head, rows), "")
    kinds = list(report["rows"][0]["kinds"])
    by_kind = [
        (
            f"{row['budget']:g}",
            row["method"],
            *(f"{100 * row['kinds'][kind]['value']:.1f}" for kind in kinds),
        )
        for row in report["rows"]
    ]
    by_kind.append(("", "chance", *(f"{100 * report['chance'][kind]:.1f}" for kind in kinds)))
    by_kind.append(("", "questions", *(str(report["questions"][kind]) for kind in kinds)))
    print_text("accuracy by kind in %")
    print_text(columns(("budget", "method", *kinds), by_kind))


def _percent(estimate: dict[str, float]) -> str:
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"
