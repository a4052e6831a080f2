"""The entries in a bucket: their headers, their rows, and which of them go first."""

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
"""A lease, or a row without an entry, that is older is swept."""
READERS = 8
"""Headers that are read at once."""


class Entries:
    """What a bucket's listings and headers say. Methods raise BucketError."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def artifacts(self) -> dict[str, Listed]:
        """All artifacts by key."""
        return rows.artifacts_in(self._bucket.listed_all("kv"))

    def keys_beginning(self, key: str) -> list[str]:
        """The keys of artifacts that begin so."""
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
        """From three listings; headers are read of entries without a row, which get one."""
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
        """An entry as its artifact's header describes it, without its uses; None where it cannot
        be used."""
        try:
            artifact = open_artifact(BucketBlob(self._bucket, rows.artifact_path(key)))
        except (Damaged, FileNotFoundError):
            return None
        return self.entry(artifact) if artifact.header.key == key else None

    def entry(self, artifact: Artifact[BucketBlob]) -> Entry:
        """An entry as its open artifact describes it, without its uses."""
        listed = artifact.blob.object
        place = self._bucket.full(listed.path)
        return entry_of(artifact.header, location=place, created=listed.changed)

    def of_video(self, digest: str, most: int) -> Iterator[Entry]:
        """The entries of a video that were described last, `most` at most."""
        listing = self._bucket.listed(rows.rows_folder(digest))
        newest = sorted(listing, key=lambda row: -row.changed)
        keys = dict.fromkeys(rows.key_in(row.path) for row in newest)
        for key in [key for key in keys if key][:most]:
            if (entry := self.read(key)) is not None:
                yield entry

    def problem(self, key: str) -> str | None:
        """The damage of an artifact, every byte of which is read; None for a whole one."""
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
        """Write an entry's row, where its name is not too long for one; `alone`: instead of those
        that an earlier version of it may have."""
        room = rows.MOST_NAME - len(self._bucket.full("").encode())
        if path := rows.row_path(entry, room=room):
            with suppress(BucketError):
                self._bucket.write(path, b"")
                if alone:
                    folder = f"{rows.rows_folder(entry.video)}/{entry.key}"
                    old = [one.path for one in self._bucket.listed(folder) if one.path != path]
                    self._bucket.remove(old)

    def add_uses(self, key: str, uses: Uses) -> None:
        """Add to the uses that the bucket has: a new object, then the old ones are removed."""
        old = list(self._bucket.listed(rows.uses_folder(key)))
        known = rows.used(old)[key]
        total = Uses(known.hits + uses.hits, known.saved_s + uses.saved_s)
        new = rows.use_path(key, total)
        self._bucket.write(new, b"")
        self._bucket.remove([listed.path for listed in old if listed.path != new])

    def remove(self, keys: list[str]) -> None:
        """Remove artifacts, and the rows beside them as far as their headers lead there."""
        videos = {entry.video for entry in map(self.read, keys) if entry is not None}
        folders = [rows.rows_folder(video) for video in videos] + list(map(rows.uses_folder, keys))
        beside = [listed.path for folder in folders for listed in self._bucket.listed(folder)]
        named = [path for path in beside if rows.key_in(path) in keys]
        self._bucket.remove([*map(rows.artifact_path, keys), *named])

    def prune(self, limit: int, *, keep: str = "") -> tuple[list[Removed], int]:
        """Remove the least recently used until at most `limit` bytes remain, but never `keep`, and
        what belongs to no entry. Returns also the bytes of room that are left.

        Three listings, and a request for each thousand objects that are removed.
        """
        described_by, uses, artifacts = self._listings()
        used, gone = rows.used(uses), dict[str, int]()
        excess = sum(listed.size for listed in artifacts.values()) - limit
        last = {key: max(used[key].last_used, one.changed) for key, one in artifacts.items()}
        for key in sorted(artifacts, key=lambda key: last[key]):
            if excess > 0 and key != keep:
                gone[key] = artifacts[key].size
                excess -= artifacts[key].size
        # Artifacts first: a row without one is never shown.
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
        # The large parts of a hundred thousand entries are not kept.
        return replace(entry, identity=None, facts=None)

    def _listings(self) -> tuple[list[Listed], list[Listed], dict[str, Listed]]:
        """Rows, uses and artifacts, listed at once."""
        with ThreadPoolExecutor(3) as pool:
            described_by, uses, kv = pool.map(self._bucket.listed_all, ("rows", "uses", "kv"))
        return described_by, uses, rows.artifacts_in(kv)


def _is_over(one: Listed, artifacts: dict[str, Listed], gone: dict[str, int], now: float) -> bool:
    """Whether a row, a use or a lease belongs to a removed entry, or to none for long."""
    key = rows.key_in(one.path)
    old = now - one.changed > OLD_S
    if one.path.startswith("leases/"):
        return bool(key) and old
    return key in gone or (bool(key) and key not in artifacts and old)
