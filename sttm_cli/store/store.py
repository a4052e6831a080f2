"""The cache: artifacts found by key in a folder, bounded in bytes, least recently used first.

root/kv/ab/<key>.safetensors   the artifacts; these alone decide what is stored
root/index/                    small rows (diskcache): digests and what entries are
root/locks/<key>               held by the process that computes this key
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sttm_cli.lock import hold, is_held, single_flight
from sttm_cli.store.artifact import (
    Damaged,
    Header,
    open_artifact,
    read_header,
    write,
)
from sttm_cli.store.entry import Entry, Finding, Lookup
from sttm_cli.store.identity import difference, key_of
from sttm_cli.store.index import Index
from sttm_cli.store.packing import PackedKV
from sttm_cli.store.reading import check_bytes, read_tensors
from sttm_cli.types import Json, PrefixKV

SUFFIX = ".safetensors"
PART = ".part"


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
        path = self._place(key)
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
                seal = _seal(file.fileno(), header)
                check = self.get(f"verified:{entry.key}") != seal
                kv = read_tensors(file, header, device=device, room=room, check=check)
        except FileNotFoundError:
            return None
        except (Damaged, OSError) as error:
            self._say_damaged(entry.path, error)
            return None
        if check:
            self.set(f"verified:{entry.key}", seal)
        self.set(f"used:{entry.key}", {"at": time.time()})
        return kv

    def entries(self) -> list[Entry]:
        """Everything stored that can be read."""
        found = []
        for path in self._files():
            try:
                found.append(self._entry(path))
            except (Damaged, OSError):
                continue
        return found

    # ---- writing and removing

    def save(self, identity: Json, packed: PackedKV, *, label: Json) -> Entry | None:
        """Store a KV: a temporary file beside its place, fsync, rename, then its row.

        None, and a warning, where it cannot be written; nothing stored is lost by that.
        """
        key, limit = key_of(identity), self.max_bytes
        if not self._usable or not self._make_folder(self.path):
            return None
        if packed.nbytes > limit:
            self._warn(f"not stored: {packed.nbytes:,} bytes are more than --max-bytes {limit:,}")
            return None
        path = self._place(key)
        try:
            self._sweep()
            self._write(path, identity, packed, label)
            entry = self._entry(path, identity)
        except (OSError, Damaged) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._warn(f"not stored in {self.path}: {reason}")
            return None
        self._remember(entry)
        self._prune(limit, keep=key)
        return entry

    def remove(self, keys: Iterable[str]) -> None:
        """Remove entries; a process that reads one now reads on."""
        for key in keys:
            self._place(key).unlink(missing_ok=True)
            for row in ("used", "verified"):
                self._index.delete(f"{row}:{key}")

    def prune(self, limit: int) -> list[Entry]:
        """Remove the least recently used entries until at most `limit` bytes are left."""
        self._sweep()
        return self._prune(limit)

    def verify(self, *, repair: bool = False) -> list[Finding]:
        """Check every byte of every file under kv/; `repair` removes what is damaged."""
        findings = []
        for path in self._files():
            if (problem := self._problem(path)) is not None:
                findings.append(Finding(path, problem))
                if repair:
                    path.unlink(missing_ok=True)
        if repair:
            self._sweep()
        return findings

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
        return sum(_size(path) for path in self._files())

    @property
    def max_bytes(self) -> int:
        """The bound: as given, else 20 GiB or a tenth of what could be free."""
        if self._max_bytes is not None:
            return self._max_bytes
        place = self.path
        while not place.exists():
            place = place.parent
        return min(20 << 30, (shutil.disk_usage(place).free + self.bytes) // 10)

    @property
    def writable(self) -> bool:
        """Whether anything can be stored at all."""
        made = self._usable and self._make_folder(self.path, quiet=True)
        return made and os.access(self.path, os.W_OK | os.X_OK)

    # ---- inside

    def _place(self, key: str) -> Path:
        return self.path / "kv" / key[:2] / (key + SUFFIX)

    def _files(self) -> Iterator[Path]:
        yield from sorted((self.path / "kv").glob(f"*/*{SUFFIX}")) if self._usable else ()

    def _entry(self, path: Path, identity: Json | None = None) -> Entry:
        with open_artifact(path) as file:
            header, stat = read_header(file, identity), os.fstat(file.fileno())
        meta = header.meta
        if path.name != meta["key"] + SUFFIX:
            raise Damaged("it lies under another entry's name")
        return Entry(
            meta["key"],
            path,
            stat.st_size,
            meta["identity"],
            meta["label"],
            header.tokens,
            meta["kv_dtype"],
            header.saved_bytes,
            stat.st_mtime,
            self._last_used(meta["key"], stat.st_mtime),
        )

    def _last_used(self, key: str, created: float) -> float:
        at = (self.get(f"used:{key}") or {}).get("at")
        return max(float(at), created) if isinstance(at, (int, float)) else created

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

    def _write(self, path: Path, identity: Json, packed: PackedKV, label: Json) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem[:8], suffix=PART)
        part = Path(name)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                # The sweep of another process leaves alone what a living one holds.
                hold(file.fileno())
                write(file, identity, packed, label)
                os.fsync(file.fileno())
                os.replace(part, path)
            _sync_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _remember(self, entry: Entry) -> None:
        digest = entry.identity.get("video", {}).get("digest", "")
        row = self._index.get(f"video:{digest}") or {"keys": []}
        keys = [k for k in row["keys"] if k != entry.key and self._place(k).exists()]
        self._index.set(f"video:{digest}", {"keys": [*keys, entry.key]})

    def _miss_reason(self, identity: Json) -> str:
        """What differs from the entry of the same video that differs least."""
        if not self._usable:
            return "the cache folder is not used"
        digest = identity.get("video", {}).get("digest", "")
        keys = (self._index.get(f"video:{digest}") or {}).get("keys", [])
        differences = []
        for key in keys if isinstance(keys, list) else []:
            try:
                stored = self._entry(self._place(str(key)))
            except (Damaged, OSError):
                continue
            differences.append(difference(identity, stored.identity))
        if not differences:
            return f"nothing stored for this video (digest {digest[:12]})"
        return "; ".join(min(differences, key=len)[:3])

    def _prune(self, limit: int, keep: str = "") -> list[Entry]:
        total, gone = self.bytes, list[Entry]()
        # Reading every header is for when something has to go.
        entries = sorted(self.entries(), key=lambda e: e.last_used) if total > limit else []
        for entry in entries:
            if total <= limit:
                break
            if entry.key == keep:
                continue
            # What cannot be removed, in a folder made read-only, is left and still counted.
            with suppress(OSError):
                self.remove([entry.key])
                total -= entry.bytes
                gone.append(entry)
        return gone

    def _sweep(self) -> None:
        """Remove temporary files whose writer is dead."""
        for part in (self.path / "kv").glob(f"*/*{PART}"):
            if not is_held(part):
                part.unlink(missing_ok=True)

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


def _size(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


def _seal(descriptor: int, header: Header) -> Json:
    """What a file has to keep to count as the one whose checksum was found right."""
    stat = os.fstat(descriptor)
    return {"seal": [stat.st_size, stat.st_mtime_ns, stat.st_ino, header.meta["checksum"]]}


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
