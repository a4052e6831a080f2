"""LLaVA-OneVision in the llava-hf layout: SigLIP tower, projector, Qwen2 decoder, 1-D positions.

A video's frames become `ceil(side / 2)` squared tokens each (2x2 bilinear pooling) and one
newline token closes the video; the newline is never merged. Source: transformers'
`LlavaOnevisionModel.get_video_features` and the llava-hf processors.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sttm_cli.base.types import Prompt, VisualTokens
from sttm_cli.models.chat_format import prompt_1d
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.llava import Llava, pooled_side
from sttm_cli.models.loading import load_pretrained
from sttm_cli.models.placement import Placement

if TYPE_CHECKING:
    import torch


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
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import LlavaOnevisionForConditionalGeneration

    return LlavaOnevision(
        *load_pretrained(LlavaOnevisionForConditionalGeneration, checkpoint, placement)
    )


def grid(checkpoint: Checkpoint, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """A step per frame, and the squared frame's tokens after pooling."""
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
)
