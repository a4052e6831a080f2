"""Loading a checkpoint folder with transformers; its failures become errors of this package."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil

from sttm_cli.base.device import is_out_of_memory
from sttm_cli.base.errors import ModelError, OutOfMemoryError, SttmError
from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import Checkpoint, weight_files

# Where a model runs, and whether its weights fit there, before any of them is loaded.


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


def load_pretrained(
    model_class: Any, checkpoint: Checkpoint, placement: Placement
) -> tuple[Any, Any]:
    """`from_pretrained` of a model and its processor, in evaluation mode where `placement` says.

    Raises ModelError where files are missing or do not fit the architecture, OutOfMemoryError
    where the weights do not fit into memory. Remote code is never run.
    """
    if checkpoint.loaded is not None:
        return checkpoint.loaded
    from transformers import AutoProcessor

    processor = load_files(AutoProcessor, checkpoint)
    return load_weights(model_class, checkpoint, placement), processor


def load_files(file_class: Any, checkpoint: Checkpoint) -> Any:
    """`from_pretrained` of a processor or a tokenizer. Raises ModelError."""
    _quiet()
    with reworded(checkpoint, "this machine"), warnings.catch_warnings():
        # Deprecated names of settings are the checkpoint's, not the user's.
        warnings.simplefilter("ignore", FutureWarning)
        return file_class.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )


def load_weights(
    model_class: Any, checkpoint: Checkpoint, placement: Placement, **options: Any
) -> Any:
    """`from_pretrained` of a model alone, with `options` for it; raises as `load_pretrained`."""
    import torch

    _quiet()
    where = place(checkpoint, placement)
    with reworded(checkpoint, placement.device):
        config = _config(checkpoint, placement, options.pop("config", None))
        _check_size(checkpoint, config)
        model, loading = model_class.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=getattr(torch, placement.dtype),
            attn_implementation=placement.attention,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **where,
            **options,
        )
    _check_complete(checkpoint, loading)
    _check_placed(checkpoint, model)
    return model.eval()


def _config(checkpoint: Checkpoint, placement: Placement, config: Any) -> Any:
    """The given configuration, else the checkpoint's, without what `placement` leaves out."""
    if config is None:
        from transformers import AutoConfig

        with reworded(checkpoint, placement.device):
            config = AutoConfig.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=False
            )
    if not placement.vision:
        # A tower without layers: their weights are not read from the files.
        tower = config.vision_config
        setattr(tower, "depth" if hasattr(tower, "depth") else "num_hidden_layers", 0)
    return config


def _check_size(checkpoint: Checkpoint, config: Any) -> None:
    # transformers makes every weight that is not in the files before it complains of them; a part
    # that the config leaves out has the size of a large model by default.
    least = sum(_least_numbers(part) for part in (config.get_text_config(), config.vision_config))
    files = weight_files(checkpoint.name, checkpoint.folder)
    if least // 2 > sum(path.stat().st_size for path in files):
        raise ModelError(
            f"model {checkpoint.name!r} has at least {least} weights by its config.json, more than "
            "its files",
            "the checkpoint is incomplete or of another architecture",
        )


def _least_numbers(part: Any) -> int:
    """The fewest numbers that a decoder's or a tower's weights have; a number takes 4 bits at
    least."""
    fields = ("num_hidden_layers", "depth", "embed_dim", "hidden_size", "intermediate_size",
              "vocab_size", "num_position_embeddings", "num_experts", "moe_intermediate_size",
              "num_attention_heads", "head_dim")  # fmt: skip
    has = {name: value for name in fields if isinstance(value := getattr(part, name, None), int)}
    layers = has.get("num_hidden_layers", has.get("depth", 0))
    width = has.get("embed_dim", has.get("hidden_size", 0))
    inner = has.get("intermediate_size", width)
    if has.get("num_experts"):
        inner = has["num_experts"] * has.get("moe_intermediate_size", 1)
    attention = has.get("num_attention_heads", 0) * has.get("head_dim", 0)
    rows = has.get("vocab_size", 0) + has.get("num_position_embeddings", 0)
    return width * (layers * (2 * inner + 2 * attention) + rows)


@contextmanager
def reworded(checkpoint: Checkpoint, device: str) -> Iterator[None]:
    """Raise ModelError or OutOfMemoryError for any failure to load `checkpoint`."""
    try:
        yield
    except SttmError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"the memory of {device} does not suffice for model {checkpoint.name!r}", WAY_OUT
            ) from error
        # A config can make a library fail anywhere: whatever it raises is about this checkpoint.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"model {checkpoint.name!r} cannot be loaded: {reason[0][:200]}",
            "give a complete checkpoint folder",
        ) from error


def _check_complete(checkpoint: Checkpoint, loading: dict[str, Any]) -> None:
    # transformers fills missing weights with random numbers and only warns: a wrong answer.
    missing = sorted(loading.get("missing_keys", ())) + sorted(
        str(m[0]) for m in loading.get("mismatched_keys", ())
    )
    if missing:
        raise ModelError(
            f"model {checkpoint.name!r} lacks {len(missing)} weights, such as {missing[0]}",
            "the checkpoint is incomplete or of another architecture",
        )


def _check_placed(checkpoint: Checkpoint, model: Any) -> None:
    # Where accelerators do not suffice, layers would be read from the disk for every token.
    left = {"cpu", "disk"} & {str(d) for d in getattr(model, "hf_device_map", {}).values()}
    if left and len(model.hf_device_map) > 1:
        raise OutOfMemoryError(
            f"the accelerators' memory does not suffice for model {checkpoint.name!r}", WAY_OUT
        )


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
