"""Qwen2.5-VL: Qwen2-VL with rotary time in seconds (`tokens_per_second`)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from sttm_cli.base.types import VisualTokens
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.families.qwen2_vl import Qwen2VL
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_pretrained
from sttm_cli.models.qwen_vl import dynamic_grid, find


class Qwen25VL(Qwen2VL):
    """A loaded Qwen2.5-VL; see `VideoLLM` for the methods' shapes."""

    def rotary_times(self, tokens: VisualTokens) -> dict[str, Any]:
        return {"second_per_grid_ts": [self._temporal * spacing(tokens.times_s)]}


def spacing(times_s: tuple[float, ...]) -> float:
    """Return the mean seconds between sampled frames, 1 if there are fewer than two.

    Rounded to a simple fraction: frames sampled at 0, 1, 2, ... s have times such as 0.97, and a
    spacing of 0.9993 s would be floored to the previous rotary id.
    """
    if len(times_s) < 2 or times_s[-1] <= times_s[0]:
        return 1.0
    mean = (times_s[-1] - times_s[0]) / (len(times_s) - 1)
    return float(Fraction(mean).limit_denominator(100)) or mean


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> Qwen25VL:
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen25VL(*load_pretrained(Qwen2_5_VLForConditionalGeneration, checkpoint, placement))


# All defaults: as in Qwen2-VL.
FAMILY = Family(
    name="qwen2.5-vl",
    model_type="qwen2_5_vl",
    checkpoints={"3b": "Qwen/Qwen2.5-VL-3B-Instruct", "7b": "Qwen/Qwen2.5-VL-7B-Instruct"},
    frames=128,
    merge_layer=2,
    positions="survivors",
    rotary_axes=3,
    multiple=2,
    grid=dynamic_grid,
    load=load,
    find=find,
)
