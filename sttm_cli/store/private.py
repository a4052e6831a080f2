"""Folders and files that only this user can write: how they are made, and how that is checked."""

from __future__ import annotations

import os
from pathlib import Path

from sttm_cli.store.artifact import Damaged

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
