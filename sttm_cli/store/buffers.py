"""Memory for restored tensors, and staging buffers for those that are unpacked on the way."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import torch

from sttm_cli.store.packing import bytes_of

HUGE = 2 << 20
"""Bytes of a huge page."""
ALIGN = 64


class Buffers:
    """Empty tensors of `shapes`, one on each of `devices`.

    `views[i]` is the memory of tensor i, None where it is not on the CPU.
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
        """One stretch of memory, in huge pages where the system has them: giving a process a
        gigabyte in pages of 4 KiB takes longer than filling it."""
        counts = [prod(shape) * dtype.itemsize for shape in shapes]
        steps = [-(-count // ALIGN) * ALIGN for count in counts]
        memory, begin = _memory(sum(steps)), 0
        view = bytes_of(memory)
        for shape, count, step in zip(shapes, counts, steps, strict=True):
            self.tensors.append(memory[begin : begin + count].view(dtype).view(shape))
            self.views.append(view[begin : begin + count])
            begin += step


class Slot:
    """A staging buffer, and the copy out of it that may still run on a GPU."""

    def __init__(self, size: int, *, pinned: bool) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._view = bytes_of(self.memory)
        self._copied = torch.cuda.Event() if pinned else None

    def free(self, count: int) -> memoryview:
        """The first `count` bytes, to be written: the last copy out of them is done."""
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
