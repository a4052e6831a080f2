"""Time to store and restore a KV, compared with plain writes and reads of the same size.

The KV has the shape of a 7B model's (28 layers, 4 heads of 128, bfloat16: 56 KiB per token).
"Cold" means that the file was dropped from this machine's page cache; caches of disks and
virtual machine hosts remain.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sttm_cli.base.device import wait_for
from sttm_cli.base.errors import CacheError
from sttm_cli.base.types import PrefixKV, TokenCounts
from sttm_cli.store import LocalStore, PackedKV, pack

LAYERS, HEADS, DIM = 28, 4, 128
ROW = LAYERS * 2 * HEADS * DIM * 2
"""Bytes of one token in all layers, in bfloat16."""
ROOM = 512
BLOCK = 1 << 20
"""Block size of plain reads and writes, which use one buffer, as `dd bs=1M` does."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds, and processor seconds of all threads, which depend less on the load of
    the machine."""

    seconds: float
    processor: float


@dataclass(frozen=True)
class Row:
    """One size in bytes on disk, and the best timing of each step.

    `warm` and `cold`: restores, checksum included, from a file that is, or is not, in the page
    cache. The floors are plain writes and reads of the same number of bytes; `copy`: from pinned
    memory to the device. None if it cannot be measured.
    """

    bytes: int
    write: Timing
    write_floor: Timing
    warm: Timing
    warm_floor: Timing
    cold: Timing | None
    cold_floor: Timing | None
    copy: Timing | None

    @property
    def warm_share(self) -> float:
        """Speed of a warm restore as a share of the limit of disk and device."""
        return self._share(self.warm, self.warm_floor)

    @property
    def cold_share(self) -> float | None:
        if self.cold is None or self.cold_floor is None:
            return None
        return self._share(self.cold, self.cold_floor)

    def _share(self, restore: Timing, floor: Timing) -> float:
        return max(floor.seconds, self.copy.seconds if self.copy else 0.0) / restore.seconds


def measure_store(
    folder: Path,
    sizes: Sequence[int],
    *,
    kv_dtype: str = "auto",
    device: str = "cpu",
    repeat: int = 5,
) -> Iterator[Row]:
    """Measure each size (bytes in bfloat16) in a temporary folder under `folder`; yield the rows.

    Raises CacheError if the disk is full or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_room(folder, max(sizes))
        with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as place:
            for size in sizes:
                yield _measure(Path(place), pack(made_up_kv(size), kv_dtype), device, repeat)
    except OSError as error:
        raise CacheError(f"{folder}: {error.strerror or error}") from error


def _check_room(folder: Path, size: int) -> None:
    needed, free = 2 * size + (64 << 20), shutil.disk_usage(folder).free
    if free < needed:
        raise CacheError(
            f"{folder} has {free:,} bytes free, the measurement needs {needed:,}",
            "give smaller --sizes or another --cache-dir",
        )


def _measure(place: Path, kv: PackedKV, device: str, repeat: int) -> Row:
    size = kv.nbytes
    identity = {"bench": size}
    with LocalStore(place / "cache", warn=_fail, max_bytes=4 * size) as store:
        write = _least(repeat, lambda: store.save(identity, kv, label={}))
        entry = store.stored(identity)
        if entry is None:
            raise CacheError("the stored entry does not exist")
        path = Path(entry.location)
        write_floor = _least(repeat, lambda: plain_write(place / "plain", entry.bytes))
        (place / "plain").unlink()

        def restore() -> None:
            store.load(store.find(identity), device=device, room=ROOM)
            wait_for(device)

        warm = _least(repeat, restore)
        warm_floor = _least(repeat, lambda: plain_read(path))
        cold = cold_floor = None
        if drop_from_page_cache(path):

            def drop() -> None:
                drop_from_page_cache(path)

            cold_floor = _least(repeat, lambda: plain_read(path), before=drop)
            cold = _least(repeat, restore, before=drop)
        store.remove([entry.key])
    copy = None if device == "cpu" else _copy(size, device, repeat)
    return Row(entry.bytes, write, write_floor, warm, warm_floor, cold, cold_floor, copy)


def made_up_kv(size: int) -> PrefixKV:
    """Make a KV of about `size` bytes; all layers share one tensor of random numbers."""
    length = max(1, size // ROW)
    random = torch.Generator().manual_seed(0)
    layer = torch.randn(length, HEADS, DIM, generator=random).to(torch.bfloat16)
    return PrefixKV(
        keys=[layer] * LAYERS,
        values=[layer] * LAYERS,
        lengths=(length,) * LAYERS,
        merge_layer=0,
        next_positions=(length, length),
        tokens=TokenCounts(length, length, length),
        grid=(1, 1, length),
    )


def plain_write(path: Path, size: int) -> None:
    """Write `size` bytes block by block, and wait until they are on the disk."""
    block = os.urandom(BLOCK)
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, BLOCK):
            file.write(block[: size - start])
        os.fsync(file.fileno())


def plain_read(path: Path) -> None:
    block = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def drop_from_page_cache(path: Path) -> bool:
    """Drop one file from the page cache; return False if that is impossible or had no effect.

    Dropping the whole cache would need root and slow down the machine.
    """
    if not hasattr(os, "posix_fadvise") or not hasattr(os, "RWF_NOWAIT"):
        return False
    with path.open("rb", buffering=0) as file:
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        probes = [_is_cached(descriptor, size * n // 8) for n in range(8)]
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return not any(probes)


def _is_cached(descriptor: int, offset: int) -> bool:
    try:
        os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _copy(size: int, device: str, repeat: int) -> Timing:
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.startswith("cuda"))
    target = torch.empty(size, dtype=torch.uint8, device=device)

    def copy() -> None:
        target.copy_(host, non_blocking=True)
        wait_for(device)

    return _least(repeat, copy)


def _least(
    repeat: int, run: Callable[[], object], *, before: Callable[[], None] = lambda: None
) -> Timing:
    """Return the minimum of `repeat` runs; `before` is not counted."""
    seconds, processor = [], []
    for _ in range(repeat):
        before()
        started, busy = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - busy)
    return Timing(min(seconds), min(processor))


def _fail(line: str) -> None:
    raise CacheError(line)
