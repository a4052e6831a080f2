"""Which videos are meant: folders, files, patterns and lists, each video once, in one order."""

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
    """The videos behind arguments `given` and paths `listed`, sorted, each file once.

    A folder is searched to any depth; names that begin with a dot and links to folders are left
    out. What is not there but holds `*`, `?` or `[` is a pattern (`**`: any depth), in `given`
    only; it gives what a shell would make of it. A file that is named is taken whatever its name,
    and a missing one too: it fails by name. An address stays as it is; of a bucket it may be a
    folder (it ends with "/") or a pattern. Raises UsageError where nothing is found, SttmError
    where the extra for a bucket is missing.
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
        # A list's names are never patterns.
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
    """The I-th of N equal shares for a shard "I/N", all for None; raises UsageError.

    The shares of one list are always the same and have nothing in common.
    """
    if shard is None:
        return videos
    index, _, count = shard.partition("/")
    whole = all(part.isascii() and part.isdigit() for part in (index, count))
    if not (whole and 1 <= int(index) <= int(count)):
        raise UsageError(f"--shard {shard!r} is not possible", "give I/N with I from 1 to N")
    return videos[int(index) - 1 :: int(count)]


def _addresses(text: str, unreadable: list[tuple[Video, str]]) -> list[str]:
    """The addresses that one stands for; what a bucket does not show is noted as unreadable."""
    if not in_bucket(text):
        return [text]
    try:
        return find_objects(text, VIDEO_SUFFIXES)
    except VideoError as error:
        unreadable.append((text, error.message.removeprefix(f"{text} ")))
        return []


def _in_order(video: Video) -> tuple[bool, Path, str]:
    """Paths first, as paths are sorted; then addresses."""
    is_text = isinstance(video, str)
    return is_text, Path() if is_text else Path(video), str(video) if is_text else ""


def _matches(text: str) -> list[Path]:
    """The path itself, or what a pattern matches."""
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
