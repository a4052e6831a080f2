"""`sttm precompute`: every video of a library into the cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.base.errors import CacheError, UsageError
from sttm_cli.cli.flags import RUN, NoServer, Output, examples, settings_from, takes
from sttm_cli.cli.library_progress import LibraryProgress
from sttm_cli.cli.output import print_json, say, warn
from sttm_cli.library.outcome import Failed, Outcome, Tally
from sttm_cli.library.paths import Found, find_videos, share_of
from sttm_cli.library.runners import LOCAL, check_runner

if TYPE_CHECKING:
    from sttm_cli.library.space import Estimate
    from sttm_cli.runtime.session import VideoQA
    from sttm_cli.serve.client import Server

EXAMPLES = examples(
    "sttm precompute clips/ talk.mp4 -m llava-onevision-7b",
    "sttm precompute 'clips/**/*.mp4' --dry-run",
    "sttm precompute clips/ --shard 2/4",
)


@takes(RUN)
def precompute(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Folders (searched to any depth), video files, quoted patterns such as "
            "'clips/**/*.mp4', and '-' for a list on stdin, a path a line.",
        ),
    ],
    *,
    null: Annotated[
        bool, typer.Option("--null", help="The list on stdin is separated by NUL (find -print0).")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and what it would take.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            show_default=False,
            help="Do only the I-th of N equal shares of the videos (I from 1 to N).",
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="NAME",
            help="Where to compute: local, or the name of a runner that is installed.",
        ),
    ] = LOCAL,
    no_server: NoServer = False,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Prepare videos so that 'sttm ask' starts from the cache.

    Skips what is done, reads the next video while the model works on this one, goes on after a
    bad file, and ends with a summary. Stopped at any moment, it goes on where it was when it is
    run again.
    """
    settings = settings_from(flags)
    if settings.no_cache:
        raise UsageError("precompute --no-cache would keep nothing", "leave --no-cache away")
    if null and "-" not in paths:
        raise UsageError("--null is about the list on stdin", "give '-' as a PATH as well")
    check_runner(on)
    listed = _listed(null) if "-" in paths else []
    found = find_videos([path for path in paths if path != "-"], listed)
    mine = replace(found, videos=share_of(found.videos, shard))
    tally, progress = Tally(), LibraryProgress(output, len(mine.videos) + len(mine.unreadable))
    from sttm_cli.library.space import estimate
    from sttm_cli.runtime.session import VideoQA
    from sttm_cli.serve.client import find_server

    with VideoQA(settings, warn=warn, progress=progress.stage) as qa:
        elsewhere = no_server or dry_run or on != LOCAL
        server = None if elsewhere else find_server(settings, warn)
        if server is not None and not output.quiet:
            say(f"the model of {server} computes")
        # All shards fill one cache.
        wanted = estimate(qa, found.videos)
        _check(qa, wanted, dry_run)
        with (
            progress,
            closing(_outcomes(qa, mine, dry_run=dry_run, on=on, server=server)) as outcomes,
        ):
            _follow(outcomes, tally, progress)
    if output.as_json:
        about = {"videos": progress.total, "estimated_bytes": wanted.bytes if wanted else None}
        print_json({**tally.to_json(progress.seconds), **about})
    progress.finish(tally, "to do" if dry_run else "done")
    if tally.failed or tally.stopped:
        raise typer.Exit(1)


def _follow(outcomes: Iterator[Outcome], tally: Tally, progress: LibraryProgress) -> None:
    try:
        for outcome in outcomes:
            tally.add(outcome)
            progress.show(outcome, tally)
    except KeyboardInterrupt:
        progress.finish(tally, "done before it was interrupted")
        raise


def _check(qa: VideoQA, wanted: Estimate | None, dry_run: bool) -> None:
    from sttm_cli.library.space import check_space

    try:
        check_space(qa, wanted)
    except CacheError as error:
        if not dry_run:
            raise
        warn(f"this would not start: {error}")


def _outcomes(
    qa: VideoQA, found: Found, *, dry_run: bool, on: str, server: Server | None
) -> Generator[Outcome, None, None]:
    from sttm_cli.library import loop
    from sttm_cli.library.runners import open_runner

    for folder, reason in found.unreadable:
        yield Failed(folder, f"the folder cannot be read: {reason}")
    if dry_run:
        yield from loop.dry_run(qa, found.videos)
    else:
        yield from loop.prepare_library(qa, found.videos, open_runner(on, qa, server))


def _listed(null: bool) -> list[str]:
    """The paths on stdin, byte for byte: names need not be text."""
    lines = sys.stdin.buffer.read().split(b"\0" if null else b"\n")
    return [os.fsdecode(line if null else line.rstrip(b"\r")) for line in lines if line.strip()]
