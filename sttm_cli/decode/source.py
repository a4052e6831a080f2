"""The user's VIDEO argument -> a local path: of a file, a folder of images, stdin or an address."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sttm_cli.base.errors import SttmError, UsageError, VideoError
from sttm_cli.base.names import absolute_path
from sttm_cli.base.system import FileFacts
from sttm_cli.base.types import Progress
from sttm_cli.decode.bucket import fetch, in_bucket, object_at
from sttm_cli.decode.file import blake3_of, file_version, open_file
from sttm_cli.decode.spool import BLOCK, write
from sttm_cli.settings.settings import STDIN

# The digest of a video's bytes, computed once per version of a file.


def digest(path: Path, memo: FileFacts, *, version: str = "") -> str:
    """Return the hex blake3 of the file's bytes, looked up if the file was digested before.

    A file counts as unchanged while its path, size, times of modification and change, and inode are
    the same; one changed just now is not remembered. A folder's digest covers the names and bytes
    of its images. Raises VideoError for an unreadable file, DisturbedError for one that changes
    meanwhile or does not have `version` (of `video_version`, if given).
    """
    if path.is_dir():
        from sttm_cli.decode.image_folder import digest_folder

        return digest_folder(path, memo, version)
    with open_file(path, version) as file:
        key = f"digest:{file.version}"
        known = memo.get(key)
        if known is not None and isinstance(known.get("blake3"), str):
            return str(known["blake3"])
        value = blake3_of(file).hex()
    if file.is_settled:
        memo.set(key, {"blake3": value})
    return value


def known_digest(path: Path, memo: FileFacts) -> str | None:
    """The digest of a file's bytes where it was digested before; reads none of them."""
    try:
        known = memo.get(f"digest:{file_version(path)}")
    except VideoError:
        return None
    return None if known is None else str(known.get("blake3"))


def video_version(path: Path) -> str:
    """What tells this version of a file, or this state of a folder of images, from another
    without reading its bytes; raises VideoError as `digest`, and for a folder with videos in it."""
    if path.is_dir():
        from sttm_cli.decode.image_folder import check_holds_no_video, folder_version

        check_holds_no_video(path)
        return folder_version(path)
    return file_version(path)


KEPT = 4
"""Maximum number of copies: a process that runs for days must not fill the disk."""


@dataclass(frozen=True)
class Source:
    """A video as the user named it, and the local path of its bytes. `version`: of an object in a
    bucket (`bucket.Object`), otherwise ""."""

    name: str
    path: Path
    is_copy: bool = False
    version: str = ""

    @property
    def origin(self) -> str:
        """The video's name in records: an address, or an absolute path, as text."""
        if self.is_copy:
            return self.name
        return os.fsencode(absolute_path(self.path)).decode(errors="backslashreplace")

    @contextmanager
    def naming_it(self) -> Iterator[None]:
        """Name the video in errors as the user did, not by its copy."""
        try:
            yield
        except VideoError as error:
            if not self.is_copy:
                raise
            name = "stdin" if self.name == STDIN else self.name
            message = error.message.replace(str(self.path), name)
            raise type(error)(message, error.hint) from error


class Sources:
    """Local paths of videos; remote ones are copied once, and the copies removed by `close`.

    `max_bytes` bounds each copy.
    """

    def __init__(self, *, max_bytes: int, progress: Progress) -> None:
        self._max_bytes, self._progress = max_bytes, progress
        self._copies: dict[str, tempfile.TemporaryDirectory[str]] = {}
        self._versions: dict[str, str] = {}
        self._owner = True

    def find(self, video: object) -> Source:
        """Return the source of `video`, fetched if necessary; only a str can be "-" (stdin) or an
        address. A `Source` is returned as it is.

        Raises VideoError for an address without a video, UsageError for a stdin that is a terminal,
        SttmError if the copy cannot be written.
        """
        if isinstance(video, Source):
            return video
        if not isinstance(video, (str, os.PathLike)):
            raise UsageError(f"the video is {video!r}", "give a path or an address")
        if not isinstance(video, str) or not (video == STDIN or is_address(video)):
            return Source(str(video), Path(video))
        if video not in self._copies:
            self._copy(video)
        (path,) = Path(self._copies[video].name).iterdir()
        return Source(video, path, is_copy=True, version=self._versions.get(video, ""))

    def drop(self, video: object) -> None:
        """Remove the copy of `video`, if there is one."""
        if self._owner and isinstance(video, str) and (copy := self._copies.pop(video, None)):
            copy.cleanup()

    def shared(self) -> Sources:
        """Return another user of the same copies, whose `close` keeps them."""
        other = Sources(max_bytes=self._max_bytes, progress=self._progress)
        other._copies, other._versions, other._owner = self._copies, self._versions, False
        return other

    def close(self) -> None:
        """Remove every copy."""
        while self._owner and self._copies:
            self._copies.popitem()[1].cleanup()

    def _copy(self, video: str) -> None:
        while len(self._copies) >= KEPT:
            self._copies.pop(next(iter(self._copies))).cleanup()
        folder = tempfile.TemporaryDirectory(prefix="sttm-")
        try:
            target = Path(folder.name) / "video"
            if video == STDIN:
                _spool(target, self._max_bytes, self._progress)
            elif in_bucket(video):
                self._versions[video] = _fetched(video, target, self._max_bytes, self._progress)
            else:
                from sttm_cli.decode.download import download

                download(video, target, max_bytes=self._max_bytes, progress=self._progress)
        except OSError as error:
            folder.cleanup()
            raise SttmError(
                f"{video} cannot be copied to {folder.name}: {error.strerror or error}",
                "name another temporary folder in TMPDIR",
            ) from error
        except BaseException:
            folder.cleanup()
            raise
        self._copies[video] = folder


def is_address(video: str) -> bool:
    """Return whether `video` is an address rather than a path."""
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", video) is not None


def _fetched(video: str, target: Path, max_bytes: int, progress: Progress) -> str:
    """Fetch an object of a bucket; return its version."""
    found = object_at(video)
    fetch(
        found,
        target,
        max_bytes=max_bytes,
        on_bytes=lambda done, of: progress("download", done, of),
    )
    return found.version


def _spool(target: Path, max_bytes: int, progress: Progress) -> None:
    if sys.stdin.isatty():
        raise UsageError("VIDEO - is read from stdin, which is a terminal", "pipe a video into it")
    stdin: BinaryIO = sys.stdin.buffer
    blocks = iter(lambda: stdin.read(BLOCK), b"")
    write(
        blocks,
        target,
        name="stdin",
        max_bytes=max_bytes,
        on_bytes=lambda done: progress("stdin", done, 0),
    )
