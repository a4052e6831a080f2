"""One computation per key across machines: a lease that its holder renews while others wait.

A lease is a small object or file. Its age is the difference of two times of the server that keeps
it, so the machines' clocks may differ. A holder that dies delays the others by the limit at most.
If the server ignores conditions, or a holder is suspended for longer than the limit, two machines
compute the same KV: both results are right, and one of them is kept.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from sttm_cli.store.files import PRIVATE, Access

LIMIT_S = 60.0
"""Age in seconds at which a lease that was not renewed has expired."""
RENEWALS = 4
"""Renewals per limit."""
POLL_S = 1.0
"""Seconds between a waiter's polls."""
STEP_S = 2.0
"""Servers report times in whole seconds."""

V = TypeVar("V")


class Seen(NamedTuple, Generic[V]):
    """A lease: its version, and the server's time of its last renewal in seconds."""

    version: V
    renewed: float


class Leases(Protocol[V]):
    """Storage for leases. Methods raise OSError if it cannot be read or written."""

    def create(self, key: str, token: str) -> V | None:
        """Create a lease; return None if it already exists."""
        ...

    def replace(self, key: str, token: str, version: V) -> V | None:
        """Overwrite this version of a lease, to renew or take it; None if it has another
        version."""
        ...

    def look(self, key: str) -> Seen[V] | None:
        """Return the current lease, None if there is none."""
        ...

    def release(self, key: str, version: V) -> None:
        """Remove a lease, unless it is known to have another version."""
        ...

    def now(self) -> float:
        """Return the server's time in seconds."""
        ...


class _Clock:
    """The server's time, requested once per wait."""

    def __init__(self, leases: Leases[Any]) -> None:
        self._offset = leases.now() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset


@contextmanager
def holding(
    leases: Leases[V],
    key: str,
    on_wait: Callable[[], None],
    *,
    done: Callable[[], bool],
) -> Iterator[None]:
    """Hold the lease of `key` within the context; calls `on_wait` once if it is held elsewhere.

    Enters without the lease if `done` returns True after a wait, since nothing is left to compute,
    and if leases cannot be written.
    """
    token = secrets.token_hex(16)
    try:
        version = _taken(leases, key, token, on_wait, done)
    except OSError:
        version = None
    if version is None:
        yield
        return
    renewal = _Renewal(leases, key, token, version)
    try:
        yield
    finally:
        renewal.end()


def _taken(
    leases: Leases[V],
    key: str,
    token: str,
    on_wait: Callable[[], None],
    done: Callable[[], bool],
) -> V | None:
    clock: _Clock | None = None
    while (version := leases.create(key, token)) is None:
        if clock is None:
            on_wait()
            clock = _Clock(leases)
        while (seen := leases.look(key)) and clock.now() - seen.renewed <= LIMIT_S + STEP_S:
            time.sleep(POLL_S)
        if done():
            return None
        if seen and (version := leases.replace(key, token, seen.version)) is not None:
            break
    return version


class _Renewal(Generic[V]):
    """A thread that renews a lease until `end` releases it."""

    def __init__(self, leases: Leases[V], key: str, token: str, version: V) -> None:
        self._leases, self._key, self._token = leases, key, token
        self._version: V | None = version
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        if self._version is not None:
            try:
                self._leases.release(self._key, self._version)
            except OSError:
                return

    def _run(self) -> None:
        while self._version is not None and not self._ended.wait(LIMIT_S / RENEWALS):
            try:
                self._version = self._leases.replace(self._key, self._token, self._version)
            except OSError:
                # The next renewal may succeed before the limit.
                continue


class FolderLeases:
    """Leases as files in a folder shared by users or machines; a version is its holder's token.

    Times are the file server's: it sets a file's time, which is read by opening the file, because
    network file systems do not answer that from a cache.
    """

    def __init__(self, folder: Path, access: Access = PRIVATE) -> None:
        self._folder, self._access = folder, access

    def create(self, key: str, token: str) -> str | None:
        self._access.make(self._folder)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            descriptor = os.open(self._folder / key, flags, self._access.file_mode)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "w") as file:
            self._access.set_mode(file.fileno())
            file.write(token)
        return token

    def replace(self, key: str, token: str, version: str) -> str | None:
        path = self._folder / key
        seen = self.look(key)
        if seen is None or seen.version != version:
            return None
        if token == version:
            os.utime(path)
            return token
        # Of several processes taking over a lease, only one can move it away.
        grave = path.with_name(f"{key}.{token}")
        try:
            os.rename(path, grave)
        except FileNotFoundError:
            return None
        moved = _read(grave)[0]
        if moved != version:
            # Another process was faster, and holds the file that was moved.
            with suppress(OSError):
                os.link(grave, path)
        grave.unlink(missing_ok=True)
        return self.create(key, token) if moved == version else None

    def look(self, key: str) -> Seen[str] | None:
        try:
            return Seen(*_read(self._folder / key))
        except FileNotFoundError:
            return None

    def release(self, key: str, version: str) -> None:
        seen = self.look(key)
        if seen is not None and seen.version == version:
            (self._folder / key).unlink(missing_ok=True)

    def now(self) -> float:
        path = self._folder / "clock"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, self._access.file_mode)
        with os.fdopen(descriptor, "w") as file:
            with suppress(OSError):
                # Another user's file already has its mode.
                self._access.set_mode(file.fileno())
            os.utime(path)
            return os.fstat(file.fileno()).st_mtime


def _read(path: Path) -> tuple[str, float]:
    """Return a lease's token and the time of its last renewal; raises OSError."""
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK"))
    with os.fdopen(os.open(path, os.O_RDONLY | flags), "rb") as file:
        token = file.read(64).decode(errors="replace")
        return token, os.fstat(file.fileno()).st_mtime
