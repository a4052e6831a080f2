"""A store in a bucket, shared by machines, with copies on the local disk.

PREFIX/sttm-cache-1/kv/a/<key>.safetensors   the artifacts; an entry exists where its object does
PREFIX/sttm-cache-1/rows, uses               their descriptions and last uses (`bucket_rows.py`)
PREFIX/sttm-cache-1/leases/<key>             held by the process that computes this key
PREFIX/sttm-cache-1/clock                    written to ask for the server's time

Nothing in it is trusted: what does not match its identity, checksum or name is a miss.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from sttm_cli.base.types import Json
from sttm_cli.settings.fields import size_text
from sttm_cli.store.artifact import Artifact, Damaged, Spelled, difference, open_artifact, spell
from sttm_cli.store.bucket import Bucket, BucketError, Changed, Traffic, Unchanged, Version
from sttm_cli.store.bucket_blob import BucketBlob, MemoryBlob
from sttm_cli.store.bucket_entries import Entries
from sttm_cli.store.bucket_lease import CLOCK, BucketLeases, enforces_conditions
from sttm_cli.store.bucket_rows import artifact_path
from sttm_cli.store.files import Incoming
from sttm_cli.store.lease import holding
from sttm_cli.store.protocol import (
    NO_BOUND,
    Entry,
    Finding,
    Lookup,
    Probe,
    Removed,
    Store,
    Uses,
    Warnings,
    entry_of,
)
from sttm_cli.store.tier import Tier

if TYPE_CHECKING:
    from sttm_cli.base.types import PrefixKV
    from sttm_cli.store.packing import PackedKV

NEAREST = 3
"""How many entries of the same video a miss is compared with."""
MOST_SEEN = 10_000
"""How many versions are remembered between a lookup and the following upload."""
RESCAN_SHARE = 16
"""With a bound, all sizes are listed again once a sixteenth of the free space is used."""

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate["BucketStore", P], T]


def _or_else(default: Callable[[], T]) -> Callable[[Method[P, T]], Method[P, T]]:
    """Make a method warn and return `default()` if a bucket request fails."""

    def decorate(method: Method[P, T]) -> Method[P, T]:
        @wraps(method)
        def guarded(store: BucketStore, /, *given: P.args, **named: P.kwargs) -> T:
            try:
                done = method(store, *given, **named)
                store.failure = ""
                return done
            except BucketError as error:
                store.report_failure(error)
                return default()

        return guarded

    return decorate


class BucketStore(Store):
    """The store at an address such as s3://bucket/prefix, with local copies in the folder `tier`.

    Raises UsageError for a malformed address, CacheError without the extra `cloud`.
    """

    def __init__(
        self,
        address: str,
        *,
        warn: Callable[[str], None],
        max_bytes: int | None = None,
        tier: Path | None = None,
    ) -> None:
        self._bucket, self._warn = Bucket(address), Warnings(warn)
        self._entries = Entries(self._bucket)
        self._tier = Tier(tier, self._bucket.address, warn=self._warn)
        self._max_bytes, self._before_rescan = max_bytes, 0
        self.failure = ""
        self._seen: dict[str, Version | None] = {}
        self._reasons: dict[str, str] = {}
        self._later = ThreadPoolExecutor(1, thread_name_prefix="uses")

    def close(self) -> None:
        self._later.shutdown(wait=True)
        self._tier.close()

    def telling(self, warn: Callable[[str], None]) -> AbstractContextManager[None]:
        return self._warn.redirected(warn)

    def report_failure(self, error: BucketError) -> None:
        """Warn that a bucket request failed."""
        self.failure = str(error)
        self._warn(f"the cache is not used: {self.location}: {error}")

    # ---- properties of the store

    @property
    def location(self) -> str:
        return self._bucket.address

    @property
    def writable(self) -> bool:
        return self._can_write()

    @property
    def bytes(self) -> int:
        return self._count_bytes()

    @property
    def max_bytes(self) -> int:
        return NO_BOUND if self._max_bytes is None else self._max_bytes

    def probes(self) -> Iterator[Probe]:
        name = "conditional writes"
        try:
            enforced = enforces_conditions(self._bucket)
        except BucketError as error:
            yield Probe(name, "", f"they cannot be tried: {error}", "see the cache above")
            return
        problem = None if enforced else "the server accepts conditions and ignores them"
        copies = self._tier.store.location if self._tier.store else "none"
        yield Probe(
            name,
            f"the server enforces them; local copies: {copies}",
            problem,
            "answers stay right, but several machines may compute the same video at once: "
            "share them out with sttm precompute --shard",
        )

    @_or_else(bool)
    def _can_write(self) -> bool:
        self._bucket.write(CLOCK, b"")
        return True

    @_or_else(int)
    def _count_bytes(self) -> int:
        return sum(listed.size for listed in self._entries.artifacts().values())

    @property
    def traffic(self) -> Traffic:
        """The requests made to the bucket so far."""
        return self._bucket.traffic

    # ---- small rows: facts about files of this machine

    def get(self, key: str) -> Json | None:
        return self._tier.get(key)

    def set(self, key: str, value: Json) -> None:
        self._tier.set(key, value)

    # ---- finding and reading

    def find(self, identity: Json) -> Lookup:
        return self._find(identity, whole=True)

    def stored(self, identity: Json) -> Entry | None:
        with self._find(identity, whole=False) as lookup:
            return lookup.entry

    def load(self, lookup: Lookup, *, device: str | Sequence[str], room: int) -> PrefixKV | None:
        artifact = lookup.artifact
        if artifact is None:
            return None
        if isinstance(artifact.blob, BucketBlob):
            return self._loaded(artifact, device, room)
        kv = self._tier.load(lookup, device=device, room=room)
        if kv is not None:
            return kv
        # The copy is damaged; the object in the bucket may be intact.
        self._tier.remove(artifact.header.key)
        with self.find(artifact.header.identity) as again:
            if again.artifact is not None and isinstance(again.artifact.blob, BucketBlob):
                return self._loaded(again.artifact, device, room)
        return None

    def count_use(self, entry: Entry, *, saved_s: float) -> None:
        """Count a use; another thread writes it to the bucket, but not every time (`tier.py`)."""
        uses = self._tier.count_use(entry.key, saved_s)
        if uses is not None:
            self._later.submit(self._write_uses, entry.key, uses)

    @_or_else(list[Entry])
    def entries(self) -> list[Entry]:
        """Return all entries, from listings alone if each has its row."""
        self._settle()
        return self._with_pending(self._entries.all())

    @_or_else(list[Entry])
    def beginning(self, key: str) -> list[Entry]:
        self._settle()
        read = [self._entries.read(known) for known in self._entries.keys_beginning(key)]
        found = [replace(e, uses=self._entries.uses_of(e.key)) for e in read if e is not None]
        return self._with_pending(found)

    # ---- writing and removing

    def save(self, identity: Json, packed: PackedKV, *, label: Json) -> Entry | None:
        """Upload the artifact in one conditional request, then write its row."""
        if packed.nbytes > self.max_bytes:
            self._warn(f"not stored: {packed.nbytes:,} bytes are more than {self._bound()}")
            return None
        wanted = spell(identity)
        incoming = self._tier.begin(wanted.key, packed.nbytes)
        try:
            data = _laid_out(incoming, identity, packed, label)
            seen = self._version_before(wanted.key)
            e_tag = self._upload(wanted, data, seen)
            header = open_artifact(MemoryBlob(data), wanted).header
            listed = self._bucket.head(artifact_path(wanted.key))
            if incoming is not None and e_tag is not None:
                self._tier.finish(incoming, wanted, e_tag)
        except (OSError, Damaged) as error:
            self._warn(f"not stored in {self.location}: {error}")
            return None
        finally:
            _drop(incoming)
        place = self._bucket.full(artifact_path(wanted.key))
        entry = entry_of(header, location=place, created=listed.changed if listed else 0.0)
        self._entries.describe(entry, alone=seen is not None)
        self._keep_bound(entry)
        return entry

    @_or_else(list[str])
    def remove(self, keys: Iterable[str]) -> list[str]:
        keys = list(keys)
        self._entries.remove(keys)
        self._tier.remove(*keys)
        return keys

    @_or_else(list[Removed])
    def prune(self, limit: int) -> list[Removed]:
        self._settle()
        return self._pruned(limit)

    @_or_else(lambda: (0, list[Finding]()))
    def verify(
        self, *, repair: bool = False, limit: int | None = None
    ) -> tuple[int, list[Finding]]:
        keys, problems = list(self._entries.artifacts()), dict[str, str]()
        for key in keys[:limit]:
            if (problem := self._entries.problem(key)) is not None:
                problems[key] = problem
        removed = self.remove(problems) if repair else []
        findings = [
            Finding(self._bucket.full(artifact_path(key)), problem, key in removed)
            for key, problem in problems.items()
        ]
        return len(keys), findings

    @contextmanager
    def computing(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        def done() -> bool:
            return self._bucket.head(artifact_path(key)) is not None

        with holding(BucketLeases(self._bucket), key, on_wait, done=done):
            yield

    # ---- inside: finding and reading

    def _find(self, identity: Json, *, whole: bool) -> Lookup:
        wanted, self.failure = spell(identity), ""
        try:
            return self._opened(wanted, identity, whole, self._tier.e_tag(wanted.key))
        except FileNotFoundError:
            self._seen[wanted.key] = None
            self._tier.remove(wanted.key)
            return Lookup(miss_reason=self._miss_reason(wanted.key, identity))
        except BucketError as error:
            return self._without_bucket(identity, error)
        except Damaged as error:
            self._report_damage(wanted.key, error)
            return Lookup(miss_reason=f"entry damaged: {error}")

    def _opened(self, wanted: Spelled, identity: Json, whole: bool, known: str) -> Lookup:
        path = artifact_path(wanted.key)
        try:
            blob = BucketBlob(self._bucket, path, whole=whole, known=known)
        except Unchanged:
            copy = self._tier.find(identity)
            if copy.entry is None:
                self._tier.remove(wanted.key)
                return self._opened(wanted, identity, whole, "")
            return replace(copy, entry=replace(copy.entry, location=self._bucket.full(path)))
        if len(self._seen) > MOST_SEEN:
            self._seen.clear()
        self._seen[wanted.key] = blob.object.version
        artifact = open_artifact(blob, wanted)
        return Lookup(entry=self._entries.entry(artifact), artifact=artifact)

    def _without_bucket(self, identity: Json, error: BucketError) -> Lookup:
        """Look for a local copy, equally valid without the bucket: its identity is compared."""
        self.report_failure(error)
        copy = self._tier.find(identity)
        if copy.entry is not None:
            self._warn("the answer starts from the copy on this machine")
            return copy
        return Lookup(miss_reason=f"the cache is not used: {error}")

    def _loaded(
        self, artifact: Artifact[BucketBlob], device: str | Sequence[str], room: int
    ) -> PrefixKV | None:
        """Read a KV, and keep a copy of its bytes if their checksum matches."""
        from sttm_cli.store.reading import read_tensors

        blob, header = artifact
        copy = _Copy(self._tier.begin(header.key, blob.size))
        try:
            blob.copy_to(copy.write)
            kv = read_tensors(artifact, device=device, room=room)
            if copy.incoming is not None:
                e_tag = blob.object.version.e_tag
                self._tier.finish(copy.incoming, spell(header.identity), e_tag)
            return kv
        except (Damaged, OSError) as error:
            self._report_damage(header.key, error)
            return None
        finally:
            blob.close()
            copy.drop()

    def _miss_reason(self, key: str, identity: Json) -> str:
        """Return the differences from the closest entry of the same video."""
        # The same miss is looked up again once the lease is held.
        known = self._reasons.pop(key, None)
        if known is None:
            digest = str(identity.get("video", {}).get("digest", ""))
            self._reasons[key] = f"nothing stored for this video (digest {digest[:12]})"
            with suppress(BucketError):
                near = self._entries.of_video(digest, NEAREST)
                found = [difference(identity, entry.identity or {}) for entry in near]
                if found:
                    self._reasons[key] = "; ".join(min(found, key=len)[:3])
            return self._reasons[key]
        return known

    # ---- inside: writing

    def _version_before(self, key: str) -> Version | None:
        """Return the version of an artifact at its last lookup; None if it did not exist."""
        if key in self._seen:
            return self._seen.pop(key)
        listed = self._bucket.head(artifact_path(key))
        return listed.version if listed else None

    def _upload(self, wanted: Spelled, data: memoryview, seen: Version | None) -> str | None:
        """Replace the version that was `seen`; return the ETag of the new object, None if another
        machine's entry stays."""
        path = artifact_path(wanted.key)
        try:
            return self._bucket.write(path, data, create=seen is None, same=seen).e_tag
        except Changed:
            theirs = self._theirs(path, wanted)
        if theirs is None:
            return self._bucket.write(path, data).e_tag
        # The reply to the first attempt was lost: the object is in fact ours.
        ours = theirs.size == len(data) and theirs.first == data[: len(theirs.first)]
        return theirs.object.version.e_tag if ours else None

    def _theirs(self, path: str, wanted: Spelled) -> BucketBlob | None:
        """Return the entry that another machine stored meanwhile; None if it is unusable."""
        try:
            blob = BucketBlob(self._bucket, path)
            with closing(open_artifact(blob, wanted).blob):
                return blob
        except (Damaged, FileNotFoundError):
            return None

    def _write_uses(self, key: str, uses: Uses) -> None:
        with suppress(BucketError):
            self._entries.add_uses(key, uses)

    def _keep_bound(self, entry: Entry) -> None:
        self._before_rescan -= entry.bytes
        if self._max_bytes is None or self._before_rescan > 0:
            return
        try:
            removed = self._pruned(self._max_bytes, keep=entry.key)
        except BucketError as error:
            self.report_failure(error)
            return
        freed = sum(one.bytes for one in removed)
        if removed:
            self._warn(
                f"removed {len(removed):,} of the least recently used entries ({freed:,} bytes) "
                f"to keep within {self._bound()}"
            )

    def _pruned(self, limit: int, *, keep: str = "") -> list[Removed]:
        removed, left = self._entries.prune(limit, keep=keep)
        self._before_rescan = left // RESCAN_SHARE
        self._tier.remove(*(one.key for one in removed))
        return removed

    def _bound(self) -> str:
        return f"--max-bytes {size_text(self.max_bytes)}"

    # ---- inside: the rest

    def _with_pending(self, entries: list[Entry]) -> list[Entry]:
        """Add the uses counted on this machine that are not in the bucket yet."""
        pending, found = self._tier.pending(), list[Entry]()
        for entry in entries:
            if here := pending.get(entry.key):
                known = entry.uses
                uses = Uses(known.hits + here.hits, known.saved_s + here.saved_s, known.last_used)
                entry = replace(entry, uses=uses)
            found.append(entry)
        return found

    def _settle(self) -> None:
        """Wait for uses that are being written."""
        self._later.submit(lambda: None).result()

    def _report_damage(self, key: str, error: Exception) -> None:
        self._warn(f"stored entry {key[:12]} is not used: {error}")


