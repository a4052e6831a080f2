"""`QwenVL`, the base of the Qwen-VL and GLM-V families: dynamic resolution, M-RoPE.

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
from sttm_cli.models.chat_format import ChatFormat, not_one_video
from sttm_cli.models.checkpoint import Checkpoint, read

if TYPE_CHECKING:
    import torch

STEP_TOKENS = 768
"""Maximum tokens of a grid step: VIDEO_MAX_TOKEN_NUM of qwen-vl-utils, the authors' code."""


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
        inputs = self._frames(
            self._resized(video, frames),
            do_resize=False,
            do_sample_frames=False,
            return_tensors="pt",
        )
        pixels = inputs["pixel_values_videos"].to(self._model.device, self._model.dtype)
        grid = inputs["video_grid_thw"].to(self._model.device)
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
        """Return the prompt's text for the video, with one video token per run of them."""
        return str(self._place)

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """Return the height and width to which the frames of a video of `frames` are resized."""
        raise NotImplementedError

    def rotary_times(self, tokens: VisualTokens) -> dict[str, Any]:
        """Return further arguments of the model's `get_rope_index`."""
        return {}

    def _resized(self, video: torch.Tensor, frames: int) -> torch.Tensor:
        # A single frame is repeated to fill its temporal patch.
        count = max(frames, self._temporal)
        return resized(video, self._frames, lambda h, w: self.frame_size(h, w, count))

    def _rotary_ids(self, ids: torch.Tensor, tokens: VisualTokens) -> tuple[torch.Tensor, int]:
        """Return the model's (t, h, w) ids [3, L], and the id of the next text token."""
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


def find(
    config: Any, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """See `Find`."""
    return find_video(config.video_token_id, ids, positions)


def find_video(
    token: int, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """As `Find`: the grid's sides are those that the tokens' own (t, h, w) ids run through."""
    import torch

    video = (ids == token).nonzero()[:, 0]
    if not len(video):
        raise not_one_video()
    # Timestamps may stand between the grid's steps: the first of them is in the first run.
    run = video[video - video[0] == torch.arange(len(video), device=video.device)]
    sides = [int(axis.max() - axis.min()) + 1 for axis in positions[1:, run]]
    steps, rest = divmod(len(video), math.prod(sides))
    step = positions[1:, run][:, : math.prod(sides)] - positions[1:, run[:1]]
    wanted = torch.cartesian_prod(*(torch.arange(side) for side in sides)).T
    if rest or len(run) % math.prod(sides) or not torch.equal(step.cpu(), wanted):
        raise not_one_video()
    return video, (steps, sides[0], sides[1])


def resized(
    video: torch.Tensor, processor: Any, size: Callable[[int, int], tuple[int, int]]
) -> torch.Tensor:
    """Resize frames [T, 3, H, W] like a video processor, to the (height, width) from `size`.

    The processor itself would treat a chunk as the whole video. Raises VideoError where `size`
    raises ValueError.
    """
    from torchvision.transforms.v2 import functional
    from transformers.image_utils import pil_torch_interpolation_mapping

    height, width = video.shape[-2:]
    try:
        sides = list(size(height, width))
    except ValueError as error:
        raise VideoError(
            f"frames of {width}x{height} pixels are too narrow for this model: {error}",
            "choose another model",
        ) from error
    mode = pil_torch_interpolation_mapping[processor.resample]
    result: torch.Tensor = functional.resize(video, sides, interpolation=mode, antialias=True)
    return result


def dynamic_grid(
    checkpoint: Checkpoint,
    frames: int,
    *,
    width: int,
    height: int,
    shared: bool = False,
    most: int | None = STEP_TOKENS,
) -> tuple[int, int]:
    """Count grid steps and the visual tokens of each; see `Grid`.

    `shared`: the pixel limit of the checkpoint's processor applies to all frames together.
    `most`: the most tokens of a grid step, whatever that limit is.
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
    """Return the settings of the checkpoint's video processor, empty where it has none."""
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
