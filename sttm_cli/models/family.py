"""The specification of a model family: the facts known of an architecture without loading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.placement import Placement
from sttm_cli.models.video_llm import VideoLLM


class Grid(Protocol):
    """Counts a video's grid steps and the visual tokens of each step.

    Reads the checkpoint's config only. Raises KeyError, TypeError or ZeroDivisionError where the
    config lacks a field that is needed.
    """

    def __call__(
        self, checkpoint: Checkpoint, frames: int, *, width: int, height: int
    ) -> tuple[int, int]: ...


Load = Callable[[Checkpoint, Placement, frozenset[str]], VideoLLM]
"""Loads a checkpoint's weights; the set names the family's options that are on."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: its name and checkpoints, its defaults, and how it is loaded.

    `checkpoints`: hub ids of the released sizes; name and size make an alias. `frames`: the most
    frames read by default; `merge_layer`: the decoder layer before which tokens are merged, and
    `merge_layer_at_depth` another one for decoders of so many layers; `positions`: rotary ids
    after merging; `rotary_axes`: 3 for M-RoPE, whose survivors always keep their ids;
    `multiple`: frames per temporal patch; `step_text`: about how many text tokens a grid step
    has beside its visual ones; `template`: version of the prompt around the video and of the
    frames' sizes; `options`: switches of this family, name -> help text.
    """

    name: str
    model_type: str
    frames: int
    merge_layer: int
    positions: str
    grid: Grid
    load: Load
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    merge_layer_at_depth: tuple[int, int] | None = None
    multiple: int = 1
    template: int = 1
    rotary_axes: int = 1
    step_text: int = 0

    @property
    def aliases(self) -> dict[str, str]:
        """Short names, such as qwen2.5-vl-7b, and their hub ids."""
        return {f"{self.name}-{size}": hub_id for size, hub_id in self.checkpoints.items()}

    def to_json(self) -> Json:
        """The defaults that a user can override."""
        return {
            "model_type": self.model_type,
            "name": self.name,
            "frames": self.frames,
            "merge_layer": self.merge_layer,
            "positions": self.positions,
        }
