"""Dimensions of released checkpoints, from their config.json, for models with random weights.

A record is data alone: transformers builds the model from `config`, and the family of `kind` wraps
it, so that a further checkpoint is a further record.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Json

SPECIAL = (
    "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>", "<|vision_start|>",
    "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<img>", "</img>", "<IMG_CONTEXT>",
)  # fmt: skip
"""The vocabulary of a random model; `config` gives its ids by these words."""
WIDTHS = ("hidden_size", "intermediate_size", "embed_dim", "out_hidden_size")
HEADS = ("num_attention_heads", "num_heads")
DEPTHS = ("num_hidden_layers", "depth")


@dataclass(frozen=True)
class Geometry:
    """The dimensions of a released checkpoint.

    `kind`: the family's model type. `config`: arguments of transformers' config `architecture`,
    by default that of `kind`, with words of SPECIAL in place of token ids. `video`: a video in a
    prompt; "" for a family that brings its own template. `frames`: settings of its video processor.
    """

    kind: str
    config: Json
    video: str = ""
    frames: Json = field(default_factory=dict)
    architecture: str = ""

    @property
    def layers(self) -> int:
        """The number of decoder layers."""
        return int(self.config["text_config"]["num_hidden_layers"])

    def shrunk(self, layers: int | None, scale: int) -> Geometry:
        """Limit the layers to `layers`, and divide the widths by `scale`; raises UsageError."""
        text, vision = self.config["text_config"], self.config["vision_config"]
        sizes = [part.get(key, 0) for part in (text, vision) for key in (*WIDTHS, *HEADS)]
        if any(size % scale for size in sizes):
            raise UsageError(
                f"--scale {scale} does not divide this geometry's widths and heads", "give 2 or 4"
            )
        small = {
            "text_config": _shrunk(text, layers, scale),
            "vision_config": _shrunk(vision, layers, scale),
        }
        return replace(self, config={**self.config, **small})

    def model_config(self) -> Any:
        """Return the transformers config."""
        from transformers import AutoConfig

        ids = {
            key: SPECIAL.index(value) if key.endswith(("_token_id", "_token_index")) else value
            for key, value in self.config.items()
        }
        return AutoConfig.for_model(self.architecture or self.kind, **ids)


def _shrunk(part: Json, layers: int | None, scale: int) -> Json:
    """Shrink a decoder's or a tower's config; lists of layers lose those that are gone."""
    small = dict(part)
    for key in (*WIDTHS, *HEADS):
        if key in part:
            small[key] = part[key] // scale
    if "num_key_value_heads" in part:
        small["num_key_value_heads"] = max(1, part["num_key_value_heads"] // scale)
    key = next(key for key in DEPTHS if key in part)
    small[key] = depth = min(part[key], layers or part[key])
    for key in (key for key in part if key.endswith("_indexes")):
        small[key] = [at for at in part[key] if at < depth] or [depth - 1]
    return small


def _decoder(
    hidden: int, inner: int, layers: int, heads: int, kv: int, *, words: int, **more: Any
) -> Json:
    return {
        "vocab_size": words,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        **more,
    }


def _rotary(*sections: int) -> Json:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections)}
    return {"rope_parameters": rope}


_QWEN2_7B = (3584, 18944, 28, 28, 4)
_SIGLIP: Json = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
_QWEN2_VL: Json = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}
_QWEN2_5_VL: Json = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_QWEN3_VL: Json = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "deepstack_visual_indexes": [8, 16, 24],
}


def _llava(kind: str, *decoder: int, video: str) -> Geometry:
    text = {"model_type": "qwen2", **_decoder(*decoder, words=152064)}
    half = [0.5, 0.5, 0.5]
    return Geometry(
        kind=kind,
        config={
            "text_config": text,
            "vision_config": _SIGLIP,
            "image_token_index": "<image>",
            "video_token_index": "<video>",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            # As the original checkpoints of `llava_qwen` state them.
            "mm_vision_tower": "google/siglip-so400m-patch14-384",
            "mm_projector_type": "mlp2x_gelu",
            "mm_spatial_pool_mode": "bilinear",
        },
        video=video,
        frames={"size": {"height": 384, "width": 384}, "image_mean": half, "image_std": half},
        architecture="llava_onevision",
    )


def _qwen(kind: str, text: Json, vision: Json) -> Geometry:
    return Geometry(
        kind=kind,
        config={
            "text_config": text,
            "vision_config": vision,
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        },
        video="<|vision_start|><|video_pad|><|vision_end|>",
    )


_AXES, _AXES_3 = _rotary(16, 24, 24), _rotary(24, 20, 20)
GEOMETRIES = {
    "llava-video-7b": _llava("llava_qwen", *_QWEN2_7B, video=""),
    "llava-onevision-7b": _llava("llava_onevision", *_QWEN2_7B, video="<video>"),
    "llava-onevision-0.5b": _llava("llava_onevision", 896, 4864, 24, 14, 2, video="<video>"),
    "qwen2-vl-7b": _qwen(
        kind="qwen2_vl",
        text=_decoder(*_QWEN2_7B, words=152064, **_AXES),
        vision={**_QWEN2_VL, "hidden_size": 3584},
    ),
    "qwen2-vl-2b": _qwen(
        kind="qwen2_vl",
        text=_decoder(1536, 8960, 28, 12, 2, words=151936, **_AXES),
        vision={**_QWEN2_VL, "hidden_size": 1536},
    ),
    "qwen2.5-vl-7b": _qwen(
        kind="qwen2_5_vl",
        text=_decoder(*_QWEN2_7B, words=152064, **_AXES),
        vision={**_QWEN2_5_VL, "out_hidden_size": 3584},
    ),
    "qwen2.5-vl-3b": _qwen(
        kind="qwen2_5_vl",
        text=_decoder(2048, 11008, 36, 16, 2, words=151936, **_AXES),
        vision={**_QWEN2_5_VL, "out_hidden_size": 2048},
    ),
    "qwen3-vl-8b": _qwen(
        kind="qwen3_vl",
        text=_decoder(4096, 12288, 36, 32, 8, words=151936, **_AXES_3),
        vision={**_QWEN3_VL, "out_hidden_size": 4096},
    ),
}
"""Geometries by the checkpoints' aliases."""
