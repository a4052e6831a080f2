"""LLaVA-OneVision in the llava-hf layout: SigLIP tower, projector, Qwen2 decoder, 1-D positions.

Each frame becomes `ceil(side / 2)`^2 tokens (2x2 bilinear pooling), and one newline token, which
is never merged, ends the video. Source: transformers'
`LlavaOnevisionModel.get_video_features` and the llava-hf processors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sttm_cli.base.types import Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat, not_one_video, prompt_1d
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_pretrained

if TYPE_CHECKING:
    import torch


class Llava(ChatFormat):
    """The base of the LLaVA families, on transformers' LLaVA-OneVision; a family adds `prompt`.

    SigLIP tower and projector, square frames, 2x2 pooling.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.decoder = model.model.language_model
        vision = model.config.vision_config
        self._side = pooled_side(vision.image_size, vision.patch_size)

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        pixels = self.pixels(video, "pixel_values_videos")
        tokens = self._model.model.get_video_features(pixels, return_dict=True).pooler_output
        # The last token is a newline; each family's prompt places newlines itself.
        return VisualTokens(tokens[0, :-1].reshape(len(video), self._side, self._side, -1))

    def newline(self, embeds: torch.Tensor) -> torch.Tensor:
        """Return the newline token's embedding [C], with dtype and device of `embeds`."""
        result: torch.Tensor = self._model.model.image_newline.to(embeds)
        return result


def pooled_side(image: int, patch: int) -> int:
    """Return the tokens along a side of a frame after 2x2 pooling, which rounds up."""
    return (image // patch + 1) // 2


class LlavaOnevision(Llava):
    """A loaded LLaVA-OneVision; see `VideoLLM` for the methods' shapes."""

    def prompt(self, tokens: VisualTokens) -> Prompt:
        count = math.prod(tokens.grid)
        head = self.head_ids()
        ids = head + [self.video_id] * (count + 1)
        return prompt_1d(ids, range(len(head), len(head) + count), tokens.grid)

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        embeds = super().embed_prompt(prompt, tokens)
        embeds[-1] = self.newline(embeds)
        return embeds


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> LlavaOnevision:
    from transformers import LlavaOnevisionForConditionalGeneration

    return LlavaOnevision(
        *load_pretrained(LlavaOnevisionForConditionalGeneration, checkpoint, placement)
    )


def find(
    config: Any, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """See `Find`: one run of tokens, of which the last is a newline and no part of the grid."""
    side = pooled_side(config.vision_config.image_size, config.vision_config.patch_size)
    places = (ids == config.video_token_id).nonzero()[:, 0]
    steps, rest = divmod(len(places) - 1, side * side)
    if not len(places) or rest or int(places[-1] - places[0]) != len(places) - 1:
        raise not_one_video()
    return places[:-1], (steps, side, side)


def grid(checkpoint: Checkpoint, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """Count one step per frame, with the square frame's tokens after pooling."""
    vision = checkpoint.config["vision_config"]
    return frames, pooled_side(vision["image_size"], vision["patch_size"]) ** 2


# Merge layer and positions: STTM paper, section 4 and its ablations (layer 2, reassigned);
# 32 frames: the model card.
FAMILY = Family(
    name="llava-onevision",
    model_type="llava_onevision",
    checkpoints={
        "0.5b": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "7b": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    },
    frames=32,
    merge_layer=2,
    positions="reassigned",
    grid=grid,
    load=load,
    find=find,
)
