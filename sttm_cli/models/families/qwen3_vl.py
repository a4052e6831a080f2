"""Qwen3-VL: timestamps as text between frames, deepstack features, a pixel limit for all frames."""

from __future__ import annotations

from functools import partial
from typing import Any

from sttm_cli.base.types import VisualTokens
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_pretrained
from sttm_cli.models.qwen_vl import STEP_TOKENS, QwenVL, dynamic_grid, find


class Qwen3VL(QwenVL):
    """A loaded Qwen3-VL; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self._marks = processor.vision_start_token, processor.vision_end_token

    def video_text(self, tokens: VisualTokens) -> str:
        start, end = self._marks
        return "".join(
            f"<{time:.1f} seconds>{start}{self._video_token}{end}"
            for time in patch_times(tokens.times_s, self._temporal)
        )

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

        size, factor = self._frames.size, self._frames.patch_size * self._merge
        frame = getattr(self._frames, "max_video_tokens", STEP_TOKENS) * factor**2
        each = max(min(frame, size["longest_edge"] // frames), int(size["shortest_edge"] * 1.05))
        resized: tuple[int, int] = smart_resize(
            frames,
            height,
            width,
            temporal_factor=self._temporal,
            factor=factor,
            min_pixels=size["shortest_edge"],
            max_pixels=each * frames,
        )
        return resized


def patch_times(times_s: tuple[float, ...], temporal: int) -> list[float]:
    """Return the time of each temporal patch: the mean of its first and last frame's times."""
    last = len(times_s) - 1
    starts = range(0, len(times_s), temporal)
    return [(times_s[i] + times_s[min(i + temporal - 1, last)]) / 2 for i in starts]


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> Qwen3VL:
    from transformers import Qwen3VLForConditionalGeneration

    return Qwen3VL(*load_pretrained(Qwen3VLForConditionalGeneration, checkpoint, placement))


# Merged after the three deepstack layers, which add the last visual features.
FAMILY = Family(
    name="qwen3-vl",
    model_type="qwen3_vl",
    checkpoints={
        "2b": "Qwen/Qwen3-VL-2B-Instruct",
        "4b": "Qwen/Qwen3-VL-4B-Instruct",
        "8b": "Qwen/Qwen3-VL-8B-Instruct",
    },
    frames=128,
    merge_layer=3,
    positions="survivors",
    rotary_axes=3,
    multiple=2,
    step_text=9,
    grid=partial(dynamic_grid, shared=True),
    load=load,
    find=find,
)
