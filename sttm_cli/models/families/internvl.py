"""InternVL (3, 3.5) in the transformers layout: frames as numbered pictures, 1-D positions.

Each frame is written "Frame1: <img>...</img>" and gives the same square of tokens (pixel
shuffle). Source: transformers' `InternVLProcessor` and `InternVLModel.get_image_features`.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

from sttm_cli.base.types import Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat, find_frames, prompt_1d
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_pretrained

if TYPE_CHECKING:
    import torch


class InternVL(ChatFormat):
    """A loaded InternVL; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self._picture = (
            f"{processor.start_image_token}{processor.image_token}{processor.end_image_token}"
        )
        self.video_id = processor.image_token_id
        self.decoder = model.model.language_model

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        pixels = self.pixels(video, "pixel_values_videos")[0]
        tokens = self._model.model.get_image_features(pixels, return_dict=True).pooler_output
        side = isqrt(tokens.shape[1])
        return VisualTokens(tokens.unflatten(1, (side, side)))

    def prompt(self, tokens: VisualTokens) -> Prompt:
        count, height, width = tokens.grid
        pictures = "\n".join(f"Frame{i + 1}: {self._picture}" for i in range(count))
        return prompt_1d(*self.spread(self.head() + pictures, height * width), tokens.grid)


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> InternVL:
    from transformers import InternVLForConditionalGeneration

    return InternVL(*load_pretrained(InternVLForConditionalGeneration, checkpoint, placement))


def find(
    config: Any, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """See `Find`: numbered frames."""
    return find_frames(ids, config.image_token_id, isqrt(config.image_seq_length), numbered=True)


def grid(checkpoint: Checkpoint, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """Count one step per frame, with the number of tokens that the config states."""
    return frames, int(checkpoint.config["image_seq_length"])


# 64 frames: the maximum in the authors' evaluation. Merge layer and positions: as in LLaVA.
FAMILY = Family(
    name="internvl3.5",
    model_type="internvl",
    checkpoints={
        "2b": "OpenGVLab/InternVL3_5-2B-HF",
        "4b": "OpenGVLab/InternVL3_5-4B-HF",
        "8b": "OpenGVLab/InternVL3_5-8B-HF",
    },
    frames=64,
    merge_layer=2,
    positions="reassigned",
    step_text=8,
    grid=grid,
    load=load,
    find=find,
)