class _Copy:
    """The copy of an artifact being read; abandoned if the disk fails."""

    def __init__(self, incoming: Incoming | None) -> None:
        self._incoming, self._failed = incoming, False

    @property
    def incoming(self) -> Incoming | None:
        """The file of the copy; None if any write failed."""
        return None if self._failed else self._incoming

    def write(self, offset: int, data: memoryview) -> None:
        """Write a part of the copy; called from any thread."""
        if (incoming := self.incoming) is not None:
            try:
                incoming.write(offset, data)
            except OSError:
                # Not closed yet: other threads may be writing.
                self._failed = True

    def drop(self) -> None:
        """Remove the copy unless it was kept; call once no thread writes any more."""
        _drop(self._incoming)


def _laid_out(
    incoming: Incoming | None, identity: Json, packed: PackedKV, label: Json
) -> memoryview:
    """Return an artifact's bytes, in the file of its copy, or in memory if that has no room."""
    from sttm_cli.store.packing import write

    if incoming is not None:
        try:
            file: Any = incoming.file
            write(file, identity, packed, label)
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError:
            incoming.drop()
    memory = io.BytesIO()
    write(memory, identity, packed, label)
    return memory.getbuffer()


def _drop(incoming: Incoming | None) -> None:
    if incoming is not None:
        incoming.drop()
