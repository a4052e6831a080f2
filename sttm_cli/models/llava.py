"""Shared by the LLaVA families: a SigLIP tower and a projector, squared frames, 2x2 pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sttm_cli.base.types import VisualTokens
from sttm_cli.models.chat_format import ChatFormat

if TYPE_CHECKING:
    import torch


class Llava(ChatFormat):
    """A loaded LLaVA on transformers' LLaVA-OneVision classes; a family adds the prompt."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.decoder = model.model.language_model
        vision = model.config.vision_config
        self._side = pooled_side(vision.image_size, vision.patch_size)

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        pixels = self.pixels(video, "pixel_values_videos")
        tokens = self._model.model.get_video_features(pixels, return_dict=True).pooler_output
        # The last token is a newline; where newlines belong is up to the family's prompt.
        return VisualTokens(tokens[0, :-1].reshape(len(video), self._side, self._side, -1))

    def newline(self, embeds: torch.Tensor) -> torch.Tensor:
        """The newline token's embedding [C], like `embeds`."""
        result: torch.Tensor = self._model.model.image_newline.to(embeds)
        return result


def pooled_side(image: int, patch: int) -> int:
    """Tokens along a side of a frame after 2x2 pooling, which rounds up."""
    return (image // patch + 1) // 2
