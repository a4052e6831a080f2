"""Restore an artifact into the buffers that generation then appends to.

Pieces of a few megabytes are read concurrently, in file order, each directly into its final place
if the numbers need no conversion. Otherwise (another device, half precision, int8) they pass
through a ring of staging buffers, pinned for a GPU, so that copying one piece overlaps reading the
next. The checksum is computed along the way.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod

import torch

from sttm_cli.base.types import LayerState, PrefixKV
from sttm_cli.store.artifact import Artifact, Blob, Checksum, Damaged, Header, Place, fill
from sttm_cli.store.packing import STORED, Packed, bytes_of

HUGE = 2 << 20
"""Bytes of a huge page."""
ALIGN = 64


class Buffers:
    """Empty tensors of `shapes`, one on each of `devices`.

    `views[i]` is the memory of tensor i, None if it is not on the CPU.
    """

    def __init__(
        self, shapes: Sequence[list[int]], dtype: torch.dtype, devices: Sequence[str]
    ) -> None:
        self.tensors: list[torch.Tensor] = []
        self.views: list[memoryview | None] = []
        if set(devices) == {"cpu"}:
            self._on_cpu(shapes, dtype)
            return
        for shape, device in zip(shapes, devices, strict=True):
            tensor = torch.empty(shape, dtype=dtype, device=device)
            self.tensors.append(tensor)
            self.views.append(bytes_of(tensor) if device == "cpu" else None)

    def _on_cpu(self, shapes: Sequence[list[int]], dtype: torch.dtype) -> None:
        """Allocate one block, in huge pages if the system has them: mapping a gigabyte in pages of
        4 KiB takes longer than filling it."""
        counts = [prod(shape) * dtype.itemsize for shape in shapes]
        steps = [-(-count // ALIGN) * ALIGN for count in counts]
        memory, begin = _memory(sum(steps)), 0
        view = bytes_of(memory)
        for shape, count, step in zip(shapes, counts, steps, strict=True):
            self.tensors.append(memory[begin : begin + count].view(dtype).view(shape))
            self.views.append(view[begin : begin + count])
            begin += step


class Slot:
    """A staging buffer, with its last copy, which may still be running on a GPU."""

    def __init__(self, size: int, *, pinned: bool) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._view = bytes_of(self.memory)
        self._copied = torch.cuda.Event() if pinned else None

    def free(self, count: int) -> memoryview:
        """Return the first `count` bytes for writing, after the last copy from them is done."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._view[:count]

    def record_copy(self, device: torch.device) -> None:
        """Remember the copy to `device` that was just started."""
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(device))


def _memory(size: int) -> torch.Tensor:
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapped, dtype=torch.uint8)


PIECE = 4 << 20
READERS = min(4, os.cpu_count() or 1)
"""Pieces read concurrently: one thread copies from the page cache below memory bandwidth."""


def read_tensors(artifact: Artifact[Blob], *, device: str | Sequence[str], room: int) -> PrefixKV:
    """Read keys and values into buffers with `room` free rows behind them.

    `device`: one for all layers, or each layer's own. Raises OSError, and Damaged where the bytes
    end early or have another checksum than the header states.
    """
    blob, header = artifact
    meta = header.meta
    lengths = tuple(meta["lengths"])
    devices = [device] * len(lengths) if isinstance(device, str) else list(device)
    if len(devices) != len(lengths):
        raise Damaged(f"it has {len(lengths)} layers, the model {len(devices)}")
    total = Checksum()
    scales = _read_scales(blob, header, total)
    shapes = [[place.shape[0] + room, *place.shape[1:]] for place in header.tensors]
    held = [d for d, length in zip(devices, lengths, strict=True) if length for _ in range(2)]
    buffers = Buffers(shapes, STORED[header.dtype], held)
    states = _StateBuffers(header, devices)
    pieces = [*states.pieces(), *_pieces(header, scales, buffers)]
    _read_pieces(blob, pieces, total)
    _wait(devices)
    _compare(total, header)
    rows = iter(buffers.tensors)
    none = [0, *header.tensors[0].shape[1:]]
    pairs = [
        (next(rows), next(rows))
        if length
        else (torch.empty(none, dtype=STORED[header.dtype], device=where),) * 2
        for where, length in zip(devices, lengths, strict=True)
    ]
    return PrefixKV(
        keys=[keys for keys, _ in pairs],
        values=[values for _, values in pairs],
        lengths=lengths,
        merge_layer=meta["merge_layer"],
        next_positions=(meta["next_positions"][0], meta["next_positions"][1]),
        tokens=header.tokens,
        grid=(meta["grid"][0], meta["grid"][1], meta["grid"][2]),
        facts=meta["facts"],
        sizes=None if meta["sizes"] is None else torch.tensor(meta["sizes"], dtype=torch.int32),
        states=states.by_layer(),
    )


def check_bytes(artifact: Artifact[Blob]) -> None:
    """Raise Damaged unless the tensors' bytes have the checksum that the header states."""
    blob, header = artifact
    total, block = Checksum(), memoryview(bytearray(PIECE))
    for place in range(header.start, header.end, PIECE):
        part = block[: min(PIECE, header.end - place)]
        fill(blob, part, place)
        total.update(part)
    _compare(total, header)


@dataclass(frozen=True)
class _Direct:
    """A piece stored in its final form: its first byte in the file, and its place."""

    begin: int
    target: memoryview


