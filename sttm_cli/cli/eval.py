"""`sttm eval`: the accuracy of budgets on published benchmarks and on the user's own questions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sttm_cli.base.errors import UsageError
from sttm_cli.cli.eval_tables import own_table, paper_table
from sttm_cli.cli.flags import (
    ANSWERS,
    RUN,
    Output,
    allowed_folder,
    check_serving,
    examples,
    only,
    settings_from,
    takes,
    without,
)
from sttm_cli.cli.output import StageProgress, check_plot, print_json, say, warn
from sttm_cli.settings.fields import Thresholds, parse_budget, parse_thresholds
from sttm_cli.settings.settings import PAPER_METHOD, SETTINGS

PAPER_BUDGETS, OWN_BUDGETS = "1,0.5,0.3", "1,0.5,0.3,0.15"
TASKS = "vnbench,videomme,longvideobench_val_v,mlvu_dev,egoschema_subset,nextqa_mc_test"
PAPER_EXAMPLES = examples(
    "sttm eval paper -m llava-video-7b --limit 50",
    "sttm eval paper -m llava-video-7b --tasks videomme,mlvu --budgets 1,0.3 --json",
)
FILE_EXAMPLES = examples(
    "sttm eval file questions.jsonl --videos ~/Videos -m llava-onevision-7b",
    "sttm eval file questions.jsonl --videos ~/Videos --budgets 1,0.3 --json",
)


class _PathOrCommand(TyperGroup):
    """A group that takes an unknown command as a file: `sttm eval FILE` is `sttm eval file
    FILE`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["file", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_PathOrCommand,
    help="Measure what budgets cost: the published benchmarks, or questions of your own "
    "('sttm eval FILE.jsonl').",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Again = Annotated[
    bool, typer.Option("--again", help="Ask everything again, ignoring earlier runs.")
]

Pairs = Annotated[
    str | None,
    typer.Option(
        "--thresholds", metavar="S/T,S/T,...", show_default=False,
        help="Pairs of thresholds, spatial/temporal, to measure besides the budgets: those of the "
        "method sttm, as the paper sets them by hand.",
    ),
]  # fmt: skip


@app.command("paper", epilog=PAPER_EXAMPLES)
@takes(without(RUN, "budget", "fps", "frames", "start", "end", "no_cache", "refresh"))
def paper(
    *,
    tasks: Annotated[
        str,
        typer.Option(
            "--tasks",
            metavar="T,T,...",
            show_default=False,
            help=f"What to measure. (default: {TASKS.replace(',', ', ')})",
        ),
    ] = TASKS,
    budgets: Annotated[
        str, typer.Option("--budgets", metavar="B,B,...", help="Budgets, as of --budget.")
    ] = PAPER_BUDGETS,
    thresholds: Pairs = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, metavar="N", show_default=False,
            help="Ask only the first N questions of each task.",
        ),
    ] = None,
    include_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--include-path", metavar="FOLDER", show_default=False,
            help="Tasks of your own for lmms-eval; may be given several times.",
        ),
    ] = None,
    allow_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--allow-path", metavar="FOLDER", show_default=False, parser=allowed_folder,
            help="Videos of tasks may lie below this folder as well as below HF_HOME; may be given "
            "several times.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", show_default=False,
            help="Draw a chart as .png, .svg or .pdf; needs matplotlib.",
        ),
    ] = None,
    again: Again = False,
    flags: dict[str, Any],
    output: Output,
) -> None:  # fmt: skip
    """Measure the paper's benchmarks with lmms-eval, beside the published rows.

    lmms-eval gets an environment of its own, created once. The model is served once per budget.
    Results are kept: an interrupted command continues where it stopped when it is run again.
    """
    check_plot(plot)
    check_serving()
    shares = _amounts(budgets, thresholds, flags)
    _check_folders("--include-path", include_path)
    _check_folders("--allow-path", allow_path)
    from sttm_cli.eval.paper import Paper, data_folder, measure
    from sttm_cli.eval.published import FPS, benchmarks
    from sttm_cli.eval.rows import report
    from sttm_cli.runtime.session import VideoQA

    wanted = benchmarks(tasks.split(","), own=bool(include_path))
    settings = settings_from({**flags, "fps": FPS})
    with VideoQA(settings, warn=warn) as qa:
        work = Paper(
            settings=settings,
            model=qa.model_plan,
            benchmarks=wanted,
            budgets=shares,
            data=data_folder(),
            kept=_kept_folder() / "paper",
            limit=limit,
            include=tuple(folder.absolute() for folder in include_path or ()),
            allow=tuple(folder.absolute() for folder in allow_path or ()),
        )
    if again:
        work.forget()
    found = []
    with StageProgress(output) as progress:

        def told(line: str) -> None:
            progress.stop()
            if not output.quiet:
                say(line)

        for measured in measure(work, say=told, progress=progress):
            found.append(measured)
            progress.stop()
            if measured.error:
                warn(f"{measured.benchmark.name} at {measured.budget:g}: {measured.error}")
    done = report(settings.model, settings.method, found)
    if plot is not None:
        from sttm_cli.bench.charts import evaluation_chart

        evaluation_chart(done).save(plot)
    if output.as_json:
        print_json(done)
    else:
        paper_table(done)
    if any(row["error"] for row in done["rows"]):
        raise typer.Exit(1)


