"""VideoLLaMA 3 in the transformers layout: dynamic resolution, times before frames, 1-D positions.

All frames share a pixel budget. Its own dropping of patches that repeat those of the frame before
is off (`use_token_compression=False` of its processor): merging takes its place. Source:
transformers' `VideoLlama3Processor` and `VideoLlama3Model.get_video_features`.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat, not_one_video, prompt_1d
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_pretrained
from sttm_cli.models.qwen_vl import frame_processor, resized

if TYPE_CHECKING:
    import torch


class VideoLlama3(ChatFormat):
    """A loaded VideoLLaMA 3; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.decoder = model.model.language_model

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        made = self._frames(
            resized(video, self._frames, lambda h, w: self._size(h, w, frames)),
            do_resize=False,
            do_sample_frames=False,
            use_token_compression=False,
            return_tensors="pt",
        ).to(self._model.device)
        pixels = made["pixel_values_videos"].to(self._model.dtype)
        grid, sides = made["video_grid_thw"], made["video_merge_sizes"]
        tokens = self._model.model.get_video_features(pixels, grid, sides, return_dict=True)
        time, height, width = grid[0].tolist()
        side = int(sides[0])
        shape = (time, height // side, width // side, -1)
        return VisualTokens(tokens.pooler_output[0].reshape(shape))

    def prompt(self, tokens: VisualTokens) -> Prompt:
        _, height, width = tokens.grid
        text = ",".join(f"Time {time:.1f}s:{self._video_token}" for time in tokens.times_s)
        return prompt_1d(*self.spread(self.head() + text, height * width), tokens.grid)

    def _size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        from transformers.models.video_llama_3.video_processing_video_llama_3 import smart_resize

        size = self._frames.size
        wanted: tuple[int, int] = smart_resize(
            height,
            width,
            factor=self._frames.patch_size * self._frames.merge_size,
            min_pixels=size["shortest_edge"],
            max_pixels=size["longest_edge"] // frames,
        )
        return wanted


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> VideoLlama3:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import VideoLlama3ForConditionalGeneration

    return VideoLlama3(*load_pretrained(VideoLlama3ForConditionalGeneration, checkpoint, placement))


def find(
    config: Any,
    ids: torch.Tensor,
    positions: torch.Tensor,
    video_grid_thw: torch.Tensor,
    video_merge_sizes: torch.Tensor,
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """See `Find`: frames, with times between them, none of whose tokens was dropped."""
    time, *sides = (int(side) for side in video_grid_thw)
    height, width = (side // int(video_merge_sizes) for side in sides)
    places = (ids == config.video_token_id).nonzero()[:, 0]
    if 0 < len(places) < time * height * width:
        raise UsageError(
            f"the prompt has {len(places)} tokens of a video of {time} x {height} x {width}: its "
            "processor has dropped those that repeat the frame before",
            "call the processor with use_token_compression=False; merging takes its place",
        )
    if len(places) != time * height * width:
        raise not_one_video()
    frames = places.view(time, height * width)
    apart = any(int(after[0] - before[-1]) < 2 for before, after in pairwise(frames))
    if apart or bool((frames[:, -1] - frames[:, 0] != height * width - 1).any()):
        raise not_one_video()
    return places, (time, height, width)


def grid(checkpoint: Checkpoint, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """A step per frame, of its own patches within the bounds that all frames share."""
    settings = frame_processor(checkpoint)
    area = (checkpoint.config["vision_config"]["patch_size"] * settings.get("merge_size", 2)) ** 2
    size = settings.get("size") or {}
    least = math.ceil(size.get("shortest_edge", 1) / area)
    most = size.get("longest_edge", width * height * frames) // frames // area
    each = max(math.ceil(width * height / area), least)
    return frames, max(1, min(each, most) if width * height > most * area else each)


# 180 frames at one a second: its processor's settings. Merged as the LLaVAs are, by likeness.
FAMILY = Family(
    name="videollama3",
    model_type="video_llama_3",
    frames=180,
    merge_layer=2,
    positions="reassigned",
    step_text=8,
    grid=grid,
    load=load,
    find=find,
    given={"video_grid_thw": "grid_thw", "video_merge_sizes": "merge_sizes"},
)
