"""Loading a checkpoint folder with transformers, its failures told in our words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sttm_cli.base.errors import ModelError, OutOfMemoryError
from sttm_cli.models.checkpoint import ModelSource
from sttm_cli.models.placement import WAY_OUT, place
from sttm_cli.models.video_llm import Placement


def load_pretrained(model_class: Any, source: ModelSource, placement: Placement) -> tuple[Any, Any]:
    """`from_pretrained` of a model and its processor, in evaluation mode where `placement` says.

    Raises ModelError where files are missing or do not fit the architecture, OutOfMemoryError
    where the weights do not fit into memory. Remote code is never run.
    """
    from transformers import AutoProcessor

    processor = load_files(AutoProcessor, source)
    return load_weights(model_class, source, placement), processor


def load_files(file_class: Any, source: ModelSource) -> Any:
    """`from_pretrained` of what is no weights: a processor or a tokenizer. Raises ModelError."""
    _quiet()
    with _told(source, "this machine"), warnings.catch_warnings():
        # Names of settings that transformers has given up are the checkpoint's, not the user's.
        warnings.simplefilter("ignore", FutureWarning)
        return file_class.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=False
        )


def load_weights(
    model_class: Any, source: ModelSource, placement: Placement, **options: Any
) -> Any:
    """`from_pretrained` of a model alone, with `options` for it; raises as `load_pretrained`."""
    import torch

    _quiet()
    where = place(source, placement)
    with _told(source, placement.device):
        model, loading = model_class.from_pretrained(
            source.folder,
            config=_config(source, placement, options.pop("config", None)),
            dtype=getattr(torch, placement.dtype),
            attn_implementation=placement.attention,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **where,
            **options,
        )
    _check_complete(source, loading)
    _check_placed(source, model)
    return model.eval()


def _config(source: ModelSource, placement: Placement, config: Any) -> Any:
    """The checkpoint's configuration, or the given one, with what `placement` leaves out."""
    if config is None:
        from transformers import AutoConfig

        with _told(source, placement.device):
            config = AutoConfig.from_pretrained(
                source.folder, local_files_only=True, trust_remote_code=False
            )
    if not placement.vision:
        # A tower of no layers: the weights of those in the files are not read.
        tower = config.vision_config
        setattr(tower, "depth" if hasattr(tower, "depth") else "num_hidden_layers", 0)
    return config


@contextmanager
def _told(source: ModelSource, device: str) -> Iterator[None]:
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(
            f"the memory of {device} does not suffice for model {source.name!r}", WAY_OUT
        ) from error
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError,
        SafetensorError,
    ) as error:  # fmt: skip
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"model {source.name!r} cannot be loaded: {reason[0][:200]}",
            "give a complete checkpoint folder",
        ) from error


def _check_complete(source: ModelSource, loading: dict[str, Any]) -> None:
    # transformers fills missing weights with random numbers and only warns: a wrong answer.
    missing = sorted(loading.get("missing_keys", ())) + sorted(
        str(m[0]) for m in loading.get("mismatched_keys", ())
    )
    if missing:
        raise ModelError(
            f"model {source.name!r} lacks {len(missing)} weights, such as {missing[0]}",
            "the checkpoint is incomplete or of another architecture",
        )


def _check_placed(source: ModelSource, model: Any) -> None:
    # Where accelerators do not suffice, parts would be fetched from the disk for every token.
    left = {"cpu", "disk"} & {str(d) for d in getattr(model, "hf_device_map", {}).values()}
    if left and len(model.hf_device_map) > 1:
        raise OutOfMemoryError(
            f"the accelerators' memory does not suffice for model {source.name!r}", WAY_OUT
        )


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
