"""The entries in a bucket: their headers, their rows, and their eviction."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace

from sttm_cli.store import bucket_rows as rows
from sttm_cli.store.artifact import Artifact, Damaged, open_artifact
from sttm_cli.store.bucket import Bucket, BucketError, Listed
from sttm_cli.store.bucket_blob import BucketBlob
from sttm_cli.store.protocol import Entry, Removed, Uses, entry_of

OLD_S = 86400.0
"""Age at which a lease, or a row without an entry, is swept."""
READERS = 8
"""Headers read concurrently."""


class Entries:
    """The entries that a bucket's listings and headers describe. Methods raise BucketError."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def artifacts(self) -> dict[str, Listed]:
        """Return all artifacts by key."""
        return rows.artifacts_in(self._bucket.listed_all("kv"))

    def keys_beginning(self, key: str) -> list[str]:
        """Return the artifacts' keys that begin with `key`."""
        if not key:
            return list(self.artifacts())
        found, begins = list[Listed](), f"kv/{key[0]}/{key}"
        for listed in self._bucket.listed(f"kv/{key[0]}", after=begins):
            if not listed.path.startswith(begins):
                break
            found.append(listed)
        return list(rows.artifacts_in(found))

    def uses_of(self, key: str) -> Uses:
        return rows.used(self._bucket.listed(rows.uses_folder(key)))[key]

    def all(self) -> list[Entry]:
        """Return all entries from three listings; an entry without a row has its header read."""
        described_by, uses, artifacts = self._listings()
        described, used, found = rows.described(described_by), rows.used(uses), {}
        for key, listed in artifacts.items():
            place = self._bucket.full(listed.path)
            row = described.get((key, listed.size))
            found[key] = rows.remembered(key, listed, row, used[key], location=place)
        missing = [key for key, entry in found.items() if entry is None]
        with ThreadPoolExecutor(READERS) as pool:
            found |= zip(missing, pool.map(self._described_anew, missing), strict=True)
        return [replace(entry, uses=used[key]) for key, entry in found.items() if entry]

    def read(self, key: str) -> Entry | None:
        """Return an entry as its artifact's header describes it, without its uses; None if
        unusable."""
        try:
            artifact = open_artifact(BucketBlob(self._bucket, rows.artifact_path(key)))
        except (Damaged, FileNotFoundError):
            return None
        return self.entry(artifact) if artifact.header.key == key else None

    def entry(self, artifact: Artifact[BucketBlob]) -> Entry:
        """Return an entry as its open artifact describes it, without its uses."""
        listed = artifact.blob.object
        place = self._bucket.full(listed.path)
        return entry_of(artifact.header, location=place, created=listed.changed)

    def of_video(self, digest: str, most: int) -> Iterator[Entry]:
        """Yield at most `most` entries of a video, the most recently described first."""
        listing = self._bucket.listed(rows.rows_folder(digest))
        newest = sorted(listing, key=lambda row: -row.changed)
        keys = dict.fromkeys(rows.key_in(row.path) for row in newest)
        for key in [key for key in keys if key][:most]:
            if (entry := self.read(key)) is not None:
                yield entry

    def problem(self, key: str) -> str | None:
        """Read an artifact completely and return its damage; None if it is intact."""
        from sttm_cli.store.reading import check_bytes

        try:
            blob = BucketBlob(self._bucket, rows.artifact_path(key), whole=True)
            artifact = open_artifact(blob)
            with closing(artifact.blob):
                if artifact.header.key != key:
                    return "its object has the name of another entry"
                check_bytes(artifact)
        except FileNotFoundError:
            return None
        except Damaged as error:
            return str(error)
        return None

    # ---- writing

    def describe(self, entry: Entry, *, alone: bool = False) -> None:
        """Write an entry's row, unless its name would be too long; `alone`: replace the rows of
        earlier versions of the entry."""
        room = rows.MOST_NAME - len(self._bucket.full("").encode())
        if path := rows.row_path(entry, room=room):
            with suppress(BucketError):
                self._bucket.write(path, b"")
                if alone:
                    folder = f"{rows.rows_folder(entry.video)}/{entry.key}"
                    old = [one.path for one in self._bucket.listed(folder) if one.path != path]
                    self._bucket.remove(old)

    def add_uses(self, key: str, uses: Uses) -> None:
        """Add to the uses in the bucket: write a new object, then remove the old ones."""
        old = list(self._bucket.listed(rows.uses_folder(key)))
        known = rows.used(old)[key]
        total = Uses(known.hits + uses.hits, known.saved_s + uses.saved_s)
        new = rows.use_path(key, total)
        self._bucket.write(new, b"")
        self._bucket.remove([listed.path for listed in old if listed.path != new])

    def remove(self, keys: list[str]) -> None:
        """Remove artifacts, and their rows as far as their headers identify them."""
        videos = {entry.video for entry in map(self.read, keys) if entry is not None}
        folders = [rows.rows_folder(video) for video in videos] + list(map(rows.uses_folder, keys))
        beside = [listed.path for folder in folders for listed in self._bucket.listed(folder)]
        named = [path for path in beside if rows.key_in(path) in keys]
        self._bucket.remove([*map(rows.artifact_path, keys), *named])

    def prune(self, limit: int, *, keep: str = "") -> tuple[list[Removed], int]:
        """Remove the least recently used entries until at most `limit` bytes remain, but never
        `keep`, and sweep objects without an entry. Also returns the bytes left below the limit.

        Takes three listings, and one request per thousand removed objects.
        """
        described_by, uses, artifacts = self._listings()
        used, gone = rows.used(uses), dict[str, int]()
        excess = sum(listed.size for listed in artifacts.values()) - limit
        last = {key: max(used[key].last_used, one.changed) for key, one in artifacts.items()}
        for key in sorted(artifacts, key=lambda key: last[key]):
            if excess > 0 and key != keep:
                gone[key] = artifacts[key].size
                excess -= artifacts[key].size
        # Artifacts first: a row without an artifact is never shown.
        self._bucket.remove([artifacts[key].path for key in gone])
        now = max([*last.values(), *(listed.changed for listed in described_by)], default=0.0)
        left = [*described_by, *uses, *self._bucket.listed("leases")]
        self._bucket.remove([one.path for one in left if _is_over(one, artifacts, gone, now)])
        return [Removed(key=key, bytes=size) for key, size in gone.items()], -excess

    def _described_anew(self, key: str) -> Entry | None:
        entry = self.read(key)
        if entry is None:
            return None
        self.describe(entry)
        # Dropped, to keep the memory for a hundred thousand entries small.
        return replace(entry, identity=None, facts=None)

    def _listings(self) -> tuple[list[Listed], list[Listed], dict[str, Listed]]:
        """Return rows, uses and artifacts, listed concurrently."""
        with ThreadPoolExecutor(3) as pool:
            described_by, uses, kv = pool.map(self._bucket.listed_all, ("rows", "uses", "kv"))
        return described_by, uses, rows.artifacts_in(kv)


def _is_over(one: Listed, artifacts: dict[str, Listed], gone: dict[str, int], now: float) -> bool:
    """Return whether a row, use or lease belongs to a removed entry, or has long had no entry."""
    key = rows.key_in(one.path)
    old = now - one.changed > OLD_S
    if one.path.startswith("leases/"):
        return bool(key) and old
    return key in gone or (bool(key) and key not in artifacts and old)
