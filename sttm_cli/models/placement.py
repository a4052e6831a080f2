"""Where a model runs, and whether its weights fit there, before any of them is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import psutil

from sttm_cli.base.errors import ModelError, OutOfMemoryError
from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.checkpoint_files import weight_files

WAY_OUT = "choose a smaller model, --dtype bfloat16, or a --device with more memory"
SHARE = 0.8
"""Of an accelerator's free memory for weights; the rest is for a video's KV and activations."""
HEADER = 100_000_000
"""Most bytes of a safetensors header, as in the library itself."""


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs: "cuda:0", "bfloat16", "sdpa" (transformers' names).

    `spread`: it may be divided among all accelerators of this kind where one is too small.
    Without `vision` the tower's layers are not loaded: a stored KV needs none.
    """

    device: str
    dtype: str
    attention: str = "sdpa"
    spread: bool = False
    vision: bool = True


def place(checkpoint: Checkpoint, placement: Placement) -> Json:
    """Arguments of `from_pretrained` that put the weights on one device, or several if need be.

    Raises OutOfMemoryError where the weights alone exceed the free memory there.
    """
    needed = weight_bytes(checkpoint, placement.dtype)
    free = free_bytes(placement.device)
    every = accelerators() if placement.spread else []
    if free is not None and needed > SHARE * free and len(every) > 1:
        return _spread(checkpoint, placement, needed, every)
    if free is not None and needed > free:
        raise _too_large(checkpoint, placement, needed, free, placement.device)
    return {"device_map": {"": placement.device}}


def check_room(checkpoint: Checkpoint, placement: Placement, kv: int) -> None:
    """Raise OutOfMemoryError where weights and a KV of `kv` bytes exceed the free memory.

    Called before the weights are loaded. Activations come on top: a video that passes may still
    run out of memory later.
    """
    free = sum(accelerators()) if placement.spread else free_bytes(placement.device)
    needed = weight_bytes(checkpoint, placement.dtype)
    if free is not None and needed + kv > free:
        raise OutOfMemoryError(
            f"model {checkpoint.name!r} takes {needed / 2**30:.1f} GiB in {placement.dtype} and "
            f"this video's KV about {kv / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free",
            "use fewer --frames, a smaller --budget or --dtype bfloat16, or choose a smaller model",
        )


def _spread(checkpoint: Checkpoint, placement: Placement, needed: int, free: list[int]) -> Json:
    """Layers divided evenly among all accelerators, room left for KV and activations."""
    room = {index: int(SHARE * bytes_) for index, bytes_ in enumerate(free)}
    if needed > sum(room.values()):
        where = f"{len(free)} accelerators, a fifth of which the video needs"
        raise _too_large(checkpoint, placement, needed, sum(free), where)
    return {"device_map": "balanced", "max_memory": room}


def _too_large(
    checkpoint: Checkpoint, placement: Placement, needed: int, free: int, where: str
) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"model {checkpoint.name!r} takes {needed / 2**30:.1f} GiB in {placement.dtype}, and "
        f"{free / 2**30:.1f} GiB are free on {where}",
        WAY_OUT,
    )


def accelerators() -> list[int]:
    """Free bytes of each GPU."""
    import torch

    return [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]


def weight_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Bytes of all weights once they are in `dtype`, from the files' headers alone."""
    import torch

    each: int = getattr(torch, dtype).itemsize
    return each * sum(
        _numbers(checkpoint.name, path) for path in weight_files(checkpoint.name, checkpoint.folder)
    )


def free_bytes(device: str) -> int | None:
    """Free bytes of a device, None where they are unknown."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device != "cpu":
        return None
    return int(psutil.virtual_memory().available + psutil.swap_memory().free)


def _numbers(name: str, path: Path) -> int:
    """Count of numbers in a safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length) if length <= HEADER else b"")
        shapes = [row["shape"] for key, row in header.items() if key != "__metadata__"]
        count = sum(map(prod, shapes))
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise _not_weights(name, path) from error
    # The library takes any shape that fits the bytes; a number is of half a byte at least.
    if not isinstance(count, int) or not 0 <= count <= 2 * path.stat().st_size:
        raise _not_weights(name, path)
    return count


def _not_weights(name: str, path: Path) -> ModelError:
    return ModelError(
        f"model {name!r}: {path.name} is not a safetensors file", "fetch the model again"
    )
