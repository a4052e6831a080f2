"""The cache switched off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from sttm_cli.base.types import Json, PrefixKV
from sttm_cli.store.entry import Entry, Lookup
from sttm_cli.store.packing import PackedKV


class NoStore:
    """The cache switched off: remembers within the process, stores nothing."""

    def __init__(self) -> None:
        self._rows: dict[str, Json] = {}

    def get(self, key: str) -> Json | None:
        return self._rows.get(key)

    def set(self, key: str, value: Json) -> None:
        self._rows[key] = value

    def find(self, identity: Json) -> Lookup:
        return Lookup(None, "the cache is off (--no-cache)")

    def load(self, entry: Entry, *, device: str | Sequence[str], room: int) -> PrefixKV | None:
        return None

    def count_use(self, entry: Entry, *, saved_s: float) -> None:
        return

    def entries(self) -> list[Entry]:
        return []

    def save(self, identity: Json, packed: PackedKV, *, label: Json) -> Entry | None:
        return None

    def computing(self, key: str, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def telling(self, warn: Callable[[str], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self._rows = {}
