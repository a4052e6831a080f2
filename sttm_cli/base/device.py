"""Which device and number format to use, and one clear error where its memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sttm_cli.base.errors import OutOfMemoryError, UsageError

if TYPE_CHECKING:
    import torch


def resolve_device(asked: str) -> str:
    """ "auto" -> the accelerator if there is one; raises UsageError for one that is not there."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if asked == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, number = asked.partition(":")
    there = {"cpu": True, "cuda": cuda, "mps": mps}.get(kind)
    if there and number and not (number.isdigit() and int(number) < max(1, _count(kind))):
        there = False
    if not there:
        why = "not known" if there is None else "not there on this machine"
        raise UsageError(f"--device {asked!r} is {why}", "use auto, cpu, cuda, cuda:N or mps")
    return asked


def resolve_dtype(asked: str, device: str) -> str:
    """ "auto" -> bfloat16 on a GPU that has it, float16 on other accelerators, else float32."""
    import torch

    if asked != "auto":
        return asked
    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float16"
    return "float16" if device == "mps" else "float32"


def resolve_attention(device: str, dtype: str) -> str:
    """transformers' name of the attention to use: flash attention where it is installed."""
    if not device.startswith("cuda") or dtype not in ("bfloat16", "float16"):
        return "sdpa"
    import torch
    from transformers import utils

    # Its kernels need tensor cores of the Ampere kind.
    able = torch.cuda.get_device_capability(device) >= (8, 0)
    return "flash_attention_2" if able and utils.is_flash_attn_2_available() else "sdpa"


def wait_for(device: str | torch.device) -> None:
    """Let an accelerator finish: kernels run behind the clock."""
    import torch

    kind = str(device).split(":")[0]
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


ALLOCATORS = ("out of memory", "not enough memory", "can't allocate memory")
"""What torch's allocators say where they raise no error of their own."""


@contextmanager
def reporting_memory() -> Iterator[None]:
    """Turn an allocator's failure into OutOfMemoryError with the way out."""
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
    """Whether memory ran out: torch's CPU allocator raises a plain RuntimeError."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return type(error) is RuntimeError and any(s in str(error) for s in ALLOCATORS)


def _count(kind: str) -> int:
    import torch

    return torch.cuda.device_count() if kind == "cuda" else 1
