"""`sttm bench`: what this machine can do, measured."""

from __future__ import annotations

import typer

from sttm_cli.cli.bench_accuracy import accuracy
from sttm_cli.cli.bench_merge import merge
from sttm_cli.cli.bench_speed import speed
from sttm_cli.cli.bench_store import store

app = typer.Typer(
    help="Measure speed, accuracy, merging and storing on this machine.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("speed")(speed)
app.command("accuracy")(accuracy)
app.command("merge")(merge)
app.command("store")(store)
