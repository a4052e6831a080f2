"""Small Qwen-VL checkpoints with random weights, written as ordinary folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "system\nYou are a helpful assistant.",
    "user\nwhat colour is the circle? how many shapes are there? <0.5 seconds><12.0 seconds>",
    "The video lasts for 12.00 seconds, and 8 frames are uniformly sampled from it. These frames "
    "are located at 0.00s,1.00s.Please answer the following questions related to this video.\n",
]
TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant."
    "<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for c in message.content %}{% if c.type == 'video' or 'video' in c %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in c %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Thinks unless it hears otherwise, as the released ones of 4B and more.
THINKING = TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}",
)


def byte_level_tokenizer(
    special: list[str] = SPECIAL, **options: Any
) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE that splits text as Qwen2's does, trained on a few sentences."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        **options,
    )


FAMILIES: dict[str, tuple[Any, Any, Any, Any]] = {
    "qwen2_vl": (
        hf.Qwen2VLConfig,
        hf.Qwen2VLForConditionalGeneration,
        hf.Qwen2VLProcessor,
        hf.Qwen2VLVideoProcessor,
    ),
    "qwen2_5_vl": (
        hf.Qwen2_5_VLConfig,
        hf.Qwen2_5_VLForConditionalGeneration,
        hf.Qwen2_5_VLProcessor,
        hf.Qwen2VLVideoProcessor,
    ),
    "qwen3_vl": (
        hf.Qwen3VLConfig,
        hf.Qwen3VLForConditionalGeneration,
        hf.Qwen3VLProcessor,
        hf.Qwen3VLVideoProcessor,
    ),
    "qwen3_5": (
        hf.Qwen3_5Config,
        hf.Qwen3_5ForConditionalGeneration,
        hf.Qwen3VLProcessor,
        hf.Qwen3VLVideoProcessor,
    ),
    "qwen3_5_moe": (
        hf.Qwen3_5MoeConfig,
        hf.Qwen3_5MoeForConditionalGeneration,
        hf.Qwen3VLProcessor,
        hf.Qwen3VLVideoProcessor,
    ),
    "qwen3_vl_moe": (
        hf.Qwen3VLMoeConfig,
        hf.Qwen3VLMoeForConditionalGeneration,
        hf.Qwen3VLProcessor,
        hf.Qwen3VLVideoProcessor,
    ),
}


def qwen_vl(
    folder: Path,
    family: str,
    *,
    seed: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 5,
    head_dim: int = 16,
    patch: int = 8,
    pixels: tuple[int, int] = (16 * 16, 80 * 80),
    generation: dict[str, object] | None = None,
) -> Path:
    """Write a random Qwen-VL to `folder`; `pixels`: the processor's shortest and longest edge."""
    torch.manual_seed(seed)
    config_class, model_class, processor_class, video_class = FAMILIES[family]
    tok = byte_level_tokenizer()
    vision, text = _dimensions(family, heads=heads, layers=layers, head_dim=head_dim, patch=patch)
    config = config_class(
        vision_config=vision,
        text_config={
            **text,
            "vocab_size": len(tok),
            "num_key_value_heads": kv_heads,
            # Large weights: a random model that answers the same whatever it sees proves nothing.
            # Chunks of a delta rule round more the larger these are.
            "initializer_range": 0.07 if "qwen3_5" in family else 0.2,
        },
        image_token_id=tok.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tok.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tok.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tok.convert_tokens_to_ids("<|vision_end|>"),
    )
    model = model_class(config).eval()
    ends = [tok.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.eos_token_id = ends
    for name, value in (generation or {}).items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}
    processor_class(
        image_processor=hf.Qwen2VLImageProcessor(patch_size=patch),
        tokenizer=tok,
        video_processor=video_class(size=size, patch_size=patch),
        chat_template=THINKING if "qwen3_5" in family else TEMPLATE,
    ).save_pretrained(folder)
    return folder


def _dimensions(
    family: str, *, heads: int, layers: int, head_dim: int, patch: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    hidden, depth = heads * head_dim, 3
    sections = [head_dim // 8, 3 * head_dim // 16, 3 * head_dim // 16]
    text = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections},
    }
    vision = {"depth": depth, "num_heads": 2, "patch_size": patch, "initializer_range": 0.1}
    if family == "qwen2_vl":
        return {**vision, "embed_dim": 32, "hidden_size": hidden, "mlp_ratio": 2}, text
    if "qwen3_5" in family:
        return _dimensions_3_5(family, text, vision, hidden)
    vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": hidden}
    if family == "qwen2_5_vl":
        window = {"window_size": 4 * patch, "fullatt_block_indexes": [1], "tokens_per_second": 4}
        return {**vision, **window}, text
    deep = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64}
    if family == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return {**vision, **deep}, {**text, "head_dim": head_dim}


def _dimensions_3_5(
    family: str, text: dict[str, Any], vision: dict[str, Any], hidden: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Three recurrent layers, one with attention, and one more recurrent and attention each."""
    vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": hidden}
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    kinds = ["linear_attention"] * 3 + ["full_attention"]
    text |= {
        "head_dim": 16,
        "rope_parameters": {**rope, "mrope_section": [2, 1, 1]},
        "num_hidden_layers": 6,
        "layer_types": [*kinds, "linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 16,
    }
    if family == "qwen3_5_moe":
        text |= {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        }
    return {**vision, "num_position_embeddings": 64}, text
