"""Small SmolVLM2 checkpoints with random weights, written as ordinary folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.checkpoints_qwen import byte_level_tokenizer


def smolvlm(
    folder: Path,
    *,
    seed: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 4,
    image: int = 48,
    patch: int = 8,
    scale: int = 2,
) -> Path:
    """Write a random SmolVLM2 of these dimensions to `folder` and return it."""
    torch.manual_seed(seed)
    special = ["<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>"]
    tok = byte_level_tokenizer([*special, "<global-img>"])
    hidden = heads * 16
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": image,
            "patch_size": patch,
            "initializer_range": 0.1,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tok),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 16,
            "initializer_range": 0.2,
            "pad_token_id": 0,
        },
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=scale,
    )
    model = SmolVLMForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tok.convert_tokens_to_ids("<end_of_utterance>")
    model.save_pretrained(folder)
    sizes = {"size": {"longest_edge": 2 * image}, "max_image_size": {"longest_edge": image}}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**sizes),
        tokenizer=tok,
        video_processor=SmolVLMVideoProcessor(**sizes),
        image_seq_len=(image // patch // scale) ** 2,
    ).save_pretrained(folder)
    return folder
