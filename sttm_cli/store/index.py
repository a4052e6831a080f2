"""The small rows beside the artifacts: remembered digests, and a description of each entry.

The rows are only a cache: a lost or damaged index costs time, never an answer. Each row carries a
blake3 of its key and value, so that a modified or moved row reads as missing. The database carries
an application id; another program's database is neither read nor changed.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

import diskcache
from diskcache.core import MODE_RAW

from sttm_cli.base.types import Json, TokenCounts
from sttm_cli.store.artifact import Damaged, check_counts, check_label
from sttm_cli.store.files import PRIVATE, Folder, Stored
from sttm_cli.store.protocol import Entry, Uses

PATIENCE_S = 5.0
"""Other processes lock the index for milliseconds; if it stays locked longer, it is not used."""
PAUSE_S = 60.0
"""Pause before a failed index is tried again: a server must not run without it for days."""
MEMORY_S = 90 * 86400.0
"""Expiry of the rows of `set`: rows about removed or changed files are never read again."""
FILES = ("cache.db", "cache.db-wal", "cache.db-shm", "cache.db-journal")
"""The only files ever removed from the folder."""
APPLICATION = 0x5354544D
"""SQLite application id of our databases: "STTM"."""
_OLD_KEY = re.compile("(used|verified|about|video|digest|probe|weights):.*", re.DOTALL)
_SEAL = 64
"""Hex digits of the seal that precedes each row's value."""
# Closing a database file drops all locks that SQLite holds on it in this process.
_making = Lock()


