"""What the pipeline needs of a video LLM; a family fills it in and nothing else knows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sttm_cli.types import FrameChunk, Prompt, VisualTokens

if TYPE_CHECKING:
    import torch

Turn = tuple[str, str]
"""An earlier question and its answer."""


class VideoLLM(Protocol):
    """A loaded model: frames -> visual tokens, the prompt around them, and its decoder."""

    decoder: Any
    """The text decoder (transformers): `.layers`, `.rotary_emb`, `.config`, called with
    `inputs_embeds`, `position_ids` and `past_key_values`."""

    def encode(self, chunk: FrameChunk) -> VisualTokens:
        """Frames [T, H, W, 3] uint8 -> visual tokens [T', h, w, C] as the decoder reads them."""
        ...

    def prompt(self, grid: tuple[int, int, int]) -> Prompt:
        """The prompt up to the last visual token, for a grid of [T, H, W] visual tokens."""
        ...

    def question(self, text: str, history: Sequence[Turn] = ()) -> torch.Tensor:
        """Token ids [n] of everything after the last visual token, up to the answer's start.

        Raises UsageError where the question holds one of the model's control tokens.
        """
        ...

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids [n] -> embeddings [n, C]."""
        ...

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        """The prompt's embeddings [L, C], visual tokens in their places."""
        ...

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Decoder output [C] of one position -> logits [V] float32."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """Generated token ids -> text, control tokens left out."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """The token ids that end an answer."""
        ...
