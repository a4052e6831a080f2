"""Loading of a checkpoint with transformers: placement, memory checks, error translation."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import psutil

from sttm_cli.base.device import is_out_of_memory
from sttm_cli.base.errors import ModelError, OutOfMemoryError, SttmError
from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import Checkpoint, check_no_adapter, weight_files

# Placement of a model, and memory checks before its weights are loaded.


WAY_OUT = "choose a smaller model, --dtype bfloat16, or a --device with more memory"
SHARE = 0.8
"""Share of an accelerator's free memory for weights; the rest is for KV and activations."""
HEADER = 100_000_000
"""Maximum bytes of a safetensors header, as in the safetensors library."""


@dataclass(frozen=True)
class Placement:
    """Device, dtype and attention of a model: "cuda:0", "bfloat16", "sdpa" (transformers' names).

    `spread`: divide the model among all accelerators of this kind if one is too small. Without
    `vision` the tower's layers are not loaded; a stored KV does not need them.
    """

    device: str
    dtype: str
    attention: str = "sdpa"
    spread: bool = False
    vision: bool = True


def place(checkpoint: Checkpoint, placement: Placement) -> Json:
    """Return arguments of `from_pretrained` that place the weights on one or more devices.

    Raises OutOfMemoryError if the weights alone exceed the free memory.
    """
    needed = weight_bytes(checkpoint, placement.dtype, device=placement.device)
    free = free_bytes(placement.device)
    gpus = accelerators() if placement.spread else []
    if free is not None and needed > SHARE * free and len(gpus) > 1:
        return _spread(checkpoint, placement, needed, gpus)
    if free is not None and needed > free:
        raise _too_large(checkpoint, placement, needed, free, placement.device)
    return {"device_map": {"": placement.device}}


def check_room(checkpoint: Checkpoint, placement: Placement, kv: int) -> None:
    """Raise OutOfMemoryError if the weights and a KV of `kv` bytes exceed the free memory.

    Activations are not counted, so memory may still run out later.
    """
    free = sum(accelerators()) if placement.spread else free_bytes(placement.device)
    needed = weight_bytes(checkpoint, placement.dtype, device=placement.device)
    if free is not None and needed + kv > free:
        raise OutOfMemoryError(
            f"model {checkpoint.name!r} takes {needed / 2**30:.1f} GiB in {placement.dtype} and "
            f"this video's KV about {kv / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free",
            "use fewer --frames, a smaller --budget or --dtype bfloat16, or choose a smaller model",
        )


def _spread(checkpoint: Checkpoint, placement: Placement, needed: int, free: list[int]) -> Json:
    """Return arguments that divide the layers evenly, with memory left for KV and activations."""
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
    """Return the free bytes of each GPU."""
    import torch

    return [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]


def weight_bytes(checkpoint: Checkpoint, dtype: str, *, device: str = "cpu") -> int:
    """Compute the bytes of all weights in `dtype` from the files' headers.

    Whole numbers, which contain packed 4-bit weights, stay as they are; so do 8-bit floats of a
    quantized checkpoint on a GPU, where transformers computes with them.
    """
    import torch

    each: int = getattr(torch, dtype).itemsize
    computed = quantization(checkpoint) and device.startswith("cuda")
    kept = ("I", "U", "BOOL", "F8") if computed else ("I", "U", "BOOL")
    files = weight_files(checkpoint.name, checkpoint.folder)
    return sum(_bytes(checkpoint.name, path, each, kept) for path in files)


def free_bytes(device: str) -> int | None:
    """Return the free bytes of a device, None if unknown."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    if device != "cpu":
        return None
    return int(psutil.virtual_memory().available + psutil.swap_memory().free)


def _bytes(name: str, path: Path, each: int, kept: tuple[str, ...]) -> int:
    """Count the bytes of a safetensors file's tensors at `each` a number; types that start as one
    of `kept` take as many as in the file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length) if length <= HEADER else b"")
        rows: list[Json] = [row for key, row in header.items() if key != "__metadata__"]
        count = sum(prod(row["shape"]) for row in rows)
        stays = [row["data_offsets"] for row in rows if row["dtype"].startswith(kept)]
        same: int = sum(end - begin for begin, end in stays)
        others: int = sum(prod(row["shape"]) for row in rows if not row["dtype"].startswith(kept))
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise _not_weights(name, path) from error
    # safetensors accepts any shape that fits the bytes; a number takes at least half a byte.
    size = path.stat().st_size
    if not isinstance(count, int) or not (0 <= count <= 2 * size and 0 <= same <= size):
        raise _not_weights(name, path)
    return same + each * others


