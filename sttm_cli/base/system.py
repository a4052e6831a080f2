"""Files and processes: facts about files, locks, and this package as a child process."""

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

# Facts about files (digests, headers, fingerprints), remembered between processes.


STEP_S = 2.0
"""The longest steps in which file systems count times: a second change within one does not show."""


class FileFacts(Protocol):
    """A small persistent table: str -> JSON object."""

    def get(self, key: str) -> Json | None: ...
    def set(self, key: str, value: Json) -> None: ...


def is_settled(*files: os.stat_result) -> bool:
    """Whether any further change of these files must show in their times."""
    now = time.time()
    return all(abs(now - t) > STEP_S for f in files for t in (f.st_mtime, f.st_ctime))


# One process at a time per key; the lock ends with the process that held it.


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


# This package run as another process.


def command(module: str) -> list[str]:
    """The command that runs a module of this package. The working folder is not searched for
    modules: there may be an `av.py` next to a video."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """This process's environment, in which the same package is found."""
    package = str(Path(__file__).parents[2])
    seen = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": seen}


def bound_memory(most_bytes: int) -> None:
    """Bound the memory of this process and of those that it starts; not on Windows."""
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
    sys.stdin.buffer.read()
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
