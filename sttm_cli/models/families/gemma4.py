"""Gemma 4: window layers beside global ones, frames with their times, 1-D positions.

A frame keeps its aspect ratio within 70 tokens; its time in minutes and seconds precedes it. The
small models add inputs of their own to each layer, and their last layers reuse the keys and values
of earlier ones; in the large ones the tokens of a frame see each other in the window layers.
Source: transformers' `Gemma4Processor` and `Gemma4Model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.base.types import Json, Prompt, VisualTokens
from sttm_cli.models.chat_format import ChatFormat, prompt_1d
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family, KVShape
from sttm_cli.models.loading import Placement, load_files, load_weights
from sttm_cli.models.qwen_vl import frame_processor

if TYPE_CHECKING:
    import torch

KINDS = ("full_attention", "sliding_attention")


class Gemma4(ChatFormat):
    """A loaded Gemma 4; see `VideoLLM` for the methods' shapes."""

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        self.decoder = model.model.language_model
        text = self.decoder.config
        self._picture = f"{processor.boi_token}{processor.video_token}{processor.eoi_token}"
        self._holding = text.num_hidden_layers - text.num_kv_shared_layers
        self._blocks = text.use_bidirectional_attention == "vision"
        self._softcap = text.final_logit_softcapping
        self._pad = text.pad_token_id
        config = model.config
        self._places = (config.image_token_id, config.video_token_id, config.audio_token_id)
        self._layer_inputs = bool(getattr(text, "hidden_size_per_layer_input", 0))

    @property
    def layer_devices(self) -> list[str]:
        return super().layer_devices[: self._holding]

    @property
    def _pooled(self) -> int:
        """How many of the processor's places each side of a token covers."""
        return int(self._frames.pooling_kernel_size)

    def visual_tokens(self, video: torch.Tensor, frames: int) -> VisualTokens:
        made = self._frames(video, do_sample_frames=False, return_tensors="pt")
        made = made.to(self._model.device)
        places = made["video_position_ids"]
        tokens = self._model.model.get_video_features(
            made["pixel_values_videos"].to(self._model.dtype),
            places,
            num_frames_per_video=made["num_frames_per_video"],
            return_dict=True,
        ).pooler_output[0]
        columns, rows = ((places[0].amax(0) + 1) // self._pooled).tolist()
        return VisualTokens(tokens.reshape(len(video), rows, columns, -1))

    def prompt(self, tokens: VisualTokens) -> Prompt:
        import torch

        frames, height, width = tokens.grid
        stamps = (f"{int(t // 60):02d}:{int(t % 60):02d}" for t in tokens.times_s)
        text = " ".join(f"{stamp} {self._picture}" for stamp in stamps)
        ids, video = self.spread(self.head() + text, height * width)
        prompt = prompt_1d(ids, video, tokens.grid)
        if not self._blocks:
            return prompt
        blocks = torch.full((len(ids),), -1)
        blocks[video] = torch.arange(frames).repeat_interleave(height * width)
        return replace(prompt, blocks=blocks)

    def extras(self, ids: torch.Tensor) -> Mapping[str, torch.Tensor]:
        if not self._layer_inputs:
            return {}
        table = self.decoder.embed_tokens_per_layer.weight
        ids = self._text(ids).reshape(-1, ids.shape[-1]).to(table.device)
        return {"per_layer_inputs": self.decoder.get_per_layer_inputs(ids)}

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return super().embed(self._text(ids))

    def _text(self, ids: torch.Tensor) -> torch.Tensor:
        """The ids with padding in place of pictures and sounds, as in `Gemma4Model`."""
        ids = ids.clone()
        for place in self._places:
            if place is not None:
                ids[ids == place] = self._pad
        return ids

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._lm_head(hidden)
        if self._softcap is not None:
            logits = (logits / self._softcap).tanh() * self._softcap
        return logits.float()


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> Gemma4:
    """Load model and processor with transformers' own `from_pretrained`."""
    from transformers import Gemma4ForConditionalGeneration

    return Gemma4(*load_gemma(Gemma4ForConditionalGeneration, checkpoint, placement))


def load_gemma(model_class: Any, checkpoint: Checkpoint, placement: Placement) -> tuple[Any, Any]:
    """Load a model without its audio tower, and its processor.

    Raises ModelError, and UsageError for a loaded model with an attention that cannot be used.
    """
    from transformers import AutoConfig, AutoProcessor

    # Flash attention takes no masks and no heads of 512.
    if checkpoint.loaded is not None and placement.attention not in ("sdpa", "eager"):
        raise UsageError(
            f"the loaded model cannot use the attention {placement.attention!r}",
            'call model.set_attn_implementation("sdpa")',
        )
    if checkpoint.text.get("use_bidirectional_attention") == "all":
        raise ModelError(
            f"model {checkpoint.name!r} has decoder layers of the type 'bidirectional', which is "
            "not supported",
            "a question would change what stands before it: give a checkpoint that generates text",
        )
    if checkpoint.loaded is not None:
        return checkpoint.loaded
    processor, config = (load_files(each, checkpoint) for each in (AutoProcessor, AutoConfig))
    config.audio_config = None
    placement = replace(placement, attention="sdpa")
    model = load_weights(model_class, checkpoint, placement, config=config, kinds=KINDS)
    return model, processor


def grid(checkpoint: Checkpoint, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """A step per frame, with the tokens of the largest picture of its shape that the limit
    allows."""
    vision, processor = checkpoint.config["vision_config"], frame_processor(checkpoint)
    most = processor.get("max_soft_tokens", 70)
    side = vision["pooling_kernel_size"] * vision["patch_size"]
    scale = math.sqrt(most * side**2 / (height * width))
    rows, columns = int(scale * height / side), int(scale * width / side)
    if not rows or not columns:
        longer = max(height, width) // min(height, width)
        rows, columns = 1, min(longer, most)
    return frames, rows * columns


def shapes(text: Json) -> list[KVShape]:
    """Of each layer that holds keys and values; see `Family`."""
    holding = text["num_hidden_layers"] - (text.get("num_kv_shared_layers") or 0)
    own = text.get("per_layer_config") or {}
    made = []
    for index, kind in enumerate(kinds_of(text)[:holding]):
        heads, dim = int(text["num_key_value_heads"]), int(text["head_dim"])
        if kind == "full_attention" and not own:
            dim = text.get("global_head_dim", 512)
            separate = text.get("attention_k_eq_v", False)
            heads = (text.get("num_global_key_value_heads") if separate else None) or heads
        stated = own.get(str(index), own.get(index)) or {}
        made.append(
            KVShape(
                stated.get("num_key_value_heads", heads),
                stated.get("head_dim", dim),
                text["sliding_window"] if kind == "sliding_attention" else 0,
            )
        )
    return made


def deepest(text: Json) -> int:
    """See `Family`: the first of the layers whose keys and values later ones reuse."""
    kinds, shared = kinds_of(text), text.get("num_kv_shared_layers") or 0
    own = kinds[: len(kinds) - shared]
    last = {kind: index for index, kind in enumerate(own)}
    return min([len(kinds) - 1, *(last[kind] for kind in set(kinds[len(own) :]))])


def kinds_of(text: Json) -> list[str]:
    """The kind of each layer: every sixth and the last are global unless it is stated."""
    count = text["num_hidden_layers"]
    kinds = text.get("layer_types") or [KINDS[bool((i + 1) % 6)] for i in range(count)]
    return [*kinds[: count - 1], "full_attention"]


# 32 frames: its processor's setting. Merged as the LLaVAs are, by likeness.
FAMILY = Family(
    name="gemma-4",
    model_type="gemma4",
    checkpoints={
        "e2b": "google/gemma-4-E2B-it",
        "e4b": "google/gemma-4-E4B-it",
        "26b": "google/gemma-4-26B-A4B-it",
        "31b": "google/gemma-4-31B-it",
    },
    frames=32,
    merge_layer=2,
    positions="reassigned",
    step_text=8,
    grid=grid,
    load=load,
    shapes=shapes,
    deepest=deepest,
    windows=True,
)
