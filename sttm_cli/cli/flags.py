"""The flags that commands share, declared once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer

from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.settings.settings import (
    DEFAULT_BUDGET,
    DEFAULT_MODEL,
    MAX_DOWNLOAD,
    Settings,
    parse_budget,
    parse_bytes,
    parse_duration,
    parse_seconds,
)

VIDEO = "A video file, a folder of images, an http(s) address, or '-' for stdin."

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

KeepAlive = Annotated[
    str | None,
    typer.Option(
        "--keep-alive",
        metavar="TIME",
        show_default=False,
        help="Leave a server behind that keeps the model loaded for the next questions, until "
        "none came for so long, such as 10m.",
    ),
]

_MODEL = "Model"
_FRAMES = "Frames"
_CACHE = "Cache"
_ANSWER = "Answer"
_OUTPUT = "Output"


def examples(*commands: str) -> str:
    """What stands below a command's help; a blank line keeps typer from joining two of them."""
    return "\n\n".join(["Examples:", *(f"  {command}" for command in commands)])


def _flag(
    name: str, kind: Any, *declarations: str, default: Any = None, **details: Any
) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, typer.Option(*declarations, **details)],
    )


def _aliases(incomplete: str) -> list[str]:
    from sttm_cli.models import ALIASES

    return [alias for alias in ALIASES if alias.startswith(incomplete)]


OUTPUT = (
    _flag("as_json", bool, "--json", default=False, rich_help_panel=_OUTPUT,
          help="Print one JSON object on stdout."),
    _flag("quiet", bool, "-q", "--quiet", default=False, rich_help_panel=_OUTPUT,
          help="Print nothing on stderr but errors and warnings."),
    _flag("debug", bool, "--debug", default=False, rich_help_panel=_OUTPUT,
          help="Say how the answer came about, and show tracebacks."),
)  # fmt: skip

CACHE = (
    _flag("cache_dir", str | None, "--cache-dir", envvar="STTM_CACHE_DIR", metavar="PATH",
          rich_help_panel=_CACHE, help="Folder of the cache. (default: the user's cache folder)",
          show_default=False),
    _flag("max_bytes", str | None, "--max-bytes", metavar="SIZE", rich_help_panel=_CACHE,
          show_default=False, help="Bound of the cache, such as 20G; the least recently used "
          "entries go first. (default: 20G or a tenth of the free disk)"),
)  # fmt: skip

KV_DTYPE = (
    _flag("kv_dtype", str, "--kv-dtype", default="auto", rich_help_panel=_CACHE,
          help="Number format of what is stored: auto (as computed), bfloat16, float16 or "
          "int8. New videos are answered from it as well."),
)  # fmt: skip

RUN = (
    _flag("model", str, "-m", "--model", envvar="STTM_MODEL", default=DEFAULT_MODEL,
          rich_help_panel=_MODEL, help="A short name ('sttm models' lists them), an id on the "
          "Hugging Face hub, or a folder.",
          autocompletion=_aliases),
    _flag("revision", str | None, "--revision", rich_help_panel=_MODEL, show_default=False,
          help="Branch, tag or commit of a model on the hub."),
    _flag("device", str, "--device", default="auto", rich_help_panel=_MODEL,
          help="Where to compute: auto, cpu, cuda, cuda:N or mps."),
    _flag("dtype", str, "--dtype", default="auto", rich_help_panel=_MODEL,
          help="Number format: auto, float32, bfloat16 or float16."),
    _flag("budget", str, "-b", "--budget", envvar="STTM_BUDGET", default=str(DEFAULT_BUDGET),
          rich_help_panel=_MODEL, help="Keep at most this many of the video's tokens: a "
          "share such as 0.3, up to 1, or a number from 16 on for the whole video."),
    _flag("merge_layer", int | None, "--merge-layer", rich_help_panel=_MODEL, show_default=False,
          help="Decoder layer before which tokens are merged. (default: the model's)"),
    _flag("positions", str, "--positions", default="auto", rich_help_panel=_MODEL,
          help="Rotary positions after merging: counted anew (reassigned), kept (survivors), "
          "or as suits the model (auto)."),
    _flag("newlines", bool, "--newlines", default=False, rich_help_panel=_MODEL,
          help="Put a newline token after each row of tokens, as LLaVA-Video was trained."),
    _flag("fps", float | None, "--fps", rich_help_panel=_FRAMES, show_default=False,
          help="Frames sampled per second; of a folder, images per second. (default: 1)"),
    _flag("frames", int | None, "--frames", rich_help_panel=_FRAMES, show_default=False,
          help="At most this many frames. (default: the model's)"),
    _flag("start", str | None, "--start", rich_help_panel=_FRAMES, show_default=False,
          metavar="TIME", help="Begin here: seconds or [HH:]MM:SS."),
    _flag("end", str | None, "--end", rich_help_panel=_FRAMES, show_default=False,
          metavar="TIME", help="End here: seconds or [HH:]MM:SS."),
    _flag("decoder", str, "--decoder", default="auto", rich_help_panel=_FRAMES,
          help="Reader of the video: auto, av (FFmpeg) or decord."),
    *CACHE,
    *KV_DTYPE,
    _flag("no_cache", bool, "--no-cache", default=False, rich_help_panel=_CACHE,
          help="Neither read nor write the cache."),
    _flag("refresh", bool, "--refresh", default=False, rich_help_panel=_CACHE,
          help="Compute anew and replace what is stored."),
)  # fmt: skip

