"""The work on a library: the next video is read while this one goes through the model."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.clock import Clock
from sttm_cli.base.errors import SttmError
from sttm_cli.base.types import DecodeReport, FrameChunk, Frames
from sttm_cli.library.outcome import (
    STORED,
    Computed,
    Failed,
    Outcome,
    Skipped,
    Stopped,
    Wanted,
)
from sttm_cli.library.read_ahead import ahead
from sttm_cli.library.space import Room, needed_bytes, store_of
from sttm_cli.runtime.request import Request
from sttm_cli.runtime.session import VideoQA

DEPTH = 4
"""How far reading may be ahead, in chunks of frames (of 64 MiB at most)."""


@dataclass(frozen=True)
class Twin:
    """A video with the same bytes as one before it."""

    path: Path
    first: Path


@dataclass
class Opened:
    """A video to compute: its chunks follow, then its End.

    `dropped`: they are no longer wanted; `ended`: the End has come.
    """

    request: Request
    clock: Clock
    report: DecodeReport
    dropped: bool = False
    ended: bool = False


@dataclass(frozen=True)
class End:
    """The video's last chunk has come, or what reading it raised."""

    error: Exception | None


Read = Opened | FrameChunk | End | Skipped | Twin | Failed


def precompute(qa: VideoQA, videos: Sequence[Path]) -> Iterator[Outcome]:
    """Compute and store the KV of every video that has none yet; yield what became of each.

    A thread looks ahead: it digests, skips and decodes, while the model works here. A video
    that fails is an outcome, and the work goes on. It ends early, with `Stopped`, before the
    disk is full or the run would push out its own entries. Raises ModelError or OutOfMemoryError
    where the model cannot be loaded.
    """
    room, failures = Room(store_of(qa)), dict[Path, str]()
    # Chosen here: a model that is not there is no fault of the first video.
    qa.choice  # noqa: B018
    with closing(ahead(_read(qa, videos), DEPTH)) as read:
        for item in read:
            if isinstance(item, Opened):
                # A model that cannot be loaded is no fault of the video.
                qa.model()
                outcome = _compute(qa, item, read, room)
            else:
                outcome = settled(item, failures)
            if isinstance(outcome, Failed):
                failures[outcome.path] = outcome.error
            elif isinstance(outcome, Skipped | Computed):
                room.count(outcome.bytes)
            yield outcome
            if isinstance(outcome, Stopped):
                return


def look(qa: VideoQA, videos: Sequence[Path]) -> Iterator[Outcome]:
    """What `precompute` would do: headers are read and bytes digested, nothing is decoded."""
    looks = Looks(qa)
    for video in videos:
        found = looks(video)
        if isinstance(found, Request):
            yield Wanted(video, needed_bytes(qa, found.plan))
        else:
            yield settled(found, {})


class Looks:
    """Tells what a video needs; remembers which bytes it has seen."""

    def __init__(self, qa: VideoQA) -> None:
        self._qa = qa
        self._first: dict[str, Path] = {}

    def __call__(self, video: Path) -> Request | Skipped | Twin | Failed:
        try:
            request = self._qa.request(video)
            first = self._first.setdefault(request.key, video)
            if first != video:
                return Twin(video, first)
            entry = self._qa.store.stored(request.identity)
        except Exception as error:
            return _failed(video, error)
        if entry is None or self._qa.settings.refresh:
            return request
        return Skipped(video, STORED, entry.bytes)


def _read(qa: VideoQA, videos: Sequence[Path]) -> Generator[Read, None, None]:
    """Everything that needs no model, video by video, chunk by chunk."""
    looks = Looks(qa)
    for video in videos:
        found = looks(video)
        if not isinstance(found, Request):
            yield found
            continue
        clock = Clock()
        frames = qa.frames(found, clock)
        opened = Opened(found, clock, frames.report)
        yield opened
        error: Exception | None = None
        try:
            for chunk in frames.chunks:
                if opened.dropped:
                    break
                yield chunk
        except Exception as raised:
            error = raised
        yield End(error)


def _compute(qa: VideoQA, opened: Opened, read: Iterator[Read], room: Room) -> Outcome:
    """Take an opened video's chunks through the model and store what comes of them."""
    request, report = opened.request, opened.report
    need = needed_bytes(qa, request.plan) or 0
    try:
        if lacking := room.lacking(need):
            return Stopped(request.path, lacking)
        made = qa.compute(request, opened.clock, Frames(_chunks(opened, read), report))
    except Exception as error:
        _drop(opened, read)
        return _failed(request.path, error)
    if made is None:
        _drop(opened, read)
        return Skipped(request.path, STORED, need)
    kv, cache = made
    if report.fallback:
        return Failed(request.path, f"it is not stored: {report.warnings[-1]}")
    if not cache.bytes:
        return Stopped(request.path, "its KV could not be stored")
    seconds, warnings = opened.clock.seconds(), tuple(report.warnings)
    return Computed(request.path, cache.bytes, kv.tokens, seconds_of(request), seconds, warnings)


def _chunks(opened: Opened, read: Iterator[Read]) -> Iterator[FrameChunk]:
    """The opened video's chunks; raises what reading them raised."""
    for item in read:
        if isinstance(item, FrameChunk):
            yield item
        elif isinstance(item, End):
            opened.ended = True
            if item.error is not None:
                raise item.error
            return


def _drop(opened: Opened, read: Iterator[Read]) -> None:
    """Have the rest of an opened video's chunks not read, and pass over those that are."""
    opened.dropped = True
    while not opened.ended:
        opened.ended = isinstance(next(read), End)


def settled(found: Read, failures: dict[Path, str]) -> Outcome:
    """The outcome for a video that needs no model."""
    if isinstance(found, Twin):
        if (error := failures.get(found.first)) is not None:
            return Failed(found.path, f"same bytes as {found.first}, which failed: {error}")
        return Skipped(found.path, f"same bytes as {found.first}")
    if isinstance(found, Skipped | Failed):
        return found
    raise TypeError(f"{type(found).__name__} stands where a video should begin")


def _failed(path: Path, error: Exception) -> Failed:
    if isinstance(error, SttmError):
        return Failed(path, error.message)
    first = (str(error).strip().splitlines() or [""])[0]
    return Failed(
        path, f"{type(error).__name__}: {first[:300]}", "".join(traceback.format_exception(error))
    )


def seconds_of(request: Request) -> float:
    """Seconds of video that a request covers."""
    return request.plan.end_s - request.plan.start_s
