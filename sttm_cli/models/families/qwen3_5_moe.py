"""Qwen3.5 with a mixture-of-experts decoder."""

from __future__ import annotations

from dataclasses import replace

from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.families import qwen3_5
from sttm_cli.models.loading import Placement


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> qwen3_5.Qwen3_5:
    from transformers import Qwen3_5MoeForConditionalGeneration

    return qwen3_5.loaded(Qwen3_5MoeForConditionalGeneration, checkpoint, placement, options)


FAMILY = replace(
    qwen3_5.FAMILY,
    name="qwen3.5-moe",
    model_type="qwen3_5_moe",
    checkpoints={
        "35b": "Qwen/Qwen3.5-35B-A3B",
        "122b": "Qwen/Qwen3.5-122B-A10B",
        "397b": "Qwen/Qwen3.5-397B-A17B",
    },
    load=load,
)
