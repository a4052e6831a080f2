"""Device, dtype and attention to use, and detection of out-of-memory failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sttm_cli.base.errors import OutOfMemoryError, UsageError

if TYPE_CHECKING:
    import torch


KERNELS = ("sdpa", "flash_attention_2", "flash_attention_3")
"""transformers' names of the attention that can count tokens by their size."""


def resolve_device(requested: str) -> str:
    """Resolve "auto" to the accelerator, if any; raise UsageError for a missing device."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if requested == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, number = requested.partition(":")
    exists = {"cpu": True, "cuda": cuda, "mps": mps}.get(kind)
    if exists and number and not (number.isdigit() and int(number) < max(1, _count(kind))):
        exists = False
    if not exists:
        why = "not known" if exists is None else "not available on this machine"
        raise UsageError(f"--device {requested!r} is {why}", "use auto, cpu, cuda, cuda:N or mps")
    return requested


def resolve_dtype(requested: str, device: str) -> str:
    """Resolve "auto": bfloat16 on GPUs that support it, float16 on other accelerators, float32 on
    CPUs."""
    import torch

    if requested != "auto":
        return requested
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float16"
    return "float16" if device == "mps" else "float32"


def resolve_attention(device: str, dtype: str) -> str:
    """Return transformers' name of the attention to use: flash attention if installed."""
    if not device.startswith("cuda") or dtype not in ("bfloat16", "float16"):
        return "sdpa"
    import torch
    from transformers import utils

    # Flash attention needs Ampere tensor cores.
    supported = torch.cuda.get_device_capability(device) >= (8, 0)
    return "flash_attention_2" if supported and utils.is_flash_attn_2_available() else "sdpa"


def wait_for(device: str | torch.device) -> None:
    """Wait for an accelerator's kernels, which run asynchronously, so that timings include them."""
    import torch

    kind = str(device).split(":")[0]
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


ALLOCATORS = ("out of memory", "not enough memory", "can't allocate memory")
"""Messages of torch's allocators that raise a plain RuntimeError."""


@contextmanager
def reporting_memory() -> Iterator[None]:
    """Raise OutOfMemoryError, with a hint, for any allocation failure inside."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "the memory does not suffice for this video with these settings",
            "use fewer --frames, a smaller --budget or --dtype bfloat16",
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; torch's CPU allocator raises a plain RuntimeError."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return type(error) is RuntimeError and any(s in str(error) for s in ALLOCATORS)


def _count(kind: str) -> int:
    import torch

    return torch.cuda.device_count() if kind == "cuda" else 1