class _TextOnly(diskcache.Disk):  # type: ignore[misc]
    """Stores keys and values as text within the row; rows of any other kind read as empty.

    diskcache's own Disk unpickles rows (CVE-2025-69872), which lets anyone with write access to the
    folder execute code. This class can neither read nor write pickles or files.
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
    """A mapping str -> JSON object shared by processes; after any failure, rows read as missing.

    `enabled`: whether the folder may be used.
    """

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        self._folder, self.enabled = folder, enabled
        self._cache: Any = None
        self._paused_until = 0.0

    def get(self, key: str) -> Json | None:
        return self._select("key = ?", key).get(key)

    def rows(self, prefix: str) -> dict[str, Json]:
        """Return all rows whose key begins with `prefix`, by the rest of the key, in one query."""
        # Keys compare as text; U+10FFFF sorts after any character that can follow.
        rows = self._select("key > ? AND key < ?", prefix, prefix + "\U0010ffff")
        return {key[len(prefix) :]: row for key, row in rows.items()}

    def set(self, key: str, value: Json) -> None:
        """Store a row, which expires after some months."""
        self.set_all({key: value}, expire_s=MEMORY_S)

    def set_all(self, rows: dict[str, Json], *, expire_s: float | None = None) -> None:
        """Store all rows in one transaction."""

        def write(cache: Any) -> None:
            with cache.transact():
                for key, value in rows.items():
                    cache.set(key, _sealed(key, value), expire=expire_s)

        self._try(write, write=True)

    def change(self, key: str, change: Callable[[Json | None], Json]) -> None:
        """Replace a row by the result of `change`, in one transaction."""

        def write(cache: Any) -> None:
            with cache.transact():
                old = _read(cache, "key = ?", key).get(key)
                cache.set(key, _sealed(key, change(old)))

        self._try(write, write=True)

    def delete(self, *keys: str) -> None:
        def write(cache: Any) -> None:
            with cache.transact():
                for key in keys:
                    cache.delete(key)

        self._try(write, write=True)

    def forget_old(self) -> None:
        """Remove expired rows."""
        self._try(lambda cache: cache.expire())

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _select(self, where: str, *values: str) -> dict[str, Json]:
        return self._try(lambda cache: _read(cache, where, *values)) or {}

    def _try(self, action: Callable[[Any], Any], *, write: bool = False) -> Any:
        paused = time.monotonic() < self._paused_until
        if paused or not self.enabled or not (write or os.path.isdir(self._folder)):
            return None
        for attempt in range(2):
            try:
                return action(self._open())
            except Exception as error:  # diskcache passes on every error of SQLite
                self.close()
                if attempt or not _is_not_a_database(error):
                    # Read-only or full disk: continue without an index rather than fail.
                    self._paused_until = time.monotonic() + PAUSE_S
                    return None
                _remove(self._folder)
        return None

    def _open(self) -> Any:
        if self._cache is None:
            with _making:
                _make(self._folder)
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


def is_own(folder: Path) -> bool:
    """Return whether a folder's index is this program's, of any version; changes nothing."""
    try:
        with closing(_read_only(folder)) as database:
            return _application(database) == APPLICATION or _is_old(database)
    except sqlite3.Error:
        return False


def remove_old(folder: Path) -> None:
    """Remove an index of an earlier version: its rows have no seal and would never be read."""
    with suppress(sqlite3.Error):
        with closing(_read_only(folder)) as database:
            old = _application(database) != APPLICATION and _is_old(database)
        if old:
            _remove(folder)


def _make(folder: Path) -> None:
    """Make the database if it is missing; raise an error unless it is ours and can be locked.

    Without a lock diskcache would try again for a minute.
    """
    PRIVATE.make(folder)
    path = folder / FILES[0]
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        if path.is_symlink() or not path.is_file() or PRIVATE.exposure(path.stat()):
            raise
    with closing(sqlite3.connect(path, timeout=PATIENCE_S)) as database:
        database.execute("BEGIN IMMEDIATE")
        if not _application(database) and not _tables(database):
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.commit()
        if _application(database) != APPLICATION:
            raise sqlite3.DatabaseError("the index belongs to another program")


def _remove(folder: Path) -> None:
    for name in FILES:
        with suppress(OSError):
            (folder / name).unlink()


def _read_only(folder: Path) -> sqlite3.Connection:
    """A connection that takes no lock and makes no file beside the database."""
    uri = (folder / FILES[0]).absolute().as_uri()
    return sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True)


def _application(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA application_id").fetchone()[0])


def _tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM sqlite_master")}


def _is_old(database: sqlite3.Connection) -> bool:
    """Return whether a database is empty, or contains only rows of this program's kinds."""
    if not (tables := _tables(database)):
        return True
    own = all(name.startswith(("Settings", "Cache", "sqlite_")) for name in tables)
    if not own or not {"Settings", "Cache"} <= tables:
        return False
    settings = dict(database.execute("SELECT key, value FROM Settings"))
    keys = [key for (key,) in database.execute("SELECT key FROM Cache")]
    chosen = (settings.get("eviction_policy"), settings.get("cull_limit")) == ("none", 0)
    return chosen and all(isinstance(key, str) and _OLD_KEY.fullmatch(key) for key in keys)


def _read(cache: Any, where: str, *values: str) -> dict[str, Json]:
    """Return the rows with a valid seal, read as bytes: invalid UTF-8 must not hide other rows."""
    select = (
        "SELECT CAST(key AS BLOB), CAST(value AS BLOB) FROM Cache WHERE raw = 1 AND mode = ? "
        f"AND (expire_time IS NULL OR expire_time > ?) AND {where}"
    )
    rows = {}
    for key, value in cache._sql(select, (MODE_RAW, time.time(), *values)):
        with suppress(ValueError, TypeError, RecursionError):
            text = bytes(value[_SEAL:])
            if bytes(value[:_SEAL]).decode() == _seal(bytes(key), text):
                rows[bytes(key).decode()] = json.loads(text)
    return {key: row for key, row in rows.items() if isinstance(row, dict)}


def _sealed(key: str, row: Json) -> str:
    text = json.dumps(row)
    return _seal(key.encode(), text.encode()) + text


def _seal(key: bytes, text: bytes) -> str:
    """Return the blake3 of a row: of its key's length, its key and its value."""
    from blake3 import blake3

    return str(blake3(len(key).to_bytes(8, "little") + key + text).hexdigest())


