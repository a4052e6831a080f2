"""Find videos: folders, files, patterns and lists, each video once and in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.errors import UsageError, VideoError
from sttm_cli.decode.bucket import find_objects, in_bucket
from sttm_cli.decode.image_folder import VIDEO_SUFFIXES, videos_below
from sttm_cli.decode.source import is_address
from sttm_cli.library.outcome import Video


@dataclass(frozen=True)
class Found:
    """The videos, in order, and the folders that could not be read: (path, reason)."""

    videos: list[Video]
    unreadable: list[tuple[Video, str]]


def find_videos(given: Iterable[str], listed: Iterable[str] = ()) -> Found:
    """Return the videos that arguments `given` and paths `listed` name, sorted, each file once.

    A folder is searched to any depth; names that begin with a dot and links to folders are skipped.
    In `given`, a path that does not exist but contains `*`, `?` or `[` is a pattern (`**`: any
    depth), expanded as a shell would. A named file is taken whatever its suffix, even if it is
    missing: it then fails by name. An address is kept as it is; in a bucket it may be a folder
    (ending with "/") or a pattern. Raises UsageError if no video is found, SttmError if the extra
    for a bucket is missing.
    """
    unreadable: list[tuple[Video, str]] = []

    def note(error: OSError) -> None:
        unreadable.append((Path(error.filename), error.strerror or str(error)))

    given, listed = list(given), list(listed)
    paths = [path for text in given if not is_address(text) for path in _matches(text)]
    paths += [Path(text) for text in listed if not is_address(text)]
    videos = [video for path in paths for video in _videos(path, note)]
    once: dict[str, Video] = {
        os.path.realpath(video): video for video in sorted(videos, reverse=True)
    }
    for text in filter(is_address, [*given, *listed]):
        # Names in a list are never patterns.
        if text in given or text.endswith("/"):
            once |= {address: address for address in _addresses(text, unreadable)}
        else:
            once[text] = text
    if not once and not unreadable:
        named = ", ".join(map(str, [*paths, *filter(is_address, given)][:3])) or "an empty list"
        raise UsageError(
            f"no video found in {named}",
            f"folders are searched for {' '.join(sorted(VIDEO_SUFFIXES))}; name other files",
        )
    return Found(sorted(once.values(), key=_in_order), unreadable)


def share_of(videos: list[Video], shard: str | None) -> list[Video]:
    """Return share I of N for a shard "I/N", all videos for None; raises UsageError.

    The shares of a list are deterministic and disjoint.
    """
    if shard is None:
        return videos
    index, _, count = shard.partition("/")
    whole = all(part.isascii() and part.isdigit() for part in (index, count))
    if not (whole and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard {shard!r} is not possible", "give I/N with I from 1 to N")
    return videos[int(index) - 1 :: int(count)]


def _addresses(text: str, unreadable: list[tuple[Video, str]]) -> list[str]:
    """Expand an address to its videos; record in `unreadable` what the bucket refuses to list."""
    if not in_bucket(text):
        return [text]
    try:
        return find_objects(text, VIDEO_SUFFIXES)
    except VideoError as error:
        unreadable.append((text, error.message.removeprefix(f"{text} ")))
        return []


def _in_order(video: Video) -> tuple[bool, Path, str]:
    """Sort key: paths first, in path order, then addresses."""
    is_text = isinstance(video, str)
    return is_text, Path() if is_text else Path(video), str(video) if is_text else ""


def _matches(text: str) -> list[Path]:
    """Return the path itself, or the matches of a pattern."""
    if os.path.lexists(text) or not glob.has_magic(text):
        return [Path(text)]
    found = glob.glob(os.path.expanduser(text), recursive=True)
    if not found:
        raise UsageError(f"nothing matches {text!r}", "'**' stands for folders of any depth")
    return [Path(match) for match in found]


def _videos(path: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    yield from videos_below(path, on_error)
