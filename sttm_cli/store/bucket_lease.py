"""Leases as objects of a bucket, and the test of the conditional requests that they need."""

from __future__ import annotations

import secrets
from typing import Any

from sttm_cli.store.artifact import Damaged
from sttm_cli.store.bucket import Bucket, BucketError, Changed, Version
from sttm_cli.store.lease import Seen

CLOCK = "clock"


class BucketLeases:
    """Leases at leases/<key>; the bytes of an object are its holder's token."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def create(self, key: str, token: str) -> Version | None:
        return self._written(key, token, create=True)

    def replace(self, key: str, token: str, version: Version) -> Version | None:
        return self._written(key, token, same=version)

    def look(self, key: str) -> Seen[Version] | None:
        listed = self._bucket.head(f"leases/{key}")
        return Seen(listed.version, listed.changed) if listed else None

    def release(self, key: str, version: Version) -> None:
        listed = self._bucket.head(f"leases/{key}")
        # The ETag identifies the token; some servers keep it when a lease is renewed.
        if listed is not None and listed.version.e_tag == version.e_tag:
            self._bucket.remove([listed.path])

    def now(self) -> float:
        self._bucket.write(CLOCK, b"")
        listed = self._bucket.head(CLOCK)
        if listed is None:
            raise BucketError("what was just written does not exist")
        return listed.changed

    def _written(self, key: str, token: str, **condition: Any) -> Version | None:
        try:
            return self._bucket.write(f"leases/{key}", token.encode(), **condition)
        except Changed:
            # The lease is also ours if only the reply to an earlier attempt was lost.
            try:
                got = self._bucket.read(f"leases/{key}", 0, len(token) + 1)
            except (FileNotFoundError, Damaged):
                return None
            return got.object.version if bytes(got.data) == token.encode() else None


def enforces_conditions(bucket: Bucket) -> bool:
    """Return whether the server enforces writing only if absent and only over a given version.

    Writes and removes a test object. Raises BucketError.
    """
    name = f"probe-{secrets.token_hex(8)}"
    version = bucket.write(name, b"1", create=True)
    # A version that differs from any the server assigns.
    other = Version('"0123456789abcdef0123456789abcdef"', "1" if version.version else None)
    conditions: tuple[dict[str, Any], ...] = ({"create": True}, {"same": other})
    try:
        for condition in conditions:
            try:
                bucket.write(name, b"2", **condition)
            except Changed:
                continue
            return False
        return True
    finally:
        bucket.remove([name])
