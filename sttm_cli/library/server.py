"""Precomputes a library through a server: it computes, this process checks and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sttm_cli.base.clock import STAGES
from sttm_cli.base.errors import SttmError
from sttm_cli.base.events import Shown, Warned
from sttm_cli.base.types import TokenCounts
from sttm_cli.library.here import Looks, precompute, seconds_of, settled
from sttm_cli.library.outcome import STORED, Computed, Failed, Outcome, Skipped, Stopped
from sttm_cli.library.space import Room, needed_bytes, store_of
from sttm_cli.runtime.request import Request
from sttm_cli.serve.client import ServerGone

if TYPE_CHECKING:
    from sttm_cli.runtime.session import VideoQA
    from sttm_cli.serve.client import Server


def precompute_through(server: Server, qa: VideoQA, videos: Sequence[Path]) -> Iterator[Outcome]:
    """Have `server` prepare every video that has no KV yet; yield the outcome of each.

    Does as `here.precompute`, which takes over if the server fails.
    """
    looks, room, failures = Looks(qa), Room(store_of(qa)), dict[Path, str]()
    for number, video in enumerate(videos):
        found = looks(video)
        try:
            if isinstance(found, Request):
                outcome = _prepared(server, qa, found, room)
            else:
                outcome = settled(found, failures)
        except ServerGone as error:
            qa.warn(f"the server did not answer ({error}): going on without it")
            yield from precompute(qa, videos[number:])
            return
        if isinstance(outcome, Failed):
            failures[outcome.path] = outcome.error
        elif isinstance(outcome, Skipped | Computed):
            room.count(outcome.bytes)
        yield outcome
        if isinstance(outcome, Stopped):
            return


def _prepared(server: Server, qa: VideoQA, request: Request, room: Room) -> Outcome:
    if lacking := room.lacking(needed_bytes(qa, request.plan) or 0):
        return Stopped(request.path, lacking)
    warnings: list[str] = []

    def show(event: Shown) -> None:
        if isinstance(event, Warned):
            warnings.append(event.line)

    try:
        report = server.ask(qa.settings, str(request.path), (), show=show)
    except SttmError as error:
        return Failed(request.path, error.message)
    cache, tokens = report["cache"], report["tokens"]
    if report["video"]["fallback"]:
        return Failed(request.path, f"it is not stored: {warnings[-1] if warnings else 'see ask'}")
    if not cache["bytes"]:
        return Stopped(request.path, "its KV could not be stored")
    if cache["hit"]:
        return Skipped(request.path, STORED, cache["bytes"])
    counts = TokenCounts(tokens["video_full"], tokens["video_kept"], tokens["prefix"])
    return Computed(
        path=request.path,
        bytes=cache["bytes"],
        tokens=counts,
        video_s=seconds_of(request),
        seconds={name: report["seconds"][name] for name in STAGES},
        warnings=tuple(warnings),
    )
