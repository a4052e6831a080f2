"""`sttm inspect`: what each budget costs and saves on one video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.cli.options import RUN, SOURCE, VIDEO, Output, settings_from, takes, without
from sttm_cli.cli.output import StageProgress, print_json, size, warn
from sttm_cli.config import parse_budget
from sttm_cli.errors import SttmError, UsageError
from sttm_cli.types import Json

if TYPE_CHECKING:
    from sttm_cli.pipeline import VideoQA
    from sttm_cli.survey import BudgetCost, Survey

BUDGETS = "1,0.5,0.3,0.15"
COLUMNS = [*"budget split kept s-thr t-thr KV merge prefill restore first gain".split(), ""]


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
        typer.Option("-b", "--budget", show_default=False, help="A single budget to look at."),
    ] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, max=100, help="Measure this often, show medians.")
    ] = 3,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE.png",
            show_default=False,
            help="Draw what the first budget below 1 merged.",
        ),
    ] = None,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Show token counts, KV bytes and measured seconds of a video for several budgets.

    Writes nothing to the cache.
    """
    if budget and budgets:
        raise UsageError("--budget and --budgets cannot hold together", "give one of them")
    wanted = [parse_budget(part) for part in (budgets or budget or BUDGETS).split(",")]
    if picture is not None and picture.suffix.lower() != ".png":
        raise UsageError(f"--picture {picture} is no PNG file", "give a name that ends in .png")
    settings = settings_from(flags)
    from sttm_cli.pipeline import VideoQA
    from sttm_cli.survey import survey

    with StageProgress(output) as progress, VideoQA(settings, warn=warn, progress=progress) as qa:
        found = survey(qa, video, wanted, repeat=repeat)
        if picture is not None:
            _picture(qa, found, picture)
        progress.stop()
        for warning in found.report.warnings:
            warn(warning)
        if output.as_json:
            print_json(_json(qa, found))
        else:
            _table(qa, found)


def _picture(qa: VideoQA, found: Survey, path: Path) -> None:
    from sttm_cli.survey import picture

    row = next((row for row in found.rows if row.budget != 1.0), found.rows[0])
    try:
        picture(qa, found, row).save(path)
    except OSError as error:
        raise SttmError(f"--picture {path} cannot be written: {error.strerror or error}") from error


def _json(qa: VideoQA, found: Survey) -> Json:
    request, info = found.request, found.request.info
    return {
        "schema": "sttm.inspect/1",
        "video": {
            "path": request.source.name,
            "digest": request.digest,
            "duration_s": info.duration_s,
            "container": info.container,
            "codec": info.codec,
            "width": info.width,
            "height": info.height,
            "fps": info.fps,
            "rotation": info.rotation,
            "reader": found.report.reader,
        },
        "model": {
            "name": qa.settings.model,
            "revision": qa.settings.revision,
            "device": qa.choice.device,
            "dtype": qa.choice.dtype,
            "merge_layer": qa.choice.merge_layer,
            "positions": qa.choice.positions,
        },
        "frames": found.report.times_s,
        "grid": list(found.grid),
        "budgets": [_row_json(row) for row in found.rows],
    }


def _row_json(row: BudgetCost) -> Json:
    return {
        "budget": row.budget,
        "video_full": row.tokens.video_full,
        "after_spatial": row.tokens.after_spatial,
        "video_kept": row.tokens.video_kept,
        "spatial_threshold": row.tokens.spatial_threshold,
        "temporal_threshold": row.tokens.temporal_threshold,
        "kv_bytes": row.kv_bytes,
        "seconds": row.seconds,
        "speedup": row.speedup,
        "cached": row.cached,
    }


def _name(found: Survey) -> str:
    source = found.request.source
    return source.name if source.is_copy else source.path.name or source.name


def _table(qa: VideoQA, found: Survey) -> None:
    from rich.console import Console
    from rich.table import Table

    info, grid = found.request.info, found.grid
    first = found.rows[0].seconds
    console = Console(highlight=False)
    console.print(
        f"{_name(found)}: {info.codec} {info.width}x{info.height}, "
        f"{info.duration_s:.2f} s, read with {found.report.reader}",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f"{len(found.report.times_s)} frames -> {grid[0]}x{grid[1]}x{grid[2]} tokens, merged "
        f"before layer {qa.choice.merge_layer} of {qa.settings.model}; "
        f"decode {first['decode']:.3f} s, encode {first['encode']:.3f} s",
        markup=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        table.add_row(*_row_cells(row))
    console.print(table)
    console.print(
        "split: tokens after the spatial step, kept: after both; s-thr, t-thr: thresholds\n"
        "found; merge to first: seconds, medians; gain: to the first token, against\n"
        "budget 1; * in the cache already",
        style="dim",
    )


def _row_cells(row: BudgetCost) -> list[str]:
    tokens, seconds = row.tokens, row.seconds
    stages = ("merge", "prefill", "restore", "first_token")
    times = ["-" if (s := seconds[name]) is None else f"{s:.3f}" for name in stages]
    return [
        f"{row.budget:g}",
        f"{tokens.after_spatial}",
        f"{tokens.video_kept}",
        _threshold(tokens.spatial_threshold),
        _threshold(tokens.temporal_threshold),
        size(row.kv_bytes).replace(" ", ""),
        *times,
        f"{row.speedup:.2f}x",
        "*" if row.cached else "",
    ]


def _threshold(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
