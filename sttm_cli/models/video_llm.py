"""What the pipeline needs of a video LLM; a family fills it in and nothing else knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sttm_cli.base.types import FrameChunk, Prompt, VisualTokens

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Placement:
    """Where and how a model runs: "cuda:0", "bfloat16", "sdpa" (transformers' names).

    `spread`: it may lie on all accelerators of this kind where one does not hold it. Without
    `vision` the tower's layers are not loaded: enough where the video's KV is there already.
    """

    device: str
    dtype: str
    attention: str = "sdpa"
    spread: bool = False
    vision: bool = True


Turn = tuple[str, str]
"""An earlier question and its answer."""


class VideoLLM(Protocol):
    """A loaded model: frames -> visual tokens, the prompt around them, and its decoder."""

    decoder: Any
    """The text decoder (transformers): `.layers`, `.rotary_emb`, `.config`, called with
    `inputs_embeds`, `position_ids` and `past_key_values`."""

    @property
    def layer_devices(self) -> list[str]:
        """Where each decoder layer runs, and its keys and values lie."""
        ...

    def encode(self, chunk: FrameChunk, frames: int) -> VisualTokens:
        """Frames [T, H, W, 3] uint8 -> visual tokens [T', h, w, C] as the decoder reads them.

        `frames` is how many the whole video gives: some families share a pixel budget among
        them. A chunk but the last holds a multiple of `Family.multiple`.
        """
        ...

    def prompt(self, tokens: VisualTokens) -> Prompt:
        """The prompt around all of a video's tokens, up to what belongs to the question."""
        ...

    def question(self, text: str, history: Sequence[Turn] = ()) -> torch.Tensor:
        """Token ids [n] of everything after the prompt's, up to the answer's start.

        Raises UsageError where the question holds one of the model's control tokens.
        """
        ...

    def answer(self, text: str) -> torch.Tensor:
        """Token ids [n] of an answer's text, as the model itself would say it.

        Raises UsageError where it holds one of the model's control tokens.
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
        """Logits [V] as the checkpoint's generation settings weigh them, drawn from or not.

        `prompt`: the ids before the answer, in any order; `made`: those of the answer so far.
        """
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Generated token ids -> text, control tokens left out."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """The token ids that end an answer."""
        ...

    @property
    def top_p(self) -> float:
        """The share of probability that the checkpoint's generation settings draw from."""
        ...
