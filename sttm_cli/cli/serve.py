"""`sttm serve`: keep the model loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.base.errors import UsageError
from sttm_cli.cli.flags import (
    ANSWERS,
    RUN,
    Output,
    allowed_folder,
    check_serving,
    examples,
    settings_from,
    takes,
    typed,
    without,
)
from sttm_cli.cli.output import print_json, print_words, say, size, starting
from sttm_cli.settings.fields import parse_bytes, parse_duration
from sttm_cli.settings.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from sttm_cli.serve.local_servers import LocalServer
    from sttm_cli.serve.options import Options

PORT = 8000
ENGINES = ("sttm", "vllm")
_PORT_ONLY = ("--host", "--port", "--api-key", "--allow-path", "--allow-private")
_FOR_VLLM = (
    "--engine", "--host", "--port", "--api-key", "--allow-path", "--host-bytes", "--quiet",
    "--debug",
)  # fmt: skip
"""The flags of this command, beside settings, that vLLM's server has a counterpart of."""
_SPEAKING = ("--json", "--quiet", "--debug")
_SERVER = "Server"
_BOUNDS = "Bounds"
EXAMPLES = examples(
    "sttm serve -m llava-onevision-7b --allow-path ~/Videos",
    "sttm serve --engine vllm -m qwen2.5-vl-7b -b 0.3 -- --tensor-parallel-size 2",
    "sttm serve --status",
    "sttm serve --stop",
)


def _option(*names: str, panel: str = _SERVER, **details: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **details)


@takes(without(RUN, "no_cache", "refresh", "start", "end"), ANSWERS)
def serve(
    context: typer.Context,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="FLAGS", show_default=False,
                       help="Flags for vLLM's own server, with --engine vllm."),
    ] = None,
    *,
    engine: Annotated[
        str, _option("--engine", metavar="WORD",
                     help="Who answers: sttm, or vllm, which must be installed.")
    ] = "sttm",
    host: Annotated[str, _option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, _option("--port", help="Port to listen on; 0 takes a free one.")
    ] = PORT,
    socket_only: Annotated[
        bool, _option("--socket-only", help="Listen for this user's own 'sttm' only, on no port.")
    ] = False,
    api_key: Annotated[
        str | None,
        _option("--api-key", envvar="STTM_API_KEY", show_default=False,
                help="Key that clients must send; needed where others can reach --host."),
    ] = None,
    allow_path: Annotated[
        list[Path] | None,
        _option("--allow-path", metavar="FOLDER", show_default=False, parser=allowed_folder,
                help="Clients may name files below this folder; may be given several times."),
    ] = None,
    allow_private: Annotated[
        bool, _option("--allow-private", help="Fetch videos from private addresses as well.")
    ] = False,
    keep_alive: Annotated[
        str | None,
        _option("--keep-alive", metavar="TIME", show_default=False,
                help="End after this long without a question, such as 10m."),
    ] = None,
    status: Annotated[
        bool, _option("--status", help="Show this user's servers and exit.")
    ] = False,
    stop: Annotated[bool, _option("--stop", help="End this user's servers.")] = False,
    parallel: Annotated[
        int, _option("--parallel", panel=_BOUNDS, help="Questions worked on at once.")
    ] = 8,
    together: Annotated[
        int | None,
        _option("--together", panel=_BOUNDS, show_default=False,
                help="Questions about one video decoded together. (default: 8 in float32, else 1)"),
    ] = None,
    max_queue: Annotated[
        int, _option("--max-queue", panel=_BOUNDS, help="Questions that may wait beside them.")
    ] = 64,
    request_timeout: Annotated[
        str, _option("--request-timeout", panel=_BOUNDS, metavar="TIME",
                     help="Longest time for one request.")
    ] = "10m",
    max_body: Annotated[
        str, _option("--max-body", panel=_BOUNDS, metavar="SIZE", help="Largest request.")
    ] = "64M",
    max_bodies: Annotated[
        str | None, _option("--max-bodies", panel=_BOUNDS, metavar="SIZE", show_default=False,
                            help="All requests at once. (default: four times --max-body)")
    ] = None,
    max_download: Annotated[
        str, _option("--max-download", panel=_BOUNDS, metavar="SIZE",
                     help="Largest video fetched from an address.")
    ] = "1G",
    download_timeout: Annotated[
        str, _option("--download-timeout", panel=_BOUNDS, metavar="TIME",
                     help="Longest time for fetching one.")
    ] = "2m",
    device_bytes: Annotated[
        str | None, _option("--device-bytes", panel=_BOUNDS, metavar="SIZE", show_default=False,
                            help="KV caches kept on the device. (default: a fifth of its memory)")
    ] = None,
    host_bytes: Annotated[
        str | None, _option("--host-bytes", panel=_BOUNDS, metavar="SIZE", show_default=False,
                            help="KV caches kept in host memory. (default: an eighth of it)")
    ] = None,
    flags: dict[str, Any],
    output: Output,
) -> None:  # fmt: skip
    """Keep the model loaded, for 'sttm ask' and for any OpenAI client.

    'sttm ask', 'chat' and 'precompute' with the same model and settings find it by themselves.
    """
    for flag, beside in (("--status", ()), ("--stop", ()), ("--socket-only", _PORT_ONLY)):
        _check_beside(context, flag, beside)
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine!r} is not a server", f"give {' or '.join(ENGINES)}")
    if more and engine != "vllm":
        raise UsageError(
            f"{' '.join(more)}: flags after -- are for --engine vllm", "leave them out"
        )
    if status or stop:
        _others(output, stop=stop)
        return
    settings = settings_from(flags)
    if engine == "vllm":
        _check_for_vllm(context)
        from sttm_cli.vllm.front import Server
        from sttm_cli.vllm.front import serve as start

        start(
            settings,
            Server(
                host=host,
                port=port,
                api_key=api_key,
                allow_path=tuple(allow_path or ()),
                host_bytes=parse_bytes("--host-bytes", host_bytes) if host_bytes else None,
                more=tuple(more or ()),
            ),
            (lambda line: None) if output.quiet else say,
        )
    check_serving()
    from sttm_cli.serve.options import Options

    options = Options(
        host=host,
        port=None if socket_only else port,
        api_key=api_key,
        allow_path=tuple(allow_path or ()),
        allow_private=allow_private,
        keep_alive=parse_duration("--keep-alive", keep_alive) if keep_alive else None,
        parallel=parallel,
        together=together,
        max_queue=max_queue,
        request_timeout=parse_duration("--request-timeout", request_timeout),
        max_body=parse_bytes("--max-body", max_body),
        max_bodies=parse_bytes("--max-bodies", max_bodies) if max_bodies else None,
        max_download=parse_bytes("--max-download", max_download),
        download_timeout=parse_duration("--download-timeout", download_timeout),
        device_bytes=parse_bytes("--device-bytes", device_bytes) if device_bytes else None,
        host_bytes=parse_bytes("--host-bytes", host_bytes) if host_bytes else None,
    )
    _run(settings, options, output)


def _check_beside(context: typer.Context, flag: str, flags: Sequence[str]) -> None:
    """Raise UsageError if `flag` was typed together with one of `flags`, or, if `flags` is empty,
    with any flag except those of the output."""
    every = (p.opts[-1] for p in context.command.params)
    others = flags or [name for name in every if name not in (flag, *_SPEAKING)]
    if typed(context, (flag,)) and (beside := typed(context, tuple(others))):
        raise UsageError(f"{flag} and {beside[0]} cannot be combined", "choose one")


def _check_for_vllm(context: typer.Context) -> None:
    """Raise UsageError where a flag was typed that vLLM's server has no counterpart of."""
    settings = {flag for setting in SETTINGS.values() for flag in setting.flags}
    every = (p.opts[-1] for p in context.command.params if p.opts[-1].startswith("--"))
    others = [flag for flag in every if flag not in settings and flag not in _FOR_VLLM]
    if beside := typed(context, tuple(others)):
        raise UsageError(f"--engine vllm and {beside[0]} cannot be combined", "leave one out")


def _run(settings: Settings, options: Options, output: Output) -> None:
    with starting(output):
        from sttm_cli.serve.process import serve as run

    run(settings, options, (lambda line: None) if output.quiet else say)


def _others(output: Output, *, stop: bool) -> None:
    """Carry out `--status` and `--stop`."""
    from sttm_cli.serve.local_servers import end, running

    servers: list[LocalServer] = []
    for server in running():
        if stop:
            end(server)
        servers.append(server)
    if output.as_json:
        rows = [server.to_json() for server in servers]
        print_json({"schema": "sttm.serve/1", "servers": rows})
        return
    for server in servers:
        if not stop:
            print_words(_line(server), indent=2)
        elif not output.quiet:
            say(f"ended: {_line(server)}")
    if not servers and not output.quiet:
        say("no server is running")


def _line(server: LocalServer) -> str:
    status, facts = server.status, server.facts
    if status is None:
        state = f"does not answer ({server.trouble})"
    elif not status["ready"]:
        state = "loading"
    else:
        held = size(sum(status["held_bytes"].values()))
        state = f"{status['answered']} answered, {status['running']} running, holds {held}"
    where = facts.get("address") or "this user's sttm only"
    return f"{facts.get('model', '?')} · process {facts['pid']} · {where} · {state}"
