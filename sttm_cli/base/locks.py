"""One process at a time per key; the lock ends with the process that held it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filelock import FileLock

fcntl: Any = None
if sys.platform != "win32":
    import fcntl


@contextmanager
def single_flight(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`; calls `on_wait` once if another process holds it.

    Where no lock can be made (a read-only folder, a file system without locks) the work is done
    without one.
    """
    lock = _acquired(path, on_wait)
    try:
        yield
    finally:
        if lock is not None:
            # Removed while it is held: a process that waits for this file then makes a new one.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                lock.release()


def remove_unheld(path: Path) -> None:
    """Remove a file unless a living process holds a lock on it, or that cannot be determined."""
    with suppress(OSError):
        if fcntl is None:
            # Windows refuses to remove an open file.
            path.unlink()
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)


def hold(descriptor: int) -> None:
    """Mark an open file as in use until it is closed, where the file system knows locks."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_hold(descriptor: int, *, patience_s: float = 0.2) -> bool:
    """Mark an open file as in use until it is closed, unless a living process holds it.

    `patience_s`: a process that only checks whether it is held holds it for a moment too.
    """
    if fcntl is None:
        return True
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)


def _acquired(path: Path, on_wait: Callable[[], None]) -> FileLock | None:
    """The lock, once this process holds it; None where there can be none."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, mode=0o600, fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
    except (OSError, NotImplementedError):
        return None
    return lock
