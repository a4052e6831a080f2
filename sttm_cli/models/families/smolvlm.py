"""SmolVLM2: frames as pictures with their times, 1-D positions, small enough for a laptop.

Each frame is resized to a square and gives the same square of tokens (pixel shuffle); its time in
minutes and seconds precedes it. Source: transformers' `SmolVLMProcessor` and
`SmolVLMModel.get_image_features`.
"""

from __future__ import annotations

from datetime import timedelta
from math import isqrt
from typing import TYPE_CHECKING, Any

from sttm_cli.base.types import Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat, find_frames, prompt_1d
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_pretrained

if TYPE_CHECKING:
    import torch


class SmolVLM(ChatFormat):
    """A loaded SmolVLM2; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        from transformers.models.smolvlm import processing_smolvlm

        # The checkpoint's template is for pictures; its processor uses this one for videos too.
        super().__init__(model, processor, template=processing_smolvlm.DEFAULT_CHAT_TEMPLATE)
        self._texts = processing_smolvlm
        self._picture = (
            f"{processor.fake_image_token}{processor.global_image_token}"
            f"{processor.image_token}{processor.fake_image_token}"
        )
        self.video_id = processor.image_token_id
        self.decoder = model.model.text_model

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        pixels = self.pixels(video, "pixel_values")
        tokens = self._model.model.get_image_features(pixels, return_dict=True).pooler_output[0]
        side = isqrt(len(tokens) // len(video))
        return VisualTokens(tokens.reshape(len(video), side, side, -1))

    def prompt(self, tokens: VisualTokens) -> Prompt:
        _, height, width = tokens.grid
        text = self.head() + self._video_text(tokens)
        return prompt_1d(*self.spread(text, height * width), tokens.grid)

    def _video_text(self, tokens: VisualTokens) -> str:
        """Return the prompt's text for the video, with one picture token per frame."""
        from num2words import num2words

        text: str = self._texts.DEFAULT_VIDEO_INTRO.format(
            frame_count=num2words(len(tokens.times_s)),
            video_duration=timedelta(seconds=int(tokens.duration_s)),
        )
        for time in tokens.times_s:
            stamp = f"{int(time // 60):02d}:{int(time % 60):02d}"
            text += self._texts.FRAME_TIMESTAMP_MESSAGE.format(timestamp=stamp) + self._picture
        return text

    def _cut(self, rendered: str) -> tuple[str, str]:
        # Tokenizers merge line ends with the text after them, so they belong to the question.
        head, tail = super()._cut(rendered)
        return head, self._texts.DEFAULT_MEDIA_OUTTRO + tail


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> SmolVLM:
    from transformers import SmolVLMForConditionalGeneration

    return SmolVLM(*load_pretrained(SmolVLMForConditionalGeneration, checkpoint, placement))


def find(
    config: Any, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """See `Find`: frames with their times."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size // config.scale_factor
    return find_frames(ids, config.image_token_id, side, numbered=False)


def grid(checkpoint: Checkpoint, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """Count one step per frame, with the square frame's tokens after pixel shuffle."""
    vision = checkpoint.config["vision_config"]
    side = vision["image_size"] // vision["patch_size"] // checkpoint.config["scale_factor"]
    return frames, side * side


# 64 frames: the video_sampling of its processors. Merge layer and positions: as in LLaVA.
FAMILY = Family(
    name="smolvlm2",
    model_type="smolvlm",
    checkpoints={
        "256m": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "500m": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "2.2b": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    },
    frames=64,
    merge_layer=2,
    positions="reassigned",
    step_text=12,
    grid=grid,
    load=load,
    find=find,
)