SOURCE = (
    _flag("max_download", str, "--max-download", metavar="SIZE", rich_help_panel=_FRAMES,
          default=f"{MAX_DOWNLOAD >> 30}G", help="Largest video taken from an address or stdin."),
)  # fmt: skip

ANSWERS = (
    _flag("max_new_tokens", int, "--max-new-tokens", default=256, rich_help_panel=_ANSWER,
          help="Longest answer, in tokens."),
    _flag("temperature", float, "--temperature", default=0.0, rich_help_panel=_ANSWER,
          help="Draw the answer's tokens at this temperature; 0 takes the likeliest each time."),
    _flag("seed", int | None, "--seed", rich_help_panel=_ANSWER, show_default=False,
          help="Draw the same answer again. (default: another one each time)"),
    _flag("top_p", float | None, "--top-p", rich_help_panel=_ANSWER, show_default=False,
          help="Draw from the likeliest tokens that make up this share of the probability. "
          "(default: the model's)"),
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """How a command speaks."""

    as_json: bool
    quiet: bool
    debug: bool


def settings_from(flags: dict[str, Any]) -> Settings:
    """Flags as typed -> checked settings. Raises UsageError."""
    read = {
        **flags,
        "start": parse_seconds("--start", flags.get("start")),
        "end": parse_seconds("--end", flags.get("end")),
        "max_bytes": bytes_from(flags["max_bytes"]),
    }
    if "budget" in flags:
        read["budget"] = parse_budget(flags["budget"])
    if "max_download" in flags:
        read["max_download"] = parse_bytes("--max-download", flags["max_download"])
    return Settings(**read)


def bytes_from(text: str | None) -> int | None:
    """--max-bytes as typed -> bytes, None where it was not given."""
    return None if text is None else parse_bytes("--max-bytes", text)


def typed(context: typer.Context, flags: tuple[str, ...]) -> list[str]:
    """Those of `flags` that stand on the command line, not in the config file."""
    names = {option: p.name for p in context.command.params for option in p.opts}
    sources = ((flag, context.get_parameter_source(str(names[flag]))) for flag in flags)
    return [flag for flag, source in sources if source is not None and source.name == "COMMANDLINE"]


def check_keep_alive(
    context: typer.Context, keep_alive: str | None, *, no_server: bool
) -> str | None:
    """--keep-alive as typed, checked; None where --no-server overrules the config file.

    Raises UsageError where both were typed, SttmError where there is nothing to serve with.
    """
    if keep_alive is None:
        return None
    parse_duration("--keep-alive", keep_alive)
    if no_server:
        if typed(context, ("--keep-alive",)):
            raise UsageError("--no-server and --keep-alive cannot hold together", "choose one")
        return None
    check_serving()
    return keep_alive


def check_serving() -> None:
    """Raise SttmError where what a server needs is not installed."""
    missing = [m for m in ("starlette", "uvicorn", "prometheus_client") if find_spec(m) is None]
    if missing:
        raise SttmError(
            f"a server needs what is not installed: {', '.join(missing)}",
            "pip install 'sttm-cli[serve]'",
        )


def without(group: tuple[inspect.Parameter, ...], *names: str) -> tuple[inspect.Parameter, ...]:
    """The flags of a group but those that would mean nothing for a command."""
    return tuple(flag for flag in group if flag.name not in names)


def _show_no_type_of_switch(parameter: inspect.Parameter) -> None:
    """typer would write `<bool>` behind a switch, as if it took a value."""
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
            if output.quiet:
                # The hub's own bars while a model is fetched.
                os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            function(**values, flags=flags, output=output)

        for parameter in (*own, *shared):
            _show_no_type_of_switch(parameter)
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + shared
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = _reflowed(function)
        return command

    return decorate


def _reflowed(function: Callable[..., None]) -> str:
    # The source's line breaks would be shown as they are.
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
