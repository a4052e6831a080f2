"""The facts about entries that a bucket's listing provides without fetching artifacts.

They are in the names of empty objects, of which one request lists a thousand:

rows/<d>/<video>/<key>/<row>     a description of an entry, deflated JSON in base64, which may have
                                 several parts; <video>: 32 hex digits, <d>: the first of them
uses/<d>/<key>/<hits>-<ms>       the uses of an entry; the object's time is that of the last one
"""

from __future__ import annotations

import binascii
import json
import re
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from sttm_cli.base.types import TokenCounts
from sttm_cli.store.artifact import Damaged, check_counts, check_label
from sttm_cli.store.bucket import Listed
from sttm_cli.store.protocol import Entry, Uses

SUFFIX = ".safetensors"
MOST_NAME = 900
"""Maximum bytes of an object's full name; S3 allows 1,024."""
_PART = 200
"""Maximum bytes of a name's part, which some servers use as a file name."""
_MOST_ROW = 1 << 14
"""Maximum bytes of an inflated row."""
_SHORT = 60
_KEY = "[0-9a-f]{64}"
_ARTIFACT = re.compile(rf"kv/[0-9a-f]/({_KEY})\.safetensors")
_ROW = re.compile(rf"rows/[0-9a-f]/[0-9a-f]{{32}}/({_KEY})/([A-Za-z0-9_/-]+)")
_USE = re.compile(rf"uses/[0-9a-f]/({_KEY})/(\d{{1,12}})-(\d{{1,12}})")
_LEASE = re.compile(rf"leases/{_KEY}")


def artifact_path(key: str) -> str:
    return f"kv/{key[0]}/{key}{SUFFIX}"


def rows_folder(video: str) -> str:
    """Return the folder of a video's rows, by its digest."""
    from blake3 import blake3

    name = str(blake3(video.encode(errors="backslashreplace")).hexdigest())[:32]
    return f"rows/{name[0]}/{name}"


def uses_folder(key: str) -> str:
    return f"uses/{key[0]}/{key}"


def key_in(path: str) -> str:
    """Return the key in the name of any object of a cache, "" for other names."""
    for pattern in (_ARTIFACT, _ROW, _USE):
        if match := pattern.fullmatch(path):
            return match[1]
    return path.removeprefix("leases/") if _LEASE.fullmatch(path) else ""


def row_path(entry: Entry, *, room: int = MOST_NAME) -> str | None:
    """Return the name of an entry's row, of at most `room` bytes; None if that is too short. Long
    texts of the label are cut to their ends."""
    folder = f"{rows_folder(entry.video)}/{entry.key}"
    label = dict(entry.label)
    for shown in (label, {name: _shortened(value) for name, value in label.items()}, {}):
        row = [
            entry.bytes,
            entry.video,
            shown,
            list(asdict(entry.tokens).values()),
            entry.kv_dtype,
            entry.saved_bytes,
        ]
        text = json.dumps(row, separators=(",", ":"))
        name = urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")
        path = "/".join([folder, *(name[n : n + _PART] for n in range(0, len(name), _PART))])
        if len(path) <= room:
            return path
    return None


def _shortened(value: Any) -> Any:
    long = isinstance(value, str) and len(value) > _SHORT
    return f"…{value[-_SHORT:]}" if long else value


def described(rows: Iterable[Listed]) -> dict[tuple[str, int], Any]:
    """Return the rows by key and size of the artifact; skips what cannot be a row."""
    found: dict[tuple[str, int], Any] = {}
    for listed in rows:
        if match := _ROW.fullmatch(listed.path):
            text = match[2].replace("/", "")
            try:
                inflate = zlib.decompressobj()
                data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
                row = json.loads(inflate.decompress(data, _MOST_ROW))
            except (ValueError, zlib.error, binascii.Error, RecursionError):
                continue
            if inflate.eof and isinstance(row, list) and len(row) == 6 and type(row[0]) is int:
                found[match[1], row[0]] = row
    return found


def used(uses: Iterable[Listed]) -> defaultdict[str, Uses]:
    """Return the uses of each key. If several machines left objects at once, the highest counts and
    the latest time count."""
    found = defaultdict[str, Uses](Uses)
    for listed in uses:
        if match := _USE.fullmatch(listed.path):
            old = found[match[1]]
            found[match[1]] = Uses(
                max(old.hits, int(match[2])),
                max(old.saved_s, int(match[3]) / 1000),
                max(old.last_used, listed.changed),
            )
    return found


def use_path(key: str, uses: Uses) -> str:
    """Return the name of the object that records an entry's uses."""
    hits, saved = min(uses.hits, 10**12 - 1), min(max(0, int(uses.saved_s * 1000)), 10**12 - 1)
    return f"{uses_folder(key)}/{hits}-{saved}"


def artifacts_in(listing: Iterable[Listed]) -> dict[str, Listed]:
    """Return the artifacts by key, in the order of the keys."""
    pairs = ((_ARTIFACT.fullmatch(listed.path), listed) for listed in listing)
    return dict(sorted((match[1], listed) for match, listed in pairs if match))


def remembered(key: str, listed: Listed, row: Any, uses: Uses, *, location: str) -> Entry | None:
    """Return an entry as its row describes it; None without a row."""
    try:
        _, video, label, tokens, kv_dtype, saved_bytes = row
        counts = TokenCounts(*tokens)
        check_counts(counts)
        check_label(label)
        return Entry(
            key=key,
            location=location,
            bytes=listed.size,
            video=str(video),
            label=label,
            tokens=counts,
            kv_dtype=str(kv_dtype),
            saved_bytes=int(saved_bytes),
            created=listed.changed,
            uses=uses,
        )
    except (Damaged, TypeError, ValueError, AttributeError):
        return None
