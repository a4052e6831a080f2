"""LLaVA-OneVision in the llava-hf layout: SigLIP tower, projector, Qwen2 decoder, 1-D positions.

A video's frames become `ceil(side / 2)` squared tokens each (2x2 bilinear pooling) and one
newline token closes the video; the newline is never merged. Source: transformers'
`LlavaOnevisionModel.get_video_features` and the llava-hf processors.
"""

from __future__ import annotations

import math

import torch

from sttm_cli.base.types import Prompt, VisualTokens
from sttm_cli.models.checkpoint import ModelSource
from sttm_cli.models.llava import Llava
from sttm_cli.models.loading import load_pretrained
from sttm_cli.models.video_llm import Placement


class LlavaOnevision(Llava):
    """A loaded LLaVA-OneVision; see `VideoLLM` for the methods' shapes."""

    def prompt(self, tokens: VisualTokens) -> Prompt:
        count = math.prod(tokens.grid)
        head = self.head_ids()
        ids = torch.tensor(head + [self.video_id] * (count + 1))
        video = torch.arange(len(head), len(head) + count)
        return Prompt(ids, video, tokens.grid, torch.arange(len(ids))[None], len(ids))

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        embeds = super().embed_prompt(prompt, tokens)
        embeds[-1] = self.newline(embeds)
        return embeds


def load(source: ModelSource, placement: Placement) -> LlavaOnevision:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import LlavaOnevisionForConditionalGeneration

    model, processor = load_pretrained(LlavaOnevisionForConditionalGeneration, source, placement)
    return LlavaOnevision(
        model,
        processor.tokenizer,
        processor.chat_template,
        video=processor.video_token,
        frames=processor.video_processor,
    )
