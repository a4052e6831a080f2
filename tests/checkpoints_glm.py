"""Small GLM-V checkpoints with random weights, written as ordinary folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tests.checkpoints_qwen import byte_level_tokenizer

TOKENS = [
    "<|endoftext|>",
    "[gMASK]",
    "<sop>",
    "<|user|>",
    "<|assistant|>",
    "<|image|>",
    "<|video|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
]
TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message.role }}|>\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for c in message.content %}{% if c.type == 'video' %}"
    "<|begin_of_video|><|video|><|end_of_video|>{% elif 'text' in c %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Real GLM-4.6V checkpoints of the first two types come with the newer processor too.
FAMILIES: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "glm4v": (
        hf.Glm4vConfig,
        hf.Glm4vForConditionalGeneration,
        hf.Glm4vProcessor,
        hf.Glm4vVideoProcessor,
        hf.Glm4vImageProcessor,
    ),
    "glm4v_moe": (
        hf.Glm4vMoeConfig,
        hf.Glm4vMoeForConditionalGeneration,
        hf.Glm46VProcessor,
        hf.Glm46VVideoProcessor,
        hf.Glm46VImageProcessor,
    ),
    "glm46v": (
        hf.Glm46VConfig,
        hf.Glm46VForConditionalGeneration,
        hf.Glm46VProcessor,
        hf.Glm46VVideoProcessor,
        hf.Glm46VImageProcessor,
    ),
}


def glm(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 4,
    patch: int = 8,
    rotated: float = 0.5,
    pixels: int = 6 * 80 * 112,
) -> Path:
    """Write a random GLM-V to `folder`; `rotated`: the share of a head that has positions,
    `pixels`: the most of all frames together."""
    torch.manual_seed(seed)
    config_class, model_class, processor_class, video_class, image_class = FAMILIES[family]
    tok = byte_level_tokenizer(TOKENS)
    hidden = heads * 16
    sections = [2, 1, 1] if rotated == 0.5 else [2, 3, 3]
    text = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": len(tok),
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": rotated,
            "mrope_section": sections,
        },
    }
    if family == "glm4v_moe":
        text |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "image_size": 4 * patch,
        "patch_size": patch,
        "out_hidden_size": hidden,
        "intermediate_size": 64,
        "initializer_range": 0.1,
    }
    names = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    ids = {name: tok.convert_tokens_to_ids(token) for name, token in names.items()}
    model = model_class(config_class(vision_config=vision, text_config=text, **ids)).eval()
    ends = [tok.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|user|>")]
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    size = {"shortest_edge": 256, "longest_edge": pixels}
    processor_class(
        image_processor=image_class(patch_size=patch),
        tokenizer=tok,
        video_processor=video_class(size=size, patch_size=patch),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder
