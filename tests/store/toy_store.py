"""A whole store in one file: named blobs of bytes behind toy:///FOLDER.

`test_seam.py` installs it beside the package, without a line of the package changed. Its medium
knows no paths or descriptors outside of `Medium`: a name, its bytes, and reads of ranges.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

from sttm_cli.base.types import Json, PrefixKV
from sttm_cli.store.artifact import Damaged, open_artifact, spell
from sttm_cli.store.packing import PackedKV, write
from sttm_cli.store.protocol import Entry, Finding, Lookup, Removed, Store, Uses, Warnings, entry_of
from sttm_cli.store.reading import check_bytes, read_tensors


class Medium(dict[str, bytes]):
    """name -> bytes, kept between processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__({path.name: path.read_bytes() for path in folder.iterdir()})

    def __setitem__(self, name: str, data: bytes) -> None:
        super().__setitem__(name, data)
        (self._folder / name).write_bytes(data)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        (self._folder / name).unlink()


class ToyBlob:
    """Bytes that are read in ranges."""

    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def read_into(self, target: memoryview, offset: int) -> int:
        part = self._data[offset : offset + len(target)]
        target[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._data = b""


class ToyStore(Store):
    """Unbounded."""

    writable = True
    max_bytes = 1 << 40

    def __init__(self, address: str, *, max_bytes: int | None, warn: Callable[[str], None]) -> None:
        self._address, self._warn = address, Warnings(warn)
        self._held = Medium(Path(urlsplit(address).path))

    @property
    def location(self) -> str:
        return self._address

    @property
    def bytes(self) -> int:
        return sum(len(data) for name, data in self._held.items() if name.startswith("kv."))

    def get(self, key: str) -> Json | None:
        return json.loads(self._held.get(f"row.{spell({'row': key}).key}", b"null"))

    def set(self, key: str, value: Json) -> None:
        self._held[f"row.{spell({'row': key}).key}"] = json.dumps(value).encode()

    def find(self, identity: Json) -> Lookup:
        wanted = spell(identity)
        if (data := self._held.get(f"kv.{wanted.key}")) is None:
            return Lookup(miss_reason="the toy store does not have it")
        try:
            artifact = open_artifact(ToyBlob(data), wanted)
        except Damaged as error:
            return Lookup(miss_reason=f"entry damaged: {error}")
        return Lookup(entry=self._entry(wanted.key), artifact=artifact)

    def load(self, lookup: Lookup, *, device: str | Sequence[str], room: int) -> PrefixKV | None:
        if lookup.artifact is None:
            return None
        with lookup:
            try:
                return read_tensors(lookup.artifact, device=device, room=room)
            except Damaged as error:
                self._warn(f"damaged: {error}")
                return None

    def count_use(self, entry: Entry, *, saved_s: float) -> None:
        uses = Uses.from_row(self.get(entry.key))
        self.set(entry.key, uses.plus(saved_s=saved_s, now=time.time()))

    def entries(self) -> list[Entry]:
        return self.beginning("")

    def beginning(self, key: str) -> list[Entry]:
        names = [name for name in self._held if name.startswith(f"kv.{key}")]
        found = []
        for name in names:
            with suppress(Damaged):
                found.append(self._entry(name.removeprefix("kv.")))
        return found

    def save(self, identity: Json, packed: PackedKV, *, label: Json) -> Entry | None:
        file, key = io.BytesIO(), spell(identity).key
        write(file, identity, packed, label)
        self._held[f"kv.{key}"] = file.getvalue()
        return self._entry(key)

    def remove(self, keys: Iterable[str]) -> list[str]:
        keys = list(keys)
        for key in keys:
            del self._held[f"kv.{key}"]
        return keys

    def prune(self, limit: int) -> list[Removed]:
        removed = []
        for entry in sorted(self.entries(), key=lambda entry: entry.last_used):
            if self.bytes > limit:
                self.remove([entry.key])
                removed.append(Removed(key=entry.key, bytes=entry.bytes))
        return removed

    def verify(
        self, *, repair: bool = False, limit: int | None = None
    ) -> tuple[int, list[Finding]]:
        names = [name for name in self._held if name.startswith("kv.")]
        findings = []
        for name in names[:limit]:
            try:
                artifact = open_artifact(ToyBlob(self._held[name]))
                with closing(artifact.blob):
                    check_bytes(artifact)
            except Damaged as error:
                findings.append(Finding(location=name, problem=str(error), removed=repair))
                if repair:
                    del self._held[name]
        return len(names), findings

    def telling(self, warn: Callable[[str], None]) -> AbstractContextManager[None]:
        return self._warn.redirected(warn)

    def close(self) -> None:
        return

    def _entry(self, key: str) -> Entry:
        name = f"kv.{key}"
        header = open_artifact(ToyBlob(self._held[name])).header
        uses = Uses.from_row(self.get(key))
        return entry_of(header, location=f"{self.location}#{name}", created=0.0, uses=uses)
