"""The small rows beside the artifacts: remembered digests, and a description of each entry.

Nothing depends on them: a lost or damaged index costs time, never an answer.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import MODE_RAW

from sttm_cli.base.types import Json

PATIENCE_S = 5.0
"""Other processes hold the index for milliseconds; an index that is held longer is not used."""
PAUSE_S = 60.0
"""Until an index that failed is tried again: a server must not go without it for days."""
MEMORY_S = 90 * 86400.0
"""How long a row is kept that `set` wrote: nobody asks again for removed or changed files."""


class _TextOnly(diskcache.Disk):  # type: ignore[misc]
    """Keys and values are text, in the row itself; a row that holds anything else reads as empty.

    diskcache's own Disk unpickles rows (CVE-2025-69872): code execution for anybody who can write
    the folder. This one has no way to read or write a pickle or a file.
    """

    def put(self, key: Any) -> tuple[str, bool]:
        if not isinstance(key, str):
            raise TypeError("the index has text keys only")
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        return key if raw and isinstance(key, str) else ""

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, str]:
        if read or not isinstance(value, str):
            raise TypeError("the index has text values only")
        return 0, MODE_RAW, None, value

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> str | None:
        text = mode == MODE_RAW and filename is None and isinstance(value, str)
        return value if text else None

    def filename(self, key: Any = None, value: Any = None) -> Any:
        raise TypeError("the index writes no files")

    def remove(self, file_path: str) -> None:
        # A tampered row could name any file.
        return


class Index:
    """str -> JSON object, shared by processes; after any failure a row reads as missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache: Any = None
        self._paused_until = 0.0

    def get(self, key: str) -> Json | None:
        return _object(self._try(lambda cache: cache.get(key)))

    def get_all(self, *keys: str) -> list[Json | None]:
        """The rows of several keys, from one query."""
        marks = ", ".join("?" * len(keys))
        found = self._select(f"key IN ({marks})", *keys)
        return [found.get(key) for key in keys]

    def rows(self, prefix: str) -> dict[str, Json]:
        """All rows whose key begins with `prefix`, by the rest of the key, from one query."""
        # Keys are compared as text; U+10FFFF sorts behind all that may follow.
        found = self._select("key > ? AND key < ?", prefix, prefix + "\U0010ffff")
        return {key[len(prefix) :]: row for key, row in found.items()}

    def set(self, key: str, value: Json) -> None:
        """Remember a row for some months."""
        self.set_all({key: value}, expire_s=MEMORY_S)

    def set_all(self, rows: dict[str, Json], *, expire_s: float | None = None) -> None:
        """Remember all rows in one transaction."""

        def write(cache: Any) -> None:
            with cache.transact():
                for key, value in rows.items():
                    cache.set(key, json.dumps(value), expire=expire_s)

        self._try(write, write=True)

    def change(self, key: str, change: Callable[[Json | None], Json]) -> None:
        """Replace a row by the result of `change`, in one transaction."""

        def write(cache: Any) -> None:
            with cache.transact():
                cache.set(key, json.dumps(change(_object(cache.get(key)))))

        self._try(write, write=True)

    def delete(self, *keys: str) -> None:
        def write(cache: Any) -> None:
            with cache.transact():
                for key in keys:
                    cache.delete(key)

        self._try(write, write=True)

    def forget_old(self) -> None:
        """Remove the expired rows."""
        self._try(lambda cache: cache.expire())

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _select(self, where: str, *values: str) -> dict[str, Json]:
        select = (
            "SELECT key, value FROM Cache WHERE raw = 1 AND mode = ? "
            f"AND (expire_time IS NULL OR expire_time > ?) AND {where}"
        )
        bounds = (MODE_RAW, time.time(), *values)
        found = self._try(lambda cache: list(cache._sql(select, bounds))) or []
        rows = {key: _object(text) for key, text in found if type(key) is str}
        return {key: row for key, row in rows.items() if row is not None}

    def _try(self, action: Callable[[Any], Any], *, write: bool = False) -> Any:
        paused = time.monotonic() < self._paused_until
        if paused or not (write or os.path.isdir(self._folder)):
            return None
        for attempt in range(2):
            try:
                return action(self._open())
            except Exception as error:  # diskcache passes on every error of SQLite
                self.close()
                if attempt or not _is_not_a_database(error):
                    # A read-only or full disk: go on without memory rather than fail.
                    self._paused_until = time.monotonic() + PAUSE_S
                    return None
                shutil.rmtree(self._folder, ignore_errors=True)
        return None

    def _open(self) -> Any:
        if self._cache is None:
            self._try_lock()
            self._cache = diskcache.Cache(
                str(self._folder),
                disk=_TextOnly,
                timeout=PATIENCE_S,
                cull_limit=0,
                eviction_policy="none",
                statistics=0,
                tag_index=0,
            )
        return self._cache

    def _try_lock(self) -> None:
        """Raise where SQLite cannot lock its file: diskcache would try again for a minute."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(sqlite3.connect(self._folder / "cache.db", timeout=PATIENCE_S)) as database:
            database.execute("BEGIN IMMEDIATE")


def _object(text: Any) -> Json | None:
    """A row's JSON object, None for anything else."""
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_not_a_database(error: Exception) -> bool:
    return "malformed" in str(error) or "not a database" in str(error)
