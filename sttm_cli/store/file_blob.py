"""An artifact's file, open for reading."""

from __future__ import annotations

import os
from pathlib import Path
from stat import S_ISREG
from threading import Lock

from sttm_cli.store.artifact import Damaged
from sttm_cli.store.private import exposure

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
