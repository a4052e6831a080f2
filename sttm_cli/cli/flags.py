"""The flags that commands share, generated from the table of settings."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from typer.models import OptionInfo

from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.base.names import METHODS
from sttm_cli.settings.fields import Group, Setting, check_no_thresholds
from sttm_cli.settings.settings import CONFIG_KEYS, KEEP_ALIVE, NO_LOG, SETTINGS, Settings

VIDEO = "A video file, a folder of images, an http(s) or s3:// address, or '-' for stdin."


def allowed_folder(text: str) -> Path:
    """Read --allow-path. An empty text, as of an unset variable, would be the current folder."""
    if not text:
        raise typer.BadParameter("it is empty: give an existing folder, or leave it out")
    return Path(text)


NoServer = Annotated[
    bool,
    typer.Option("--no-server", help="Work in this process, even if a server runs."),
]

Subtitles = Annotated[
    Path | None,
    typer.Option(
        "--subtitles",
        metavar="FILE",
        show_default=False,
        help="Put the subtitles of an .srt or .vtt file before the question, with their times.",
    ),
]


class SettingOption(OptionInfo):
    """The option of a setting. The setting itself parses the text, whatever its source."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(
            default=...,  # inside Annotated typer would take another one for a flag
            param_decls=setting.flags,
            help=setting.help,
            metavar=setting.metavar,
            envvar=setting.env,
            show_default=bool(setting.default),
            rich_help_panel=setting.group.panel,
            autocompletion=_completion(setting),
        )
        self.setting = setting


def _aliases() -> Iterable[str]:
    from sttm_cli.models.registry import aliases

    return aliases()


def _options() -> Iterable[str]:
    from sttm_cli.models.registry import families

    return sorted({option for family in families() for option in family.options})


_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "model": _aliases,
    "method": METHODS.names,
    "options": _options,
}
"""Settings whose values are names defined elsewhere."""


def _completion(setting: Setting) -> Callable[[str], list[str]] | None:
    if setting.name not in _NAMES and not setting.choices:
        return None
    return completing(_NAMES.get(setting.name, lambda: setting.choices))