@dataclass(frozen=True)
class _Staged:
    """Consecutive rows of one tensor that need conversion: their first byte, shape and type in the
    file, and their place. `scale`, `offset`: of the whole tensor."""

    begin: int
    shape: list[int]
    dtype: torch.dtype
    scale: torch.Tensor | None
    offset: torch.Tensor | None
    out: torch.Tensor

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def unpack(self, host: torch.Tensor) -> None:
        """Convert the stored bytes in `host` into numbers in their final place."""
        stored = host.view(self.dtype).view(self.shape)
        if self.out.device.type != "cpu" and self.out.dtype is not self.dtype:
            # The stored form is smaller, so it crosses the bus before it is unpacked.
            stored = stored.to(self.out.device, non_blocking=self.out.is_cuda)
        Packed(stored, self.scale, self.offset).unpack(self.out)


_Piece = _Direct | _Staged


def _read_pieces(blob: Blob, pieces: list[_Piece], total: Checksum) -> None:
    """Prefetch up to READERS pieces and consume them in order."""
    slots = _ring(pieces)
    waiting: deque[tuple[Future[None], _Piece, memoryview, Slot | None]] = deque()

    def take() -> None:
        future, piece, view, slot = waiting.popleft()
        future.result()
        total.update(view)
        if slot is not None and isinstance(piece, _Staged):
            piece.unpack(slot.memory[: piece.nbytes])
            slot.record_copy(piece.out.device)

    with ThreadPoolExecutor(READERS) as pool:
        for number, piece in enumerate(pieces):
            if isinstance(piece, _Direct):
                slot, view = None, piece.target
            else:
                slot = slots[number % len(slots)]
                view = slot.free(piece.nbytes)
            waiting.append((pool.submit(fill, blob, view, piece.begin), piece, view, slot))
            if len(waiting) == READERS:
                take()
        while waiting:
            take()


def _ring(pieces: list[_Piece]) -> list[Slot]:
    """Return the staging buffers: one per reader, and one to copy from."""
    staged = [piece for piece in pieces if isinstance(piece, _Staged)]
    if not staged:
        return []
    size, pinned = max(p.nbytes for p in staged), any(p.out.is_cuda for p in staged)
    return [Slot(size, pinned=pinned) for _ in range(READERS + 1)]


class _StateBuffers:
    """The states of recurrent layers, each on its layer's device."""

    def __init__(self, header: Header, devices: Sequence[str]) -> None:
        self._layers = header.meta["states"]["layers"] if header.states else []
        self._start, count = header.start, len(self._layers)
        where = [devices[layer] for layer in self._layers]
        # All that are recurrent come first.
        recurrent, conv = header.states[:count], header.states[count:]
        self._kinds = [
            (places, Buffers([place.shape for place in places], dtype, where))
            for places, dtype in ((recurrent, torch.float32), (conv, STORED[header.dtype]))
        ]

    def pieces(self) -> Iterator[_Piece]:
        """What is to be read, in the file's order."""
        for places, buffers in self._kinds:
            for place, out, view in zip(places, buffers.tensors, buffers.views, strict=True):
                yield from _pieces_of(self._start, place, out, view, out.dtype)

    def by_layer(self) -> dict[int, LayerState]:
        """The states, once they are read."""
        (_, recurrent), (_, conv) = self._kinds
        pairs = zip(conv.tensors, recurrent.tensors, strict=True)
        return {layer: LayerState(*pair) for layer, pair in zip(self._layers, pairs, strict=True)}


def _pieces(header: Header, scales: list[torch.Tensor], buffers: Buffers) -> Iterator[_Piece]:
    dtype = STORED[header.kv_dtype]
    for number, place in enumerate(header.tensors):
        out, view = buffers.tensors[number], buffers.views[number]
        scale, offset = _of(scales, number, out.device)
        yield from _pieces_of(header.start, place, out, view, dtype, scale, offset)


def _pieces_of(
    start: int,
    place: Place,
    out: torch.Tensor,
    view: memoryview | None,
    dtype: torch.dtype,
    scale: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> Iterator[_Piece]:
    """The pieces of one tensor, stored as `dtype`, whose final place is `out`."""
    length, row = place.shape[0], place.shape[1:]
    row_bytes = prod(row) * dtype.itemsize
    step = max(1, PIECE // row_bytes)
    for first in range(0, length, step):
        last = min(length, first + step)
        begin = start + place.begin + first * row_bytes
        if view is not None and out.dtype is dtype:
            yield _Direct(begin, view[first * row_bytes : last * row_bytes])
        else:
            yield _Staged(
                begin=begin,
                shape=[last - first, *row],
                dtype=dtype,
                scale=scale,
                offset=offset,
                out=out[first:last],
            )


def _of(
    scales: list[torch.Tensor], number: int, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if not scales:
        return None, None
    return scales[2 * number].to(device), scales[2 * number + 1].to(device)


def _read_scales(blob: Blob, header: Header, total: Checksum) -> list[torch.Tensor]:
    """Read scale and offset of each tensor, to the CPU, in one read."""
    if not header.scales:
        return []
    memory = torch.empty(header.scales[-1].end, dtype=torch.uint8)
    view = bytes_of(memory)
    fill(blob, view, header.start)
    total.update(view)
    parts = (memory[place.begin : place.end] for place in header.scales)
    return [
        part.view(torch.float32).view(place.shape)
        for part, place in zip(parts, header.scales, strict=True)
    ]


def _compare(total: Checksum, header: Header) -> None:
    if str(total) != header.meta["checksum"]:
        raise Damaged("its checksum does not match")


def _wait(devices: Sequence[str]) -> None:
    for device in {d for d in devices if d.startswith("cuda")}:
        torch.cuda.synchronize(device)
