"""The policy of a run over many videos: which are skipped or prepared, and when the run stops.

The work itself is done by a runner: this process (`in_process.py`), a server (`server.py`), a
cluster (`ray.py`), or an installed plugin (`runners.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from sttm_cli.base.errors import SttmError
from sttm_cli.decode.source import is_address
from sttm_cli.library.outcome import (
    STORED,
    Computed,
    Failed,
    Job,
    Outcome,
    Skipped,
    Stopped,
    Video,
    Wanted,
)
from sttm_cli.library.prepare import look
from sttm_cli.library.space import Room, store_of
from sttm_cli.runtime.session import VideoQA

Item = Job | Outcome
Admit = Callable[[Job], Outcome | None]
"""Reserves space for a job about to be computed; returns an outcome if the job is refused."""


class Runner(Protocol):
    """Prepares the videos of a library, here or elsewhere; holds no state of the loop."""

    def run(self, items: Iterator[Item], admit: Admit) -> Iterator[Outcome]:
        """Yield one outcome for each item, in any order; an item that is an outcome is yielded as
        is.

        `items` may be consumed in another thread, one at a time. `admit` is called right before a
        job is computed; an outcome that it returns becomes the job's. A video that fails is an
        outcome; raises only if no video could be prepared.
        """
        ...


@runtime_checkable
class FarRunner(Protocol):
    """A runner whose workers also probe the videos: this process reads none of them."""

    def run_unseen(self, videos: Sequence[Video]) -> Iterator[Outcome]:
        """Yield one outcome for each of `videos`, in any order; raises as `Runner.run`."""
        ...


def prepare_library(
    qa: VideoQA, videos: Sequence[Video], runner: Runner | FarRunner
) -> Iterator[Outcome]:
    """Have `runner` prepare every video that is not stored yet; yield the outcome of each.

    Stops early, with `Stopped`, before the disk is full or the run would evict its own entries.
    Raises ModelError or OutOfMemoryError if the model cannot be loaded.
    """
    # Resolved first, so that a missing model is not reported as a failure of the first video.
    qa.model_plan  # noqa: B018
    room, failures, first = Room(store_of(qa)), dict[Video, str](), dict[str, Video]()
    if isinstance(runner, FarRunner):
        outcomes = runner.run_unseen(videos)
    else:
        outcomes = runner.run(_looks(qa, videos), room.admit)
    for outcome in outcomes:
        settled = _with_twin(_or_twin(outcome, first), failures)
        qa.forget(settled.path)
        if isinstance(settled, Failed):
            failures[settled.path] = settled.error
        room.settle(settled.path, settled.bytes if isinstance(settled, Computed | Skipped) else 0)
        yield settled
        if isinstance(settled, Stopped):
            return


def dry_run(qa: VideoQA, videos: Sequence[Video]) -> Iterator[Outcome]:
    """Yield the outcomes that `prepare_library` would have: headers are read and bytes digested,
    nothing is decoded or fetched."""
    near = [video for video in videos if not is_address(str(video))]
    for item in _looks(qa, near):
        yield Wanted(item.path, item.need) if isinstance(item, Job) else item
    for video in videos[len(near) :]:
        try:
            known = None if qa.settings.refresh else qa.known(video)
        except SttmError as error:
            yield Failed(video, error.message)
            continue
        yield Skipped(video, STORED, key=known.key) if known else Wanted(video, None)


def _looks(qa: VideoQA, videos: Sequence[Video]) -> Iterator[Job | Skipped | Failed]:
    """Probe each video; of several with the same bytes, only the first needs work."""
    first: dict[str, Video] = {}
    for video in videos:
        item = look(qa, video)
        if not isinstance(item, Failed) and (twin := first.setdefault(item.key, video)) != video:
            qa.forget(video)
            yield Skipped(video, f"same bytes as {twin}", twin=twin)
        else:
            yield item


def _or_twin(outcome: Outcome, first: dict[str, Video]) -> Outcome:
    """Name the first video with the same bytes if a worker skipped this one as its duplicate."""
    if not isinstance(outcome, Computed | Skipped) or not outcome.key:
        return outcome
    twin = first.setdefault(outcome.key, outcome.path)
    if isinstance(outcome, Computed) or twin == outcome.path:
        return outcome
    return replace(outcome, reason=f"same bytes as {twin}", bytes=0, twin=twin)


def _with_twin(outcome: Outcome, failures: dict[Video, str]) -> Outcome:
    """Replace the skip by a failure if the video with the same bytes failed."""
    if isinstance(outcome, Skipped) and outcome.twin in failures:
        error = failures[outcome.twin]
        return Failed(outcome.path, f"{outcome.reason}, which failed: {error}")
    return outcome
