"""InternVL (3, 3.5) in the transformers layout: frames as numbered pictures, 1-D positions.

Each frame is written "Frame1: <img>...</img>" and gives the same square of tokens (pixel
shuffle). Source: transformers' `InternVLProcessor` and `InternVLModel.get_image_features`.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch

from sttm_cli.base.types import FrameChunk, Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat
from sttm_cli.models.checkpoint import ModelSource
from sttm_cli.models.loading import load_pretrained
from sttm_cli.models.video_llm import Placement


class InternVL(ChatFormat):
    """A loaded InternVL; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(processor.tokenizer, processor.chat_template, processor.video_token, model)
        self._model = model
        self._frames = processor.video_processor
        self._picture = (
            f"{processor.start_image_token}{processor.image_token}{processor.end_image_token}"
        )
        self.video_id = processor.image_token_id
        self.decoder = model.model.language_model

    @torch.inference_mode()
    def encode(self, chunk: FrameChunk, frames: int) -> VisualTokens:
        pixels = self._frames(
            torch.from_numpy(chunk.frames).permute(0, 3, 1, 2),
            do_sample_frames=False,
            return_tensors="pt",
        )["pixel_values_videos"][0].to(self._model.device, self._model.dtype)
        tokens = self._model.model.get_image_features(pixels, return_dict=True).pooler_output
        side = isqrt(tokens.shape[1])
        return VisualTokens(tokens.unflatten(1, (side, side)))

    def prompt(self, tokens: VisualTokens) -> Prompt:
        count, height, width = tokens.grid
        pictures = "\n".join(f"Frame{i + 1}: {self._picture}" for i in range(count))
        ids, video = self.spread(self.head() + pictures, height * width)
        return Prompt(ids, video, tokens.grid, torch.arange(len(ids))[None], len(ids))


def load(source: ModelSource, placement: Placement) -> InternVL:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import InternVLForConditionalGeneration

    return InternVL(*load_pretrained(InternVLForConditionalGeneration, source, placement))
