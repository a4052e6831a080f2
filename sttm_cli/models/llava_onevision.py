"""LLaVA-OneVision in the llava-hf layout: SigLIP tower, projector, Qwen2 decoder, 1-D positions.

A video's frames become `ceil(side / 2)` squared tokens each (2x2 bilinear pooling) and one
newline token closes the video; the newline is never merged. Source: transformers'
`LlavaOnevisionModel.get_video_features` and the llava-hf processors.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from sttm_cli.models.base import Placement
from sttm_cli.models.chat import ChatFormat
from sttm_cli.models.loading import load_pretrained
from sttm_cli.models.source import ModelSource
from sttm_cli.types import FrameChunk, Prompt, VisualTokens


class LlavaOnevision(ChatFormat):
    """A loaded LLaVA-OneVision; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(processor.tokenizer, processor.chat_template, processor.video_token, model)
        self._model = model
        self._frames = processor.video_processor
        self.decoder = model.model.language_model
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        self._side = (side + 1) // 2

    @torch.inference_mode()
    def encode(self, chunk: FrameChunk, frames: int) -> VisualTokens:
        pixels = self._frames(
            torch.from_numpy(chunk.frames).permute(0, 3, 1, 2),
            do_sample_frames=False,
            return_tensors="pt",
        )["pixel_values_videos"].to(self._model.device, self._model.dtype)
        tokens = self._model.model.get_video_features(pixels, return_dict=True).pooler_output
        count, side = len(chunk.frames), self._side
        # The last token is the newline, which embed_prompt puts in.
        return VisualTokens(tokens[0, :-1].reshape(count, side, side, -1))

    def prompt(self, tokens: VisualTokens) -> Prompt:
        count = math.prod(tokens.grid)
        head = self.head_ids()
        ids = torch.tensor(head + [self.video_id] * (count + 1))
        video = torch.arange(len(head), len(head) + count)
        return Prompt(ids, video, tokens.grid, torch.arange(len(ids))[None], len(ids))

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        embeds = super().embed_prompt(prompt, tokens)
        embeds[-1] = self._model.model.image_newline.to(embeds)
        return embeds


def load(source: ModelSource, placement: Placement) -> LlavaOnevision:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import LlavaOnevisionForConditionalGeneration

    return LlavaOnevision(
        *load_pretrained(LlavaOnevisionForConditionalGeneration, source, placement)
    )
