"""Logits -> the next token: the likeliest, or drawn at a temperature."""

from __future__ import annotations

import secrets

import torch

from sttm_cli.base.types import Sampling


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
        scaled = (logits - logits.max()).cpu().double() / self._temperature
        probabilities, ids = nucleus(scaled.softmax(0), self._top_p)
        reached = probabilities.cumsum(0)
        drawn = torch.rand(1, generator=self._generator, dtype=torch.float64) * reached[-1]
        place = torch.searchsorted(reached, drawn, right=True).clamp(max=len(ids) - 1)
        return int(ids[place])


def nucleus(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest of `probabilities` [V] that together reach `top_p`, and their places.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, section 3.1.
    """
    if top_p >= 1.0:
        return probabilities, torch.arange(len(probabilities))
    # Few tokens reach it, as a rule: ordering a whole vocabulary for each token would be slow.
    for count in (64, 4096, len(probabilities)):
        ordered, places = probabilities.topk(min(count, len(probabilities)))
        before = ordered.cumsum(0) - ordered
        if before[-1] >= top_p:
            break
    kept = before < top_p
    return ordered[kept], places[kept]
