"""How many tokens a video gives and how many bytes each takes, from a checkpoint's config alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil

from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import ModelSource

STEP_TEXT = {"llava_qwen": 8, "internvl": 8, "qwen3_vl": 9, "qwen3_vl_moe": 9, "smolvlm": 12}
"""About how many tokens of text a grid step has beside its visual ones: its time or number."""
STEP_TOKENS = 768
"""Most tokens of a grid step of the Qwen-VL families (qwen-vl-utils, VIDEO_MAX_TOKEN_NUM)."""


@dataclass(frozen=True)
class TokenCount:
    """About how many tokens a video gives: visual ones, and text between them, never merged."""

    visual: int
    text: int


def token_count(source: ModelSource, frames: int, *, width: int, height: int) -> TokenCount | None:
    """About how many tokens `frames` frames give; None where the config does not tell.

    Visual tokens are exact for families that square their frames. For those that keep the aspect
    ratio it is what the limits of their authors' preprocessing allow.
    """
    try:
        steps, each = _grid(source, frames, width=width, height=height)
    except (KeyError, TypeError, ZeroDivisionError):
        return None
    return TokenCount(steps * each, steps * STEP_TEXT.get(source.model_type, 0))


def layer_bytes(source: ModelSource, itemsize: int) -> int | None:
    """Bytes that a token's key and value take in one decoder layer; None if untold."""
    text = source.config.get("text_config", source.config)
    try:
        heads = text["num_attention_heads"]
        dim = text.get("head_dim") or text["hidden_size"] // heads
        return 2 * int(text.get("num_key_value_heads") or heads) * int(dim) * itemsize
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def context_length(source: ModelSource) -> int | None:
    """How many tokens the model was made for; None where the config does not tell."""
    length = source.config.get("text_config", source.config).get("max_position_embeddings")
    return length if isinstance(length, int) else None


def _grid(source: ModelSource, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """Grid steps, and visual tokens of each."""
    config = source.config
    if source.model_type in ("llava_onevision", "llava_qwen"):
        vision = config.get("vision_config") or _tower(config)
        side = (vision["image_size"] // vision["patch_size"] + 1) // 2
        return frames, side * side
    if source.model_type == "internvl":
        return frames, int(config["image_seq_length"])
    if source.model_type == "smolvlm":
        vision = config["vision_config"]
        side = vision["image_size"] // vision["patch_size"] // config["scale_factor"]
        return frames, side * side
    return _dynamic(source, frames, width=width, height=height)


def _dynamic(source: ModelSource, frames: int, *, width: int, height: int) -> tuple[int, int]:
    vision = source.config["vision_config"]
    temporal = int(vision.get("temporal_patch_size", 2))
    side = int(vision["patch_size"]) * int(vision.get("spatial_merge_size", 2))
    steps = ceil(frames / temporal)
    each = min(ceil(width / side) * ceil(height / side), STEP_TOKENS)
    if pixels := _most_pixels(source):
        # Of a frame; Qwen3-VL: of all the video's frames together.
        shared = steps * temporal if source.model_type.startswith("qwen3") else 1
        each = min(each, pixels // (shared * side * side))
    return steps, max(1, each)


def _most_pixels(source: ModelSource) -> int | None:
    """The bound that the checkpoint's video processor states."""
    names = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
    for name in names:
        try:
            read = json.loads((source.folder / name).read_text(encoding="utf-8"))
            return int(read.get("video_processor", read)["size"]["longest_edge"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None


def _tower(config: Json) -> Json:
    from sttm_cli.models.llava_video import TOWERS

    return TOWERS[str(config.get("mm_vision_tower"))]
