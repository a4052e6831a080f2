"""Shared by the Qwen-VL and GLM-V families: dynamic resolution, patches of two frames, M-RoPE.

Frames keep their aspect ratio; `spatial_merge_size`^2 patches of `temporal_patch_size` frames
become one token. Every token has rotary ids (t, h, w), which survivors of a merge keep (STTM
paper, section 4.1). Source: transformers' Qwen2-VL, Qwen2.5-VL, Qwen3-VL and GLM-4V.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sttm_cli.base.errors import ModelError, VideoError
from sttm_cli.base.types import Json, Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat
from sttm_cli.models.checkpoint import Checkpoint, read

if TYPE_CHECKING:
    import torch

STEP_TOKENS = 768
"""Most tokens of a grid step (VIDEO_MAX_TOKEN_NUM of qwen-vl-utils, the authors' preprocessing)."""


class QwenVL(ChatFormat):
    """A loaded model of this kind; a family adds frame sizes, and text and times between frames."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self._merge = model.config.vision_config.spatial_merge_size
        self._temporal = model.config.vision_config.temporal_patch_size
        self.decoder = model.model.language_model
        # Stands in `video_text` for each unbroken run of visual tokens.
        self._place = self._video_token

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        made = self._frames(
            self._resized(video, frames),
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
        )
        pixels = made["pixel_values_videos"].to(self._model.device, self._model.dtype)
        grid = made["video_grid_thw"].to(self._model.device)
        out = self._model.model.get_video_features(pixels, grid, return_dict=True)
        time, height, width = grid[0].tolist()
        shape = (time, height // self._merge, width // self._merge, -1)
        deep = getattr(out, "deepstack_features", None) or ()
        return VisualTokens(
            out.pooler_output[0].reshape(shape), tuple(level[0].reshape(shape) for level in deep)
        )

    def prompt(self, tokens: VisualTokens) -> Prompt:
        text = self.video_text(tokens)
        each = math.prod(tokens.grid) // text.count(self._place)
        ids, video = self.spread(self.head() + text, each)
        positions, following = self._rotary_ids(ids, tokens)
        return Prompt(
            ids=ids, video=video, grid=tokens.grid, positions=positions, next_position=following
        )

    def video_text(self, tokens: VisualTokens) -> str:
        """The video in the prompt, one token standing for each unbroken run of them."""
        return str(self._place)

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """Height and width to which frames are resized, `frames` of them in the whole video."""
        raise NotImplementedError

    def rotary_times(self, tokens: VisualTokens) -> dict[str, Any]:
        """Arguments of the model's `get_rope_index` beside ids and grid."""
        return {}

    def _resized(self, video: torch.Tensor, frames: int) -> torch.Tensor:
        # One frame alone is doubled to fill its temporal patch.
        count = max(frames, self._temporal)
        return resized(video, self._frames, lambda h, w: self.frame_size(h, w, count))

    def _rotary_ids(self, ids: torch.Tensor, tokens: VisualTokens) -> tuple[torch.Tensor, int]:
        """The model's own (t, h, w) ids [3, L], and the id of the text token that comes next."""
        import torch

        time, height, width = tokens.grid
        whole = torch.cat([ids, ids[:1]])[None]
        positions, _ = self._model.model.get_rope_index(
            whole,
            mm_token_type_ids=2 * (whole == self.video_id).int(),
            video_grid_thw=torch.tensor([[time, height * self._merge, width * self._merge]]),
            **self.rotary_times(tokens),
        )
        return positions[:, 0, :-1], int(positions[0, 0, -1])


def resized(
    video: torch.Tensor, processor: Any, size: Callable[[int, int], tuple[int, int]]
) -> torch.Tensor:
    """Frames [T, 3, H, W] as a video processor resizes them, to the (height, width) that `size`
    makes of theirs: the processor alone would size a chunk as if it were the whole video.

    Raises VideoError where `size` raises ValueError.
    """
    from torchvision.transforms.v2 import functional
    from transformers.image_utils import pil_torch_interpolation_mapping

    height, width = video.shape[-2:]
    try:
        wanted = list(size(height, width))
    except ValueError as error:
        raise VideoError(
            f"frames of {width}x{height} pixels are too narrow for this model: {error}",
            "choose another model",
        ) from error
    how = pil_torch_interpolation_mapping[processor.resample]
    made: torch.Tensor = functional.resize(video, wanted, interpolation=how, antialias=True)
    return made


def dynamic_grid(
    checkpoint: Checkpoint,
    frames: int,
    *,
    width: int,
    height: int,
    shared: bool = False,
    most: int | None = STEP_TOKENS,
) -> tuple[int, int]:
    """Grid steps and the visual tokens of each; see `Grid`.

    `shared`: the pixel bound of the checkpoint's processor is that of all frames together.
    `most`: the most tokens of a grid step, whatever that bound is.
    """
    vision = checkpoint.config["vision_config"]
    temporal = int(vision.get("temporal_patch_size", 2))
    side = int(vision["patch_size"]) * int(vision.get("spatial_merge_size", 2))
    steps = math.ceil(frames / temporal)
    each = math.ceil(width / side) * math.ceil(height / side)
    each = min(each, most or each)
    size = frame_processor(checkpoint).get("size")
    if pixels := size.get("longest_edge") if isinstance(size, dict) else None:
        each = min(each, pixels // ((steps * temporal if shared else 1) * side * side))
    return steps, max(1, each)


def frame_processor(checkpoint: Checkpoint) -> Json:
    """The settings of the checkpoint's video processor, empty where it has none."""
    names = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
    for name in names:
        try:
            stated = read(checkpoint.name, checkpoint.folder / name)
        except ModelError:
            continue
        settings: Json = stated.get("video_processor", stated)
        if "size" in settings or "patch_size" in settings:
            return settings
    return {}
