"""Small MiniCPM-V 4.6 checkpoints with random weights, written as ordinary folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    MiniCPMV4_6ImageProcessor,
    MiniCPMV4_6Processor,
    MiniCPMV4_6VideoProcessor,
)

from tests.checkpoints_qwen import THINKING, byte_level_tokenizer

NAMED = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}
TEMPLATE = THINKING.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>\n")


def minicpm(
    folder: Path,
    *,
    seed: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    patch: int = 4,
    scale: int = 80,
    mode: str = "16x",
) -> Path:
    """Write a random MiniCPM-V 4.6 to `folder`; a frame has about `scale` squared pixels."""
    torch.manual_seed(seed)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values()]
    tok = byte_level_tokenizer(special, extra_special_tokens=NAMED)
    hidden = heads * 16
    config = MiniCPMV4_6Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 16 * patch,
            "patch_size": patch,
        },
        text_config={
            "model_type": "qwen3_5_text",
            "vocab_size": len(tok),
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": 8,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 16,
            # Chunks of a delta rule round more the larger these are.
            "initializer_range": 0.07,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
            },
        },
        insert_layer_id=1,
        downsample_mode=mode,
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
    )
    model = MiniCPMV4_6ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tok.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(folder)
    sizes = {"patch_size": patch, "scale_resolution": scale, "downsample_mode": mode}
    MiniCPMV4_6Processor(
        image_processor=MiniCPMV4_6ImageProcessor(**sizes),
        tokenizer=tok,
        video_processor=MiniCPMV4_6VideoProcessor(**sizes),
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder
