"""The records that a store returns: entries, lookups, and results of its upkeep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from sttm_cli.base.types import Json, TokenCounts
from sttm_cli.store.artifact import Artifact, Header


@dataclass(frozen=True)
class Uses:
    """How often an entry was restored, the seconds that saved in all, and the last time, in
    seconds since the epoch."""

    hits: int = 0
    saved_s: float = 0.0
    last_used: float = 0.0

    @classmethod
    def from_row(cls, row: Json | None) -> Uses:
        """As a store remembers it; a malformed row counts as no use."""
        row = row or {}
        numbers = [row.get(name) for name in ("hits", "saved_s", "at")]
        if not all(isinstance(n, (int, float)) and abs(n) < 1e11 for n in numbers):
            return cls()
        return cls(int(row["hits"]), float(row["saved_s"]), float(row["at"]))

    def plus(self, *, saved_s: float, now: float) -> Json:
        """The row after one use more."""
        return {"at": now, "hits": self.hits + 1, "saved_s": self.saved_s + saved_s}


@dataclass(frozen=True)
class Entry:
    """One stored KV. Times are seconds since the epoch.

    `location`: where its bytes are, for people; `video`: the digest of the video; `saved_bytes`:
    how much smaller `kv_dtype` makes it than the KV that is restored from it. `identity` and
    `facts` (the outcome of its computation) are None in a listing.
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
    """An entry as its artifact describes it."""
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
    """The result of `Store.find`: an entry, open until it is loaded or closed, or the reason why
    there is none."""

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
    """A damaged artifact: where it is, its damage, and whether it was removed."""

    location: str
    problem: str
    removed: bool


class Space(NamedTuple):
    """Bytes of the disk below a store; None where it has no such bound."""

    free: int | None = None
    total: int | None = None
