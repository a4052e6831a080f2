"""The specification of a model family: the facts known of an architecture without loading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sttm_cli.base.types import FrameChunk, Json, Prompt, VisualTokens
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.loading import Placement

if TYPE_CHECKING:
    import torch

# The protocol of a loaded video LLM: all that the pipeline needs of a family.


Turn = tuple[str, str]
"""An earlier question and its answer."""


class VideoLLM(Protocol):
    """A loaded model: frames -> visual tokens, the prompt around them, and its decoder."""

    decoder: Any
    """The text decoder (transformers): `.layers`, `.rotary_emb`, `.config`, called with
    `inputs_embeds`, `position_ids` and `past_key_values`."""

    @property
    def layer_devices(self) -> list[str]:
        """The device of each decoder layer and of its keys and values."""
        ...

    def encode(self, chunk: FrameChunk, frames: int) -> VisualTokens:
        """Frames [T, H, W, 3] uint8 -> visual tokens [T', h, w, C] as the decoder reads them.

        `frames` is their number in the whole video: some families share a pixel budget among
        them. Every chunk but the last has a multiple of `Family.multiple`.
        """
        ...

    def with_system(self, text: str) -> VideoLLM:
        """The same loaded model with a system prompt before the video.

        Raises UsageError where the text contains one of the model's control tokens.
        """
        ...

    def prompt(self, tokens: VisualTokens) -> Prompt:
        """The prompt around all of a video's tokens, up to where the question begins."""
        ...

    def question(self, text: str, history: Sequence[Turn] = ()) -> torch.Tensor:
        """Token ids [n] of everything after the prompt's, up to the answer's start.

        Raises UsageError where the question contains one of the model's control tokens.
        """
        ...

    def answer(self, text: str) -> torch.Tensor:
        """Token ids [n] of an answer's text, as the model itself would say it.

        Raises UsageError where it contains one of the model's control tokens.
        """
        ...

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [n] -> embeddings [n, C]."""
        ...

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        """The prompt's embeddings [L, C], visual tokens in their places."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Decoder output [..., C] -> logits [..., V] float32."""
        ...

    def weighed(
        self, logits: torch.Tensor, prompt: Sequence[int], made: Sequence[int]
    ) -> torch.Tensor:
        """Logits [V] as the checkpoint's generation settings weigh them, greedy or sampled.

        `prompt`: the ids before the answer, in any order; `made`: those of the answer so far.
        """
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Generated token ids -> text, control tokens left out."""
        ...

    def pieces(self) -> Callable[[int], str]:
        """A reader of one answer's tokens in their order: each call gives the text that is complete
        with this token, "" where a later one completes it."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """The token ids that end an answer."""
        ...

    @property
    def top_p(self) -> float:
        """The share of probability that the checkpoint's generation settings draw from."""
        ...


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
