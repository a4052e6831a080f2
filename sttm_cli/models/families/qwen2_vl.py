"""Qwen2-VL: dynamic resolution per frame, one step of rotary time per two frames."""

from __future__ import annotations

from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_pretrained
from sttm_cli.models.qwen_vl import QwenVL, dynamic_grid, find

FRAME_PIXELS = 768 * 28 * 28
"""Maximum pixels of a frame: VIDEO_MAX_PIXELS of qwen-vl-utils, the authors' code. The checkpoints'
preprocessor_config.json states the limit for single images, 16 times as much."""
CONTEXT = 128_000
SHARE = 0.9
"""Maximum share of the context for all frames together (qwen-vl-utils)."""


class Qwen2VL(QwenVL):
    """A loaded Qwen2-VL; see `VideoLLM` for the methods' shapes."""

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

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


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> Qwen2VL:
    from transformers import Qwen2VLForConditionalGeneration

    return Qwen2VL(*load_pretrained(Qwen2VLForConditionalGeneration, checkpoint, placement))


# Merge layer, positions and 128 frames: STTM paper, section 4.
FAMILY = Family(
    name="qwen2-vl",
    model_type="qwen2_vl",
    checkpoints={"2b": "Qwen/Qwen2-VL-2B-Instruct", "7b": "Qwen/Qwen2-VL-7B-Instruct"},
    frames=128,
    merge_layer=2,
    positions="survivors",
    rotary_axes=3,
    multiple=2,
    grid=dynamic_grid,
    load=load,
    find=find,
)
