"""Qwen3.5: frames and times as Qwen3-VL's, and three recurrent layers for one with attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.families import qwen3_vl
from sttm_cli.models.family import StateShapes
from sttm_cli.models.loading import FULL, LINEAR, Placement, load_pretrained

INTERVAL = 4
"""One layer of so many has attention where a config does not list its layers."""


class Qwen3_5(qwen3_vl.Qwen3VL):
    """A loaded Qwen3.5; see `VideoLLM` for the methods' shapes.

    Most checkpoints think before they answer unless their template hears otherwise.
    """

    def __init__(self, model: Any, processor: Any, *, thinking: bool = False) -> None:
        super().__init__(model, processor)
        self._special = {**self._special, "enable_thinking": thinking}


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> Qwen3_5:
    from transformers import Qwen3_5ForConditionalGeneration

    return loaded(Qwen3_5ForConditionalGeneration, checkpoint, placement, options)


def loaded(
    model_class: Any, checkpoint: Checkpoint, placement: Placement, options: frozenset[str]
) -> Qwen3_5:
    """Load model and processor; raises as `load_pretrained`."""
    parts = load_pretrained(model_class, checkpoint, placement, kinds=(FULL, LINEAR))
    return Qwen3_5(*parts, thinking="thinking" in options)


def recurrent(text: Json) -> StateShapes:
    """The states of the gated delta nets of a decoder with the config `text`."""
    every = text.get("full_attention_interval") or INTERVAL
    kinds = text.get("layer_types") or [
        FULL if (index + 1) % every == 0 else LINEAR for index in range(text["num_hidden_layers"])
    ]
    heads, key_heads = text["linear_num_value_heads"], text["linear_num_key_heads"]
    key, value = text["linear_key_head_dim"], text["linear_value_head_dim"]
    return StateShapes(
        layers=tuple(index for index, kind in enumerate(kinds) if kind == LINEAR),
        conv=(2 * key_heads * key + heads * value, text["linear_conv_kernel_dim"]),
        recurrent=(heads, key, value),
    )


# Merged before the first layer with attention: the recurrent ones below it see every token, and
# all keys and values that there are belong to merged ones.
FAMILY = replace(
    qwen3_vl.FAMILY,
    name="qwen3.5",
    model_type="qwen3_5",
    checkpoints={
        "0.8b": "Qwen/Qwen3.5-0.8B",
        "2b": "Qwen/Qwen3.5-2B",
        "4b": "Qwen/Qwen3.5-4B",
        "9b": "Qwen/Qwen3.5-9B",
        "27b": "Qwen/Qwen3.5-27B",
    },
    options={"thinking": "let the model think before it answers"},
    merge_layer=3,
    load=load,
    recurrent=recurrent,
    # Where they are installed, their kernels take the place of torch's own.
    libraries=("causal-conv1d", "flash-linear-attention"),
)
