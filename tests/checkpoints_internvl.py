"""Small InternVL checkpoints with random weights, written as ordinary folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
)

from tests.checkpoints_qwen import byte_level_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for c in message.content %}{% if c.type == 'video' %}<video>\n"
    "{% elif c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def internvl(
    folder: Path,
    *,
    seed: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 4,
    image: int = 48,
    patch: int = 8,
) -> Path:
    """Write a random InternVL of these dimensions to `folder` and return it."""
    torch.manual_seed(seed)
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    special = ["<|im_start|>", "<|im_end|>", *names.values()]
    tok = byte_level_tokenizer(special, extra_special_tokens=names)
    hidden = heads * 16
    side = image // patch // 2
    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [image, image],
            "patch_size": [patch, patch],
            "initializer_range": 0.1,
        },
        text_config={
            "model_type": "qwen3",
            "vocab_size": len(tok),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 16,
            "initializer_range": 0.2,
        },
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=side**2,
    )
    model = InternVLForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tok.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(folder)
    size = {"height": image, "width": image}
    InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size),
        tokenizer=tok,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=side**2,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder
