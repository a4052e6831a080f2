"""Files and processes: a table of facts about files, file locks, child processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sttm_cli.base.types import Json

if TYPE_CHECKING:
    from filelock import FileLock

# Facts about files (digests, headers, fingerprints), stored for later processes.


STEP_S = 2.0
"""The coarsest resolution of file times; a second change within it may not show."""


class FileFacts(Protocol):
    """A small persistent table: str -> JSON object."""

    def get(self, key: str) -> Json | None: ...
    def set(self, key: str, value: Json) -> None: ...


def is_settled(*files: os.stat_result) -> bool:
    """Return whether any later change of these files is sure to change their times."""
    now = time.time()
    return all(abs(now - t) > STEP_S for f in files for t in (f.st_mtime, f.st_ctime))


# Locks, one process at a time; the system releases a lock when its process ends.


fcntl: Any = None
if sys.platform != "win32":
    import fcntl


@contextmanager
def single_flight(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`; call `on_wait` once if another process holds it.

    Runs without a lock if none can be made (read-only folder, file system without locks).
    """
    lock = _acquired(path, on_wait)
    try:
        yield
    finally:
        if lock is not None:
            # Removed while held: a process that waits for this file then creates a new one.
            with suppress(OSError):
                path.unlink(missing_ok=True)
            with suppress(OSError):
                lock.release()


def remove_unheld(path: Path) -> None:
    """Remove a file unless a running process holds a lock on it or the lock cannot be checked."""
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
    """Lock an open file until it is closed, if the file system supports locks."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_hold(descriptor: int, *, patience_s: float = 0.2) -> bool:
    """Lock an open file until it is closed; return False if a running process holds it.

    `patience_s`: time to retry, because a process that checks the lock also holds it briefly.
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
    """Acquire the lock, waiting if needed; None if no lock can be made."""
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


# Child processes that run this package.


def command(module: str) -> list[str]:
    """Return the command that runs a module of this package.

    `-P` keeps the working folder off the module path: it may contain an `av.py` next to a video.
    """
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """Return this process's environment, with the same package on the module path."""
    package = str(Path(__file__).parents[2])
    seen = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": seen}


def bound_memory(most_bytes: int) -> None:
    """Limit the memory of this process and its children; no effect on Windows."""
    try:
        import resource
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    bound = most_bytes if most == resource.RLIM_INFINITY else min(most_bytes, most)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, most))


_TIED = """
import os, runpy, signal, sys, threading
def end():
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Timer(10, os._exit, [1]).start()
threading.Thread(target=end, daemon=True).start()
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def tied_command(module: str) -> list[str]:
    """As `command`, of a process that ends when the pipe on its stdin does: with the process that
    started it, however that ends."""
    return [sys.executable, "-P", "-c", _TIED, module]
