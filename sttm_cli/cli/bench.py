"""`sttm bench`: measure this machine."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.base.bucket import CLIENTS
from sttm_cli.base.names import scheme_of
from sttm_cli.cli.bench_accuracy import accuracy
from sttm_cli.cli.bench_speed import speed
from sttm_cli.cli.flags import RUN, Output, only, settings_from, takes
from sttm_cli.cli.output import print_json, print_text, say, size
from sttm_cli.cli.tables import table
from sttm_cli.settings.fields import parse_bytes
from sttm_cli.settings.settings import Settings, cache_dir, cache_folder

if TYPE_CHECKING:
    from sttm_cli.bench.storage import Row, Timing

# `sttm bench merge`: merging alone, on synthetic tokens.


@takes(only(RUN, "device"))
def merge(
    *,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Runs of each case.")] = 5,
    frames: Annotated[
        int | None,
        typer.Option("--frames", min=16, help="Skip videos with more frames.", show_default=False),
    ] = None,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Measure merging alone.

    Its time and memory, compared with reading the tokens twice.
    """
    from dataclasses import asdict

    import torch

    from sttm_cli.base.device import resolve_device
    from sttm_cli.bench.merge_speed import HEAD, SHAPES, cells, growths, markdown, measure_merging

    there = resolve_device(settings_from(flags).device)
    shapes = [shape for shape in SHAPES if frames is None or shape[0] <= frames]
    rows = list(measure_merging(shapes, device=there, repeat=repeat))
    if output.as_json:
        print_json({"schema": "sttm.bench.merge/1", "rows": [asdict(row) for row in rows]})
        return
    print_text(f"torch {torch.__version__}, {there}, {torch.get_num_threads()} threads\n")
    shown = table(HEAD, cells(rows)) if sys.stdout.isatty() else [markdown(rows)]
    print_text(*shown, *growths(rows))


# `sttm bench store`: storing and restoring KVs compared with plain writes and reads.


@takes(only(RUN, "cache_dir", "kv_dtype", "device"))
def store(
    *,
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="SIZE,SIZE,...", help="Bytes of the KVs in bfloat16.")
    ] = "50M,200M,1G",
    repeat: Annotated[
        int, typer.Option("--repeat", min=1, max=100, help="Measure this often and show the best.")
    ] = 5,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Measure storing and restoring, compared with plain writes and reads of the same bytes.

    Works in a temporary folder inside the cache folder. For a bucket: the seconds, requests and
    bytes of a miss, and of hits with and without a copy on this machine.
    """
    wanted = [parse_bytes("--sizes", part) for part in sizes.split(",")]
    settings = settings_from(flags)
    from sttm_cli.base.device import resolve_device
    from sttm_cli.bench.storage import measure_store

    where = cache_dir(settings.cache_dir)
    if isinstance(where, str) and scheme_of(where) in CLIENTS:
        _bucket(where, wanted, settings, repeat, output)
        return
    device, folder = resolve_device(settings.device), cache_folder(settings.cache_dir).absolute()
    if not output.quiet:
        say(f"measuring in {folder}, restoring to {device}")
    rows = []
    for row in measure_store(
        folder, wanted, kv_dtype=settings.kv_dtype, device=device, repeat=repeat
    ):
        rows.append(row)
        if not output.as_json:
            _show(row)
    if output.as_json:
        measured = [
            {**asdict(r), "warm_share": r.warm_share, "cold_share": r.cold_share} for r in rows
        ]
        print_json({"schema": "sttm.bench.store/1", "device": device, "sizes": measured})


def _bucket(where: str, sizes: list[int], settings: Settings, repeat: int, output: Output) -> None:
    from sttm_cli.base.device import resolve_device
    from sttm_cli.bench.bucket import measure_bucket

    rows, device = [], resolve_device(settings.device)
    for row in measure_bucket(
        where, sizes, kv_dtype=settings.kv_dtype, device=device, repeat=repeat
    ):
        rows.append(row)
        if not output.as_json:
            print_text(f"{size(row.bytes):<24} seconds    received        sent  requests")
            for step in row.steps:
                asked = ", ".join(f"{count} {name}" for name, count in step.requests.items())
                moved = f"{size(step.received):>10}  {size(step.sent):>10}"
                print_text(f"  {step.name:<22} {step.seconds:7.3f}  {moved}  {asked}")
    if output.as_json:
        measured = [asdict(row) for row in rows]
        print_json({"schema": "sttm.bench.store/1", "device": device, "sizes": measured})


def _show(row: Row) -> None:
    lines = [
        ("write", row.write, row.write_floor, row.write_floor.seconds / row.write.seconds),
        ("restore, page cache warm", row.warm, row.warm_floor, row.warm_share),
        ("restore, page cache cold", row.cold, row.cold_floor, row.cold_share),
    ]
    head = (size(row.bytes), "seconds (cpu)", "speed", "floor (cpu)", "share of the floor")
    cells = []
    for name, took, floor, share in lines:
        if took is None or floor is None:
            cells.append((name, "the page cache cannot be emptied of a file here", "", "", ""))
            continue
        speed = size(row.bytes / took.seconds) + "/s"
        cells.append((name, _both(took), speed, _both(floor), f"{share or 0:.0%}"))
    if row.copy is not None:
        speed = size(row.bytes / row.copy.seconds) + "/s"
        cells.append(("host to device", _both(row.copy), speed, "", ""))
    print_text(*table(head, cells))


def _both(timing: Timing) -> str:
    return f"{timing.seconds:.3f} ({timing.processor:.3f})"


app = typer.Typer(
    help="Measure speed, accuracy, merging and storing on this machine.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("speed")(speed)
app.command("accuracy")(accuracy)
app.command("merge")(merge)
app.command("store")(store)
