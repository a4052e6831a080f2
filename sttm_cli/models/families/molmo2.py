"""Molmo 2: squared frames with their times, whose tokens see each other in both directions.

All tokens of all frames form one block: each attends to every other one, before or after it. Text
between and after them is causal, so the question changes nothing before it. Visual features are
added to the embeddings of their places. Source: transformers' `Molmo2Processor` and `Molmo2Model`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat, not_one_video, prompt_1d
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_pretrained
from sttm_cli.models.qwen_vl import frame_processor

if TYPE_CHECKING:
    import torch


class Molmo2(ChatFormat):
    """A loaded Molmo 2; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.decoder = model.model.language_model
        self.video_id = model.config.image_patch_id
        self._processor = processor
        # The processor puts it first, whatever the template writes.
        self._start = self._tokenizer.bos_token or self._tokenizer.eos_token

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        made = self._frames(video, do_sample_frames=False, return_tensors="pt")
        made = made.to(self._model.device)
        pixels = made["pixel_values_videos"].to(self._model.dtype)
        pooling, grids = made["video_token_pooling"], made["video_grids"]
        tokens = self._model.model.get_video_features(pixels, pooling, grids, return_dict=True)
        return VisualTokens(tokens.pooler_output[0].reshape(*grids[0].tolist(), -1))

    def head(self) -> str:
        head = super().head()
        return head if head.startswith(self._start) else f"{self._start}{head}"

    def prompt(self, tokens: VisualTokens) -> Prompt:
        import torch

        frames = self._processor.get_video_string(torch.tensor(tokens.grid), tokens.times_s)
        ids, video = self.spread(self.head() + frames, 1)
        kinds = torch.tensor(self._processor.create_mm_token_type_ids([ids.tolist()])[0])
        blocks = torch.where(kinds == 1, 0, -1)
        return replace(prompt_1d(ids, video, tokens.grid), blocks=blocks)

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        embeds = self.embed(prompt.ids).clone()
        embeds[prompt.video.to(embeds.device)] += tokens.features.flatten(0, 2).to(embeds)
        return embeds


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> Molmo2:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import Molmo2ForConditionalGeneration

    # Flash attention knows no mask but the causal one.
    if checkpoint.loaded is not None and placement.attention not in ("sdpa", "eager"):
        raise UsageError(
            f"the loaded model cannot use the attention {placement.attention!r}",
            'call model.set_attn_implementation("sdpa")',
        )
    placement = replace(placement, attention="sdpa")
    return Molmo2(*load_pretrained(Molmo2ForConditionalGeneration, checkpoint, placement))


def find(
    config: Any, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """See `Find`: frames, with times between them; transformers takes no image beside a video.

    A single token between visual ones ends a row; without such tokens, frames are squares.
    """
    places = (ids == config.image_patch_id).nonzero()[:, 0]
    gaps = places.diff()
    frames = [len(frame) for frame in places.tensor_split(_after(gaps > 2))]
    rows = [len(row) for row in places.tensor_split(_after(gaps > 1))]
    each = frames[0]
    width = rows[0] if len(rows) > len(frames) else math.isqrt(each)
    height = each // max(1, width)
    square = len(set(config.vision_config.image_size)) == 1
    if not each or set(frames) != {each} or len(set(rows)) > 1 or height * width != each:
        raise not_one_video()
    if len(rows) == len(frames) and each > 1 and not square:
        raise not_one_video()
    return places, (len(frames), height, width)


def _after(ends: torch.Tensor) -> list[int]:
    """Where the parts begin that follow marked places."""
    return [int(at) + 1 for at in ends.nonzero()[:, 0]]


def grid(checkpoint: Checkpoint, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """A step per frame, and the squared frame's tokens after pooling, which rounds up."""
    settings = frame_processor(checkpoint)
    rows, columns = settings["pooling_size"]
    side = settings["size"]["height"] // settings["patch_size"]
    return frames, math.ceil(side / rows) * math.ceil(side / columns)


# 64 frames: its processor's setting. Merged as the LLaVAs are, by likeness.
FAMILY = Family(
    name="molmo2",
    model_type="molmo2",
    checkpoints={
        "4b": "allenai/Molmo2-4B",
        "8b": "allenai/Molmo2-8B",
        "o-7b": "allenai/Molmo2-O-7B",
    },
    frames=64,
    merge_layer=2,
    positions="reassigned",
    step_text=8,
    grid=grid,
    load=load,
    find=find,
    two_way=True,
    images_beside=False,
)
