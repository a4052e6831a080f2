"""Dimensions of released checkpoints, and transformers configs with these dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sttm_cli.base.errors import UsageError

SPECIAL = (
    "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>", "<|vision_start|>",
    "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<img>", "</img>", "<IMG_CONTEXT>",
)  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """The dimensions of a released checkpoint, from its config.json.

    `text`, `vision`: hidden size, inner size of the MLP, layers, heads; `text` also key-value
    heads.
    """

    kind: str
    text: tuple[int, int, int, int, int]
    vision: tuple[int, int, int, int]
    vocabulary: int = 152064

    def shrunk(self, layers: int | None, scale: int) -> Geometry:
        """Limit the layers to `layers`, and divide the widths by `scale`; raises UsageError."""
        if any(value % scale for value in (*self.text[:2], self.text[3], *self.vision[:2])):
            raise UsageError(
                f"--scale {scale} does not divide this geometry's widths and heads", "give 2 or 4"
            )
        if self.vision[3] % scale:
            raise UsageError(f"--scale {scale} does not divide the vision tower's heads")
        hidden, inner, depth, heads, kv_heads = self.text
        text = (hidden // scale, inner // scale, depth, heads // scale, max(1, kv_heads // scale))
        v_hidden, v_inner, v_depth, v_heads = self.vision
        vision = (v_hidden // scale, v_inner // scale, v_depth, v_heads // scale)
        most = layers or max(depth, v_depth)
        return replace(
            self,
            text=(*text[:2], min(depth, most), *text[3:]),
            vision=(*vision[:2], min(v_depth, most), vision[3]),
        )


_QWEN2_7B = (3584, 18944, 28, 28, 4)
_SIGLIP = (1152, 4304, 26, 16)
GEOMETRIES = {
    "llava-video-7b": Geometry("llava_qwen", _QWEN2_7B, _SIGLIP),
    "llava-onevision-7b": Geometry("llava_onevision", _QWEN2_7B, _SIGLIP),
    "llava-onevision-0.5b": Geometry("llava_onevision", (896, 4864, 24, 14, 2), _SIGLIP),
    "qwen2-vl-7b": Geometry("qwen2_vl", _QWEN2_7B, (1280, 5120, 32, 16)),
    "qwen2-vl-2b": Geometry(
        kind="qwen2_vl",
        text=(1536, 8960, 28, 12, 2),
        vision=(1280, 5120, 32, 16),
        vocabulary=151936,
    ),
    "qwen2.5-vl-7b": Geometry("qwen2_5_vl", _QWEN2_7B, (1280, 3420, 32, 16)),
    "qwen2.5-vl-3b": Geometry(
        kind="qwen2_5_vl",
        text=(2048, 11008, 36, 16, 2),
        vision=(1280, 3420, 32, 16),
        vocabulary=151936,
    ),
    "qwen3-vl-8b": Geometry(
        kind="qwen3_vl",
        text=(4096, 12288, 36, 32, 8),
        vision=(1152, 4304, 27, 16),
        vocabulary=151936,
    ),
}
"""Geometries by the checkpoints' aliases."""


def architecture(geometry: Geometry) -> tuple[Any, Any]:
    """Return the transformers class and config of a geometry."""
    import transformers as hf

    hidden, inner, layers, heads, kv_heads = geometry.text
    text = {
        "vocab_size": geometry.vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    if geometry.kind.startswith("llava"):
        return hf.LlavaOnevisionForConditionalGeneration, hf.LlavaOnevisionConfig(
            text_config=hf.Qwen2Config(**text),
            vision_config=hf.SiglipVisionConfig(**_siglip(geometry)),
            image_token_index=SPECIAL.index("<image>"),
            video_token_index=SPECIAL.index("<video>"),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    config_class, model_class = {
        "qwen2_vl": (hf.Qwen2VLConfig, hf.Qwen2VLForConditionalGeneration),
        "qwen2_5_vl": (hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLForConditionalGeneration),
        "qwen3_vl": (hf.Qwen3VLConfig, hf.Qwen3VLForConditionalGeneration),
    }[geometry.kind]
    sections = [24, 20, 20] if geometry.kind == "qwen3_vl" else [16, 24, 24]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    return model_class, config_class(
        text_config={**text, "rope_parameters": rope},
        vision_config=_qwen_vision(geometry),
        image_token_id=SPECIAL.index("<|image_pad|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
        vision_start_token_id=SPECIAL.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL.index("<|vision_end|>"),
    )


def _siglip(geometry: Geometry) -> dict[str, Any]:
    hidden, inner, layers, heads = geometry.vision
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    }


def _qwen_vision(geometry: Geometry) -> dict[str, Any]:
    hidden, inner, depth, heads = geometry.vision
    out, vision = geometry.text[0], {"depth": depth, "num_heads": heads}
    if geometry.kind == "qwen2_vl":
        return {**vision, "embed_dim": hidden, "hidden_size": out, "mlp_ratio": inner // hidden}
    vision |= {"hidden_size": hidden, "intermediate_size": inner, "out_hidden_size": out}
    if geometry.kind == "qwen2_5_vl":
        # Every eighth layer has full attention, the others window attention.
        return {**vision, "fullatt_block_indexes": list(range(min(7, depth - 1), depth, 8))}
    # Layers 8, 16 and 24 of 27; the same shares of fewer layers.
    return {**vision, "deepstack_visual_indexes": [depth * part // 27 for part in (8, 16, 24)]}
