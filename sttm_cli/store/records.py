"""The index's rows about entries: their uses, their descriptions, and the entries of each video.

Rows `used:<key>`, `about:<key>` and `video:<digest>`; all of it may be lost.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import asdict

from sttm_cli.base.types import Json, TokenCounts
from sttm_cli.store.artifact import Damaged, check_counts, check_label
from sttm_cli.store.entry import Entry, Uses
from sttm_cli.store.files import Folder, Stored
from sttm_cli.store.index import Index

ROWS = ("used", "about")


class Records:
    """The rows in `index` about the entries in `folder`."""

    def __init__(self, index: Index, folder: Folder) -> None:
        self._index, self._folder = index, folder

    def uses_of(self, key: str) -> Uses:
        """An entry's uses."""
        return Uses.from_row(self._index.get(f"used:{key}"))

    def count_use(self, key: str, *, saved_s: float) -> None:
        """One use more, now."""
        self._index.change(
            f"used:{key}",
            lambda row: Uses.from_row(row).plus(saved_s=saved_s, now=time.time()),
        )

    def by_last_use(self, artifacts: list[Stored]) -> list[Stored]:
        """The least recently used first; writing an entry counts as a use."""
        uses = self._all_uses()
        return sorted(artifacts, key=lambda s: max(uses[s.key].last_used, s.changed))

    def entries(self, artifacts: list[Stored]) -> list[Entry | None]:
        """The remembered entry of each file; None without one, or of another version of it."""
        uses, abouts = self._all_uses(), self._index.rows("about:")
        return [_remembered(s, abouts.get(s.key), uses[s.key]) for s in artifacts]

    def describe(self, entries: list[tuple[Entry, Stored]]) -> None:
        """Remember entries, each for as long as its file stays as it is."""
        if entries:
            self._index.set_all({f"about:{e.key}": _to_row(e, stored) for e, stored in entries})

    def add(self, entry: Entry, stored: Stored) -> None:
        """Remember an entry that was just written, also among those of its video."""
        keys = [key for key in self.keys_of(entry.video) if key != entry.key]
        self._index.set_all(
            {
                f"video:{entry.video}": {"keys": [*keys, entry.key]},
                f"about:{entry.key}": _to_row(entry, stored),
            }
        )

    def keys_of(self, video: str) -> list[str]:
        """The keys that are stored for a video, as far as they are remembered."""
        known = (self._index.get(f"video:{video}") or {}).get("keys")
        keys = [str(key) for key in known] if isinstance(known, list) else []
        return [key for key in keys if os.path.lexists(self._folder.place(key))]

    def forget(self, keys: list[str]) -> None:
        """Drop the rows of removed entries, and of videos that have none left."""
        abouts = [self._index.get(f"about:{key}") or {} for key in keys]
        videos = {str(about.get("video")) for about in abouts}
        rows = [f"{row}:{key}" for key in keys for row in ROWS]
        rows += [f"video:{video}" for video in videos if not self.keys_of(video)]
        self._index.delete(*rows)

    def _all_uses(self) -> defaultdict[str, Uses]:
        """By key."""
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
    """An entry as the index has it; None unless the file is still the described one."""
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
