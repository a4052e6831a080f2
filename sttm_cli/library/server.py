"""The same work with the model of a resident server: it computes, this process looks and counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttm_cli.base.clock import STAGES
from sttm_cli.base.errors import SttmError
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
    """Have `server` prepare every video that has no KV yet; yield what became of each.

    As `work.precompute`, which takes over where the server is gone.
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
    report: dict[str, Any] = {}
    warnings: list[str] = []
    try:
        for kind, value in server.ask(qa.settings, str(request.path), ()):
            if kind == "report" and isinstance(value, dict):
                report = value
            elif kind == "warning":
                warnings.append(str(value))
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
    stages = {name: s for name, s in report["seconds"].items() if name in STAGES}
    return Computed(
        request.path, cache["bytes"], counts, seconds_of(request), stages, tuple(warnings)
    )
