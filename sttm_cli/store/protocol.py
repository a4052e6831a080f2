"""The interface of a store; how to add one: docs/cache.md.

A store is opened from a path or an address (`opening.py`). Only the store knows how its artifacts
are kept; callers see identities, entries and KVs. Methods do not raise for the state of the medium:
the store's `warn` gets a line, and the answer is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from sttm_cli.base.types import Json
from sttm_cli.store.entry import Entry, Finding, Lookup, Removed, Space

if TYPE_CHECKING:
    from sttm_cli.base.types import PrefixKV
    from sttm_cli.store.packing import PackedKV


@runtime_checkable
class Store(Protocol):
    """Stored KVs by identity, and small rows beside them.

    Methods with a body are defaults for a class that names this one as its base.
    """

    # ---- properties of the store

    @property
    def location(self) -> str:
        """The store's place as a user gives it: an absolute path, or an address."""
        ...

    @property
    def keeps_nothing(self) -> bool:
        """Whether the store is switched off: nothing that is saved is ever stored."""
        return False

    @property
    def refusal(self) -> str:
        """The reason why the store does not use its place, "" where it does."""
        return ""

    @property
    def writable(self) -> bool:
        """Whether anything can be stored at this moment."""
        ...

    @property
    def bytes(self) -> int:
        """The size of all artifacts, counted now."""
        ...

    @property
    def max_bytes(self) -> int:
        """The bound of `bytes`, which `save` keeps by removing the least recently used."""
        ...

    def space(self) -> Space:
        """The disk below the store."""
        return Space()

    # ---- small rows

    def get(self, key: str) -> Json | None:
        """A remembered row, None if there is none."""
        ...

    def set(self, key: str, value: Json) -> None:
        """Remember a row for some months, where that is possible."""
        ...

    # ---- finding and reading

    def find(self, identity: Json) -> Lookup:
        """Open the entry whose identity is equal in full; its header was read and checked.

        The lookup must be loaded or closed. An entry that is replaced or removed meanwhile can
        still be loaded. Without an entry, `miss_reason` names the differences to the nearest one.
        """
        ...

    def stored(self, identity: Json) -> Entry | None:
        """The entry whose identity is equal in full; leaves nothing open."""
        with self.find(identity) as lookup:
            return lookup.entry

    def load(self, lookup: Lookup, *, device: str | Sequence[str], room: int) -> PrefixKV | None:
        """Read the entry that `find` opened into buffers with `room` free rows, and close it.

        `device`: one for all layers, or each layer's own. None, and a warning, if it is damaged.
        """
        ...

    def count_use(self, entry: Entry, *, saved_s: float) -> None:
        """Remember that an entry was used now, and by how many seconds that was faster."""
        ...

    def entries(self) -> list[Entry]:
        """Every readable entry, without its identity and facts."""
        ...

    def beginning(self, key: str) -> list[Entry]:
        """The entries whose key begins with `key`, with identity and facts."""
        ...

    # ---- writing and removing

    def save(self, identity: Json, packed: PackedKV, *, label: Json) -> Entry | None:
        """Store a KV, whole or not at all; None, and a warning, where that is not possible."""
        ...

    def remove(self, keys: Iterable[str]) -> list[str]:
        """Remove entries; return the keys of those that no longer exist. A process that has one
        of them open reads it to its end."""
        ...

    def prune(self, limit: int) -> list[Removed]:
        """Remove the least recently used entries until at most `limit` bytes remain, and the files
        that killed processes left."""
        ...

    def verify(
        self, *, repair: bool = False, limit: int | None = None
    ) -> tuple[int, list[Finding]]:
        """Check every byte of every artifact, or of `limit` of them; return how many artifacts
        exist, and the damaged ones. `repair` removes those."""
        ...

    def computing(self, key: str, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        """A context that one process at a time enters for each key, so that no two compute the
        same video; `on_wait` is called once where another process is in it."""
        return nullcontext()

    # ---- its life

    def telling(self, warn: Callable[[str], None]) -> AbstractContextManager[None]:
        """Within this context, and this thread, warnings go to `warn`."""
        ...

    def close(self) -> None:
        """Release the resources of the store."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