def _is_not_a_database(error: Exception) -> bool:
    return "malformed" in str(error) or "not a database" in str(error)


# The rows about entries: their uses, their descriptions, and the entries of each video.


ROWS = ("used", "about")


class Records:
    """The rows in `index` about the entries in `folder`."""

    def __init__(self, index: Index, folder: Folder) -> None:
        self._index, self._folder = index, folder

    def uses_of(self, key: str) -> Uses:
        """Return an entry's uses."""
        return Uses.from_row(self._index.get(f"used:{key}"))

    def count_use(self, key: str, *, saved_s: float) -> None:
        """Add a use, at the current time."""
        self._index.change(
            f"used:{key}",
            lambda row: Uses.from_row(row).plus(saved_s=saved_s, now=time.time()),
        )

    def by_last_use(self, artifacts: list[Stored]) -> list[Stored]:
        """Sort by the last use, the oldest first; writing an entry counts as a use."""
        uses = self._all_uses()
        return sorted(artifacts, key=lambda s: max(uses[s.key].last_used, s.changed))

    def entries(self, artifacts: list[Stored]) -> list[Entry | None]:
        """Return the remembered entry of each file; None if unknown or changed since."""
        uses, abouts = self._all_uses(), self._index.rows("about:")
        return [_remembered(s, abouts.get(s.key), uses[s.key]) for s in artifacts]

    def describe(self, entries: list[tuple[Entry, Stored]]) -> None:
        """Remember entries, each valid as long as its file is unchanged."""
        if entries:
            self._index.set_all({f"about:{e.key}": _to_row(e, stored) for e, stored in entries})

    def add(self, entry: Entry, stored: Stored) -> None:
        """Remember an entry that was just written, and list it with its video."""
        keys = [key for key in self.keys_of(entry.video) if key != entry.key]
        self._index.set_all(
            {
                f"video:{entry.video}": {"keys": [*keys, entry.key]},
                f"about:{entry.key}": _to_row(entry, stored),
            }
        )

    def keys_of(self, video: str) -> list[str]:
        """Return the remembered keys of a video's entries."""
        known = (self._index.get(f"video:{video}") or {}).get("keys")
        keys = [str(key) for key in known] if isinstance(known, list) else []
        return [key for key in keys if os.path.lexists(self._folder.place(key))]

    def forget(self, keys: list[str]) -> None:
        """Drop the rows of removed entries, and of videos without remaining entries."""
        abouts = [self._index.get(f"about:{key}") or {} for key in keys]
        videos = {str(about.get("video")) for about in abouts}
        rows = [f"{row}:{key}" for key in keys for row in ROWS]
        rows += [f"video:{video}" for video in videos if not self.keys_of(video)]
        self._index.delete(*rows)

    def _all_uses(self) -> defaultdict[str, Uses]:
        """Return the uses of all keys."""
        rows = self._index.rows("used:").items()
        return defaultdict(Uses, {key: Uses.from_row(row) for key, row in rows})


def _to_row(entry: Entry, stored: Stored) -> Json:
    return {
        "seal": list(stored.seal),
        "video": entry.video,
        "label": entry.label,
        "tokens": asdict(entry.tokens),
        "kv_dtype": entry.kv_dtype,
        "saved_bytes": entry.saved_bytes,
    }


def _remembered(stored: Stored, row: Json | None, uses: Uses) -> Entry | None:
    """Convert an entry's row; None unless the file is still the one described."""
    try:
        if row is None or row["seal"] != list(stored.seal):
            return None
        tokens = TokenCounts(**row["tokens"])
        check_counts(tokens)
        check_label(row["label"])
        return Entry(
            key=stored.key,
            location=stored.place,
            bytes=stored.bytes,
            video=str(row["video"]),
            label=row["label"],
            tokens=tokens,
            kv_dtype=str(row["kv_dtype"]),
            saved_bytes=int(row["saved_bytes"]),
            created=stored.changed,
            uses=uses,
        )
    except (Damaged, KeyError, TypeError, ValueError, AttributeError):
        return None
