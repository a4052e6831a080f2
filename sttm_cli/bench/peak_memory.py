"""Peak memory of a run, on a GPU or on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Peak:
    """Bytes in use before a run and at its peak, weights included; None if not measurable.

    GPU memory on a GPU, memory of the process on a CPU.
    """

    before: int | None = None
    most: int | None = None

    @property
    def extra(self) -> int | None:
        """The peak minus the bytes in use before the run."""
        if self.most is None or self.before is None:
            return None
        return self.most - self.before


@contextmanager
def watch_memory(device: str) -> Iterator[Peak]:
    """Measure the peak memory of the code inside."""
    peak = Peak()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        peak.before = torch.cuda.memory_allocated()
        yield peak
        peak.most = torch.cuda.max_memory_allocated()
        return
    counted = _reset()
    peak.before = _process("VmRSS") if counted else None
    yield peak
    peak.most = _process("VmHWM") if counted else None


def _reset() -> bool:
    try:
        # Return freed memory to the system, and reset the peak.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):
        return False
    return True


def _process(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
