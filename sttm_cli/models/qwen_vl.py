"""`QwenVL`, the base of the Qwen-VL families: dynamic resolution, patches of two frames, M-RoPE.

Frames keep their aspect ratio; `spatial_merge_size`^2 patches of `temporal_patch_size` frames
become one token. Every token has rotary ids (t, h, w), which survivors of a merge keep (STTM
paper, section 4.1). Source: transformers' Qwen2-VL, Qwen2.5-VL and Qwen3-VL.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sttm_cli.base.errors import ModelError, VideoError
from sttm_cli.base.types import Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat, not_one_video
from sttm_cli.models.checkpoint import Checkpoint, read

if TYPE_CHECKING:
    import torch

STEP_TOKENS = 768
"""Maximum tokens of a grid step: VIDEO_MAX_TOKEN_NUM of qwen-vl-utils, the authors' code."""


class QwenVL(ChatFormat):
    """A loaded Qwen-VL; a family adds the frame size, and the text and times between frames."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self._merge = model.config.vision_config.spatial_merge_size
        self._temporal = model.config.vision_config.temporal_patch_size
        self.decoder = model.model.language_model

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
        each = math.prod(tokens.grid) // text.count(self._video_token)
        ids, video = self.spread(self.head() + text, each)
        positions, following = self._rotary_ids(ids, tokens)
        return Prompt(
            ids=ids, video=video, grid=tokens.grid, positions=positions, next_position=following
        )

    def video_text(self, tokens: VisualTokens) -> str:
        """Return the prompt's text for the video, with one video token per run of them."""
        return str(self._video_token)

    def frame_size(self, height: int, width: int, frames: int) -> tuple[int, int]:
        """Return the height and width to which the frames of a video of `frames` are resized."""
        raise NotImplementedError

    def rotary_times(self, tokens: VisualTokens) -> dict[str, Any]:
        """Return further arguments of the model's `get_rope_index`."""
        return {}

    def _resized(self, video: torch.Tensor, frames: int) -> torch.Tensor:
        from torchvision.transforms.v2 import functional
        from transformers.image_utils import pil_torch_interpolation_mapping

        height, width = video.shape[-2:]
        try:
            # A single frame is repeated to fill its temporal patch.
            size = self.frame_size(height, width, max(frames, self._temporal))
        except ValueError as error:
            raise VideoError(
                f"frames of {width}x{height} pixels are too narrow for this model: {error}",
                "choose another model",
            ) from error
        # Resized here, because the processor would treat a chunk as the whole video.
        mode = pil_torch_interpolation_mapping[self._frames.resample]
        resized: torch.Tensor = functional.resize(
            video, list(size), interpolation=mode, antialias=True
        )
        return resized

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


def find_video(
    config: Any, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """See `Find`: the grid's sides are those that the tokens' own (t, h, w) ids run through."""
    import torch

    video = (ids == config.video_token_id).nonzero()[:, 0]
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


def dynamic_grid(
    checkpoint: Checkpoint, frames: int, *, width: int, height: int, shared: bool = False
) -> tuple[int, int]:
    """Count grid steps and the visual tokens of each; see `Grid`.

    `shared`: the pixel limit of the checkpoint's processor applies to all frames together.
    """
    vision = checkpoint.config["vision_config"]
    temporal = int(vision.get("temporal_patch_size", 2))
    side = int(vision["patch_size"]) * int(vision.get("spatial_merge_size", 2))
    steps = math.ceil(frames / temporal)
    each = min(math.ceil(width / side) * math.ceil(height / side), STEP_TOKENS)
    if pixels := _most_pixels(checkpoint):
        each = min(each, pixels // ((steps * temporal if shared else 1) * side * side))
    return steps, max(1, each)


def _most_pixels(checkpoint: Checkpoint) -> int | None:
    """Return the pixel limit of the checkpoint's video processor, if stated."""
    names = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
    for name in names:
        try:
            stated = read(checkpoint.name, checkpoint.folder / name)
            return int(stated.get("video_processor", stated)["size"]["longest_edge"])
        except (ModelError, KeyError, TypeError, AttributeError):
            continue
    return None
