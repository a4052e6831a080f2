"""Small Gemma 4 checkpoints with random weights, written as ordinary folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.checkpoints_qwen import byte_level_tokenizer

NAMED = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for c in message.content %}{% if c.type == 'video' %}\n\n<|video|>\n\n"
    "{% elif c.type == 'text' %}{{ c.text | trim }}{% endif %}{% endfor %}{% endif %}<turn|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn>model\n{% endif %}"
)
WINDOW, GLOBAL = "sliding_attention", "full_attention"
KINDS = {
    # Per-layer inputs, and layers that reuse the keys and values of the last one of their kind.
    "small": [WINDOW, WINDOW, WINDOW, GLOBAL, WINDOW, WINDOW, GLOBAL],
    "large": [WINDOW, WINDOW, WINDOW, GLOBAL, WINDOW, GLOBAL],
    "unified": [WINDOW, WINDOW, GLOBAL, WINDOW, GLOBAL],
    "experts": [WINDOW, GLOBAL, WINDOW, WINDOW, GLOBAL],
}


def gemma4(
    folder: Path,
    size: str = "small",
    *,
    seed: int = 0,
    heads: int = 4,
    window: int = 24,
    soft_tokens: int = 70,
    patch: int = 4,
    **text: Any,
) -> Path:
    """Write a random Gemma 4 to `folder`; `size`: a name of KINDS."""
    torch.manual_seed(seed)
    tok = byte_level_tokenizer([], bos_token="<bos>", extra_special_tokens=NAMED)
    tok.add_special_tokens({"additional_special_tokens": ["<|turn>", "<turn|>", "<|video|>"]})
    family = "Gemma4Unified" if size == "unified" else "Gemma4"
    config = getattr(hf, f"{family}Config")(
        text_config={
            "vocab_size": len(tok),
            "hidden_size": heads * 16,
            "intermediate_size": 2 * heads * 16,
            "num_hidden_layers": len(KINDS[size]),
            "layer_types": KINDS[size],
            "num_attention_heads": heads,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": window,
            "final_logit_softcapping": 30.0,
            "initializer_range": 0.1,
            "pad_token_id": 0,
            **OWN[size],
            **text,
        },
        vision_config=_vision(size, heads * 16, patch),
        audio_config=None,
        **{f"{name}_id": tok.convert_tokens_to_ids(token) for name, token in NAMED.items()},
        video_token_id=tok.convert_tokens_to_ids("<|video|>"),
    )
    model = getattr(hf, f"{family}ForConditionalGeneration")(config).eval()
    # Every layer has a scale of its own, which is 1 before training.
    for layer in model.model.language_model.layers:
        layer.layer_scalar.fill_(0.9)
    model.generation_config.eos_token_id = tok.convert_tokens_to_ids("<turn|>")
    model.save_pretrained(folder)
    sizes = {"patch_size": patch, "max_soft_tokens": soft_tokens, "pooling_kernel_size": 2}
    getattr(hf, f"{family}Processor")(
        feature_extractor=getattr(hf, f"{family}AudioFeatureExtractor")(),
        image_processor=getattr(hf, f"{family}ImageProcessor")(**sizes),
        tokenizer=tok,
        video_processor=getattr(hf, f"{family}VideoProcessor")(**sizes),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def _vision(size: str, hidden: int, patch: int) -> dict[str, Any]:
    shared = {"patch_size": patch, "pooling_kernel_size": 2, "initializer_range": 0.1}
    if size == "unified":
        width = {"mm_embed_dim": hidden, "output_proj_dims": hidden}
        return {**shared, **width, "mm_posemb_size": 256}
    return {
        **shared,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "position_embedding_size": 256,
        "standardize": size != "small",
    }


OWN: dict[str, dict[str, Any]] = {
    "small": {
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 600,
        "use_double_wide_mlp": True,
    },
    "large": {
        "hidden_size_per_layer_input": 0,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "use_bidirectional_attention": "vision",
    },
    "unified": {
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "use_bidirectional_attention": "vision",
    },
    "experts": {
        "hidden_size_per_layer_input": 0,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "use_bidirectional_attention": "vision",
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
}