def completing(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return a shell completion for one of these names, or for the last of a comma-separated
    list."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(last)]

    return complete


KeepAlive = Annotated[str | None, SettingOption(KEEP_ALIVE)]
NoLog = Annotated[bool, SettingOption(NO_LOG)]


def examples(*commands: str) -> str:
    """Return the examples below a command's help; blank lines keep typer from joining them."""
    return "\n\n".join(["Examples:", *(f"  {command}" for command in commands)])


def _flag(name: str, kind: Any, option: OptionInfo, default: Any) -> inspect.Parameter:
    annotation = Annotated[kind, option]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _switch(name: str, *flags: str, about: str) -> inspect.Parameter:
    option = typer.Option(*flags, rich_help_panel="Output", help=about)
    return _flag(name, bool, option, default=False)


def _group(*groups: Group) -> tuple[inspect.Parameter, ...]:
    """Return the flags of the settings in these groups; each takes text, unless it is a switch."""
    chosen = [
        declared for group in groups for declared in SETTINGS.values() if declared.group is group
    ]
    return tuple(
        _flag(
            declared.name,
            bool if declared.is_switch else str | None,
            SettingOption(declared),
            declared.default,
        )
        for declared in chosen
    )


OUTPUT = (
    _switch("as_json", "--json", about="Print one JSON object on stdout."),
    _switch("quiet", "-q", "--quiet", about="Print only errors and warnings on stderr."),
    _switch("debug", "--debug", about="Explain how the answer was made, and show tracebacks."),
)
RUN = _group(Group.MODEL, Group.FRAMES, Group.STORE, Group.CACHE)
CACHE = _group(Group.STORE)
SOURCE = _group(Group.SOURCE)
ANSWERS = _group(Group.ANSWER)


@dataclass(frozen=True)
class Output:
    """A command's output options."""

    as_json: bool
    quiet: bool
    debug: bool


def settings_from(flags: dict[str, Any], *, compares: bool = False) -> Settings:
    """Convert flags as typed to checked settings; `compares`: of a command that compares budgets.

    Raises UsageError.
    """
    if compares:
        check_no_thresholds(str(flags["method"]))
    return Settings(**flags)


def typed(context: typer.Context, flags: tuple[str, ...]) -> list[str]:
    """Return those of `flags` that were given on the command line, not in the config file."""
    names = {option: p.name for p in context.command.params for option in p.opts}
    sources = ((flag, context.get_parameter_source(str(names[flag]))) for flag in flags)
    return [flag for flag, source in sources if source is not None and source.name == "COMMANDLINE"]


def check_keep_alive(
    context: typer.Context,
    keep_alive: str | None,
    *,
    no_server: bool,
    warn: Callable[[str], None],
) -> str | None:
    """Return the checked --keep-alive as typed; None if --no-server overrides the config file.

    Raises UsageError if both were typed. If packages for serving are missing, `warn` is called with
    a line, and the question is answered without a server.
    """
    if keep_alive is None:
        return None
    KEEP_ALIVE.read(keep_alive)
    if no_server:
        if typed(context, ("--keep-alive",)):
            raise UsageError("--no-server and --keep-alive cannot be combined", "choose one")
        return None
    if missing := _missing_for_serving():
        warn(f"no server is left behind: {', '.join(missing)} is not installed")
        return None
    return keep_alive


def check_serving() -> None:
    """Raise SttmError if a package that a server needs is not installed."""
    if missing := _missing_for_serving():
        raise SttmError(
            f"a server needs what is not installed: {', '.join(missing)}",
            f"python -m pip install {' '.join(missing)}",
        )


def _missing_for_serving() -> list[str]:
    """Return the missing packages that a server needs."""
    needed = ("starlette", "uvicorn", "prometheus_client")
    return [name.replace("_", "-") for name in needed if find_spec(name) is None]


def only(group: tuple[inspect.Parameter, ...], *names: str) -> tuple[inspect.Parameter, ...]:
    """Return the named flags of a group, for a command that takes few of them."""
    return tuple(flag for flag in group if flag.name in names)


def without(group: tuple[inspect.Parameter, ...], *names: str) -> tuple[inspect.Parameter, ...]:
    """Return the flags of a group without the named ones, which do not apply to a command."""
    return tuple(flag for flag in group if flag.name not in names)


def _show_no_type_of_switch(parameter: inspect.Parameter) -> None:
    """Keep typer from writing `<bool>` after a switch, as if it took a value."""
    kind = parameter.annotation
    if get_origin(kind) is Annotated and kind.__origin__ is bool:
        kind.__metadata__[0].metavar = ""


def takes(*groups: tuple[inspect.Parameter, ...]) -> Callable[[Callable[..., None]], Any]:
    """Give a command the flags of `groups`; it receives them as `output` and `flags`."""
    shared = [flag for group in (*groups, OUTPUT) for flag in group]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = [
            p
            for p in inspect.signature(function, eval_str=True).parameters.values()
            if p.name not in ("flags", "output")
        ]

        @wraps(function)
        def command(**values: Any) -> None:
            flags = {flag.name: values.pop(flag.name) for flag in shared}
            output = Output(*(flags.pop(name) for name in ("as_json", "quiet", "debug")))
            if output.quiet or not sys.stderr.isatty():
                # Progress bars of huggingface_hub while a model is fetched.
                os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            function(**values, flags=flags, output=output)

        for parameter in (*own, *shared):
            _show_no_type_of_switch(parameter)
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = _reflowed(function)
        command.from_config = _from_config(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _from_config(parameters: list[inspect.Parameter]) -> tuple[str, ...]:
    """Return the parameters whose defaults the config file may set: those of settings."""
    options = ((p.name, *getattr(p.annotation, "__metadata__", ())) for p in parameters)
    return tuple(
        name
        for name, *option in options
        if name in CONFIG_KEYS and option and isinstance(option[0], SettingOption)
    )


def _reflowed(function: Callable[..., None]) -> str:
    # Line breaks of the source would be shown in the help.
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
