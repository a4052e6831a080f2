"""Keeping a folder's artifacts within a number of bytes, the least recently used removed first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sttm_cli.store.files import Folder, Scan, Stored, remove_files, sweep
from sttm_cli.store.records import Records

MOST_BYTES = 20 << 30
"""The bound that is chosen where none is given, or a tenth of the free disk where that is less."""
RESCAN_SHARE = 16
"""A scan of a hundred thousand files takes a second. The next one follows once a sixteenth of the
room that was left is filled, so that a few processes cannot exceed the bound by much."""


class Bound:
    """`max_bytes` for the files in `folder`, None for a bound by the size of its disk."""

    def __init__(
        self,
        folder: Folder,
        records: Records,
        *,
        warn: Callable[[str], None],
        max_bytes: int | None,
    ) -> None:
        self._folder, self._records, self._warn = folder, records, warn
        self._max_bytes = max_bytes
        self._before_rescan = 0

    def limit(self, scan: Scan | None = None) -> int:
        """The bound in bytes. The automatic one is never below the size of the stored files,
        however little space the disk has left."""
        if self._max_bytes is not None:
            return self._max_bytes
        stored = (scan or self._folder.scan()).bytes
        tenth = ((self._folder.space().free or 0) + stored) // 10
        return min(MOST_BYTES, max(tenth, stored))

    def describe(self, limit: int) -> str:
        """Where the bound comes from, with its bytes."""
        if self._max_bytes is not None:
            return f"--max-bytes {limit:,}"
        return f"the automatic bound of {limit:,} bytes (20 GiB or a tenth of the free disk)"

    def scan_for(self, size: int) -> Scan | None:
        """All files, where `size` bytes more might exceed the bound; else None."""
        return self._folder.scan() if size > self._before_rescan else None

    def added(self, written: Stored, scan: Scan | None) -> None:
        """Keep the bound after `written` was added to the files of `scan`, and sweep."""
        self._before_rescan -= written.bytes
        if scan is None:
            return
        artifacts = [s for s in scan.artifacts if s.key != written.key] + [written]
        limit = self.limit(scan)
        removed = self.prune(artifacts, limit, keep=written.key)
        freed = sum(s.bytes for s in removed)
        if removed:
            self._warn(
                f"removed {len(removed):,} of the least recently used entries ({freed:,} bytes) "
                f"to keep within {self.describe(limit)}"
            )
        left = limit - sum(s.bytes for s in artifacts) + freed
        self._before_rescan = left // RESCAN_SHARE
        sweep(scan.leftovers)

    def prune(self, artifacts: list[Stored], limit: int, *, keep: str = "") -> list[Stored]:
        """Remove the least recently used until at most `limit` bytes remain, but never `keep`."""
        excess = sum(stored.bytes for stored in artifacts) - limit
        if excess <= 0:
            return []
        chosen = dict[Path, Stored]()
        for stored in self._records.by_last_use(artifacts):
            if excess > 0 and stored.key != keep:
                chosen[stored.path] = stored
                excess -= stored.bytes
        removed = [chosen[path] for path in remove_files(chosen, self._warn)]
        self._records.forget([stored.key for stored in removed])
        return removed
