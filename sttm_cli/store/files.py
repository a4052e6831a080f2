"""The files of the artifacts: their names, a scan of all, writing them whole, and sweeping.

root/kv/ab/<key>.safetensors    the artifacts
root/kv/ab/<key>.<random>.part  being written
root/locks/<key>                locked by the process that computes this key
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from stat import S_ISREG
from threading import Lock
from typing import BinaryIO, NamedTuple, cast

from sttm_cli.base.system import hold, remove_unheld
from sttm_cli.store.artifact import Damaged
from sttm_cli.store.protocol import Space

# Folders and files that only this user can write: how they are made, and how that is checked.


PRIVATE = 0o700
OTHERS_WRITE = 0o022


def exposure(stat: os.stat_result) -> str:
    """How others can change a file or folder, to follow its name; "" where only this user can."""
    if not hasattr(os, "geteuid"):
        return ""
    if stat.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written by other users" if stat.st_mode & OTHERS_WRITE else ""


def make_private(folder: Path) -> None:
    """Make a folder and the missing ones above it, each for this user alone whatever the umask.

    Raises OSError.
    """
    try:
        os.mkdir(folder, PRIVATE)
    except FileNotFoundError:
        make_private(folder.parent)
        make_private(folder)
    except FileExistsError:
        if not folder.is_dir():
            raise


def check_levels(place: Path) -> None:
    """Raise Damaged unless the folders root, kv/ and kv/ab/ above an artifact are private.

    Raises OSError where one is missing.
    """
    for level in list(place.parents)[:3]:
        if reason := exposure(level.stat()):
            raise Damaged(f"{level} {reason}")


Seal = tuple[int, int, int, int]
"""Size, times of modification and change, and inode. Anybody can set the modification time back;
the other is the system's own."""


def file_seal(stat: os.stat_result) -> Seal:
    """It stays equal as long as nobody writes to the file."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


class FileBlob:
    """The bytes of a file: a symbolic link is not followed, a pipe not waited for.

    Raises OSError, and Damaged for anything but a regular file that only this user can write.
    """

    def __init__(self, path: str | Path) -> None:
        flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
        self.path = os.fspath(path)
        descriptor = os.open(path, os.O_RDONLY | flags)
        self.stat = os.fstat(descriptor)
        regular = S_ISREG(self.stat.st_mode)
        reason = exposure(self.stat) if regular else "is not a regular file"
        if reason:
            os.close(descriptor)
            raise Damaged(f"it {reason}")
        # Unbuffered: tensors are read in one piece straight into their place.
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._seeking = Lock()

    @property
    def size(self) -> int:
        """As it was when the file was opened."""
        return self.stat.st_size

    def read_into(self, target: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [target], offset)
        with self._seeking:
            self._file.seek(offset)
            return self._file.readinto(target) or 0

    def expect_whole_read(self) -> None:
        """Have the system read ahead: readers side by side look like random reads to it."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def close(self) -> None:
        self._file.close()


SUFFIX = ".safetensors"
KEY = re.compile("[0-9a-f]{64}")
PART = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.part|[0-9a-f]{8}[a-z0-9_]{8}\.part")
"""Temporary files, also those of earlier versions. Files of other names are never removed."""


class Stored(NamedTuple):
    """A file in an artifact's place, none of which was read."""

    key: str
    place: str
    stat: os.stat_result

    @property
    def path(self) -> Path:
        return Path(self.place)

    @property
    def bytes(self) -> int:
        return self.stat.st_size

    @property
    def changed(self) -> float:
        """In seconds since the epoch."""
        return self.stat.st_mtime

    @property
    def seal(self) -> Seal:
        return file_seal(self.stat)


@dataclass(frozen=True)
class Scan:
    """The files under kv/, by key, and those that killed processes may have left: temporary
    files and locks."""

    artifacts: list[Stored]
    leftovers: list[Path]

    @property
    def bytes(self) -> int:
        return sum(stored.bytes for stored in self.artifacts)


class Folder:
    """The folders kv/ and locks/ below a cache's root."""

    def __init__(self, root: Path) -> None:
        self._root, self._kv, self._locks = root, root / "kv", root / "locks"

    def space(self) -> Space:
        """The disk that the folders are, or will be, on."""
        place = self._root
        while not os.path.exists(place):
            place = place.parent
        usage = shutil.disk_usage(place)
        return Space(free=usage.free, total=usage.total)

    def lock(self, key: str) -> Path:
        return self._locks / key

    def place(self, key: str) -> Path:
        return self._kv / key[:2] / (key + SUFFIX)

    def scan(self) -> Scan:
        """One `stat` of every file; files for which it fails are left out."""
        locks = (lock for lock in entries_of(self._locks) if KEY.fullmatch(lock.name))
        artifacts, leftovers = list[Stored](), [Path(lock) for lock in locks]
        for entry in _files(self._kv):
            key = entry.name.removesuffix(SUFFIX)
            if key != entry.name and KEY.fullmatch(key):
                with suppress(OSError):
                    artifacts.append(Stored(key, entry.path, entry.stat(follow_symlinks=False)))
            elif PART.fullmatch(entry.name):
                leftovers.append(Path(entry.path))
        return Scan(sorted(artifacts, key=itemgetter(0)), leftovers)

    def write(self, path: Path, fill: Callable[[BinaryIO], None]) -> None:
        """Write an artifact's file, whole or not at all; raises OSError and Damaged."""
        make_private(path.parent)
        check_levels(path)
        write_whole(path, fill)


def write_whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """A temporary file beside its place, filled, synced and renamed. Raises OSError."""
    part = path.with_name(f"{path.name.removesuffix(SUFFIX)}.{secrets.token_hex(8)}.part")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(part, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            # Another process that sweeps leaves alone a file that a living one has open.
            hold(file.fileno())
            fill(cast(BinaryIO, file))
            os.fsync(file.fileno())
            if os.name == "posix":
                os.replace(part, path)
        if os.name != "posix":
            # Windows moves nothing that is open.
            os.replace(part, path)
        _sync(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sweep(leftovers: list[Path]) -> None:
    """Remove temporary files and locks whose owner is dead."""
    for path in leftovers:
        remove_unheld(path)


def remove_files(paths: Iterable[Path], warn: Callable[[str], None]) -> list[Path]:
    """Remove files and return those that no longer exist; `warn` gets a line if some remain."""
    removed, kept = list[Path](), list[str]()
    for path in paths:
        try:
            path.unlink(missing_ok=True)
            removed.append(path)
        except OSError as error:
            kept.append(f"{path} cannot be removed: {error.strerror}")
    if kept:
        warn(kept[0] + (f", nor can {len(kept) - 1:,} more" if kept[1:] else ""))
    return removed


def entries_of(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, none where it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        yield from entries


def _files(kv: Path) -> Iterator[os.DirEntry[str]]:
    """The files of the folders kv/ab, each with a name that begins with its folder's."""
    for folder in entries_of(kv):
        # Files behind a link are not ours to count, and least of all to remove.
        if folder.is_dir(follow_symlinks=False):
            yield from (e for e in entries_of(folder.path) if e.name[:2] == folder.name)


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
