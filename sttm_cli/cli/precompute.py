"""`sttm precompute`: store every video of a library in the cache."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_cli.base.errors import CacheError, UsageError
from sttm_cli.cli.flags import (
    RUN,
    SOURCE,
    NoServer,
    Output,
    completing,
    examples,
    settings_from,
    takes,
)
from sttm_cli.cli.notes import budget_note
from sttm_cli.cli.output import (
    STAGES,
    console,
    duration,
    print_json,
    printable,
    say,
    size,
    starting,
    warn,
)
from sttm_cli.library.outcome import Computed, Failed, Outcome, Skipped, Stopped, Tally, Wanted
from sttm_cli.library.paths import Found, find_videos, share_of
from sttm_cli.library.runners import LOCAL, RAY, check_runner, open_runner, runner_names

if TYPE_CHECKING:
    from sttm_cli.library.loop import FarRunner, Runner
    from sttm_cli.library.space import Estimate
    from sttm_cli.runtime.session import VideoQA

# Progress of a library: a bar on a terminal, otherwise a line per video.


class LibraryProgress:
    """A context manager; called with each stage's progress, and with every outcome."""

    def __init__(self, output: Output, total: int) -> None:
        self._output, self.total = output, total
        self._started = time.perf_counter()
        self._bar: Any = None
        self._room = 0
        if sys.stderr.isatty() and not output.quiet:
            self._bar = _bar()
            self._room = max(10, self._bar.console.width - 60)

    def __enter__(self) -> LibraryProgress:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("", total=self.total, rate="", stage="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def stage(self, name: str, done: int, total: int) -> None:
        """Show the current stage; called by the pipeline."""
        if self._bar is not None:
            count = f" {done}/{total}" if total > 1 else ""
            self._bar.update(0, stage=STAGES.get(name, name) + count)

    def show(self, outcome: Outcome, tally: Tally) -> None:
        """Show the outcome of a video."""
        if isinstance(outcome, Computed):
            for line in outcome.warnings:
                self._say(f"warning: {printable(str(outcome.path))}: {line}")
        if self._output.debug and isinstance(outcome, Failed) and outcome.traceback:
            self._say(outcome.traceback)
        if self._bar is not None:
            self._bar.update(0, completed=tally.settled, rate=self._rate(tally), stage="")
        # Next to the bar, with thousands of videos, only failures are worth a line.
        worth = not self._bar and not isinstance(outcome, Stopped)
        if isinstance(outcome, Failed) or (worth and not self._output.quiet):
            what = printable(f"{outcome.path}: {outcome_words(outcome)}")
            self._say(f"[{tally.settled}/{self.total}] {what}")

    def finish(self, tally: Tally, done: str) -> None:
        """Print a one-line summary, and the reason if it ended early."""
        if tally.stopped:
            left = self.total - tally.settled
            warn(f"stopped with {left} of {self.total} videos left: {tally.stopped}")
        parts = [f"{tally.done} {done} ({size(tally.bytes)})", f"{tally.skipped} skipped"]
        if tally.same_bytes:
            parts[-1] += f" ({tally.same_bytes} with the same bytes as another)"
        parts.append(f"{len(tally.failed)} failed, {duration(self.seconds)}")
        parts += self._per_hour(tally)
        if not self._output.quiet:
            say(", ".join(parts))

    def _say(self, line: str) -> None:
        """Print a line above the bar, of any length."""
        if self._bar is None:
            say(line)
        else:
            self._bar.console.print(line, soft_wrap=True)

    def _rate(self, tally: Tally) -> str:
        seconds = self.seconds
        rates = [f"{60 * tally.settled / seconds:.1f} videos/min", *self._per_hour(tally)]
        # Skipped videos take almost no time: the remaining work determines the pace.
        through = tally.done + len(tally.failed) or tally.settled
        left = seconds / max(1, through) * (self.total - tally.settled)
        rates.append(f"{duration(left)} left")
        # On a narrow terminal, the remaining time is kept longest.
        while len(rates) > 1 and len(", ".join(rates)) > self._room:
            rates.pop(-2)
        return ", ".join(rates)

    def _per_hour(self, tally: Tally) -> list[str]:
        hour = tally.per_video_hour(self.seconds)
        return [] if hour is None else [f"{hour:.0f} s per hour of video"]


def outcome_words(outcome: Outcome) -> str:
    """Describe the outcome of a video in a few words."""
    if isinstance(outcome, Computed):
        tokens = outcome.tokens
        spent = sum(outcome.seconds[name] or 0.0 for name in ("decode", "encode", "merge"))
        spent += outcome.seconds["prefill"] or 0.0
        kept = f"{tokens.video_kept:,} of {tokens.video_full:,} tokens"
        return f"{kept}, {size(outcome.bytes)}, {spent:.1f} s"
    if isinstance(outcome, Wanted):
        about = "" if outcome.bytes is None else f", about {size(outcome.bytes)}"
        return f"to be computed{about}"
    if isinstance(outcome, Skipped):
        return f"skipped: {outcome.reason}"
    if isinstance(outcome, Failed):
        return f"failed: {outcome.error.removeprefix(f'{outcome.path} ')}"
    return outcome.reason


def _bar() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[stage]}", style="dim"),
        console=console(stderr=True),
        transient=True,
    )


