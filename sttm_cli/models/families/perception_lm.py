"""Perception-LM: a tower of the timm library, squared frames, pooling, 1-D positions.

A video is one unbroken run of tokens without times. Source: transformers' `PerceptionLMProcessor`
and `PerceptionLMModel.get_image_features`.
"""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from inspect import signature
from typing import TYPE_CHECKING, Any

from sttm_cli.base.errors import ModelError
from sttm_cli.base.types import Json, Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat, not_one_video, prompt_1d
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_pretrained

if TYPE_CHECKING:
    import torch

MOST = 8192
"""Far beyond any number in a tower's settings."""


class PerceptionLM(ChatFormat):
    """A loaded Perception-LM; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.decoder = model.model.language_model

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        pixels = self.pixels(video, "pixel_values_videos")
        tokens = self._model.model.get_image_features(pixels, return_dict=True).pooler_output
        side = math.isqrt(tokens.shape[1])
        return VisualTokens(tokens.unflatten(1, (side, side)))

    def prompt(self, tokens: VisualTokens) -> Prompt:
        text = self.head() + self._video_token
        return prompt_1d(*self.spread(text, math.prod(tokens.grid)), tokens.grid)


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> PerceptionLM:
    """Load model and processor with transformers' own `from_pretrained`.

    Raises ModelError where timm is missing, or the tower is not one of Perception's.
    """
    if find_spec("timm") is None:
        raise ModelError(
            f"model {checkpoint.name!r} needs the package timm", "python -m pip install timm"
        )
    from transformers import PerceptionLMForConditionalGeneration

    _check_tower(checkpoint)
    return PerceptionLM(
        *load_pretrained(PerceptionLMForConditionalGeneration, checkpoint, placement)
    )


def _check_tower(checkpoint: Checkpoint) -> None:
    from timm.models.eva import Eva

    # The name and the arguments go to timm as they are: it would fetch or open what they say.
    vision = checkpoint.config.get("vision_config") or {}
    name, arguments = str(vision.get("architecture")), vision.get("model_args") or {}
    others = set(arguments) - set(signature(Eva).parameters)
    if not re.fullmatch(r"vit_pe_\w+", name) or others or not _is_small(list(arguments.values())):
        raise ModelError(
            f"model {checkpoint.name!r} has a tower {name[:60]!r} whose settings are not supported",
            "supported: the released Perception-LM checkpoints, and fine-tuned ones",
        )


def _is_small(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= MOST and all(map(_is_small, value))
    return isinstance(value, str) or value is None or abs(value) <= MOST


def find(
    config: Any, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """See `Find`: one run of tokens."""
    side = math.isqrt(_step_tokens(config.to_dict()))
    places = (ids == config.video_token_id).nonzero()[:, 0]
    steps, rest = divmod(len(places), side * side)
    if not len(places) or rest or int(places[-1] - places[0]) != len(places) - 1:
        raise not_one_video()
    return places, (steps, side, side)


def grid(checkpoint: Checkpoint, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """A step per frame, and the squared frame's tokens after pooling."""
    return frames, _step_tokens(checkpoint.config)


def _step_tokens(config: Json) -> int:
    vision = config["vision_config"]
    arguments: Json = vision["model_args"]
    sides = arguments["img_size"]
    named = re.search(r"patch(\d+)", vision["architecture"])
    patch = arguments.get("patch_size") or (int(named[1]) if named else 0)
    side: int = (sides[0] if isinstance(sides, list | tuple) else sides) // patch
    return int(side // config.get("projector_pooling_ratio", 1)) ** 2


# 32 frames: the number it was trained with. Merged as the LLaVAs are, by likeness.
FAMILY = Family(
    name="perception-lm",
    model_type="perception_lm",
    checkpoints={
        "1b": "facebook/Perception-LM-1B",
        "3b": "facebook/Perception-LM-3B",
        "8b": "facebook/Perception-LM-8B",
    },
    frames=32,
    merge_layer=2,
    positions="reassigned",
    grid=grid,
    load=load,
    libraries=("timm",),
    find=find,
)
