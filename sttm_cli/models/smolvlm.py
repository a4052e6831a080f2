"""SmolVLM2: frames as pictures with their times, 1-D positions, small enough for a laptop.

Each frame is squared and gives the same square of tokens (pixel shuffle); its time in minutes and
seconds is written before it. Source: transformers' `SmolVLMProcessor` and
`SmolVLMModel.get_image_features`.
"""

from __future__ import annotations

from datetime import timedelta
from math import isqrt
from typing import Any

import torch
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_CHAT_TEMPLATE,
    DEFAULT_MEDIA_OUTTRO,
    DEFAULT_VIDEO_INTRO,
    FRAME_TIMESTAMP_MESSAGE,
)

from sttm_cli.base.types import FrameChunk, Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat
from sttm_cli.models.checkpoint import ModelSource
from sttm_cli.models.loading import load_pretrained
from sttm_cli.models.video_llm import Placement


class SmolVLM(ChatFormat):
    """A loaded SmolVLM2; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        # The checkpoint's own template is for pictures: its processor takes this one for videos.
        super().__init__(processor.tokenizer, DEFAULT_CHAT_TEMPLATE, processor.video_token, model)
        self._model = model
        self._frames = processor.video_processor
        self._picture = (
            f"{processor.fake_image_token}{processor.global_image_token}"
            f"{processor.image_token}{processor.fake_image_token}"
        )
        self.video_id = processor.image_token_id
        self.decoder = model.model.text_model

    @torch.inference_mode()
    def encode(self, chunk: FrameChunk, frames: int) -> VisualTokens:
        pixels = self._frames(
            torch.from_numpy(chunk.frames).permute(0, 3, 1, 2),
            do_sample_frames=False,
            return_tensors="pt",
        )["pixel_values"].to(self._model.device, self._model.dtype)
        tokens = self._model.model.get_image_features(pixels, return_dict=True).pooler_output[0]
        count = len(chunk.frames)
        side = isqrt(len(tokens) // count)
        return VisualTokens(tokens.reshape(count, side, side, -1))

    def prompt(self, tokens: VisualTokens) -> Prompt:
        _, height, width = tokens.grid
        ids, video = self.spread(self.head() + self._video_text(tokens), height * width)
        return Prompt(ids, video, tokens.grid, torch.arange(len(ids))[None], len(ids))

    def _video_text(self, tokens: VisualTokens) -> str:
        """The video in the prompt, one picture token standing for each frame's."""
        from num2words import num2words

        text: str = DEFAULT_VIDEO_INTRO.format(
            frame_count=num2words(len(tokens.times_s)),
            video_duration=timedelta(seconds=int(tokens.duration_s)),
        )
        for time in tokens.times_s:
            stamp = f"{int(time // 60):02d}:{int(time % 60):02d}"
            text += FRAME_TIMESTAMP_MESSAGE.format(timestamp=stamp) + self._picture
        return text

    def _cut(self, rendered: str) -> tuple[str, str]:
        # Line ends join with what follows them: they go with the question.
        head, tail = super()._cut(rendered)
        return head, DEFAULT_MEDIA_OUTTRO + tail


def load(source: ModelSource, placement: Placement) -> SmolVLM:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import SmolVLMForConditionalGeneration

    return SmolVLM(*load_pretrained(SmolVLMForConditionalGeneration, source, placement))
