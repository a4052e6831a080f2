"""From an artifact into the buffers that generation goes on writing to.

Pieces of a few megabytes are read side by side, in the file's order, each straight into its final
place where the numbers need no change. Otherwise (another device, half precision, int8) they go
through a ring of staging buffers, pinned for a GPU, so that the copy of one piece runs beside the
reading of the next. The checksum is computed on the way.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import IO, Any

import torch

from sttm_cli.base.types import PrefixKV
from sttm_cli.store.artifact import Checksum, Damaged, Header, flat
from sttm_cli.store.packing import Packed

PIECE = 4 << 20
READERS = min(4, os.cpu_count() or 1)
"""Pieces that are read at once: one thread copies from the page cache slower than memory can."""
HUGE = 2 << 20
_SEEKING = Lock()
"""Held between going to a place in the file and reading there, where no call does both."""


def read_tensors(
    file: IO[bytes],
    header: Header,
    *,
    device: str | Sequence[str],
    room: int,
    check: bool = True,
) -> PrefixKV:
    """Read keys and values into buffers with `room` free rows behind them.

    `device`: one for all layers, or each layer's own. Raises Damaged where the file ends early,
    and with `check` where its bytes have another checksum than the header states.
    """
    devices = [device] * len(header.lengths) if isinstance(device, str) else list(device)
    if len(devices) != len(header.lengths):
        raise Damaged(f"it has {len(header.lengths)} layers, the model {len(devices)}")
    if hasattr(os, "posix_fadvise"):
        # Readers side by side look like random reads, for which little is read ahead.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    total = Checksum() if check else None
    scales = _read_scales(file, header, total)
    buffers = _buffers(header, [d for d in devices for _ in range(2)], room)
    _read_pieces(file, list(_pieces(header, scales, buffers)), total)
    _wait(devices)
    if total is not None:
        _compare(total, header)
    meta = header.meta
    return PrefixKV(
        keys=buffers[::2],
        values=buffers[1::2],
        lengths=tuple(header.lengths),
        merge_layer=meta["merge_layer"],
        next_positions=(meta["next_positions"][0], meta["next_positions"][1]),
        tokens=header.tokens,
        grid=(meta["grid"][0], meta["grid"][1], meta["grid"][2]),
        facts=meta["facts"],
    )


def check_bytes(file: IO[bytes], header: Header) -> None:
    """Raise Damaged unless the tensors' bytes have the checksum that the header states."""
    total, block = Checksum(), memoryview(bytearray(PIECE))
    place, end = header.start, header.start + header.places[-1].end
    while place < end:
        part = block[: min(PIECE, end - place)]
        _read_at(file, part, place)
        total.add(part)
        place += len(part)
    _compare(total, header)


@dataclass(frozen=True)
class _Piece:
    """Consecutive rows of one tensor: their first byte in the file, their shape and type there,
    and where they go. `scale` and `offset` are the whole tensor's."""

    begin: int
    shape: list[int]
    dtype: torch.dtype
    scale: torch.Tensor | None
    offset: torch.Tensor | None
    out: torch.Tensor

    @property
    def direct(self) -> bool:
        """Whether the file's bytes are the final ones."""
        return self.out.device.type == "cpu" and self.out.dtype is self.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def take(self, host: torch.Tensor) -> None:
        """Turn the stored bytes in `host` into numbers in their final place."""
        stored = host.view(self.dtype).view(self.shape)
        if self.out.device.type != "cpu" and self.out.dtype is not self.dtype:
            # What is smaller crosses the bus smaller, and becomes numbers there.
            stored = stored.to(self.out.device, non_blocking=self.out.is_cuda)
        Packed(stored, self.scale, self.offset).unpack(self.out)


