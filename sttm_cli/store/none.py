"""The store of --no-cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from sttm_cli.base.types import Json
from sttm_cli.store.protocol import Entry, Finding, Lookup, Removed, Store

if TYPE_CHECKING:
    from sttm_cli.base.types import PrefixKV
    from sttm_cli.store.packing import PackedKV


class NoStore(Store):
    """Keeps rows for the lifetime of the process, and no KVs."""

    location = "--no-cache"
    keeps_nothing = True
    writable = False
    bytes = 0
    max_bytes = 0

    def __init__(self) -> None:
        self._rows: dict[str, Json] = {}

    def get(self, key: str) -> Json | None:
        return self._rows.get(key)

    def set(self, key: str, value: Json) -> None:
        self._rows[key] = value

    def rows(self, prefix: str) -> dict[str, Json]:
        """Return the remembered rows whose key begins with `prefix`, by the rest of the key."""
        found = self._rows.items()
        return {key.removeprefix(prefix): row for key, row in found if key.startswith(prefix)}

    def find(self, identity: Json) -> Lookup:
        return Lookup(miss_reason="the cache is off (--no-cache)")

    def load(self, lookup: Lookup, *, device: str | Sequence[str], room: int) -> PrefixKV | None:
        return None

    def count_use(self, entry: Entry, *, saved_s: float) -> None:
        return

    def entries(self) -> list[Entry]:
        return []

    def beginning(self, key: str) -> list[Entry]:
        return []

    def save(self, identity: Json, packed: PackedKV, *, label: Json) -> Entry | None:
        return None

    def remove(self, keys: Iterable[str]) -> list[str]:
        return []

    def prune(self, limit: int) -> list[Removed]:
        return []

    def verify(
        self, *, repair: bool = False, limit: int | None = None
    ) -> tuple[int, list[Finding]]:
        return 0, []

    def telling(self, warn: Callable[[str], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self._rows = {}