def _not_weights(name: str, path: Path) -> ModelError:
    return ModelError(
        f"model {name!r}: {path.name} is not a safetensors file", "fetch the model again"
    )


# Quantized checkpoints: those that transformers computes with as they are.


FULL, LINEAR = "full_attention", "linear_attention"
"""Types of decoder layers, as transformers calls them."""
QUANTIZERS = {
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "fp8": (),
    "gptq": ("gptqmodel", "optimum"),
}
"""Ways of quantization, and the packages that each needs."""


def quantization(checkpoint: Checkpoint) -> str:
    """The way in which a checkpoint's weights are quantized, "" where they are not."""
    config = checkpoint.config
    stated = config.get("quantization_config") or checkpoint.text.get("quantization_config")
    return str(stated.get("quant_method") or "unknown") if isinstance(stated, dict) else ""


def quantizers(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The installed packages that compute with a quantized checkpoint's weights."""
    needed = QUANTIZERS.get(quantization(checkpoint), ())
    return tuple(name for name in needed if _is_installed(name))


def _check_quantization(checkpoint: Checkpoint) -> None:
    method = quantization(checkpoint)
    if method and method not in QUANTIZERS:
        raise ModelError(
            f"model {checkpoint.name!r} is quantized as {method[:40]!r}, which is not supported",
            f"supported: {', '.join(QUANTIZERS)}",
        )
    missing = [name for name in QUANTIZERS.get(method, ()) if not _is_installed(name)]
    if missing:
        raise ModelError(
            f"model {checkpoint.name!r} is quantized as {method!r}, which needs {missing[0]}",
            f"pip install {' '.join(missing)}",
        )


def _is_installed(package: str) -> bool:
    return find_spec(package.replace("-", "_")) is not None


def load_pretrained(
    model_class: Any,
    checkpoint: Checkpoint,
    placement: Placement,
    kinds: Collection[str] = (FULL,),
) -> tuple[Any, Any]:
    """Load a model, in evaluation mode, and its processor; remote code is never run.

    `kinds`: the types of decoder layers that the family supports.
    Raises ModelError if files are missing or do not fit the architecture, OutOfMemoryError if the
    weights do not fit into memory.
    """
    from transformers import AutoProcessor

    processor = load_files(AutoProcessor, checkpoint)
    return load_weights(model_class, checkpoint, placement, kinds=kinds), processor


def load_files(file_class: Any, checkpoint: Checkpoint) -> Any:
    """Load a processor or a tokenizer, unless the caller did. Raises ModelError."""
    if checkpoint.loaded is not None:
        return checkpoint.loaded[1]
    _quiet()
    with reworded(checkpoint, "this machine"), warnings.catch_warnings():
        # Deprecated names of settings come from the checkpoint, not from the user.
        warnings.simplefilter("ignore", FutureWarning)
        return file_class.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )


def load_weights(
    model_class: Any,
    checkpoint: Checkpoint,
    placement: Placement,
    *,
    kinds: Collection[str] = (FULL,),
    **options: Any,
) -> Any:
    """Load a model alone, with `options` for `from_pretrained`; raises as `load_pretrained`.

    `kinds`: the types of decoder layers that the family supports.
    """
    if checkpoint.loaded is not None:
        return checkpoint.loaded[0]
    import torch

    _quiet()
    check_no_adapter(checkpoint.name, checkpoint.folder)
    _check_quantization(checkpoint)
    where = place(checkpoint, placement)
    with reworded(checkpoint, placement.device):
        config = _config(checkpoint, placement, options.pop("config", None))
        _check_layers(checkpoint, config, kinds)
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
    """Return `config`, by default the checkpoint's, without tower layers unless they are needed."""
    if config is None:
        from transformers import AutoConfig

        with reworded(checkpoint, placement.device):
            config = AutoConfig.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=False
            )
    if not placement.vision:
        # The weights of a tower without layers are not read from the files.
        tower = config.vision_config
        setattr(tower, "depth" if hasattr(tower, "depth") else "num_hidden_layers", 0)
        if getattr(tower, "model_args", None):  # a tower of the timm library
            tower.model_args = {**tower.model_args, "depth": 0}
    return config


def _check_layers(checkpoint: Checkpoint, config: Any, kinds: Collection[str]) -> None:
    # A window would see other frames after merging, a recurrent state is not in keys and values:
    # such a decoder inside a model of another family would answer, and wrongly.
    text = config.get_text_config()
    others = sorted({*(getattr(text, "layer_types", None) or ())} - {*kinds})
    if others:
        raise ModelError(
            f"model {checkpoint.name!r} has decoder layers of the type {others[0]!r}, which is not "
            "supported",
            "choose a model whose layers all have full attention, such as qwen3-vl-4b",
        )


def _check_size(checkpoint: Checkpoint, config: Any) -> None:
    # transformers allocates missing weights before it reports them, and a part that the config
    # omits has the size of a large model by default. A number takes at least 4 bits.
    least = sum(_least_numbers(part) for part in (config.get_text_config(), config.vision_config))
    files = weight_files(checkpoint.name, checkpoint.folder)
    if least // 2 > sum(path.stat().st_size for path in files):
        raise ModelError(
            f"model {checkpoint.name!r} has at least {least} weights by its config.json, more than "
            "its files",
            "the checkpoint is incomplete or of another architecture",
        )


def _least_numbers(part: Any) -> int:
    """Compute a lower bound of the number of weights of a decoder or a tower."""
    fields = ("num_hidden_layers", "depth", "embed_dim", "hidden_size", "intermediate_size",
              "vocab_size", "num_position_embeddings", "num_experts", "moe_intermediate_size",
              "num_attention_heads", "head_dim", "position_embedding_size",
              "vocab_size_per_layer_input", "hidden_size_per_layer_input")  # fmt: skip
    other = getattr(part, "model_args", None) or {}  # those of a tower of the timm library
    differ = getattr(part, "is_heterogeneous", False)
    named = [name for name in fields if not (differ and name == "head_dim")]
    stated = {name: getattr(part, name, other.get(name)) for name in named}
    has = {name: value for name, value in stated.items() if isinstance(value, int)}
    layers = has.get("num_hidden_layers", has.get("depth", 0))
    width = has.get("embed_dim", has.get("hidden_size", 0))
    inner = has.get("intermediate_size", width)
    if has.get("num_experts"):
        inner = has["num_experts"] * has.get("moe_intermediate_size", 1)
    heads = has.get("num_attention_heads", 0)
    dims = has.get("head_dim", 0) * layers
    if differ:
        dims = sum(layer.head_dim for layer in part.per_layer_config)
    rows = has.get("vocab_size", 0) + has.get("num_position_embeddings", 0)
    rows += has.get("position_embedding_size", 0)
    added = has.get("vocab_size_per_layer_input", 0) * has.get("hidden_size_per_layer_input", 0)
    return width * (2 * layers * inner + 2 * heads * dims + rows) + layers * added


@contextmanager
def reworded(checkpoint: Checkpoint, device: str) -> Iterator[None]:
    """Raise ModelError or OutOfMemoryError for any failure while loading `checkpoint`."""
    try:
        yield
    except SttmError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"the memory of {device} does not suffice for model {checkpoint.name!r}", WAY_OUT
            ) from error
        # A config can make a library fail anywhere, so every error concerns this checkpoint.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"model {checkpoint.name!r} cannot be loaded: {reason[0][:200]}",
            "give a complete checkpoint folder",
        ) from error


def _check_complete(checkpoint: Checkpoint, loading: dict[str, Any]) -> None:
    # transformers fills missing weights with random numbers and only warns.
    missing = sorted(loading.get("missing_keys", ())) + sorted(
        str(m[0]) for m in loading.get("mismatched_keys", ())
    )
    if missing:
        raise ModelError(
            f"model {checkpoint.name!r} lacks {len(missing)} weights, such as {missing[0]}",
            "the checkpoint is incomplete or of another architecture",
        )


def _check_placed(checkpoint: Checkpoint, model: Any) -> None:
    # If accelerators do not suffice, layers would be read from the disk for every token.
    left = {"cpu", "disk"} & {str(d) for d in getattr(model, "hf_device_map", {}).values()}
    if left and len(model.hf_device_map) > 1:
        raise OutOfMemoryError(
            f"the accelerators' memory does not suffice for model {checkpoint.name!r}", WAY_OUT
        )


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