EXAMPLES = examples(
    "sttm precompute clips/ talk.mp4 -m llava-onevision-7b",
    "sttm precompute 'clips/**/*.mp4' --dry-run",
    "sttm precompute clips/ --shard 2/4",
    "sttm precompute 's3://videos/**/*.mp4' --on ray --workers 8",
)


@takes(RUN, SOURCE)
def precompute(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Folders (searched to any depth), video files, quoted patterns such as "
            "'clips/**/*.mp4' and 's3://videos/*.mp4', addresses, and '-' for a list on stdin, a "
            "path a line.",
        ),
    ],
    *,
    null: Annotated[
        bool, typer.Option("--null", help="The list on stdin is separated by NUL (find -print0).")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report what would be done and the space needed.")
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
            autocompletion=completing(runner_names),
            help="Where to compute: local, ray, ray://HOST:PORT, or the name of a runner that is "
            "installed.",
        ),
    ] = LOCAL,
    workers: Annotated[
        str | None,
        typer.Option(
            "--workers",
            metavar="N",
            show_default=False,
            help="With --on ray: at most this many workers, or MIN-MAX. (default: one for each "
            "GPU, or for two CPUs)",
        ),
    ] = None,
    no_server: NoServer = False,
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Prepare videos so that 'sttm ask' starts from the cache.

    Skips stored videos, reads the next video while the model works on this one, continues after a
    bad file, and ends with a summary. An interrupted run continues where it stopped when it is run
    again.
    """
    settings = settings_from(flags)
    if settings.no_cache:
        raise UsageError("precompute --no-cache would keep nothing", "omit --no-cache")
    if null and "-" not in paths:
        raise UsageError("--null is about the list on stdin", "give '-' as a PATH as well")
    check_runner(on)
    if workers is not None and on.partition("://")[0] != RAY:
        raise UsageError(
            f"--workers and --on {on} cannot be combined", "--workers are those of --on ray"
        )
    if not output.quiet and (note := budget_note(settings.budget)):
        say(note)
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
        # All shards share one cache.
        with starting(output):
            wanted = estimate(qa, found.videos)
        _check(qa, wanted, dry_run)
        make = partial(
            open_runner,
            on,
            qa,
            server,
            workers=workers,
            note=(lambda line: None) if output.quiet else say,
            debug=output.debug,
        )
        with (
            progress,
            closing(_outcomes(qa, mine, make, dry_run=dry_run)) as outcomes,
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
    qa: VideoQA, found: Found, make: Callable[[], Runner | FarRunner], *, dry_run: bool
) -> Generator[Outcome, None, None]:
    from sttm_cli.library import loop

    for folder, reason in found.unreadable:
        what = "" if isinstance(folder, str) else "the folder cannot be read: "
        yield Failed(folder, what + reason)
    if dry_run:
        yield from loop.dry_run(qa, found.videos)
    else:
        yield from loop.prepare_library(qa, found.videos, make())


def _listed(null: bool) -> list[str]:
    """Return the paths on stdin, byte for byte: names need not be valid text."""
    lines = sys.stdin.buffer.read().split(b"\0" if null else b"\n")
    return [os.fsdecode(line if null else line.rstrip(b"\r")) for line in lines if line.strip()]
