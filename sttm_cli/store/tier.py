"""The local copies of a bucket's entries: an ordinary bounded cache folder, and for each entry the
ETag of the object that was copied."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sttm_cli.base.types import Json
from sttm_cli.store.artifact import Spelled
from sttm_cli.store.files import TOUCH_S, Incoming
from sttm_cli.store.local import LocalStore
from sttm_cli.store.none import NoStore
from sttm_cli.store.protocol import Lookup, Uses

if TYPE_CHECKING:
    from sttm_cli.base.types import PrefixKV


class Tier:
    """Copies in `folder`, None to keep none; and rows private to this machine.

    `place`: the address of the bucket; a folder may serve several.
    """

    def __init__(self, folder: Path | None, place: str, *, warn: Callable[[str], None]) -> None:
        self._place = place
        self.store = None if folder is None else LocalStore(folder, warn=warn)
        self._rows = self.store or NoStore()
        self.get, self.set = self._rows.get, self._rows.set

    def e_tag(self, key: str) -> str:
        """Return the ETag of the object that was copied, "" without a copy."""
        if self.store is None or not self.store.has(key):
            return ""
        known = (self.get(f"etag:{self._place}:{key}") or {}).get("e_tag")
        return known if isinstance(known, str) else ""

    def find(self, identity: Json) -> Lookup:
        """Return the copy, opened and checked, even if its ETag is no longer known."""
        return self.store.find(identity) if self.store is not None else Lookup()

    def load(self, lookup: Lookup, *, device: str | Sequence[str], room: int) -> PrefixKV | None:
        """Read a copy; None, after a warning, if it is damaged."""
        return self._rows.load(lookup, device=device, room=room)

    def begin(self, key: str, size: int) -> Incoming | None:
        """Open a file for a local copy; None if it does not fit or copies are off."""
        return None if self.store is None else self.store.begin(key, size)

    def finish(self, incoming: Incoming, wanted: Spelled, e_tag: str | None) -> None:
        """Turn a complete file into the copy of the object with this ETag."""
        if self.store is not None and self.store.finish(incoming, wanted) is not None and e_tag:
            self.set(f"etag:{self._place}:{wanted.key}", {"e_tag": e_tag})

    def remove(self, *keys: str) -> None:
        """Remove copies of objects that were removed from the bucket or replaced."""
        if self.store is not None and (held := [key for key in keys if self.store.has(key)]):
            self.store.remove(held)

    # ---- uses that the bucket does not have yet

    def count_use(self, key: str, saved_s: float) -> Uses | None:
        """Count a use; return those to add to the bucket's, None while it has a recent one."""
        row = self.get(f"use:{self._place}:{key}") or {}
        pending = Uses.from_row(row).plus(saved_s=saved_s, now=time.time())
        written = row.get("written")
        due = not isinstance(written, (int, float)) or abs(pending["at"] - written) > TOUCH_S
        kept = {"at": pending["at"], "hits": 0, "saved_s": 0.0} if due else pending
        kept = {**kept, "written": pending["at"] if due else written}
        self.set(f"use:{self._place}:{key}", kept)
        if self.store is not None:
            # Copies are evicted in the order of their uses here.
            self.store.use(key, saved_s=saved_s)
        return Uses.from_row(pending) if due else None

    def pending(self) -> dict[str, Uses]:
        """Return the uses of each key that the bucket does not have yet."""
        rows = self._rows.rows(f"use:{self._place}:").items()
        return {key: Uses.from_row(row) for key, row in rows}

    def close(self) -> None:
        self._rows.close()
