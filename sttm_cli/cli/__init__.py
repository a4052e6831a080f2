"""The command line: parse the arguments, call the pipeline and print."""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from sttm_cli.base.errors import UsageError
from sttm_cli.base.names import did_you_mean
from sttm_cli.cli import (
    ask,
    bench,
    cache,
    chat,
    config,
    doctor,
    eval,
    inspect,
    log,
    mcp,
    models,
    precompute,
    serve,
)
from sttm_cli.cli.flags import examples
from sttm_cli.cli.output import print_text, show_failure
from sttm_cli.settings.settings import read_config

app = typer.Typer(
    name="sttm",
    help="Ask questions about videos, again and again: a model reads each video once, and the "
    "resulting KV cache is kept on disk for the next question.",
    epilog=examples(
        'sttm ask talk.mp4 "what happens?" --model llava-onevision-7b',
        "sttm help ask",
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_VIDEOS, _SETTINGS = "Videos", "Models, settings, measurements"

app.command(name="ask", epilog=ask.EXAMPLES, rich_help_panel=_VIDEOS)(ask.ask)
app.command(name="chat", epilog=chat.EXAMPLES, rich_help_panel=_VIDEOS)(chat.chat)
app.command(name="precompute", epilog=precompute.EXAMPLES, rich_help_panel=_VIDEOS)(
    precompute.precompute
)
app.command(name="inspect", epilog=inspect.EXAMPLES, rich_help_panel=_VIDEOS)(inspect.inspect)
app.command(name="log", epilog=log.EXAMPLES, rich_help_panel=_VIDEOS)(log.log)
app.add_typer(cache.app, name="cache", rich_help_panel=_VIDEOS)
app.command(name="serve", epilog=serve.EXAMPLES, rich_help_panel=_VIDEOS)(serve.serve)
app.command(name="mcp", epilog=mcp.EXAMPLES, rich_help_panel=_VIDEOS)(mcp.mcp)
app.add_typer(models.app, name="models", rich_help_panel=_SETTINGS)
app.command(name="doctor", rich_help_panel=_SETTINGS)(doctor.doctor)
app.add_typer(config.app, name="config", rich_help_panel=_SETTINGS)
app.add_typer(bench.app, name="bench", rich_help_panel=_SETTINGS)
app.add_typer(eval.app, name="eval", rich_help_panel=_SETTINGS)


@app.command(name="help", rich_help_panel=_SETTINGS)
def _help(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="A command, such as cache rm.")
    ] = None,
) -> None:
    """Show the help of a command, or list all commands."""
    # `main` gives the words to the command itself, as --help.


INTERRUPTED = 130
DESPITE_CONFIG = ("config", "doctor", "--version")
"""Commands that run with an unreadable config file: they explain the fault, or need no config."""
WITHOUT_CONFIG = ("bench", "eval")
"""Measurements depend on their command line alone."""


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from sttm_cli import __version__

        print_text(f"sttm {__version__}")
        raise typer.Exit()


def main() -> NoReturn:
    """Run the command line and exit with the contract's exit code."""
    arguments = sys.argv[1:]
    # Importing a model creates a million permanent objects. By default the garbage collector scans
    # them over and over, which takes a sixth of the time.
    gc.set_threshold(50_000)
    _end_on("SIGTERM", "SIGHUP")
    try:
        arguments = _meant(arguments)
        code = app(arguments, standalone_mode=False, default_map=_defaults(arguments))
        if code == INTERRUPTED:
            # The parser turned it into an exit code.
            raise KeyboardInterrupt
    except BaseException as error:
        code = show_failure(error, as_json="--json" in arguments, debug="--debug" in arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _meant(arguments: list[str]) -> list[str]:
    """The arguments as the parser knows them: `help` and `help COMMAND` are asked for as `--help`.

    Raises UsageError for a first word that is not a command, with the command to give.
    """
    if not arguments or arguments[0].startswith("-"):
        return arguments
    first, *rest = arguments
    if first == "help" and not {"-h", "--help"} & set(rest):
        return [*_meant(rest), "--help"]
    known = [str(command.name) for command in app.registered_commands]
    known += [str(group.name) for group in app.registered_groups]
    if first in known:
        return arguments
    if os.path.exists(first) or "://" in first:
        typed = shlex.join(["sttm", "ask", *arguments])
        raise UsageError(f"{first!r} is a video, not a command", f"ask about it:\n    {typed}")
    raise UsageError(
        f"{first!r} is not a command", did_you_mean(first, known) or "'sttm help' lists them"
    )


def _defaults(arguments: list[str]) -> dict[str, Any]:
    try:
        given = read_config()
    except UsageError:
        helps = not arguments or {"-h", "--help"} & set(arguments)
        if helps or arguments[0] in DESPITE_CONFIG:
            return {}
        raise
    return _by_command(app, given)


def _by_command(group: typer.Typer, given: dict[str, str]) -> dict[str, Any]:
    """The values in the config file for the flags that each command takes."""
    defaults: dict[str, Any] = {}
    for command in group.registered_commands:
        # None for `help`, which the parser would take for the value of --help.
        if (known := getattr(command.callback, "from_config", None)) is not None:
            defaults[str(command.name)] = {key: given[key] for key in given if key in known}
    for below in group.registered_groups:
        if below.typer_instance is not None and below.name not in WITHOUT_CONFIG:
            defaults[str(below.name)] = _by_command(below.typer_instance, given)
    return defaults


def _end_on(*names: str) -> None:
    """Exit cleanly on any of these signals: temporary files are removed."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    for name in names:
        # Windows has no SIGHUP.
        number = getattr(signal, name, None)
        # nohup starts commands with the signal ignored; it stays ignored.
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            # Python only sets handlers in the main thread.
            with contextlib.suppress(ValueError):
                signal.signal(number, end)
