"""`sttm inspect`: the cost and the savings of each budget on one video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.base.errors import UsageError
from sttm_cli.cli.flags import RUN, SOURCE, VIDEO, Output, examples, settings_from, takes, without
from sttm_cli.cli.output import (
    StageProgress,
    check_file,
    console,
    print_json,
    say,
    unwritable,
    warn,
)
from sttm_cli.settings.fields import parse_budget

if TYPE_CHECKING:
    from sttm_cli.inspect import Kept
    from sttm_cli.inspect.measure import Survey

BUDGETS = "1,0.5,0.3,0.15"
EXAMPLES = examples(
    "sttm inspect talk.mp4 -m llava-onevision-7b",
    "sttm inspect talk.mp4 --budgets 0.3,500 --picture talk.png --report talk.html",
)


@takes(without(RUN, "budget", "refresh"), SOURCE)
def inspect(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help=VIDEO)],
    *,
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets",
            metavar="B,B,...",
            show_default=False,
            help=f"The budgets to compare. (default: {BUDGETS})",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("-b", "--budget", show_default=False, help="A single budget to show."),
    ] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, max=100, help="Measure this often and show medians.")
    ] = 3,
    show: Annotated[
        bool | None,
        typer.Option(
            "--show/--no-show",
            show_default=False,
            help="Draw four frames in the terminal, at the first budget below 1. "
            "(default: on a terminal)",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE.png",
            show_default=False,
            help="Draw which tokens the budgets below 1 keep.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            show_default=False,
            help="Write everything as one page that any browser shows offline.",
        ),
    ] = None,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Show what several budgets keep of a video, and their cost.

    Tokens, bytes, measured seconds, pictures. Nothing is written to the cache.
    """
    if None not in (budget, budgets):
        raise UsageError("--budget and --budgets cannot be combined", "give one of them")
    if show and output.as_json:
        raise UsageError("--show and --json cannot be combined", "give one of them")
    flag = "--budgets" if budget is None else "--budget"
    given = next(text for text in (budgets, budget, BUDGETS) if text is not None)
    wanted = [parse_budget(flag, part) for part in given.split(",")]
    check_file("--picture", picture, ".png")
    check_file("--report", report, ".html")
    settings = settings_from(flags, compares=True)
    from sttm_cli.runtime.session import VideoQA

    with StageProgress(output) as progress, VideoQA(settings, warn=warn, progress=progress) as qa:
        # Before the stages are imported, so that a wrong path fails at once.
        qa.request(video)
        from sttm_cli.inspect.measure import survey

        found = survey(qa, video, wanted, repeat=repeat)
    for warning in found.report.warnings:
        warn(warning)
    if not output.quiet:
        for note in found.request.info.notes:
            say(note)
    if picture is not None:
        _draw(found, picture)
    if report is not None:
        _report(found, report)
    if output.as_json:
        print_json(found.to_json())
    else:
        _print(found, show)


def _merged(found: Survey) -> list[Kept]:
    """Return the tokens kept by the budgets below 1, or by all budgets if none is."""
    return [row.kept for row in found.rows if row.budget != 1.0] or [found.rows[0].kept]


def _print(found: Survey, show: bool | None) -> None:
    from sttm_cli.cli.inspect_tables import print_survey

    screen = console()
    print_survey(screen, found)
    if screen.is_terminal if show is None else show:
        from sttm_cli.inspect import print_frames

        screen.print()
        print_frames(screen, found.view, _merged(found)[0])


def _draw(found: Survey, path: Path) -> None:
    from sttm_cli.cli.inspect_tables import facts
    from sttm_cli.inspect import draw

    about = facts(found)
    sheet = draw(
        found.view,
        _merged(found),
        title=about["name"],
        about=f"{about['model']}; {about['grid']}",
    )
    try:
        sheet.save(path)
    except OSError as error:
        raise unwritable("--picture", path, error) from error


def _report(found: Survey, path: Path) -> None:
    from sttm_cli.cli.inspect_tables import facts, tables
    from sttm_cli.inspect import report_page

    page = report_page(
        found.to_json(),
        found.view,
        [row.kept for row in found.rows],
        facts=facts(found),
        tables=tables(found),
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise unwritable("--report", path, error) from error
