"""Token counts of a video and bytes per token, from a checkpoint's config alone."""

from __future__ import annotations

from dataclasses import dataclass

from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.registry import find_family


@dataclass(frozen=True)
class TokenCount:
    """About how many tokens a video gives: visual ones, and text between them, never merged."""

    visual: int
    text: int


def token_count(
    checkpoint: Checkpoint, frames: int, *, width: int, height: int
) -> TokenCount | None:
    """About how many tokens `frames` frames give; None where the config does not state it.

    Visual tokens are exact for families that square their frames. For those that keep the aspect
    ratio the count is the limit of their authors' preprocessing.
    """
    family = find_family(checkpoint.model_type)
    if family is None:
        return None
    try:
        steps, each = family.grid(checkpoint, frames, width=width, height=height)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None
    return TokenCount(visual=steps * each, text=steps * family.step_text)


def layer_bytes(checkpoint: Checkpoint, itemsize: int) -> int | None:
    """Bytes of a token's key and value in one decoder layer; None where the config does not
    state them."""
    text = checkpoint.text
    try:
        heads = text["num_attention_heads"]
        dim = text.get("head_dim") or text["hidden_size"] // heads
        return 2 * int(text.get("num_key_value_heads") or heads) * int(dim) * itemsize
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def context_length(checkpoint: Checkpoint) -> int | None:
    """The most tokens the model was trained for; None where the config does not state it."""
    length = checkpoint.text.get("max_position_embeddings")
    return length if isinstance(length, int) else None
