"""A store in a local folder, bounded in bytes.

root/CACHEDIR.TAG              the marker: without it nothing in the folder is removed
root/kv/ab/<key>.safetensors   the artifacts; an entry exists where its file does
root/index/                    small rows (diskcache): digests, last uses, descriptions of entries
root/locks/<key>               locked by the process that computes this key
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sttm_cli.base.system import single_flight
from sttm_cli.base.types import Json
from sttm_cli.settings.fields import size_text
from sttm_cli.store.artifact import Artifact, Damaged, Spelled, difference, open_artifact, spell
from sttm_cli.store.claim import Refused, claim, refusal
from sttm_cli.store.files import (
    PRIVATE,
    SUFFIX,
    FileBlob,
    Folder,
    Incoming,
    Scan,
    Stored,
    access_to,
    on_network,
    remove_files,
    sweep,
    touch,
)
from sttm_cli.store.index import Index, Records
from sttm_cli.store.lease import FolderLeases, holding
from sttm_cli.store.protocol import (
    Entry,
    Finding,
    Lookup,
    Removed,
    Space,
    Store,
    Uses,
    Warnings,
    entry_of,
)

if TYPE_CHECKING:
    from sttm_cli.base.types import PrefixKV
    from sttm_cli.store.packing import PackedKV

# The bound: keep a folder's artifacts within a number of bytes by evicting the least recently used.


MOST_BYTES = 20 << 30
"""The bound that is chosen where none is given, or a tenth of the disk where that is less."""
RESCAN_SHARE = 16
"""A scan of a hundred thousand files takes a second. The next one follows once a sixteenth of the
room that was left is filled, so that a few processes cannot exceed the bound by much."""


class Bound:
    """`max_bytes` for the files in `folder`; None for a bound by the size of its disk."""

    def __init__(
        self,
        folder: Folder,
        records: Records,
        *,
        warn: Callable[[str], None],
        max_bytes: int | None,
    ) -> None:
        self._folder, self._records, self._warn = folder, records, warn
        self._max_bytes = max_bytes
        self._before_rescan = 0

    def limit(self, scan: Scan | None = None) -> int:
        """The bound in bytes. The automatic one does not depend on how much of the disk is free."""
        if self._max_bytes is not None:
            return self._max_bytes
        stored = (scan or self._folder.scan()).bytes
        total = self._folder.space().total
        # Some file systems do not know their size.
        return min(MOST_BYTES, max(total // 10, stored)) if total else MOST_BYTES

    def describe(self, limit: int) -> str:
        """Where the bound comes from, with its bytes."""
        if self._max_bytes is not None:
            return f"--max-bytes {size_text(limit)}"
        return f"the automatic bound of {limit:,} bytes (20 GiB or a tenth of the disk)"

    def scan_for(self, size: int) -> Scan | None:
        """All files, where `size` bytes more might exceed the bound; else None."""
        return self._folder.scan() if size > self._before_rescan else None

    def lacking(self, size: int, scan: Scan | None) -> str:
        """Why `size` bytes more are not stored, "" where they are. Nothing that is stored makes
        room for them on a disk that is nearly full."""
        if scan and size > (limit := self.limit(scan)):
            return f"not stored: {size:,} bytes are more than {self.describe(limit)}"
        space = self._folder.space()
        if self._max_bytes is not None or not space.total or space.free is None:
            return ""
        if space.free - size >= space.reserve:
            return ""
        return (
            f"not stored: {size:,} bytes would leave less than {space.reserve:,} free on the disk "
            f"of {self._folder.root}; make room there, or give --max-bytes"
        )

    def added(self, written: Stored, scan: Scan | None) -> None:
        """Keep the bound after `written` was added to the files of `scan`, and sweep."""
        self._before_rescan -= written.bytes
        if scan is None:
            return
        artifacts = [s for s in scan.artifacts if s.key != written.key] + [written]
        limit = self.limit(scan)
        removed = self.prune(artifacts, limit, keep=written.key)
        freed = sum(s.bytes for s in removed)
        if removed:
            self._warn(
                f"removed {len(removed):,} of the least recently used entries ({freed:,} bytes) "
                f"to keep within {self.describe(limit)}"
            )
        left = limit - sum(s.bytes for s in artifacts) + freed
        self._before_rescan = left // RESCAN_SHARE
        sweep(scan.leftovers)

    def prune(self, artifacts: list[Stored], limit: int, *, keep: str = "") -> list[Stored]:
        """Remove the least recently used until at most `limit` bytes remain, but never `keep`."""
        excess = sum(stored.bytes for stored in artifacts) - limit
        if excess <= 0:
            return []
        chosen = dict[Path, Stored]()
        for stored in self._records.by_last_use(artifacts):
            if excess > 0 and stored.key != keep:
                chosen[stored.path] = stored
                excess -= stored.bytes
        removed = [chosen[path] for path in remove_files(chosen, self._warn)]
        self._records.forget([stored.key for stored in removed])
        return removed


class LocalStore(Store):
    """The store in folder `root`; a damaged, foreign or hostile file in it is a miss."""

    def __init__(
        self, root: Path, *, warn: Callable[[str], None], max_bytes: int | None = None
    ) -> None:
        self.path, self._warn = root.absolute(), Warnings(warn)
        self._refusal = refusal(self.path)
        if self._refusal:
            self._warn(f"the cache is not used: {self._refusal}")
        self._access = access_to(self.path)
        self._shared = self._access != PRIVATE or on_network(self.path)
        self._folder = Folder(self.path, self._access, shared=self._shared)
        rows = _own_rows(self.path) if self._shared else self.path / "index"
        self._index = Index(rows, enabled=not self._refusal)
        self._records = Records(self._index, self._folder)
        self._bound = Bound(self._folder, self._records, warn=self._warn, max_bytes=max_bytes)

    def close(self) -> None:
        self._index.close()

    def telling(self, warn: Callable[[str], None]) -> AbstractContextManager[None]:
        return self._warn.redirected(warn)

    # ---- properties of the store

    @property
    def location(self) -> str:
        return str(self.path)

    @property
    def refusal(self) -> str:
        return self._refusal

    @property
    def writable(self) -> bool:
        return self._make_folder(quiet=True) and os.access(self.path, os.W_OK | os.X_OK)

    @property
    def bytes(self) -> int:
        return self._scan().bytes

    @property
    def max_bytes(self) -> int:
        """The bound: as given, else 20 GiB or a tenth of the disk, and not less than is stored."""
        return self._bound.limit()

    def space(self) -> Space:
        return self._folder.space()

    # ---- small rows

    def get(self, key: str) -> Json | None:
        return self._index.get(key)

    def set(self, key: str, value: Json) -> None:
        if self._make_folder(quiet=True):
            self._index.set(key, value)

    def rows(self, prefix: str) -> dict[str, Json]:
        """Return the remembered rows whose key begins with `prefix`, by the rest of the key."""
        return self._index.rows(prefix)

    # ---- finding and reading

    def find(self, identity: Json) -> Lookup:
        wanted = spell(identity)
        if self._refusal:
            return Lookup(miss_reason=f"the cache is not used: {self._refusal}")
        artifact, problem = self._opened(wanted)
        if artifact is None:
            return Lookup(miss_reason=problem or self._miss_reason(identity))
        artifact.blob.expect_whole_read()
        entry = _entry(artifact, self._records.uses_of(wanted.key))
        return Lookup(entry=entry, artifact=artifact)

    def stored(self, identity: Json) -> Entry | None:
        artifact, _ = (None, "") if self._refusal else self._opened(spell(identity))
        if artifact is None:
            return None
        artifact.blob.close()
        return _entry(artifact, self._records.uses_of(artifact.header.key))

    def load(self, lookup: Lookup, *, device: str | Sequence[str], room: int) -> PrefixKV | None:
        from sttm_cli.store.reading import read_tensors

        artifact = lookup.artifact
        if artifact is None:
            return None
        with lookup:
            try:
                return read_tensors(artifact, device=device, room=room)
            except (Damaged, OSError) as error:
                self._report_damage(artifact.header.key, error)
                return None

    def use(self, key: str, *, saved_s: float) -> None:
        """Count a use of an entry."""
        self._records.count_use(key, saved_s=saved_s)

    def count_use(self, entry: Entry, *, saved_s: float) -> None:
        self._records.count_use(entry.key, saved_s=saved_s)
        if self._shared:
            # Other users do not see these rows; they read the file's mtime.
            touch(self._folder.place(entry.key))

    def entries(self) -> list[Entry]:
        """Return all entries; reads the headers of those that the index does not describe."""
        artifacts, described = self._scan().artifacts, list[tuple[Entry, Stored]]()
        entries = list[Entry]()
        for stored, entry in zip(artifacts, self._records.entries(artifacts), strict=True):
            if entry is None:
                try:
                    # Dropped, to keep the memory for a hundred thousand entries small.
                    entry = replace(self._read(stored.path), identity=None, facts=None)
                except (Damaged, OSError):
                    continue
                described.append((entry, stored))
            entries.append(entry)
        self._records.describe(described)
        return entries

    def beginning(self, key: str) -> list[Entry]:
        entries = []
        for stored in self._scan().artifacts:
            if stored.key.startswith(key):
                with suppress(Damaged, OSError):
                    entries.append(self._read(stored.path))
        return entries

    # ---- writing and removing

    def save(self, identity: Json, packed: PackedKV, *, label: Json) -> Entry | None:
        """Write a temporary file, sync and rename it, then add its row."""
        from sttm_cli.store.packing import write

        if not self._make_folder():
            return None
        wanted, scan = spell(identity), self._bound.scan_for(packed.nbytes)
        if lacking := self._bound.lacking(packed.nbytes, scan):
            self._warn(lacking)
            return None
        path = self._folder.place(wanted.key)
        try:
            self._folder.write(path, lambda file: write(file, identity, packed, label))
            artifact = self._open(path, wanted)
        except (OSError, Damaged) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._warn(f"not stored in {self.path}: {reason}")
            return None
        artifact.blob.close()
        entry = _entry(artifact, self._records.uses_of(wanted.key))
        stored = Stored(entry.key, entry.location, artifact.blob.stat)
        self._records.add(entry, stored)
        self._bound.added(stored, scan)
        if scan:
            self._index.forget_old()
        return entry

    def has(self, key: str) -> bool:
        """Return whether a file is in this entry's place, without reading it."""
        return not self._refusal and os.path.lexists(self._folder.place(key))

    def begin(self, key: str, size: int) -> Incoming | None:
        """A file for an artifact of `size` bytes that arrives from elsewhere; None where the bound
        or the disk has no room for it. `finish` makes it an entry."""
        if not self._make_folder(quiet=True):
            return None
        scan = self._bound.scan_for(size)
        try:
            if self._bound.lacking(size, scan):
                return None
            return self._folder.begin(self._folder.place(key))
        except (OSError, Damaged):
            return None

    def finish(self, incoming: Incoming, wanted: Spelled) -> Entry | None:
        """Turn a complete file into the entry of `wanted`, within the bound; None if that fails."""
        try:
            incoming.keep()
            artifact = self._open(incoming.path, wanted)
        except (OSError, Damaged):
            incoming.drop()
            return None
        artifact.blob.close()
        entry = _entry(artifact, self._records.uses_of(wanted.key))
        stored = Stored(entry.key, entry.location, artifact.blob.stat)
        scan = self._bound.scan_for(entry.bytes)
        self._records.add(entry, stored)
        self._bound.added(stored, scan)
        return entry

    def remove(self, keys: Iterable[str]) -> list[str]:
        places = {} if self._refusal else {self._folder.place(key): key for key in keys}
        paths = {path: key for path, key in places.items() if not self._folder.is_linked(path)}
        removed = [paths[path] for path in remove_files(paths, self._warn)]
        self._records.forget(removed)
        return removed

    def prune(self, limit: int) -> list[Removed]:
        scan = self._scan()
        sweep(scan.leftovers)
        self._index.forget_old()
        removed = self._bound.prune(scan.artifacts, limit)
        return [Removed(key=stored.key, bytes=stored.bytes) for stored in removed]

    def verify(
        self, *, repair: bool = False, limit: int | None = None
    ) -> tuple[int, list[Finding]]:
        scan, problems = self._scan(), dict[Path, str]()
        for stored in scan.artifacts[:limit]:
            if (problem := self._problem(stored.path)) is not None:
                problems[stored.path] = problem
        removed = set[Path]()
        if repair:
            removed.update(remove_files(problems, self._warn))
            self._records.forget([path.name.removesuffix(SUFFIX) for path in removed])
            sweep(scan.leftovers)
        findings = [
            Finding(location=str(path), problem=problem, removed=path in removed)
            for path, problem in problems.items()
        ]
        return len(scan.artifacts), findings

    @contextmanager
    def computing(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        if not self._make_folder(quiet=True):
            yield
            return
        if self._shared:
            place, leases = self._folder.place(key), FolderLeases(self._folder.locks, self._access)
            with holding(leases, key, on_wait, done=lambda: os.path.lexists(place)):
                yield
            return
        with single_flight(self._folder.lock(key), on_wait):
            yield

    @contextmanager
    def sign(self) -> Iterator[str]:
        # A lock file, because the rows of a shared folder are private to each user.
        key = secrets.token_hex(32)
        with self.computing(key, lambda: None):
            yield key if self.sees(key) else ""

    def sees(self, sign: str) -> bool:
        return not sign or os.path.lexists(self._folder.lock(sign))

    # ---- inside

    def _scan(self) -> Scan:
        return Scan([], []) if self._refusal else self._folder.scan()

    def _opened(self, wanted: Spelled) -> tuple[Artifact[FileBlob] | None, str]:
        """Open an artifact; otherwise return why it is unusable, "" if it does not exist."""
        path = self._folder.place(wanted.key)
        if not os.path.lexists(path):
            return None, ""
        try:
            return self._open(path, wanted), ""
        except FileNotFoundError:
            return None, "its entry was removed just now"
        except (Damaged, OSError) as error:
            self._report_damage(wanted.key, error)
            return None, f"entry damaged: {error}"

    def _read(self, path: Path) -> Entry:
        """Return an entry as its file describes it; raises as `_open`."""
        artifact = self._open(path)
        artifact.blob.close()
        return _entry(artifact, self._records.uses_of(artifact.header.key))

    def _miss_reason(self, identity: Json) -> str:
        """Return the differences from the closest entry of the same video."""
        digest, differences = identity.get("video", {}).get("digest", ""), []
        for key in self._records.keys_of(digest):
            with suppress(Damaged, OSError):
                differences.append(
                    difference(identity, self._read(self._folder.place(key)).identity or {})
                )
        if not differences:
            # Other users' entries are only found by their whole identity.
            beside = " and these settings" if self._shared else ""
            return f"nothing stored for this video{beside} (digest {digest[:12]})"
        return "; ".join(min(differences, key=len)[:3])

    def _make_folder(self, *, quiet: bool = False) -> bool:
        """Create and mark the folder; return False if that fails."""
        if self._refusal:
            return False
        try:
            claim(self.path)
        except Refused as error:
            self._refusal, self._index.enabled = str(error), False
            self._warn(f"the cache is not used: {error}")
            return False
        except OSError as error:
            if not quiet:
                self._warn(f"not stored: {self.path} cannot be made ({error.strerror})")
            return False
        return True

    def _open(self, path: Path, wanted: Spelled | None = None) -> Artifact[FileBlob]:
        """Open the artifact in a file; raises OSError and Damaged."""
        self._access.check_levels(path)
        artifact = open_artifact(FileBlob(path, self._access), wanted)
        if path.name != artifact.header.key + SUFFIX:
            artifact.blob.close()
            raise Damaged("its file has the name of another entry")
        return artifact

    def _problem(self, path: Path) -> str | None:
        """Return the damage of an artifact, None if it is intact."""
        from sttm_cli.store.reading import check_bytes

        try:
            artifact = self._open(path)
            with closing(artifact.blob):
                check_bytes(artifact)
        except FileNotFoundError:
            return None
        except (Damaged, OSError) as error:
            return str(error)
        return None

    def _report_damage(self, key: str, error: Exception) -> None:
        self._warn(f"stored entry {key[:12]} is not used: {error}")


def _entry(artifact: Artifact[FileBlob], uses: Uses) -> Entry:
    blob, header = artifact
    return entry_of(header, location=blob.path, created=blob.stat.st_mtime, uses=uses)


def _own_rows(root: Path) -> Path:
    """Return the folder of this user's rows about a shared cache: a database is not safe on a
    network file system or shared by several users."""
    from blake3 import blake3
    from platformdirs import user_cache_path

    name = str(blake3(os.fsencode(root)).hexdigest())[:16]
    return user_cache_path("sttm-shared") / name / "index"
