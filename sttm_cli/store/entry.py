"""What the store hands out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from sttm_cli.base.types import Json, TokenCounts
from sttm_cli.store.artifact import Damaged, Header, check_counts, check_label
from sttm_cli.store.files import Stored


@dataclass(frozen=True)
class Uses:
    """How often an entry was restored, what that saved in all, and when it was last;
    `last_used` is in seconds since the epoch."""

    hits: int = 0
    saved_s: float = 0.0
    last_used: float = 0.0

    @classmethod
    def of(cls, row: Json | None) -> Uses:
        """As the index has it; whatever else stands there is no use."""
        row = row or {}
        numbers = [row.get(name) for name in ("hits", "saved_s", "at")]
        if not all(isinstance(n, (int, float)) and abs(n) < 1e11 for n in numbers):
            return cls()
        return cls(int(row["hits"]), float(row["saved_s"]), float(row["at"]))


@dataclass(frozen=True)
class Entry:
    """One stored KV. Times are seconds since the epoch.

    `video` is the digest of the video; `saved_bytes` is what `kv_dtype` makes it smaller than
    the KV it is restored to; `identity` and `facts` (what came of making it) are None where only
    what the index remembers was asked for.
    """

    key: str
    path: Path
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

    def to_row(self, stored: Stored) -> Json:
        """What the index remembers of it, for as long as the file stays as it is."""
        return {
            "seal": list(stored.seal),
            "video": self.video,
            "label": self.label,
            "tokens": asdict(self.tokens),
            "kv_dtype": self.kv_dtype,
            "saved_bytes": self.saved_bytes,
        }


def entry_of(stored: Stored, header: Header, uses: Uses) -> Entry:
    """An entry as its file says."""
    meta, video = header.meta, header.meta["identity"].get("video")
    digest = video.get("digest") if isinstance(video, dict) else None
    return Entry(
        stored.key,
        stored.path,
        stored.bytes,
        str(digest),
        meta["label"],
        header.tokens,
        meta["kv_dtype"],
        header.saved_bytes,
        stored.changed,
        uses,
        meta["identity"],
        meta["facts"],
    )


def remembered(stored: Stored, row: Json | None, uses: Uses) -> Entry | None:
    """An entry as the index has it; None unless the file is still the one that was meant."""
    try:
        if row is None or row["seal"] != list(stored.seal):
            return None
        tokens = TokenCounts(**row["tokens"])
        check_counts(tokens)
        check_label(row["label"])
        return Entry(
            stored.key,
            stored.path,
            stored.bytes,
            str(row["video"]),
            row["label"],
            tokens,
            str(row["kv_dtype"]),
            int(row["saved_bytes"]),
            stored.changed,
            uses,
        )
    except (Damaged, KeyError, TypeError, ValueError, AttributeError):
        return None


@dataclass(frozen=True)
class Lookup:
    """An entry, or why there is none."""

    entry: Entry | None
    miss_reason: str | None


@dataclass(frozen=True)
class Finding:
    """A file in the cache that is damaged, how, and whether it was removed."""

    path: Path
    problem: str
    removed: bool
