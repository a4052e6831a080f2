"""The files of the artifacts: their names, what lies there, writing them whole, and sweeping.

root/kv/ab/<key>.safetensors   the artifacts
root/kv/ab/*.part              being written
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sttm_cli.lock import hold, is_held

SUFFIX = ".safetensors"
PART = ".part"


@dataclass(frozen=True)
class Stored:
    """A file in an artifact's place, of which nothing was read. `changed` is in seconds since
    the epoch; `seal` is what a file keeps as long as nobody writes to it."""

    key: str
    path: Path
    bytes: int
    changed: float
    seal: tuple[int, int, int]


@dataclass(frozen=True)
class Scan:
    """What lies under kv/, by name, and temporary files."""

    artifacts: list[Stored]
    parts: list[Path]

    @property
    def bytes(self) -> int:
        return sum(stored.bytes for stored in self.artifacts)


class Folder:
    """The folder kv/ below a cache's root."""

    def __init__(self, root: Path) -> None:
        self._kv = root / "kv"

    def place(self, key: str) -> Path:
        return self._kv / key[:2] / (key + SUFFIX)

    def scan(self) -> Scan:
        """One look at every file; what cannot be looked at is left out."""
        artifacts, parts = list[Stored](), list[Path]()
        for entry in sorted(_files(self._kv), key=lambda entry: entry.name):
            if entry.name.endswith(SUFFIX):
                with suppress(OSError):
                    artifacts.append(_stored(entry))
            elif entry.name.endswith(PART):
                parts.append(Path(entry.path))
        return Scan(artifacts, parts)

    def write(self, path: Path, fill: Callable[[IO[bytes]], None]) -> None:
        """A temporary file beside its place, filled, synced and renamed. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem[:8], suffix=PART)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                # The sweep of another process leaves alone what a living one holds.
                hold(file.fileno())
                fill(file)
                os.fsync(file.fileno())
                os.replace(part, path)
            _sync(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def sweep(parts: list[Path]) -> None:
    """Remove temporary files whose writer is dead."""
    for part in parts:
        if not is_held(part):
            with suppress(OSError):
                part.unlink(missing_ok=True)


def seal_of(stat: os.stat_result) -> tuple[int, int, int]:
    """Size, time and inode."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _files(kv: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(kv) as folders:
        for folder in folders:
            with suppress(OSError), os.scandir(folder.path) as files:
                yield from files


def _stored(entry: os.DirEntry[str]) -> Stored:
    stat = entry.stat(follow_symlinks=False)
    key = entry.name.removesuffix(SUFFIX)
    return Stored(key, Path(entry.path), stat.st_size, stat.st_mtime, seal_of(stat))


def _sync(folder: Path) -> None:
    if os.name != "posix":
        return
    # The file is in its place; some network file systems cannot sync a folder.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
