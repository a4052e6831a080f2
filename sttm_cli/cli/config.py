"""`sttm config`: the place of the config file, and the settings in effect."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import typer

from sttm_cli.base.types import Json
from sttm_cli.cli.flags import Output, takes
from sttm_cli.cli.output import print_json, print_text, say
from sttm_cli.cli.tables import table
from sttm_cli.settings.fields import Setting
from sttm_cli.settings.settings import CONFIG_KEYS, config_path, read_config

app = typer.Typer(
    help="Show the config file and the settings in effect.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Held(NamedTuple):
    """A setting's value as typed, None if the model or the machine decides it, and its origin:
    "default", "file", or the environment variable's name."""

    value: str | None
    origin: str


@app.command("path")
@takes()
def path(*, flags: dict[str, Any], output: Output) -> None:
    """Print the path of the config file, which need not exist."""
    if output.as_json:
        print_json({"path": str(config_path()), "exists": config_path().is_file()})
    else:
        print_text(str(config_path()))


@app.command("show")
@takes()
def show(*, flags: dict[str, Any], output: Output) -> None:
    """Show the value of each setting that the config file can contain, and its origin.

    A flag on the command line overrides all of them.
    """
    found = _settings()
    for key, held in found.items():
        CONFIG_KEYS[key].read(held.value)
    if output.as_json:
        rows = [{"key": key, **held._asdict()} for key, held in found.items()]
        print_json({"schema": "sttm.config/1", **_file(config_path()), "settings": rows})
        return
    head = ("setting", "value", "from")
    cells = [
        (key, "-" if held.value is None else held.value, held.origin) for key, held in found.items()
    ]
    print_text(*table(head, cells, left=head))
    if not output.quiet:
        say(f"file: {config_path()}" + ("" if config_path().is_file() else " (missing)"))
        say("-: the model, the video or the machine decides")


def _settings() -> dict[str, Held]:
    given = read_config()
    return {key: _held(declared, given) for key, declared in CONFIG_KEYS.items()}


def _held(declared: Setting, given: dict[str, str]) -> Held:
    # An empty variable counts as unset, as for the flags.
    if declared.env and os.environ.get(declared.env):
        return Held(os.environ[declared.env], declared.env)
    if declared.name in given:
        return Held(given[declared.name], "file")
    return Held("false" if declared.is_switch else declared.default, "default")


def _file(path: Path) -> Json:
    return {"path": str(path), "exists": path.is_file()}
