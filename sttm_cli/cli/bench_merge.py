"""`sttm bench merge`: the merging alone, on made-up tokens."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sttm_cli.cli.flags import RUN, Output, only, settings_from, takes
from sttm_cli.cli.output import print_json, print_text


@takes(only(RUN, "device"))
def merge(
    *,
    repeat: Annotated[int, typer.Option("--repeat", min=1, help="Runs of each.")] = 5,
    frames: Annotated[
        int | None,
        typer.Option("--frames", min=16, help="Leave out videos of more.", show_default=False),
    ] = None,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Measure the merging alone.

    Its time, its memory, and how near that is to reading the tokens twice.
    """
    from dataclasses import asdict

    import torch

    from sttm_cli.base.device import resolve_device
    from sttm_cli.bench.merge_speed import SHAPES, growths, measure_merging, table

    there = resolve_device(settings_from(flags).device)
    shapes = [shape for shape in SHAPES if frames is None or shape[0] <= frames]
    rows = list(measure_merging(shapes, device=there, repeat=repeat))
    if output.as_json:
        print_json({"schema": "sttm.bench.merge/1", "rows": [asdict(row) for row in rows]})
        return
    print_text(f"torch {torch.__version__}, {there}, {torch.get_num_threads()} threads\n")
    print_text(table(rows), *growths(rows))
