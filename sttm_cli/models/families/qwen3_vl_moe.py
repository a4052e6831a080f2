"""Qwen3-VL with a mixture-of-experts decoder."""

from __future__ import annotations

from dataclasses import replace

from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.families import qwen3_vl
from sttm_cli.models.loading import Placement, load_pretrained


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> qwen3_vl.Qwen3VL:
    from transformers import Qwen3VLMoeForConditionalGeneration

    return qwen3_vl.Qwen3VL(
        *load_pretrained(Qwen3VLMoeForConditionalGeneration, checkpoint, placement)
    )


FAMILY = replace(
    qwen3_vl.FAMILY,
    name="qwen3-vl-moe",
    model_type="qwen3_vl_moe",
    checkpoints={"30b": "Qwen/Qwen3-VL-30B-A3B-Instruct"},
    load=load,
)
