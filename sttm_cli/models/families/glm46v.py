"""GLM-4.6V in its own layout: a decoder of its config's choice; all else is GLM-4.1V's."""

from __future__ import annotations

from dataclasses import replace

from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.families import glm4v
from sttm_cli.models.loading import Placement, load_pretrained


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> glm4v.Glm4V:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import Glm46VForConditionalGeneration

    return glm4v.Glm4V(*load_pretrained(Glm46VForConditionalGeneration, checkpoint, placement))


FAMILY = replace(
    glm4v.FAMILY,
    name="glm-4.6v",
    model_type="glm46v",
    checkpoints={},
    load=load,
)
