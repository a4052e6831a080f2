"""The cache: artifacts found by key in a folder, bounded in bytes, least recently used first.

root/kv/ab/<key>.safetensors   the artifacts; these alone decide what is stored
root/index/                    small rows (diskcache): digests, last uses, what entries are
root/locks/<key>               held by the process that computes this key
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path

from sttm_cli.base.locks import single_flight
from sttm_cli.base.types import Json, PrefixKV
from sttm_cli.store.artifact import Damaged, Header, open_artifact, read_header, write
from sttm_cli.store.entry import Entry, Finding, Lookup, entry_of
from sttm_cli.store.files import (
    SUFFIX,
    Folder,
    Scan,
    Stored,
    is_ours,
    remove_files,
    seal_of,
    sweep,
)
from sttm_cli.store.identity import difference, key_of
from sttm_cli.store.index import Index
from sttm_cli.store.packing import PackedKV
from sttm_cli.store.reading import check_bytes, read_tensors
from sttm_cli.store.records import Records

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)
LOOK = 16
"""Looking at a hundred thousand files takes a second: what all of them take is looked at again
once a sixteenth of the room that was left is filled, so that a few processes cannot overfill it."""


class Store:
    """The cache in folder `root`; a damaged, foreign or hostile file in it is a miss.

    Methods do not raise for what is on the disk: `warn` gets a line, and the answer is computed.
    """

    def __init__(
        self, root: Path, *, warn: Callable[[str], None], max_bytes: int | None = None
    ) -> None:
        self.path, self._otherwise = root.absolute(), warn
        self._max_bytes = max_bytes
        self._unlooked = 0
        self._usable = is_ours(self.path, warn)
        self._folder = Folder(self.path)
        self._index = Index(self.path / "index")
        self._records = Records(self._index, self._folder)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._index.close()

    @contextmanager
    def telling(self, warn: Callable[[str], None]) -> Iterator[None]:
        """Within this context, and this thread, warnings go to `warn`."""
        token = _listener.set(warn)
        try:
            yield
        finally:
            _listener.reset(token)

    # ---- small rows

    def get(self, key: str) -> Json | None:
        """A remembered row, None if there is none."""
        return self._index.get(key) if self._usable else None

    def set(self, key: str, value: Json) -> None:
        """Remember a row for some months, not at all where nothing can be written."""
        if self._usable and self._make_folder(self.path, quiet=True):
            self._index.set(key, value)

    # ---- finding and reading

    def find(self, identity: Json) -> Lookup:
        """The entry whose identity is equal in full, or what the nearest one differs in."""
        key = key_of(identity)
        path = self._folder.place(key)
        if not self._usable or not os.path.lexists(path):
            return Lookup(None, self._miss_reason(identity))
        try:
            return Lookup(self._entry(path, identity), None)
        except FileNotFoundError:
            return Lookup(None, "its entry was removed just now")
        except (Damaged, OSError) as error:
            self._say_damaged(path, error)
            return Lookup(None, f"entry damaged: {error}")

    def load(self, entry: Entry, *, device: str | Sequence[str], room: int) -> PrefixKV | None:
        """Read an entry into buffers with `room` free rows; None, and a warning, if damaged.

        `device`: one for all layers, or each layer's own.
        """
        try:
            with open_artifact(entry.path) as file:
                header = read_header(file, entry.identity)
                if header.meta["key"] != entry.key:
                    raise Damaged("it is another entry's")
                seal = _checked(file.fileno(), header)
                check = self.get(f"verified:{entry.key}") != seal
                kv = read_tensors(file, header, device=device, room=room, check=check)
        except FileNotFoundError:
            return None
        except (Damaged, OSError) as error:
            self._say_damaged(entry.path, error)
            return None
        if check:
            self.set(f"verified:{entry.key}", seal)
        return kv

    def count_use(self, entry: Entry, *, saved_s: float) -> None:
        """Remember that an entry was used now, and how much sooner it was there for that."""
        self._records.count_use(entry.key, saved_s=saved_s)

    def entries(self) -> list[Entry]:
        """Everything stored that can be read; headers are read of what the index does not know."""
        artifacts, learnt = self._scan().artifacts, list[tuple[Entry, Stored]]()
        found = list[Entry]()
        for stored, entry in zip(artifacts, self._records.entries(artifacts), strict=True):
            if entry is None:
                try:
                    # Of a hundred thousand entries the large parts are not kept.
                    entry = replace(self._entry(stored.path), identity=None, facts=None)
                except (Damaged, OSError):
                    continue
                learnt.append((entry, stored))
            found.append(entry)
        self._records.learn(learnt)
        return found

    def beginning(self, key: str) -> list[Entry]:
        """The entries whose key begins so, as their files say."""
        found = []
        for stored in self._scan().artifacts:
            if stored.key.startswith(key):
                with suppress(Damaged, OSError):
                    found.append(self._entry(stored.path))
        return found

    # ---- writing and removing

    def save(self, identity: Json, packed: PackedKV, *, label: Json) -> Entry | None:
        """Store a KV: a temporary file beside its place, fsync, rename, then its row.

        None, and a warning, where it cannot be written; nothing stored is lost by that.
        """
        if not self._usable or not self._make_folder(self.path):
            return None
        path = self._folder.place(key_of(identity))
        scan = self._scan() if packed.nbytes > self._unlooked else None
        if scan and packed.nbytes > (limit := self._limit(scan)):
            self._warn(f"not stored: {packed.nbytes:,} bytes are more than --max-bytes {limit:,}")
            return None
        try:
            self._folder.write(path, lambda file: write(file, identity, packed, label))
            stored, entry = self._read(path, identity)
        except (OSError, Damaged) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._warn(f"not stored in {self.path}: {reason}")
            return None
        self._records.add(entry, stored)
        self._unlooked -= stored.bytes
        if scan:
            self._tidy(scan, stored)
        return entry

    def remove(self, keys: Iterable[str]) -> list[str]:
        """Remove entries and return the keys of those that are gone; a process that reads one now
        reads on."""
        paths = {self._folder.place(key): key for key in keys}
        gone = [paths[path] for path in remove_files(paths, self._warn)]
        self._records.forget(gone)
        return gone

    def prune(self, limit: int) -> list[Stored]:
        """Remove the least recently used entries until at most `limit` bytes are left."""
        scan = self._scan()
        sweep(scan.leavings)
        self._index.forget_old()
        return self._prune(scan.artifacts, limit)

    def verify(
        self, *, repair: bool = False, limit: int | None = None
    ) -> tuple[int, list[Finding]]:
        """Check every byte of every file under kv/, or of `limit` of them; return how many there
        are, and which are damaged. `repair` removes those."""
        scan, problems = self._scan(), dict[Path, str]()
        for stored in scan.artifacts[:limit]:
            if (problem := self._problem(stored.path)) is not None:
                problems[stored.path] = problem
        gone = set[Path]()
        if repair:
            gone.update(remove_files(problems, self._warn))
            self._records.forget([path.name.removesuffix(SUFFIX) for path in gone])
            sweep(scan.leavings)
        findings = [Finding(path, problem, path in gone) for path, problem in problems.items()]
        return len(scan.artifacts), findings

    @contextmanager
    def computing(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold `key`, so that two processes do not compute the same video at once."""
        if not self._usable or not self._make_folder(self.path, quiet=True):
            yield
            return
        with single_flight(self._folder.lock(key), on_wait):
            yield

    @property
    def bytes(self) -> int:
        """What all files under kv/ take, counted now."""
        return self._scan().bytes

    @property
    def max_bytes(self) -> int:
        """The bound: as given, else 20 GiB or a tenth of what could be free."""
        return self._limit(self._scan()) if self._max_bytes is None else self._max_bytes

    @property
    def writable(self) -> bool:
        """Whether anything can be stored at all."""
        made = self._usable and self._make_folder(self.path, quiet=True)
        return made and os.access(self.path, os.W_OK | os.X_OK)

    # ---- inside

    def _scan(self) -> Scan:
        return self._folder.scan() if self._usable else Scan([], [])

    def _limit(self, scan: Scan) -> int:
        if self._max_bytes is not None:
            return self._max_bytes
        place = self.path
        while not os.path.exists(place):
            place = place.parent
        return min(20 << 30, (shutil.disk_usage(place).free + scan.bytes) // 10)

    def _entry(self, path: Path, identity: Json | None = None) -> Entry:
        return self._read(path, identity)[1]

    def _read(self, path: Path, identity: Json | None = None) -> tuple[Stored, Entry]:
        with open_artifact(path) as file:
            header, stat = read_header(file, identity), os.fstat(file.fileno())
        key = header.meta["key"]
        if path.name != key + SUFFIX:
            raise Damaged("it lies under another entry's name")
        stored = Stored(key, str(path), stat)
        return stored, entry_of(stored, header, self._records.uses(key))

    def _problem(self, path: Path) -> str | None:
        try:
            self._entry(path)
            with open_artifact(path) as file:
                check_bytes(file, read_header(file))
        except FileNotFoundError:
            return None
        except (Damaged, OSError) as error:
            return str(error)
        return None

    def _miss_reason(self, identity: Json) -> str:
        """What differs from the entry of the same video that differs least."""
        if not self._usable:
            return "the cache folder is not used"
        digest, differences = identity.get("video", {}).get("digest", ""), []
        for key in self._records.keys_of(digest):
            with suppress(Damaged, OSError):
                stored = self._entry(self._folder.place(key))
                differences.append(difference(identity, stored.identity or {}))
        if not differences:
            return f"nothing stored for this video (digest {digest[:12]})"
        return "; ".join(min(differences, key=len)[:3])

    def _tidy(self, scan: Scan, written: Stored) -> None:
        """Keep the bound after `written` came to what was there, and sweep."""
        artifacts = [s for s in scan.artifacts if s.key != written.key] + [written]
        limit = self._limit(scan)
        gone = self._prune(artifacts, limit, keep=written.key)
        left = limit - sum(s.bytes for s in artifacts) + sum(s.bytes for s in gone)
        self._unlooked = left // LOOK
        self._index.forget_old()
        sweep(scan.leavings)

    def _prune(self, artifacts: list[Stored], limit: int, keep: str = "") -> list[Stored]:
        excess = sum(stored.bytes for stored in artifacts) - limit
        if excess <= 0:
            return []
        chosen = dict[Path, Stored]()
        for stored in self._records.by_last_use(artifacts):
            if excess > 0 and stored.key != keep:
                chosen[stored.path] = stored
                excess -= stored.bytes
        gone = [chosen[path] for path in remove_files(chosen, self._warn)]
        self._records.forget([stored.key for stored in gone])
        return gone

    def _make_folder(self, folder: Path, *, quiet: bool = False) -> bool:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            if not quiet:
                self._warn(f"not stored: {folder} cannot be made ({error.strerror})")
            return False
        return True

    def _warn(self, line: str) -> None:
        (_listener.get() or self._otherwise)(line)

    def _say_damaged(self, path: Path, error: Exception) -> None:
        self._warn(f"stored entry {path.name[:12]} is not used: {error}")


def _checked(descriptor: int, header: Header) -> Json:
    """What a file has to keep to count as the one whose checksum was found right."""
    return {"seal": [*seal_of(os.fstat(descriptor)), header.meta["checksum"]]}
