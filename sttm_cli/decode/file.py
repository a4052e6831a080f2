"""A video's file, opened once: the checks that need no decoder, and the version of the file."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sttm_cli.base.errors import DisturbedError, VideoError
from sttm_cli.base.system import is_settled

NEEDED = "give a file with a video stream, such as .mp4, .mkv, .webm or .mov"

PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<MPD", b"<?xml", b"<smil", b"<asx")
"""The beginnings of files that only refer to other files or addresses, which are never followed."""

BLOCK = 8 << 20


class OpenFile(io.FileIO):
    """A file open for reading. `version`: the `version_key` of the open file, not of its path."""

    def __init__(self, path: Path) -> None:
        # Opening must not block on a pipe put in the file's place.
        flags = getattr(os, "O_NONBLOCK", 0)
        super().__init__(path, opener=lambda name, mode: os.open(name, mode | flags))
        self.path = path
        self.found = os.fstat(self.fileno())
        self.version = version_key(path, self.found)

    @property
    def is_settled(self) -> bool:
        """Whether any further change is sure to change the version."""
        return is_settled(self.found)

    @property
    def is_unchanged(self) -> bool:
        """Return whether the open file still has the version that was opened."""
        return version_key(self.path, os.fstat(self.fileno())) == self.version


@contextmanager
def open_file(path: Path, version: str = "") -> Iterator[OpenFile]:
    """Open a video's file and yield it, to be read through this one descriptor.

    Raises VideoError unless it is a readable, non-empty file, DisturbedError if it does not have
    `version` (if given) or changes before the context ends.
    """
    with _checked(path) as file:
        if version and file.version != version:
            raise changed(path)
        try:
            yield file
        except Exception as error:
            if file.is_unchanged:
                raise
            raise changed(path) from error
        if not file.is_unchanged:
            raise changed(path)


def file_version(path: Path) -> str:
    """Return the current version of the file at `path`; raises VideoError as `open_file`."""
    with open_file(path) as file:
        return file.version


def version_key(path: Path, found: os.stat_result) -> str:
    """Return a key that differs between versions of a file, without reading its contents."""
    # Names need not be valid text, but the index holds nothing else.
    name = os.fsencode(path.absolute()).decode(errors="backslashreplace")
    # Unlike the modification time, the change time cannot be set back by a user.
    times = f"{found.st_mtime_ns}|{found.st_ctime_ns}"
    return f"{name}|{found.st_size}|{times}|{found.st_ino}"


def changed(path: Path) -> DisturbedError:
    """Return the error for a file or folder that is not the one that was opened or digested."""
    return DisturbedError(f"{path} changed while it was read", "ask again once it is complete")


def blake3_of(file: OpenFile) -> bytes:
    """Return the blake3 of an open file's bytes; raises VideoError if they cannot be read."""
    from blake3 import blake3

    hashed = blake3(max_threads=blake3.AUTO)
    # Not a memory map: truncating a mapped file ends the process.
    block = memoryview(bytearray(min(BLOCK, file.found.st_size + 1)))
    try:
        file.seek(0)
        while count := file.readinto(block):
            hashed.update(block[:count])
    except OSError as error:
        raise VideoError(
            f"{file.path} cannot be read: {error.strerror}", "check the file"
        ) from None
    return bytes(hashed.digest())


def _checked(path: Path) -> OpenFile:
    try:
        _check_kind(path, path.stat())
        file = OpenFile(path)
        try:
            _check_kind(path, file.found)
            _check_head(file)
        except BaseException:
            file.close()
            raise
    except FileNotFoundError:
        raise VideoError(f"there is no file {path}", "check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(f"{path} cannot be read: {reason}", "check the path") from None
    return file


def _check_head(file: OpenFile) -> None:
    head = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    file.seek(0)
    if head.lower().startswith(tuple(mark.lower() for mark in PLAYLISTS)):
        raise VideoError(f"{file.path} is a playlist or a text, not a video", NEEDED)


def _check_kind(path: Path, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise VideoError(f"{path} is a folder, not a video", NEEDED)
    if not stat.S_ISREG(found.st_mode):
        raise VideoError(f"{path} is not a regular file", "give a file, or - and pipe it in")
    if found.st_size == 0:
        raise VideoError(f"{path} is empty", NEEDED)
