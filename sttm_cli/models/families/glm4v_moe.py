"""GLM-4.5V and GLM-4.6V with experts in the decoder; all else is GLM-4.1V's."""

from __future__ import annotations

from dataclasses import replace

from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.families import glm4v
from sttm_cli.models.loading import Placement, load_pretrained


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> glm4v.Glm4V:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import Glm4vMoeForConditionalGeneration

    return glm4v.Glm4V(*load_pretrained(Glm4vMoeForConditionalGeneration, checkpoint, placement))


FAMILY = replace(
    glm4v.FAMILY,
    name="glm-v-moe",
    model_type="glm4v_moe",
    checkpoints={"4.5-106b": "zai-org/GLM-4.5V", "4.6-106b": "zai-org/GLM-4.6V"},
    load=load,
)
