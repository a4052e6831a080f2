"""Recognise a folder as a cache of this program, by its marker or, if it has none yet, by its
files.

Files are only ever removed from a folder with the marker. The marker is written into a new or empty
folder, and into one of an earlier version that contains only a cache's files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sttm_cli.store.files import (
    KEY,
    MARKER,
    PART,
    PRIVATE,
    SUFFIX,
    Access,
    access_to,
    advice,
    entries_of,
    repair,
    write_whole,
)
from sttm_cli.store.index import FILES, is_own, remove_old

MARK = b"Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache of sttm, layout 1.\n"
"""The first line is the signature of the Cache Directory Tagging Specification: backups skip it."""
EXPLANATION = b"# Everything in it can be computed again; sttm removes the least recently used.\n"
_LEVELS = ("kv", "locks", "index")
_NEUTRAL = re.compile(rf"lost\+found|bench-[a-z0-9_]{{8}}|{MARKER}\.[0-9a-f]{{16}}\.part")
"""Names allowed beside a cache: of the file system, of `sttm bench`, and of a killed `_mark`."""
_PAIR = re.compile("[0-9a-f]{2}")


class Refused(Exception):
    """The folder is not used as a cache; the message gives the reason."""


def refusal(root: Path) -> str:
    """Return why `root` is not used as a cache, "" if it may be used or is missing.

    A cache of an earlier version gets its marker.
    """
    try:
        stat = root.stat()
    except OSError:
        return ""
    if not root.is_dir():
        return ""
    access = access_to(root)
    if reason := access.exposure(stat):
        return f"{root} {reason}{advice(root, stat)}"
    if not is_marked(root):
        if stranger := next(_strangers(root), None):
            return f"{root} has no marker of a cache and contains {stranger}"
        with suppress(OSError):
            _adopt(root, private=stat.st_mode & 0o077 == 0)
    return next(_exposed_levels(root, access), "")


def claim(root: Path) -> None:
    """Create the folder if it is missing, and mark it; raises OSError and Refused."""
    PRIVATE.make(root)
    if not is_marked(root):
        if reason := refusal(root):
            raise Refused(reason)
        _mark(root)


def is_marked(root: Path) -> bool:
    """Return whether a folder has the marker."""
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    with suppress(OSError):
        descriptor = os.open(root / MARKER, os.O_RDONLY | flags)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            return file.read(len(MARK)) == MARK
    return False


def _mark(root: Path) -> None:
    # Written atomically: another process must never see half a marker.
    text = MARK + EXPLANATION
    write_whole(root / MARKER, lambda file: file.write(text), access_to(root))


def _adopt(root: Path, *, private: bool) -> None:
    """Mark a folder that contains only a cache's files; an empty folder is left as it is."""
    if not any(entries_of(root)):
        return
    if private:
        # Earlier versions created these with the umask's mode, out of reach of other users.
        for level in [root / name for name in _LEVELS] + list((root / "kv").glob("??")):
            if level.is_dir() and not level.is_symlink():
                level.chmod(PRIVATE.folder_mode)
    remove_old(root / "index")
    _mark(root)


def _strangers(root: Path) -> Iterator[str]:
    """Yield the entries of an unmarked folder that are not a cache's, as paths below it."""
    checks = {"kv": _strangers_of_kv, "locks": _strangers_of_locks, "index": _strangers_of_index}
    for entry in entries_of(root):
        if entry.name in checks and entry.is_dir(follow_symlinks=False):
            yield from (f"{entry.name}/{name}" for name in checks[entry.name](Path(entry.path)))
        elif not _NEUTRAL.fullmatch(entry.name):
            yield entry.name


def _strangers_of_kv(kv: Path) -> Iterator[str]:
    for folder in entries_of(kv):
        if not _PAIR.fullmatch(folder.name) or not folder.is_dir(follow_symlinks=False):
            yield folder.name
            continue
        for entry in entries_of(folder.path):
            key = entry.name.removesuffix(SUFFIX)
            whole = key != entry.name and KEY.fullmatch(key)
            named = (whole or PART.fullmatch(entry.name)) and entry.name.startswith(folder.name)
            if not named or not entry.is_file(follow_symlinks=False):
                yield f"{folder.name}/{entry.name}"


def _strangers_of_locks(locks: Path) -> Iterator[str]:
    for entry in entries_of(locks):
        if not KEY.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            yield entry.name


def _strangers_of_index(index: Path) -> Iterator[str]:
    names = [entry.name for entry in entries_of(index)]
    yield from (name for name in names if name not in FILES)
    if names and not is_own(index):
        yield FILES[0]


def _exposed_levels(root: Path, access: Access) -> Iterator[str]:
    for name in _LEVELS:
        level = root / name
        try:
            stat = level.lstat()
        except OSError:
            continue
        if level.is_symlink() or not level.is_dir():
            # A store works without the index.
            if name != "index":
                yield f"{level} is not a folder"
        elif reason := access.exposure(stat):
            yield f"{level} {reason}{repair(root, access)}"
