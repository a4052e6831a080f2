"""Doing the next thing while this one is being used: an iterator that runs in a thread."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TypeVar

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
