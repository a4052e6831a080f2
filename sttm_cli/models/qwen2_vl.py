"""Qwen2-VL: dynamic resolution per frame, rotary time in steps of one per two frames."""

from __future__ import annotations

from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

from sttm_cli.models.checkpoint import ModelSource
from sttm_cli.models.loading import load_pretrained
from sttm_cli.models.qwen_vl import QwenVL
from sttm_cli.models.video_llm import Placement

FRAME_PIXELS = 768 * 28 * 28
"""Most pixels of a frame: VIDEO_MAX_PIXELS of qwen-vl-utils, the authors' own preprocessing; the
checkpoints' preprocessor_config.json states the bound for single images, 16 times as much."""
CONTEXT = 128_000
SHARE = 0.9
"""All frames together fill at most this share of the context (qwen-vl-utils)."""


class Qwen2VL(QwenVL):
    """A loaded Qwen2-VL; see `VideoLLM` for the methods' shapes."""

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        size, factor = self._frames.size, self._frames.patch_size * self._merge
        context = getattr(self._frames, "max_video_tokens", CONTEXT)
        total = int(context * factor**2 * SHARE) * self._temporal
        most = min(size["longest_edge"], FRAME_PIXELS, total // frames)
        resized: tuple[int, int] = smart_resize(
            height,
            width,
            factor=factor,
            min_pixels=size["shortest_edge"],
            max_pixels=max(most, int(size["shortest_edge"] * 1.05)),
        )
        return resized


def load(source: ModelSource, placement: Placement) -> Qwen2VL:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VL(*load_pretrained(Qwen2VLForConditionalGeneration, source, placement))
