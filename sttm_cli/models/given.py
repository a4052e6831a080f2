"""A model that was loaded elsewhere, in the place of a checkpoint on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import Checkpoint


def name_of(model: Any) -> str:
    """The name that a loaded model goes by: where it came from, else its class."""
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def given_checkpoint(model: Any, processor: Any, *, stored: bool) -> Checkpoint:
    """The checkpoint of a loaded transformers model and its processor.

    Its fingerprint is a hash of every weight, read once, unless nothing is `stored` under it.
    Raises UsageError for what is neither.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "lm_head"):
        raise UsageError(
            f"the model is a {type(model).__name__}",
            "give a name, or a loaded ...ForConditionalGeneration of transformers",
        )
    if model.training:
        raise UsageError("the model is in training mode", "call model.eval() first")
    if not hasattr(processor, "tokenizer"):
        given = "missing" if processor is None else f"a {type(processor).__name__}"
        raise UsageError(
            f"the processor of the model is {given}",
            "give processor=AutoProcessor.from_pretrained(...) beside the model",
        )
    folder = Path(name_of(model))
    return Checkpoint(
        name=name_of(model),
        folder=folder if folder.is_dir() else Path(),
        revision=None,
        fingerprint=_fingerprint(model, processor) if stored else f"object:{id(model)}",
        config=config.to_dict(),
        loaded=(model, processor),
    )


def _fingerprint(model: Any, processor: Any) -> str:
    """A hash over the weights, and over all else that shapes what the model makes of a video."""
    import torch
    from blake3 import blake3

    total = blake3(max_threads=blake3.AUTO)
    for part in _texts(model, processor):
        total.update(f"{len(part)}:{part}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        total.update(plain.numpy())
    return f"loaded:{total.hexdigest()}"


def _texts(model: Any, processor: Any) -> list[str]:
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    frames = getattr(processor, "video_processor", None)
    return [
        type(model).__name__,
        _json(model.config),
        _json(getattr(model, "generation_config", None)),
        _json(frames),
        str(getattr(processor, "chat_template", None) or tokenizer.chat_template),
        str(tokenizer.special_tokens_map),
        backend.to_str() if backend is not None else "",
    ]


def _json(stated: Any) -> str:
    writes = getattr(stated, "to_json_string", None)
    return str(writes()) if callable(writes) else ""


def placed(model: Any) -> Json:
    """Where and how a loaded model runs: its device, dtype and attention."""
    text = getattr(model.config, "text_config", None) or model.config
    return {
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(getattr(text, "_attn_implementation", None) or "sdpa"),
    }
