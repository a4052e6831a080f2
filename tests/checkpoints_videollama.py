"""Small VideoLLaMA 3 checkpoints with random weights, written as ordinary folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

from tests.checkpoints_qwen import byte_level_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for c in message.content %}{% if c.type == 'video' %}<|video_pad|>\n"
    "{% elif c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def videollama(
    folder: Path,
    *,
    seed: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 4,
    patch: int = 8,
    pixels: tuple[int, int] = (256, 6 * 80 * 112),
) -> Path:
    """Write a random VideoLLaMA 3 to `folder`; `pixels`: the fewest of a frame, the most of all
    frames together."""
    torch.manual_seed(seed)
    tok = byte_level_tokenizer()
    hidden = heads * 16
    config = VideoLlama3Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": patch,
            "initializer_range": 0.1,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tok),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "initializer_range": 0.2,
        },
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
    )
    model = VideoLlama3ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tok.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(folder)
    size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}
    VideoLlama3Processor(
        image_processor=VideoLlama3ImageProcessor(patch_size=patch),
        tokenizer=tok,
        video_processor=VideoLlama3VideoProcessor(size=size, patch_size=patch),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder
