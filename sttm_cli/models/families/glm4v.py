"""GLM-4.1V and GLM-4.6V-Flash: frames as pictures with their times behind them, M-RoPE.

Two frames make one picture, of which the first one's time is written after it; all frames share a
pixel budget. Source: transformers' `Glm4vProcessor`, `Glm46VProcessor` and `Glm4vModel`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sttm_cli.base.types import VisualTokens
from sttm_cli.models.chat_format import not_one_video
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_pretrained
from sttm_cli.models.qwen_vl import QwenVL, dynamic_grid, find_video

if TYPE_CHECKING:
    import torch


class Glm4V(QwenVL):
    """A loaded GLM-V; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        # Seconds are written as the checkpoint's own processor does: whole ones, or with a tenth.
        self._picture = processor.replace_frame_token_id
        self._place = processor.image_token
        self.video_id = processor.image_token_id

    def video_text(self, tokens: VisualTokens) -> str:
        return "".join(self._picture(time) for time in tokens.times_s[:: self._temporal])

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        from transformers.models.glm4v.video_processing_glm4v import smart_resize

        size = self._frames.size
        resized: tuple[int, int] = smart_resize(
            frames,
            height,
            width,
            temporal_factor=self._temporal,
            factor=self._frames.patch_size * self._merge,
            min_pixels=size["shortest_edge"],
            max_pixels=size["longest_edge"],
        )
        return resized


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> Glm4V:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import Glm4vForConditionalGeneration

    return Glm4V(*load_pretrained(Glm4vForConditionalGeneration, checkpoint, placement))


def find(
    config: Any, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """See `Find`: pictures, of which the video's start and end stand around all."""
    listed = ids.tolist()
    edges = [config.video_start_token_id, config.video_end_token_id]
    if [token for token in listed if token in edges] != edges:
        raise not_one_video()
    start, end = map(listed.index, edges)
    places, grid = find_video(config.image_token_id, ids[start:end], positions[:, start:end])
    return places + start, grid


# All defaults are Qwen2.5-VL's, by likeness.
FAMILY = Family(
    name="glm-v",
    model_type="glm4v",
    checkpoints={"4.1-9b": "zai-org/GLM-4.1V-9B-Thinking", "4.6-9b": "zai-org/GLM-4.6V-Flash"},
    frames=128,
    merge_layer=2,
    positions="survivors",
    rotary_axes=3,
    multiple=2,
    step_text=9,
    grid=partial(dynamic_grid, shared=True, most=None),
    load=load,
    find=find,
    images_beside=False,
)
