"""Videos that are objects of a bucket (s3://, gs://, az://): list them, and fetch them into files.

obstore's messages quote the endpoint, which may contain a password, so none is passed on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from sttm_cli.base.bucket import CLIENTS, credentials_of, open_client, reason_of
from sttm_cli.base.errors import DisturbedError, UsageError, VideoError
from sttm_cli.base.names import scheme_of
from sttm_cli.decode.spool import check_size, write

PART = 8 << 20
"""Bytes of an object per request."""
PAGE = 1000
"""Objects per page of a listing."""
TIMEOUT_S = 60.0
"""Time limit of a request, including its body."""
RETRY_S = 30.0
"""A request that fails with 5xx or a broken connection is retried within this time."""
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Object:
    """An object as a listing or a header describes it. `tag`: the server's tag of its bytes, "" if
    it has none."""

    address: str
    size: int
    tag: str

    @property
    def version(self) -> str:
        """The version of the object's bytes at this address; "" if the server has no tag."""
        return f"{self.address}|{self.size}|{self.tag}" if self.tag else ""


def in_bucket(video: object) -> bool:
    """Return whether a video is named by the address of an object."""
    return isinstance(video, str) and scheme_of(video) in CLIENTS


def find_objects(address: str, suffixes: frozenset[str]) -> list[str]:
    """Return the addresses that `address` stands for: the matches of a pattern (`*`, `?`, `[`, and
    `**` for any depth); the objects with `suffixes` at any depth below a folder (ending with "/")
    or a bucket; otherwise itself.

    Raises SttmError if the bucket cannot be listed or the extra is missing.
    """
    scheme, bucket, key = _parts(address)
    root = f"{scheme}://{bucket}/"
    if match := _MAGIC.search(key):
        wanted = key.split("/")
        folder = key[: match.start()].rpartition("/")[0]
        return [root + k for k in _keys(address, folder) if _matches(k.split("/"), wanted)]
    if key and not key.endswith("/"):
        _client(scheme, bucket)
        return [address]
    depth = len(Path(key).parts)
    return [root + k for k in _keys(address, key.rstrip("/")) if _is_video(k, depth, suffixes)]


def object_at(address: str) -> Object:
    """Return the size and tag of an object; raises VideoError if it cannot be read."""
    scheme, bucket, key = _parts(address)
    client = _client(scheme, bucket)
    meta = _asked(address, lambda: client.head(key))
    return Object(address, int(meta["size"]), str(meta.get("e_tag") or ""))


def fetch(
    found: Object, target: Path, *, max_bytes: int, on_bytes: Callable[[int, int], None]
) -> None:
    """Write an object's bytes to `target`; `on_bytes` gets the bytes so far and the total.

    Raises VideoError if it is too large or cannot be read, DisturbedError if it is replaced
    meanwhile.
    """
    check_size(found.address, found.size, max_bytes)
    done = write(
        _blocks(found),
        target,
        name=found.address,
        max_bytes=max_bytes,
        on_bytes=lambda done: on_bytes(done, found.size),
    )
    if done != found.size:
        raise VideoError(
            f"{found.address} broke off after {done:,} of {found.size:,} bytes", "try again later"
        )


def _blocks(found: Object) -> Iterator[bytes]:
    """Yield an object's bytes part by part: a broken connection costs one part."""
    scheme, bucket, key = _parts(found.address)
    client = _client(scheme, bucket)
    for start in range(0, found.size, PART):
        options: dict[str, Any] = {"range": (start, min(start + PART, found.size))}
        if found.tag:
            options["if_match"] = found.tag
        yield bytes(
            _asked(found.address, lambda o=options: client.get(key, options=o).bytes())  # type: ignore[misc]
        )


def _keys(address: str, folder: str) -> Iterator[str]:
    """Yield the keys below a folder, in order, except those with a part that begins with a dot."""
    scheme, bucket, _ = _parts(address)
    client, depth = _client(scheme, bucket), len(Path(folder).parts)
    pages = iter(client.list(folder or None, chunk_size=PAGE))
    while page := _asked(address, lambda: next(pages, None), listing=True):
        for meta in page:
            key = str(meta["path"])
            if not any(part.startswith(".") for part in key.split("/")[depth:]):
                yield key


def _is_video(key: str, depth: int, suffixes: frozenset[str]) -> bool:
    return os.path.splitext(key)[1].lower() in suffixes and len(key.split("/")) > depth


def _matches(parts: list[str], wanted: list[str]) -> bool:
    """Return whether the parts of a key match those of a pattern, as in a shell."""
    if not wanted or not parts:
        return not parts and all(want == "**" for want in wanted)
    if wanted[0] == "**":
        return _matches(parts, wanted[1:]) or _matches(parts[1:], wanted)
    return fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _parts(address: str) -> tuple[str, str, str]:
    """Return scheme, bucket and key of an address; raises UsageError."""
    scheme = scheme_of(address)
    bucket, _, key = address[len(scheme) + 3 :].partition("/")
    if "@" in bucket or not bucket:
        raise UsageError(
            f"{scheme}://... names no bucket, or more than a bucket and a key",
            f"give {scheme}://bucket/key, and credentials through the environment or a profile",
        )
    return scheme, bucket, key


@lru_cache(maxsize=8)
def _client(scheme: str, bucket: str) -> Any:
    return open_client(
        scheme, bucket, seconds=TIMEOUT_S, retry_s=RETRY_S, what="videos in a bucket need"
    )


def _asked(address: str, request: Callable[[], Any], *, listing: bool = False) -> Any:
    """Return the result of a request; raises VideoError, without the server's words."""
    from obstore.exceptions import BaseError, PreconditionError

    try:
        return request()
    except PreconditionError:
        raise DisturbedError(
            f"{address} changed while it was read", "ask again once it is complete"
        ) from None
    except (BaseError, OSError, ValueError) as error:
        missing, verb = isinstance(error, FileNotFoundError), "listed" if listing else "read"
        status, words = reason_of(error)
        hint = "check the address, the credentials and the network"
        if status in (401, 403) or "credentials" in words:
            hint = credentials_of(scheme_of(address))
        reason = "there is no such object or bucket" if missing else words
        raise VideoError(f"{address} cannot be {verb}: {reason}", hint) from None
