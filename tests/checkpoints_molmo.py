"""Small Molmo 2 checkpoints with random weights, written as ordinary folders."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Molmo2Config,
    Molmo2ForConditionalGeneration,
    Molmo2ImageProcessor,
    Molmo2Processor,
    Molmo2VideoProcessor,
)

from tests.checkpoints_qwen import byte_level_tokenizer

PLACES = [
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<frame_start>",
    "<im_end>",
    "<frame_end>",
    "<im_low>",
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for c in message.content %}{% if c.type == 'video' %}<|video|>"
    "{% elif c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def molmo2(
    folder: Path,
    *,
    seed: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 4,
    image: int = 72,
    patch: int = 8,
    columns: bool = False,
    scaled: list[int] | None = None,
) -> Path:
    """Write a random Molmo 2 to `folder`; `columns`: a token ends each row of a frame, `scaled`:
    the layers with long-context rotary embeddings, all of them where it is None."""
    torch.manual_seed(seed)
    special = ["<|im_start|>", "<|im_end|>", "<|image|>", "<|video|>", *PLACES]
    tok = byte_level_tokenizer(special)
    hidden = heads * 16
    tower = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    names = {
        "image_start_token_id": "<im_start>",
        "low_res_image_start_token_id": "<low_res_im_start>",
        "image_end_token_id": "<im_end>",
        "image_patch_id": "<im_patch>",
        "frame_start_token_id": "<frame_start>",
        "frame_end_token_id": "<frame_end>",
    }
    config = Molmo2Config(
        vision_config={
            **tower,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "image_size": [image, image],
            "patch_size": patch,
            "initializer_range": 0.1,
        },
        adapter_config={
            **tower,
            "vision_feature_layer": [2, 1],
            "intermediate_size": 64,
            "text_hidden_size": hidden,
            "initializer_range": 0.2,
        },
        text_config={
            "vocab_size": len(tok),
            "additional_vocab_size": 8,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 16,
            "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            "rope_scaling_layers": scaled,
        },
        initializer_range=0.2,
        **{name: tok.convert_tokens_to_ids(token) for name, token in names.items()},
    )
    model = Molmo2ForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tok.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(folder)
    size = {"height": image, "width": image}
    Molmo2Processor(
        image_processor=Molmo2ImageProcessor(size=size, patch_size=patch),
        tokenizer=tok,
        video_processor=Molmo2VideoProcessor(
            size=size, patch_size=patch, do_rescale=True, do_normalize=True
        ),
        video_use_col_tokens=columns,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder
