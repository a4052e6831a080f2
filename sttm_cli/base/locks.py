"""One process at a time per key; the lock is gone with the process that held it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# Without it (Windows) two processes may compute the same video; both results are right.
fcntl: Any = None
if sys.platform != "win32":
    import fcntl


@contextmanager
def single_flight(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`; calls `on_wait` once if another process holds it.

    Where no lock can be made (a read-only folder, a file system without locks) the work is done
    without one.
    """
    descriptor = _acquire(path, on_wait)
    try:
        yield
    finally:
        if descriptor is not None:
            # A disk that cannot be written any more: the lock goes with the descriptor.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a living process holds a lock on the file itself."""
    if fcntl is None:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        # Held by another, or on a file system without locks: it may be in use.
        return True
    finally:
        os.close(descriptor)


def remove_unheld(path: Path) -> None:
    """Remove a file unless a living process holds a lock on it, or nobody can tell."""
    with suppress(OSError):
        if fcntl is None:
            # Windows refuses to remove what is open.
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

    `patience_s`: someone who only looks (`is_held`) holds it for a moment too.
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


def _acquire(path: Path, on_wait: Callable[[], None]) -> int | None:
    if fcntl is None:
        return None
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            on_wait = _silent
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            # A file system without locks.
            os.close(descriptor)
            return None
        # The last holder unlinks the file: only a lock on the one that is still there counts.
        if _same_file(descriptor, path):
            return descriptor
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except OSError:
        return False


def _silent() -> None:
    return
