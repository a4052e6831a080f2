"""MiniCPM-V 4.6: one view of each frame, no times, and the decoder of Qwen3.5.

Its processor can also cut frames into slices, which have no place in a grid of tokens: a frame is
what it makes with `max_slice_nums=1` and `use_image_id=False`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sttm_cli.base.types import Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat, prompt_1d
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.families.qwen3_5 import recurrent
from sttm_cli.models.family import Family
from sttm_cli.models.loading import FULL, LINEAR, Placement, load_pretrained
from sttm_cli.models.qwen_vl import frame_processor

if TYPE_CHECKING:
    import torch

SIDE = {"4x": 2, "16x": 4}
"""Patches along the side of a token, by the processor's `downsample_mode`."""


class MiniCPMV(ChatFormat):
    """A loaded MiniCPM-V 4.6; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any, *, thinking: bool = False) -> None:
        super().__init__(model, processor)
        self.decoder = model.model.language_model
        self._marks = processor.image_start_token, processor.image_end_token
        self._special = {**self._special, "enable_thinking": thinking}

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        import torch

        made = self._frames(
            video,
            do_sample_frames=False,
            stack_frames=1,
            max_slice_nums=1,
            return_tensors="pt",
        )
        pixels = made["pixel_values_videos"].to(self._model.device, self._model.dtype)
        sizes, mode = made["target_sizes_videos"], self._frames.downsample_mode
        out = self._model.model.get_video_features(
            pixels, sizes.to(self._model.device), downsample_mode=mode, return_dict=True
        )
        height, width = (int(patches) // SIDE[mode] for patches in sizes[0])
        tokens = torch.stack(list(out.pooler_output))
        return VisualTokens(tokens.reshape(len(tokens), height, width, -1))

    def prompt(self, tokens: VisualTokens) -> Prompt:
        start, end = self._marks
        time, height, width = tokens.grid
        text = self.head() + f"{start}{self._video_token}{end}" * time
        return prompt_1d(*self.spread(text, height * width), tokens.grid)


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> MiniCPMV:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import MiniCPMV4_6ForConditionalGeneration

    parts = load_pretrained(
        MiniCPMV4_6ForConditionalGeneration, checkpoint, placement, kinds=(FULL, LINEAR)
    )
    return MiniCPMV(*parts, thinking="thinking" in options)


def grid(checkpoint: Checkpoint, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """A step per frame, of about `scale_resolution` squared pixels, as the processor has it."""
    settings = frame_processor(checkpoint)
    side = int(settings.get("patch_size", 14)) * SIDE[settings.get("downsample_mode", "16x")]
    scale, shape = int(settings.get("scale_resolution", 448)), width / height
    rows = int(scale / math.sqrt(shape))
    counts = [max(1, round(length / side)) for length in (rows, int(rows * shape))]
    return frames, math.prod(counts)


# 128 frames: its processor's setting. Merged as Qwen3.5, whose decoder it has.
FAMILY = Family(
    name="minicpm-v",
    model_type="minicpmv4_6",
    checkpoints={"4.6": "openbmb/MiniCPM-V-4.6", "4.6-thinking": "openbmb/MiniCPM-V-4.6-Thinking"},
    options={"thinking": "let the model think before it answers"},
    frames=128,
    merge_layer=3,
    positions="reassigned",
    step_text=2,
    grid=grid,
    load=load,
    recurrent=recurrent,
    libraries=("causal-conv1d", "flash-linear-attention"),
)
