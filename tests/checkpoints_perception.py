"""Small Perception-LM checkpoints with random weights, written as ordinary folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    PerceptionLMConfig,
    PerceptionLMForConditionalGeneration,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
)

from tests.checkpoints_qwen import byte_level_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for c in message.content %}{% if c.type == 'video' %}<|video|>"
    "{% elif c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)


def perception_lm(
    folder: Path,
    *,
    seed: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 4,
    image: int = 48,
    patch: int = 8,
) -> Path:
    """Write a random Perception-LM to `folder`; its tokenizer puts a start token before any text,
    as Llama 3's does, and so does its template."""
    torch.manual_seed(seed)
    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    special = ["<|im_start|>", "<|im_end|>", "<|begin|>", *names.values()]
    tok = byte_level_tokenizer(special, extra_special_tokens=names, bos_token="<|begin|>")
    start = ("<|begin|>", tok.convert_tokens_to_ids("<|begin|>"))
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[start]
    )
    hidden, side = heads * 16, image // patch
    config = PerceptionLMConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "do_pooling": False,
            "model_args": {
                "embed_dim": 32,
                "depth": 2,
                "num_heads": 2,
                "img_size": [image, image],
                "patch_size": patch,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": [side, side],
            },
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
        },
        projector_pooling_ratio=2,
        image_token_id=tok.convert_tokens_to_ids("<|image|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video|>"),
    )
    model = PerceptionLMForConditionalGeneration(config).eval()
    for weight in model.model.vision_tower.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    model.generation_config.eos_token_id = tok.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(folder)
    size = {"height": image, "width": image}
    PerceptionLMProcessor(
        image_processor=PerceptionLMImageProcessor(tile_size=image),
        tokenizer=tok,
        video_processor=PerceptionLMVideoProcessor(size=size),
        patch_size=patch,
        pooling_ratio=2,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder
