"""Loading a checkpoint folder with transformers, its failures told in our words."""

from __future__ import annotations

from typing import Any

from sttm_cli.errors import ModelError, OutOfMemoryError
from sttm_cli.models.base import Placement
from sttm_cli.models.source import ModelSource


def load_pretrained(model_class: Any, source: ModelSource, placement: Placement) -> tuple[Any, Any]:
    """`from_pretrained` of a model and its processor, in evaluation mode where `placement` says.

    Raises ModelError where files are missing or do not fit the architecture, OutOfMemoryError
    where the weights do not fit into memory. Remote code is never run.
    """
    import torch
    from transformers import AutoProcessor

    _quiet()
    try:
        processor = AutoProcessor.from_pretrained(source.folder, local_files_only=True)
        model, loading = model_class.from_pretrained(
            source.folder,
            dtype=getattr(torch, placement.dtype),
            attn_implementation=placement.attention,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        model = model.to(placement.device).eval()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(
            f"model {source.name!r} needs about {source.weight_bytes / 2**30:.1f} GiB "
            f"and does not fit on {placement.device}",
            "choose a smaller model or --dtype bfloat16",
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"model {source.name!r} cannot be loaded: {reason[0][:200]}",
            "give a complete checkpoint folder",
        ) from error
    _check_complete(source, loading)
    return model, processor


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


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
