"""Gemma 4 without a vision tower: pixels go into the decoder through one projection."""

from __future__ import annotations

from dataclasses import replace

from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.families import gemma4
from sttm_cli.models.loading import Placement


class Gemma4Unified(gemma4.Gemma4):
    """A loaded Gemma 4 of this kind; see `VideoLLM` for the methods' shapes."""

    @property
    def _pooled(self) -> int:
        # Its processor counts places in whole tokens.
        return 1


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> Gemma4Unified:
    """As `gemma4.load`."""
    from transformers import Gemma4UnifiedForConditionalGeneration

    parts = gemma4.load_gemma(Gemma4UnifiedForConditionalGeneration, checkpoint, placement)
    return Gemma4Unified(*parts)


FAMILY = replace(
    gemma4.FAMILY,
    name="gemma-4-unified",
    model_type="gemma4_unified",
    checkpoints={"12b": "google/gemma-4-12B-it"},
    load=load,
)
