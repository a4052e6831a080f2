"""How much memory a checkpoint's weights will take, told before any of them is loaded."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import psutil
import torch

from sttm_cli.base.errors import ModelError, OutOfMemoryError
from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import ModelSource
from sttm_cli.models.video_llm import Placement

WAY_OUT = "choose a smaller model, --dtype bfloat16, or a --device with more memory"
SHARE = 0.8
"""Of an accelerator's free memory for weights; the rest is for a video's KV and activations."""
HEADER = 100_000_000
"""Most bytes of a safetensors header, as in the library itself."""


def place(source: ModelSource, placement: Placement) -> Json:
    """Where the weights go, as `from_pretrained` takes it: one device, or several if need be.

    Raises OutOfMemoryError where the weights alone are more than what is free there.
    """
    needed = weight_bytes(source, placement.dtype)
    free = free_bytes(placement.device)
    every = accelerators() if placement.spread else []
    if free is not None and needed > SHARE * free and len(every) > 1:
        return _spread(source, placement, needed, every)
    if free is not None and needed > free:
        raise _too_large(source, placement, needed, free, placement.device)
    return {"device_map": {"": placement.device}}


def check_room(source: ModelSource, placement: Placement, kv: int) -> None:
    """Raise OutOfMemoryError where weights and a KV of `kv` bytes are more than what is free.

    To be asked before the weights are loaded. Activations come on top: what passes may still
    run out of memory later.
    """
    free = sum(accelerators()) if placement.spread else free_bytes(placement.device)
    needed = weight_bytes(source, placement.dtype)
    if free is not None and needed + kv > free:
        raise OutOfMemoryError(
            f"model {source.name!r} takes {needed / 2**30:.1f} GiB in {placement.dtype} and this "
            f"video's KV about {kv / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free",
            "use fewer --frames, a smaller --budget or --dtype bfloat16, or choose a smaller model",
        )


def _spread(source: ModelSource, placement: Placement, needed: int, free: list[int]) -> Json:
    """Layers over all accelerators alike; what is left free is for KV and activations."""
    room = {index: int(SHARE * bytes_) for index, bytes_ in enumerate(free)}
    if needed > sum(room.values()):
        where = f"{len(free)} accelerators, of which a fifth is needed for the video,"
        raise _too_large(source, placement, needed, sum(free), where)
    return {"device_map": "balanced", "max_memory": room}


def _too_large(
    source: ModelSource, placement: Placement, needed: int, free: int, where: str
) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"model {source.name!r} takes {needed / 2**30:.1f} GiB in {placement.dtype}, and "
        f"{free / 2**30:.1f} GiB are free on {where}",
        WAY_OUT,
    )


def accelerators() -> list[int]:
    """Bytes that are free on each GPU."""
    return [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]


def weight_bytes(source: ModelSource, dtype: str) -> int:
    """Bytes of all weights once they are in `dtype`, from the files' headers alone."""
    each: int = getattr(torch, dtype).itemsize
    return each * sum(_numbers(source.name, path) for path in source.folder.glob("*.safetensors"))


def free_bytes(device: str) -> int | None:
    """Bytes that are free on a device, None where that cannot be told."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device != "cpu":
        return None
    return int(psutil.virtual_memory().available + psutil.swap_memory().free)


def _numbers(name: str, path: Path) -> int:
    """How many numbers a safetensors file holds."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length) if length <= HEADER else b"")
        return sum(prod(row["shape"]) for key, row in header.items() if key != "__metadata__")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(
            f"model {name!r}: {path.name} is not a safetensors file", "fetch the model again"
        ) from error
