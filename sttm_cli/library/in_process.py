"""Videos prepared in this process: the next one is read while the model works on this one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

from sttm_cli.base.results import Clock
from sttm_cli.base.types import FrameChunk, Frames
from sttm_cli.library.loop import Admit, Item
from sttm_cli.library.outcome import Job, Outcome
from sttm_cli.library.prepare import prepare
from sttm_cli.runtime.session import VideoQA

# Doing the next thing while this one is being used: an iterator that runs in a thread.


T = TypeVar("T")

PATIENCE_S = 1.0
"""How long closing waits for an item that is half made."""


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Yield from `items`, which a thread makes: at most `depth` of them exist at a time.

    The one that was yielded last counts among them until the next is asked for. What `items`
    raises is raised here, in its turn. Closing ends the thread and closes `items`.
    """
    made: SimpleQueue[tuple[T] | BaseException] = SimpleQueue()
    room, left = Semaphore(depth), Event()

    def make() -> None:
        with closing(items):
            while room.acquire() and not left.is_set():
                try:
                    made.put((next(items),))
                except BaseException as error:
                    made.put(error)
                    return

    # A reader that hangs must not keep the process from ending.
    thread = Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            got = made.get()
            if isinstance(got, StopIteration):
                return
            if isinstance(got, BaseException):
                raise got
            yield got[0]
            room.release()
    finally:
        left.set()
        room.release()
        thread.join(PATIENCE_S)


DEPTH = 4
"""How far reading may be ahead, in chunks of frames (of 64 MiB at most)."""


@dataclass
class _Opened:
    """A job whose video is being read: its chunks follow, then its end.

    `dropped`: they are no longer wanted; `ended`: the end has come.
    """

    job: Job
    clock: Clock
    frames: Frames
    dropped: bool = False
    ended: bool = False


@dataclass(frozen=True)
class _End:
    """The video's last chunk has come, or what reading it raised."""

    error: Exception | None


_Read = _Opened | FrameChunk | _End | Outcome


class LocalRunner:
    """Prepares videos in this process. A thread looks ahead and decodes; the model works here."""

    def __init__(self, qa: VideoQA) -> None:
        self._qa = qa

    def run(self, items: Iterator[Item], admit: Admit) -> Iterator[Outcome]:
        with closing(ahead(self._read(items), DEPTH)) as read:
            for item in read:
                if isinstance(item, _Opened):
                    yield admit(item.job) or self._prepared(item, read)
                    _drop_rest(item, read)
                elif isinstance(item, Outcome):
                    yield item

    def _read(self, items: Iterator[Item]) -> Generator[_Read, None, None]:
        """Everything that needs no model, video by video, chunk by chunk."""
        for item in items:
            if not isinstance(item, Job):
                yield item
                continue
            clock = Clock()
            opened = _Opened(item, clock, self._qa.compute.frames(item.request, clock))
            yield opened
            error: Exception | None = None
            try:
                for chunk in opened.frames.chunks:
                    if opened.dropped:
                        break
                    yield chunk
            except Exception as raised:
                error = raised
            yield _End(error)

    def _prepared(self, opened: _Opened, read: Iterator[_Read]) -> Outcome:
        frames = Frames(_chunks(opened, read), opened.frames.report)
        return prepare(self._qa, opened.job, clock=opened.clock, frames=frames)


def _chunks(opened: _Opened, read: Iterator[_Read]) -> Iterator[FrameChunk]:
    """The opened video's chunks; raises what reading them raised."""
    for item in read:
        if isinstance(item, FrameChunk):
            yield item
        elif isinstance(item, _End):
            opened.ended = True
            if item.error is not None:
                raise item.error
            return


def _drop_rest(opened: _Opened, read: Iterator[_Read]) -> None:
    """Have the rest of an opened video's chunks not read, and pass over those that are."""
    opened.dropped = True
    while not opened.ended:
        opened.ended = isinstance(next(read), _End)
