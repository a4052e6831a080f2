"""The cache: artifacts found by key in a folder, bounded in bytes, least recently used first.

root/kv/ab/<key>.safetensors   the artifacts; these alone decide what is stored
root/index/                    small rows (diskcache): digests, last uses, what entries are
root/locks/<key>               held by the process that computes this key
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sttm_cli.lock import single_flight
from sttm_cli.store.artifact import Damaged, Header, open_artifact, read_header, write
from sttm_cli.store.entry import Entry, Finding, Lookup, Uses, entry_of, remembered
from sttm_cli.store.folder import SUFFIX, Folder, Scan, Stored, seal_of, sweep
from sttm_cli.store.identity import difference, key_of
from sttm_cli.store.index import Index
from sttm_cli.store.packing import PackedKV
from sttm_cli.store.reading import check_bytes, read_tensors
from sttm_cli.types import Json, PrefixKV

ROWS = ("used", "verified", "about")
"""What the index remembers of an entry: `<row>:<key>`."""


class Store:
    """The cache in folder `root`; a damaged, foreign or hostile file in it is a miss.

    Methods do not raise for what is on the disk: `warn` gets a line, and the answer is computed.
    """

    def __init__(
        self, root: Path, *, warn: Callable[[str], None], max_bytes: int | None = None
    ) -> None:
        self.path, self._warn = root.absolute(), warn
        self._max_bytes = max_bytes
        self._usable = self._is_ours()
        self._folder = Folder(self.path)
        self._index = Index(self.path / "index")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._index.close()

    # ---- small rows

    def get(self, key: str) -> Json | None:
        """A remembered row, None if there is none."""
        return self._index.get(key) if self._usable else None

    def set(self, key: str, value: Json) -> None:
        """Remember a row; forgotten without a word where nothing can be written."""
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

        def counted(row: Json | None) -> Json:
            uses = Uses.of(row)
            return {"at": time.time(), "hits": uses.hits + 1, "saved_s": uses.saved_s + saved_s}

        self._index.change(f"used:{entry.key}", counted)

    def entries(self) -> list[Entry]:
        """Everything stored that can be read; headers are read of what the index does not know."""
        uses, abouts = self._index.rows("used:"), self._index.rows("about:")
        found, learnt = list[Entry](), dict[str, Json]()
        for stored in self._scan().artifacts:
            used = Uses.of(uses.get(stored.key))
            entry = remembered(stored, abouts.get(stored.key), used)
            if entry is None:
                try:
                    entry = self._entry(stored.path)
                except (Damaged, OSError):
                    continue
                learnt[f"about:{stored.key}"] = entry.to_row(stored)
            found.append(entry)
        if learnt:
            self._index.set_all(learnt)
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
        key, scan = key_of(identity), self._scan()
        limit = self._limit(scan)
        if packed.nbytes > limit:
            self._warn(f"not stored: {packed.nbytes:,} bytes are more than --max-bytes {limit:,}")
            return None
        path = self._folder.place(key)
        try:
            self._folder.write(path, lambda file: write(file, identity, packed, label))
            stored, entry = self._read(path, identity)
        except (OSError, Damaged) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._warn(f"not stored in {self.path}: {reason}")
            return None
        self._remember(entry, stored)
        sweep(scan.parts)
        others = [other for other in scan.artifacts if other.key != key]
        self._prune(Scan([*others, stored], []), limit, keep=key)
        return entry

    def remove(self, keys: Iterable[str]) -> None:
        """Remove entries; a process that reads one now reads on."""
        gone = list(keys)
        for key in gone:
            self._folder.place(key).unlink(missing_ok=True)
        self._index.delete(*(f"{row}:{key}" for key in gone for row in ROWS))

    def prune(self, limit: int) -> list[Stored]:
        """Remove the least recently used entries until at most `limit` bytes are left."""
        scan = self._scan()
        sweep(scan.parts)
        return self._prune(scan, limit)

    def verify(
        self, *, repair: bool = False, limit: int | None = None
    ) -> tuple[int, list[Finding]]:
        """Check every byte of every file under kv/, or of `limit` of them; return how many there
        are, and which are damaged. `repair` removes those."""
        scan, findings = self._scan(), list[Finding]()
        for stored in scan.artifacts[:limit]:
            if (problem := self._problem(stored.path)) is not None:
                findings.append(Finding(stored.path, problem))
                if repair:
                    stored.path.unlink(missing_ok=True)
        if repair:
            sweep(scan.parts)
        return len(scan.artifacts), findings

    @contextmanager
    def computing(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold `key`, so that two processes do not compute the same video at once."""
        if not self._usable or not self._make_folder(self.path, quiet=True):
            yield
            return
        with single_flight(self.path / "locks" / key, on_wait):
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
        while not place.exists():
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
        stored = Stored(key, path, stat.st_size, stat.st_mtime, seal_of(stat))
        return stored, entry_of(stored, header, Uses.of(self.get(f"used:{key}")))

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

    def _remember(self, entry: Entry, stored: Stored) -> None:
        known = (self._index.get(f"video:{entry.video}") or {}).get("keys")
        keys = [str(key) for key in known] if isinstance(known, list) else []
        keys = [k for k in keys if k != entry.key and self._folder.place(k).exists()]
        self._index.set_all(
            {
                f"video:{entry.video}": {"keys": [*keys, entry.key]},
                f"about:{entry.key}": entry.to_row(stored),
            }
        )

    def _miss_reason(self, identity: Json) -> str:
        """What differs from the entry of the same video that differs least."""
        if not self._usable:
            return "the cache folder is not used"
        digest = identity.get("video", {}).get("digest", "")
        keys = (self._index.get(f"video:{digest}") or {}).get("keys", [])
        differences = []
        for key in keys if isinstance(keys, list) else []:
            try:
                stored = self._entry(self._folder.place(str(key)))
            except (Damaged, OSError):
                continue
            differences.append(difference(identity, stored.identity or {}))
        if not differences:
            return f"nothing stored for this video (digest {digest[:12]})"
        return "; ".join(min(differences, key=len)[:3])

    def _prune(self, scan: Scan, limit: int, keep: str = "") -> list[Stored]:
        total, gone = scan.bytes, list[Stored]()
        uses = self._index.rows("used:") if total > limit else {}

        def last_used(stored: Stored) -> float:
            return max(Uses.of(uses.get(stored.key)).last_used, stored.changed)

        for stored in sorted(scan.artifacts, key=last_used) if total > limit else ():
            if total <= limit:
                break
            if stored.key == keep:
                continue
            # What cannot be removed, in a folder made read-only, is left and still counted.
            with suppress(OSError):
                stored.path.unlink(missing_ok=True)
                total -= stored.bytes
                gone.append(stored)
        if gone:
            self.remove(stored.key for stored in gone)
        return gone

    def _make_folder(self, folder: Path, *, quiet: bool = False) -> bool:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            if not quiet:
                self._warn(f"not stored: {folder} cannot be made ({error.strerror})")
            return False
        return True

    def _is_ours(self) -> bool:
        """Whether nobody but this user could have put files here."""
        if not hasattr(os, "geteuid"):
            return True
        try:
            stat = self.path.stat()
        except OSError:
            return True
        if stat.st_uid != os.geteuid():
            self._warn(f"the cache is not used: {self.path} belongs to another user")
            return False
        if stat.st_mode & 0o002:
            self._warn(f"the cache is not used: everybody may write to {self.path}")
            return False
        return True

    def _say_damaged(self, path: Path, error: Exception) -> None:
        self._warn(f"stored entry {path.name[:12]} is not used: {error}")


def _checked(descriptor: int, header: Header) -> Json:
    """What a file has to keep to count as the one whose checksum was found right."""
    return {"seal": [*seal_of(os.fstat(descriptor)), header.meta["checksum"]]}
