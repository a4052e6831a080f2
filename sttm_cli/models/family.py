"""`Family`, the specification of a model family, and `VideoLLM`, the protocol of a loaded model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sttm_cli.base.types import FrameChunk, Json, Prompt, VisualTokens
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.loading import Placement

if TYPE_CHECKING:
    import torch

Turn = tuple[str, str]
"""An earlier question and its answer."""


class VideoLLM(Protocol):
    """A loaded model: vision encoder, prompt and decoder."""

    decoder: Any
    """The text decoder (transformers): `.layers`, `.rotary_emb`, `.config`, called with
    `inputs_embeds`, `position_ids` and `past_key_values`."""

    @property
    def layer_devices(self) -> list[str]:
        """The device of each decoder layer that holds keys and values, and of these."""
        ...

    def encode(self, chunk: FrameChunk, frames: int) -> VisualTokens:
        """Encode frames [T, H, W, 3] uint8 -> visual tokens [T', h, w, C] for the decoder.

        `frames`: the number of frames of the whole video, which share a pixel budget in some
        families. The number of frames of every chunk but the last is a multiple of
        `Family.multiple`.
        """
        ...

    def with_system(self, text: str) -> VideoLLM:
        """The same loaded model with a system prompt before the video.

        Raises UsageError where the text contains one of the model's control tokens.
        """
        ...

    def prompt(self, tokens: VisualTokens) -> Prompt:
        """Build the prompt around all of a video's tokens, up to the question."""
        ...

    def question(self, text: str, history: Sequence[Turn] = ()) -> torch.Tensor:
        """Return the token ids [n] from the end of the prompt to the start of the answer.

        Raises UsageError if a question contains one of the model's control tokens.
        """
        ...

    def answer(self, text: str) -> torch.Tensor:
        """Return the token ids [n] of an answer's text.

        Raises UsageError if it contains one of the model's control tokens.
        """
        ...

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embed token ids [n] -> [n, C]."""
        ...

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        """Embed the prompt -> [L, C], with the visual tokens in their places."""
        ...

    def extras(self, ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return further arguments of the decoder's call for token ids [n] or [B, n], by name."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits [..., V] float32 from the decoder's output [..., C]."""
        ...

    def weighed(
        self, logits: torch.Tensor, prompt: Sequence[int], made: Sequence[int]
    ) -> torch.Tensor:
        """Apply the checkpoint's generation settings (repetition penalty) to logits [V].

        `prompt`: the ids before the answer, in any order; `made`: the ids of the answer so far.
        """
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Decode generated token ids, without control tokens."""
        ...

    def pieces(self) -> Callable[[int], str]:
        """Return an incremental decoder for one answer: it takes the next token and returns the
        text that this token completes, possibly ""."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """The token ids that end an answer."""
        ...

    @property
    def top_p(self) -> float:
        """The `top_p` of the checkpoint's generation settings, 1.0 by default."""
        ...


class Grid(Protocol):
    """Counts a video's grid steps and the visual tokens of each step, from the config alone.

    Raises KeyError, TypeError or ZeroDivisionError if the config lacks a needed field.
    """

    def __call__(
        self, checkpoint: Checkpoint, frames: int, *, width: int, height: int
    ) -> tuple[int, int]: ...


class KVShape(NamedTuple):
    """Heads and head size of a layer's keys and of its values; `window`: how many tokens it sees,
    0 for all."""

    heads: int
    dim: int
    window: int = 0


Load = Callable[[Checkpoint, Placement, frozenset[str]], VideoLLM]
"""Loads a checkpoint's weights; the set contains the family's enabled options."""


Find = Callable[..., "tuple[torch.Tensor, tuple[int, int, int]]"]
"""Finds the one video of a prompt that transformers' own processor made.

From the model's `config`, the token `ids` [L] and the rotary ids `positions` [A, L] (A is 1, or 3
for M-RoPE), and what `Family.given` names, of this video: the places of the visual tokens [T*H*W],
in the grid's order, and the grid. Raises UsageError where there is not exactly one video, or
something that could be taken for it.
"""


@dataclass(frozen=True)
class StateShapes:
    """The `layers` of a decoder that keep states in place of keys and values, and the shapes of
    these: `conv` [C, K], in the model's dtype, and `recurrent` [H, D, E], in float32."""

    layers: tuple[int, ...]
    conv: tuple[int, int]
    recurrent: tuple[int, int, int]

    def nbytes(self, itemsize: int) -> int:
        """Bytes of all states, with `itemsize` bytes a number of the model's dtype."""
        return len(self.layers) * (itemsize * math.prod(self.conv) + 4 * math.prod(self.recurrent))


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture: its name, checkpoints, defaults and loader.

    `checkpoints`: hub ids by size; an alias is the family's name and the size. `frames`: default
    maximum of frames; `merge_layer`: the decoder layer before which tokens are merged;
    `merge_layer_at_depth`: (number of layers, merge layer) for another depth; `positions`: rotary
    ids after merging; `rotary_axes`: 3 for M-RoPE, which always keeps the survivors' ids;
    `multiple`: frames per temporal patch, which is encoded independently of the others;
    `step_text`: approximate number of text tokens per grid step; `template`: version of the prompt
    around the video and of the frame sizes; `options`: switches of this family, name -> help text;
    `find`: finds the video in a prompt that this package did not write, None where
    `sttm_cli.merging` does not support the family; `given`: the model's arguments, with a row for
    each video, that `find` needs as well, and their names in its `vision_model`; `two_way`: visual
    tokens attend to each other in both directions; `images_beside`: whether transformers takes
    images and a video in one prompt; `libraries`: packages beside torch and transformers that
    compute the family's tokens: their versions belong to the identity of a KV.

    `shapes`: those of the layers that hold keys and values, from the decoder's config alone (raises
    as `Grid`), where they are not all alike. `deepest`: the last possible merge layer, from the
    same config, where it is not the last layer. `windows`: some layers see a window, which counts
    rotary ids: they are always reassigned. `recurrent`: the states of recurrent layers, from the
    same config (KeyError, TypeError, ValueError where it lacks them), None for families without
    such layers.
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
    find: Find | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    two_way: bool = False
    images_beside: bool = True
    libraries: tuple[str, ...] = ()
    shapes: Callable[[Json], Sequence[KVShape]] | None = None
    deepest: Callable[[Json], int] | None = None
    windows: bool = False
    recurrent: Callable[[Json], StateShapes] | None = None

    @property
    def aliases(self) -> dict[str, str]:
        """Hub ids by short name, such as qwen2.5-vl-7b."""
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
