"""What the store hands out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sttm_cli.types import Json, TokenCounts


@dataclass(frozen=True)
class Entry:
    """One stored KV. Times are seconds since the epoch; `saved_bytes` is what `kv_dtype` makes it
    smaller than the KV it is restored to."""

    key: str
    path: Path
    bytes: int
    identity: Json
    label: Json
    tokens: TokenCounts
    kv_dtype: str
    saved_bytes: int
    created: float
    last_used: float


@dataclass(frozen=True)
class Lookup:
    """An entry, or why there is none."""

    entry: Entry | None
    miss_reason: str | None


@dataclass(frozen=True)
class Finding:
    """A file in the cache that is damaged, and how."""

    path: Path
    problem: str
