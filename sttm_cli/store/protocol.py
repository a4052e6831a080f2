"""The interface of a store; how to add one: docs/cache.md.

A store is opened from a path or an address (`opening.py`). Only the store knows how its artifacts
are kept; callers see identities, entries and KVs. Methods do not raise for failures of the storage:
they call the store's `warn` with a line, and the answer is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, runtime_checkable

from sttm_cli.base.types import Json, TokenCounts
from sttm_cli.store.artifact import Artifact, Header

if TYPE_CHECKING:
    from sttm_cli.base.types import PrefixKV
    from sttm_cli.store.packing import PackedKV

# Results of a store's methods: entries, lookups, and the outcomes of maintenance.


@dataclass(frozen=True)
class Uses:
    """How often an entry was restored, the total seconds saved, and the time of the last use in
    seconds since the epoch."""

    hits: int = 0
    saved_s: float = 0.0
    last_used: float = 0.0

    @classmethod
    def from_row(cls, row: Json | None) -> Uses:
        """Read a store's row; a malformed one counts as no uses."""
        row = row or {}
        numbers = [row.get(name) for name in ("hits", "saved_s", "at")]
        if not all(isinstance(n, (int, float)) and abs(n) < 1e11 for n in numbers):
            return cls()
        return cls(int(row["hits"]), float(row["saved_s"]), float(row["at"]))

    def plus(self, *, saved_s: float, now: float) -> Json:
        """Return the row after one more use."""
        return {"at": now, "hits": self.hits + 1, "saved_s": self.saved_s + saved_s}


@dataclass(frozen=True)
class Entry:
    """A stored KV. Times are seconds since the epoch.

    `location`: the place of its bytes, for display; `video`: the digest of the video;
    `saved_bytes`: how much smaller `kv_dtype` makes it than the restored KV. `identity` and `facts`
    (about its computation) are None in a listing.
    """

    key: str
    location: str
    bytes: int
    video: str
    label: Json
    tokens: TokenCounts
    kv_dtype: str
    saved_bytes: int
    created: float
    uses: Uses
    identity: Json | None = None
    facts: Json | None = None

    @property
    def last_used(self) -> float:
        return max(self.uses.last_used, self.created)


def entry_of(header: Header, *, location: str, created: float, uses: Uses | None = None) -> Entry:
    """Return an entry as its artifact describes it."""
    video = header.identity.get("video")
    return Entry(
        key=header.key,
        location=location,
        bytes=header.end,
        video=str(video.get("digest") if isinstance(video, dict) else None),
        label=header.meta["label"],
        tokens=header.tokens,
        kv_dtype=header.kv_dtype,
        saved_bytes=header.saved_bytes,
        created=created,
        uses=uses or Uses(),
        identity=header.identity,
        facts=header.meta["facts"],
    )


@dataclass(frozen=True)
class Lookup:
    """The result of `Store.find`: an entry, open until it is loaded or closed, or the reason for
    the miss."""

    entry: Entry | None = None
    artifact: Artifact[Any] | None = None
    miss_reason: str = ""

    def __enter__(self) -> Lookup:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the artifact; a second call does nothing."""
        if self.artifact is not None:
            self.artifact.blob.close()


class Removed(NamedTuple):
    """An entry that was removed to make room."""

    key: str
    bytes: int


@dataclass(frozen=True)
class Finding:
    """A damaged artifact: its place, its damage, and whether it was removed."""

    location: str
    problem: str
    removed: bool


class Probe(NamedTuple):
    """A tested property of a store's storage; `problem` is None if the test passed."""

    name: str
    found: str
    problem: str | None = None
    hint: str = ""


