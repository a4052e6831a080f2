"""The protocol of a loaded video LLM: all that the pipeline needs of a family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sttm_cli.base.types import FrameChunk, Prompt, VisualTokens

if TYPE_CHECKING:
    import torch


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
