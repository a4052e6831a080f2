"""Logits -> the next token: the likeliest, or drawn at a temperature."""

from __future__ import annotations

import secrets

import torch

from sttm_cli.types import Sampling


class Sampler:
    """Chooses tokens as `sampling` says. `seed` is the one in use, None where nothing is drawn.

    Draws on the CPU, so that a seed means the same on every device.
    """

    def __init__(self, sampling: Sampling, *, top_p: float) -> None:
        self._temperature = sampling.temperature
        self._top_p = sampling.top_p or top_p
        self.seed: int | None = None
        if sampling.temperature > 0:
            self.seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
            self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, logits: torch.Tensor) -> int:
        """Logits [V] -> a token id."""
        if self.seed is None:
            return int(logits.argmax())
        # The greatest becomes 0 first: the smallest temperature then overflows nothing.
        scaled = (logits - logits.max()).double().cpu() / self._temperature
        kept = nucleus(scaled.softmax(0), self._top_p)
        return int(torch.multinomial(kept, 1, generator=self._generator))


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities [V] with all but the likeliest that together reach `top_p` set to 0.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, section 3.1.
    """
    if top_p >= 1.0:
        return probabilities
    ordered, order = probabilities.sort(descending=True)
    beyond = ordered.cumsum(0) - ordered >= top_p
    return probabilities.index_fill(0, order[beyond], 0.0)