@app.command("file", epilog=FILE_EXAMPLES)
@takes(without(RUN, "budget", "refresh"), only(ANSWERS, "max_new_tokens"))
def file(
    questions: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSON lines: video, question, answer, and if you like options and category.",
        ),
    ],
    *,
    videos: Annotated[
        Path | None,
        typer.Option(
            "--videos", metavar="FOLDER", show_default=False,
            help="Where the videos are. (default: the folder of FILE)",
        ),
    ] = None,
    budgets: Annotated[
        str, typer.Option("--budgets", metavar="B,B,...", help="Budgets, as of --budget.")
    ] = OWN_BUDGETS,
    thresholds: Pairs = None,
    again: Again = False,
    flags: dict[str, Any],
    output: Output,
) -> None:  # fmt: skip
    """Ask questions with known answers at several budgets: accuracy by category, and changed
    answers.

    'sttm eval FILE' is the same. Answers are kept: a second run only asks new questions. Continues
    after a bad video, and exits with 1.
    """
    shares = _amounts(budgets, thresholds, flags)
    folder = questions.parent if videos is None else videos
    _check_folders("--videos", [folder])
    from sttm_cli.eval.own import Kept, ask_all, report
    from sttm_cli.eval.questions import read_items
    from sttm_cli.runtime.session import VideoQA

    items = read_items(questions)
    settings = settings_from(flags)
    name = hashlib.sha256(str(questions.absolute()).encode()).hexdigest()[:16]
    place = None if settings.no_cache else _kept_folder() / "questions" / f"{name}.jsonl"
    total, found = len(items) * len(shares), []
    with StageProgress(output) as progress, VideoQA(settings, warn=warn) as qa:
        for asked in ask_all(
            qa,
            items,
            folder=folder,
            budgets=shares,
            kept=Kept(place, again=again),
            progress=lambda done: progress("questions", done, total),
        ):
            found.append(asked)
    done = {**report(found, shares), "model": settings.model, "method": settings.method}
    if not any((folder / item.video).exists() for item in items):
        warn(f"no video of {questions} is in {folder.absolute()}: name their folder with --videos")
    else:
        for line, error in dict.fromkeys((f["line"], f["error"]) for f in done["failed"]):
            warn(f"line {line} has no answer: {error}")
    if output.as_json:
        print_json(done)
    else:
        own_table(done, shares)
    if done["failed"]:
        raise typer.Exit(1)


def _kept_folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("sttm") / "eval"


def _amounts(
    budgets: str, thresholds: str | None, flags: dict[str, Any]
) -> tuple[float | int | Thresholds, ...]:
    found: list[float | int | Thresholds] = [
        parse_budget("--budgets", part) for part in budgets.split(",")
    ]
    method = SETTINGS["method"].read(flags["method"])
    if thresholds is not None:
        if method != PAPER_METHOD:
            raise UsageError(
                f"--thresholds {thresholds} cannot be combined with --method {method}",
                f"they are those of the method {PAPER_METHOD}",
            )
        found += [parse_thresholds("--thresholds", part) for part in thresholds.split(",")]
    elif ":" in method:
        raise UsageError(
            f"--method {method} has thresholds and cannot be combined with --budgets {budgets}",
            f"give --thresholds {method.partition(':')[2]}",
        )
    return tuple(dict.fromkeys(found))


def _check_folders(flag: str, folders: Sequence[Path] | None) -> None:
    for folder in folders or ():
        if not folder.is_dir():
            raise UsageError(f"{flag} {folder} is not a folder", "give an existing folder")
