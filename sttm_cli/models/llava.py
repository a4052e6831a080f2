"""What the LLaVA families share: a SigLIP tower and a projector, squared frames, 2x2 pooling."""

from __future__ import annotations

from typing import Any

import torch

from sttm_cli.base.types import FrameChunk, VisualTokens
from sttm_cli.models.chat_format import ChatFormat


class Llava(ChatFormat):
    """A loaded LLaVA on transformers' LLaVA-OneVision classes; a family adds the prompt."""

    def __init__(self, model: Any, tokenizer: Any, template: str, *, video: str, frames: Any):
        super().__init__(tokenizer, template, video, model)
        self._model = model
        self._frames = frames
        self.decoder = model.model.language_model
        vision = model.config.vision_config
        self._side = (vision.image_size // vision.patch_size + 1) // 2

    @torch.inference_mode()
    def encode(self, chunk: FrameChunk, frames: int) -> VisualTokens:
        pixels = self._frames(
            torch.from_numpy(chunk.frames).permute(0, 3, 1, 2),
            do_sample_frames=False,
            return_tensors="pt",
        )["pixel_values_videos"].to(self._model.device, self._model.dtype)
        tokens = self._model.model.get_video_features(pixels, return_dict=True).pooler_output
        count, side = len(chunk.frames), self._side
        # The last token is a newline, which the prompt has where it wants it.
        return VisualTokens(tokens[0, :-1].reshape(count, side, side, -1))

    def newline(self, embeds: torch.Tensor) -> torch.Tensor:
        """The newline token's embedding [C], like `embeds`."""
        result: torch.Tensor = self._model.model.image_newline.to(embeds)
        return result
