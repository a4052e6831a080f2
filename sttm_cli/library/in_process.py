"""Runner for this process: the next video is decoded while the model works on this one."""

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

# A producer thread that runs ahead of its consumer.


T = TypeVar("T")

PATIENCE_S = 1.0
"""How long closing waits for the thread to finish the current item."""


def ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Yield from `items`, which a thread produces: at most `depth` of them exist at a time.

    The item yielded last counts until the next one is requested. Exceptions of `items` are raised
    here, in order. Closing ends the thread and closes `items`.
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
"""How far decoding may run ahead, in chunks of frames (of up to 64 MiB)."""


@dataclass
class _Opened:
    """A job whose video is being decoded: its chunks follow, then its `_End`.

    `dropped`: the chunks are no longer wanted; `ended`: the `_End` was read.
    """

    job: Job
    clock: Clock
    frames: Frames
    dropped: bool = False
    ended: bool = False


@dataclass(frozen=True)
class _End:
    """The end of a video's chunks, or the exception that ended them."""

    error: Exception | None


_Read = _Opened | FrameChunk | _End | Outcome


class LocalRunner:
    """Prepares videos in this process: a thread probes and decodes ahead, the model runs here."""

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
        """Yield the results of the steps that need no model, video by video and chunk by chunk."""
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
    """Yield the chunks of the opened video; raise any exception of the decoder."""
    for item in read:
        if isinstance(item, FrameChunk):
            yield item
        elif isinstance(item, _End):
            opened.ended = True
            if item.error is not None:
                raise item.error
            return


def _drop_rest(opened: _Opened, read: Iterator[_Read]) -> None:
    """Stop decoding an opened video and discard the chunks already decoded."""
    opened.dropped = True
    while not opened.ended:
        opened.ended = isinstance(next(read), _End)