class _Slot:
    """A staging buffer, and the copy out of it that may still run on a GPU."""

    def __init__(self, size: int, *, pinned: bool) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._copied = torch.cuda.Event() if pinned else None

    def bytes(self, count: int) -> torch.Tensor:
        """The first `count` bytes, free to be written once the last copy out of them is done."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._memory[:count]

    def leaves_for(self, device: torch.device) -> None:
        """Remember the copy to `device` that was just started."""
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(device))


def _read_pieces(file: IO[bytes], pieces: list[_Piece], total: Checksum | None) -> None:
    """Read some pieces ahead, and take each in its turn."""
    slots = _ring(pieces)
    waiting: deque[tuple[Future[None], _Piece, torch.Tensor, _Slot | None]] = deque()

    def take() -> None:
        future, piece, host, slot = waiting.popleft()
        future.result()
        if total is not None:
            total.add(flat(host))
        if slot is not None:
            piece.take(host)
            slot.leaves_for(piece.out.device)

    with ThreadPoolExecutor(READERS) as pool:
        for number, piece in enumerate(pieces):
            slot = None if piece.direct else slots[number % len(slots)]
            host = piece.out if slot is None else slot.bytes(piece.nbytes)
            future = pool.submit(_read_at, file, memoryview(flat(host)), piece.begin)
            waiting.append((future, piece, host, slot))
            if len(waiting) == READERS:
                take()
        while waiting:
            take()


def _ring(pieces: list[_Piece]) -> list[_Slot]:
    """One staging buffer more than there are readers: one is copied from meanwhile."""
    staged = [piece for piece in pieces if not piece.direct]
    if not staged:
        return []
    size, pinned = max(p.nbytes for p in staged), any(p.out.is_cuda for p in staged)
    return [_Slot(size, pinned=pinned) for _ in range(READERS + 1)]


def _pieces(
    header: Header, scales: list[torch.Tensor], buffers: list[torch.Tensor]
) -> Iterator[_Piece]:
    for number, (place, buffer) in enumerate(zip(header.tensors, buffers, strict=True)):
        scale, offset = _of(scales, number, buffer.device)
        length, row = place.shape[0], place.shape[1:]
        bytes_a_row = prod(row) * place.dtype.itemsize
        step = max(1, PIECE // bytes_a_row)
        for first in range(0, length, step):
            last = min(length, first + step)
            yield _Piece(
                header.start + place.begin + first * bytes_a_row,
                [last - first, *row],
                place.dtype,
                scale,
                offset,
                buffer[first:last],
            )


def _of(
    scales: list[torch.Tensor], number: int, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if not scales:
        return None, None
    return scales[2 * number].to(device), scales[2 * number + 1].to(device)


def _read_scales(file: IO[bytes], header: Header, total: Checksum | None) -> list[torch.Tensor]:
    """Scale and offset of each tensor, on the CPU."""
    found = []
    for place in header.scales:
        found.append(torch.empty(place.shape, dtype=place.dtype))
        data = flat(found[-1])
        _read_at(file, memoryview(data), header.start + place.begin)
        if total is not None:
            total.add(data)
    return found


def _buffers(header: Header, devices: Sequence[str], room: int) -> list[torch.Tensor]:
    shapes = [[place.shape[0] + room, *place.shape[1:]] for place in header.tensors]
    if set(devices) == {"cpu"}:
        return _on_cpu(shapes, header.dtype)
    return [
        torch.empty(s, dtype=header.dtype, device=d) for s, d in zip(shapes, devices, strict=True)
    ]


def _on_cpu(shapes: list[list[int]], dtype: torch.dtype) -> list[torch.Tensor]:
    """Buffers in one stretch of memory, in huge pages where the system has them: giving a process
    a gigabyte in pages of 4 KiB takes longer than filling it."""
    sizes = [-(-prod(shape) * dtype.itemsize // 64) * 64 for shape in shapes]
    memory = _memory(sum(sizes))
    found, begin = [], 0
    for shape, size in zip(shapes, sizes, strict=True):
        part = memory[begin : begin + prod(shape) * dtype.itemsize]
        found.append(part.view(dtype).view(shape))
        begin += size
    return found


def _memory(size: int) -> torch.Tensor:
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapped, dtype=torch.uint8)


def _read_at(file: Any, target: memoryview, place: int) -> None:
    """Fill `target` from byte `place` on; raises Damaged where the file ends before that."""
    done = 0
    while done < len(target):
        if hasattr(os, "preadv"):
            count = os.preadv(file.fileno(), [target[done:]], place + done)
        else:
            with _SEEKING:
                file.seek(place + done)
                count = file.readinto(target[done:])
        if not count:
            raise Damaged("it ends before its tensors do")
        done += count


def _compare(total: Checksum, header: Header) -> None:
    if str(total) != header.meta["checksum"]:
        raise Damaged("its checksum does not match")


def _wait(devices: Sequence[str]) -> None:
    for device in {d for d in devices if d.startswith("cuda")}:
        torch.cuda.synchronize(device)
