"""The policy of a run over many videos: what is skipped, what is prepared, and when it stops.

Where the work is done is a runner's: this process (`local.py`), a server (`server.py`), or
another one that is installed (`runners.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from sttm_cli.library.outcome import Computed, Failed, Job, Outcome, Skipped, Stopped, Wanted
from sttm_cli.library.prepare import look
from sttm_cli.library.space import Room, store_of
from sttm_cli.runtime.session import VideoQA

Item = Job | Outcome
Admit = Callable[[Job], Outcome | None]
"""Sets room aside for a job that is about to be computed; else gives its outcome."""


class Runner(Protocol):
    """Where the videos of a library are prepared. It holds nothing that the loop needs."""

    def run(self, items: Iterator[Item], admit: Admit) -> Iterator[Outcome]:
        """Yield one outcome for each item, in any order: for a job what became of it, for an
        outcome itself.

        `items` may be asked for in another thread, one at a time. `admit` is asked right before
        a job is computed; where it gives an outcome, that is the job's. A video that fails is an
        outcome; raises where none could be prepared.
        """
        ...


def prepare_library(qa: VideoQA, videos: Sequence[Path], runner: Runner) -> Iterator[Outcome]:
    """Have `runner` prepare every video that is not stored yet; yield what became of each.

    Ends early, with `Stopped`, before the disk is full or the run would push out its own
    entries. Raises ModelError or OutOfMemoryError where the model cannot be loaded.
    """
    # Resolved here: a missing model is not the first video's fault.
    qa.model_plan  # noqa: B018
    room, failures = Room(store_of(qa)), dict[Path, str]()
    for outcome in runner.run(_looks(qa, videos), room.admit):
        settled = _with_twin(outcome, failures)
        if isinstance(settled, Failed):
            failures[settled.path] = settled.error
        room.settle(settled.path, settled.bytes if isinstance(settled, Computed | Skipped) else 0)
        yield settled
        if isinstance(settled, Stopped):
            return


def dry_run(qa: VideoQA, videos: Sequence[Path]) -> Iterator[Outcome]:
    """What `prepare_library` would do: headers are read and bytes digested, nothing is decoded."""
    for item in _looks(qa, videos):
        yield Wanted(item.path, item.need) if isinstance(item, Job) else item


def _looks(qa: VideoQA, videos: Sequence[Path]) -> Iterator[Item]:
    """What each video needs; of several with the same bytes only the first one."""
    first: dict[str, Path] = {}
    for video in videos:
        item = look(qa, video)
        if not isinstance(item, Failed) and (twin := first.setdefault(item.key, video)) != video:
            yield Skipped(video, f"same bytes as {twin}", twin=twin)
        else:
            yield item


def _with_twin(outcome: Outcome, failures: dict[Path, str]) -> Outcome:
    """A video with the bytes of one that failed has failed too."""
    if isinstance(outcome, Skipped) and outcome.twin in failures:
        error = failures[outcome.twin]
        return Failed(outcome.path, f"{outcome.reason}, which failed: {error}")
    return outcome
