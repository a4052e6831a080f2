"""What the index remembers of entries: their uses, their labels, and which a video has.

Rows `used:<key>`, `verified:<key>`, `about:<key>` and `video:<digest>`; all of it may be lost.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict

from sttm_cli.base.types import Json
from sttm_cli.store.entry import Entry, Uses, remembered
from sttm_cli.store.files import Folder, Stored
from sttm_cli.store.index import Index

ROWS = ("used", "verified", "about")


class Records:
    """The rows in `index` about the entries in `folder`."""

    def __init__(self, index: Index, folder: Folder) -> None:
        self._index, self._folder = index, folder

    def uses(self, key: str) -> Uses:
        return Uses.of(self._index.get(f"used:{key}"))

    def count_use(self, key: str, *, saved_s: float) -> None:
        """One use more, now."""

        def counted(row: Json | None) -> Json:
            uses = Uses.of(row)
            return {"at": time.time(), "hits": uses.hits + 1, "saved_s": uses.saved_s + saved_s}

        self._index.change(f"used:{key}", counted)

    def by_last_use(self, artifacts: list[Stored]) -> list[Stored]:
        """The least recently used first; what was never used counts from when it was written."""
        uses = self._all_uses()
        return sorted(artifacts, key=lambda s: max(uses[s.key].last_used, s.changed))

    def entries(self, artifacts: list[Stored]) -> list[Entry | None]:
        """What is known of each file; None where nothing is, or of another version of it."""
        uses, abouts = self._all_uses(), self._index.rows("about:")
        return [remembered(s, abouts.get(s.key), uses[s.key]) for s in artifacts]

    def learn(self, entries: list[tuple[Entry, Stored]]) -> None:
        """Remember what entries are."""
        if entries:
            self._index.set_all({f"about:{e.key}": e.to_row(stored) for e, stored in entries})

    def add(self, entry: Entry, stored: Stored) -> None:
        """Remember an entry that was just written, also among those of its video."""
        keys = [key for key in self.keys_of(entry.video) if key != entry.key]
        self._index.set_all({f"video:{entry.video}": {"keys": [*keys, entry.key]}})
        self.learn([(entry, stored)])

    def keys_of(self, video: str) -> list[str]:
        """The keys that are stored for a video, as far as is known."""
        known = (self._index.get(f"video:{video}") or {}).get("keys")
        keys = [str(key) for key in known] if isinstance(known, list) else []
        return [key for key in keys if os.path.lexists(self._folder.place(key))]

    def forget(self, keys: list[str]) -> None:
        """Drop the rows of entries that are gone, and of videos that have none left."""
        abouts = [self._index.get(f"about:{key}") or {} for key in keys]
        videos = {str(about.get("video")) for about in abouts}
        rows = [f"{row}:{key}" for key in keys for row in ROWS]
        rows += [f"video:{video}" for video in videos if not self.keys_of(video)]
        self._index.delete(*rows)

    def _all_uses(self) -> defaultdict[str, Uses]:
        """By key."""
        rows = self._index.rows("used:").items()
        return defaultdict(Uses, {key: Uses.of(row) for key, row in rows})