class Space(NamedTuple):
    """Bytes of the disk below a store; None where it has no such bound."""

    free: int | None = None
    total: int | None = None

    @property
    def reserve(self) -> int:
        """Bytes of the disk that are left alone: 256 MiB, or a twentieth where that is less."""
        return min(256 << 20, (self.total or 0) // 20)


NO_BOUND = 2**63 - 1
"""The `max_bytes` of a store that nothing bounds."""


@runtime_checkable
class Store(Protocol):
    """Stored KVs by identity, and small rows beside them.

    Methods with a body are defaults for subclasses.
    """

    # ---- properties of the store

    @property
    def location(self) -> str:
        """The store's place as a user names it: an absolute path, or an address."""
        ...

    @property
    def keeps_nothing(self) -> bool:
        """Whether the store is switched off: nothing that is saved is ever stored."""
        return False

    @property
    def refusal(self) -> str:
        """Why the store does not use its place; empty if it does."""
        return ""

    failure: str = ""
    """Why the last operation failed to reach the storage; empty if it succeeded."""

    @property
    def writable(self) -> bool:
        """Whether anything can currently be stored."""
        ...

    @property
    def bytes(self) -> int:
        """The total size of all artifacts, counted now."""
        ...

    @property
    def max_bytes(self) -> int:
        """The bound of `bytes`, which `save` keeps by removing the least recently used entries."""
        ...

    def space(self) -> Space:
        """Return the space on the store's disk."""
        return Space()

    def probes(self) -> Iterator[Probe]:
        """Test properties of the storage that are not otherwise visible, for `sttm doctor`."""
        return iter(())

    # ---- small rows

    def get(self, key: str) -> Json | None:
        """Return a remembered row, None if there is none."""
        ...

    def set(self, key: str, value: Json) -> None:
        """Remember a row for some months, if possible."""
        ...

    # ---- finding and reading

    def find(self, identity: Json) -> Lookup:
        """Open the entry whose identity is equal in full, with a checked header.

        The lookup must be loaded or closed. An entry that is replaced or removed meanwhile can
        still be loaded, or is a miss. On a miss, `miss_reason` names the differences from the
        closest entry.
        """
        ...

    def stored(self, identity: Json) -> Entry | None:
        """Return the entry whose identity is equal in full, without keeping it open."""
        with self.find(identity) as lookup:
            return lookup.entry

    def load(self, lookup: Lookup, *, device: str | Sequence[str], room: int) -> PrefixKV | None:
        """Read the entry that `find` opened into buffers with `room` free rows, and close it.

        `device`: one for all layers, or one per layer. Returns None, after a warning, if the entry
        is damaged.
        """
        ...

    def count_use(self, entry: Entry, *, saved_s: float) -> None:
        """Record a use of an entry at the current time, and the seconds it saved."""
        ...

    def entries(self) -> list[Entry]:
        """Return every readable entry, without identity and facts."""
        ...

    def beginning(self, key: str) -> list[Entry]:
        """Return the entries whose key begins with `key`, with identity and facts."""
        ...

    # ---- writing and removing

    def save(self, identity: Json, packed: PackedKV, *, label: Json) -> Entry | None:
        """Store a KV, completely or not at all; None, after a warning, if that fails."""
        ...

    def remove(self, keys: Iterable[str]) -> list[str]:
        """Remove entries; return the keys of those that no longer exist. A process that has one
        open can still read all of it."""
        ...

    def prune(self, limit: int) -> list[Removed]:
        """Remove the least recently used entries until at most `limit` bytes remain, and the files
        that killed processes left."""
        ...

    def verify(
        self, *, repair: bool = False, limit: int | None = None
    ) -> tuple[int, list[Finding]]:
        """Check every byte of every artifact, or of `limit` of them; return the number of artifacts
        and the damaged ones. `repair` removes those."""
        ...

    def computing(self, key: str, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Return a context that admits one process at a time per key, so that no two compute the
        same video; `on_wait` is called once if another process holds it."""
        return nullcontext()

    def sign(self) -> AbstractContextManager[str]:
        """Return a context that yields a sign, which every opening of this store, on any machine,
        `sees`; "" if the address alone identifies the store."""
        return nullcontext("")

    def sees(self, sign: str) -> bool:
        """Return whether `sign` was given by this very store and its context is still open."""
        return not sign

    # ---- its life

    def telling(self, warn: Callable[[str], None]) -> AbstractContextManager[None]:
        """Redirect this thread's warnings to `warn` within the context."""
        ...

    def close(self) -> None:
        """Release the store's resources."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


# Warnings of a store, which can be redirected.


_redirected: ContextVar[Callable[[str], None] | None] = ContextVar("redirected", default=None)


class Warnings:
    """Passes each line it is called with to `warn`, or to where the line is redirected."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    def __call__(self, line: str) -> None:
        (_redirected.get() or self._warn)(line)

    @contextmanager
    def redirected(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Redirect this thread's lines to `warn` within the context."""
        token = _redirected.set(warn)
        try:
            yield
        finally:
            _redirected.reset(token)
