"""`sttm precompute`: every video of a folder into the cache."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm_cli.cli.options import RUN, Output, settings_from, takes
from sttm_cli.cli.output import StageProgress, print_json, say, warn
from sttm_cli.errors import SttmError, UsageError
from sttm_cli.types import Json

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()
)


@takes(RUN)
def precompute(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Folders (searched to any depth) and video files."),
    ],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
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
    flags: dict[str, Any],
    output: Output,
) -> None:
    """Prepare videos so that 'sttm ask' starts from the cache.

    Skips what is done, goes on after a bad file, and ends with a summary.
    """
    settings = settings_from(flags)
    if settings.no_cache:
        raise UsageError("precompute --no-cache would keep nothing", "leave --no-cache away")
    from sttm_cli.pipeline import VideoQA

    started = time.perf_counter()
    videos = _shard(sorted(set(_videos(paths))), shard)
    summary: Json = {"schema": "sttm.precompute/1", "done": 0, "skipped": 0, "failed": []}
    with StageProgress(output) as progress, VideoQA(settings, warn=warn, progress=progress) as qa:
        for number, video in enumerate(videos, 1):
            line = f"[{number}/{len(videos)}] {video}: "
            try:
                line += _one(qa, video, dry_run, summary)
            except SttmError as error:
                summary["failed"].append({"path": str(video), "error": error.message})
                line += f"failed: {error.message}"
            progress.stop()
            if not output.quiet:
                say(line)
    summary["seconds"] = time.perf_counter() - started
    _finish(summary, output, dry_run)


def _one(qa: Any, video: Path, dry_run: bool, summary: Json) -> str:
    """Prepare one video and return what became of it; counts it in `summary`."""
    if not qa.settings.refresh and qa.stored(video):
        summary["skipped"] += 1
        return "in the cache already"
    if dry_run:
        qa.request(video)
        summary["done"] += 1
        return "to be computed"
    prepared = qa.prepare(video)
    if not prepared.cache.bytes:
        raise SttmError("computed, but it could not be stored", "see the warning above")
    # Between the look and the work another process may have stored it.
    summary["skipped" if prepared.cache.hit else "done"] += 1
    tokens = prepared.kv.tokens
    return f"{tokens.video_kept:,} of {tokens.video_full:,} tokens, {prepared.cold_seconds:.1f} s"


def _finish(summary: Json, output: Output, dry_run: bool) -> None:
    failed = summary["failed"]
    if output.as_json:
        print_json(summary)
    if not output.quiet:
        done = "to do" if dry_run else "done"
        say(
            f"{summary['done']} {done}, {summary['skipped']} skipped, {len(failed)} failed "
            f"in {summary['seconds']:.1f} s"
        )
    if failed:
        raise typer.Exit(1)


def _videos(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            for found in path.rglob("*"):
                if found.suffix.lower() in VIDEO_SUFFIXES and found.is_file():
                    yield found
        else:
            # A file named by hand is tried whatever its name; a missing one fails by name.
            yield path


def _shard(videos: list[Path], text: str | None) -> list[Path]:
    if text is None:
        return videos
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard {text!r} is not possible", "give I/N with I from 1 to N")
    return videos[int(index) - 1 :: int(count)]
