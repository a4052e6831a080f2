"""`sttm mcp`: the tools of this package for a client of the Model Context Protocol."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.cli.flags import (
    ANSWERS,
    RUN,
    NoLog,
    NoServer,
    Output,
    allowed_folder,
    examples,
    settings_from,
    takes,
    without,
)
from sttm_cli.cli.output import say

EXAMPLES = examples("sttm mcp --allow-path ~/Videos -m qwen2.5-vl-7b --budget 0.3")


@takes(without(RUN, "start", "end", "refresh"), ANSWERS)
def mcp(
    *,
    allow_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--allow-path",
            metavar="FOLDER",
            parser=allowed_folder,
            show_default=False,
            help="Videos below this folder may be read; may be given several times. (default: the "
            "current folder)",
        ),
    ] = None,
    no_server: NoServer = False,
    no_log: NoLog = False,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Serve ask_video, prepare_video, list_videos, frame_at and video_info over MCP, on stdin and
    stdout.

    A client of the Model Context Protocol starts this command; its configuration is in docs/mcp.md.
    """
    settings = settings_from(flags)
    folders = [folder.expanduser() for folder in allow_path or [Path.cwd()]]
    if not allow_path and Path.cwd() == Path(Path.cwd().anchor):
        # Some clients start their servers there.
        raise UsageError("the current folder is the root of the disk", "name folders: --allow-path")
    if output.as_json:
        raise UsageError("mcp and --json cannot be combined", "MCP has its own form")
    if find_spec("mcp") is None:
        raise SttmError(
            "an MCP server needs what is not installed: mcp", "python -m pip install mcp"
        )
    from sttm_cli.cli.video_tools import VideoTools

    with VideoTools(settings, folders, server=not no_server, keeps_log=not no_log) as tools:
        if sys.stdin.isatty() and not output.quiet:
            say("an MCP server speaks with a program on stdin and stdout; Ctrl-D ends it")
        from sttm_cli.cli.mcp_server import run

        run(tools)
