"""Small LLaVA-Video checkpoints with random weights, in the layout of the original code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from tests.checkpoints_qwen import byte_level_tokenizer


def llava_video(
    folder: Path,
    *,
    seed: int = 0,
    heads: int = 4,
    kv_heads: int = 2,
    layers: int = 4,
    image: int = 56,
    patch: int = 8,
    shards: int = 2,
    generation: dict[str, object] | None = None,
) -> Path:
    """Write a random LLaVA-Video of these dimensions to `folder` and return it."""
    torch.manual_seed(seed)
    tok = byte_level_tokenizer(["<|im_start|>", "<|im_end|>"])
    hidden, width = heads * 16, 32
    text = Qwen2Config(
        vocab_size=len(tok) + 7,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        initializer_range=0.2,
    )
    tower = {
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": image,
        "patch_size": patch,
    }
    flat = json.loads(text.to_json_string(use_diff=False))
    rope = flat.pop("rope_parameters")
    config = flat | {
        "model_type": "llava_qwen",
        "architectures": ["LlavaQwenForCausalLM"],
        "rope_theta": rope["rope_theta"] * 3,
        "rope_scaling": None,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "mm_newline_position": "grid",
        "mm_vision_select_layer": -2,
        "mm_hidden_size": width,
        "vision_config": tower,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    ends = [tok.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    made = {"eos_token_id": [e for e in ends if e is not None], **(generation or {})}
    (folder / "generation_config.json").write_text(json.dumps(made))
    tok.save_pretrained(folder)
    weights = _weights(text, SiglipVisionConfig(**tower, vision_use_head=False))
    _save(folder, {name: tensor.contiguous() for name, tensor in weights.items()}, shards)
    return folder


def _weights(text: Qwen2Config, vision: SiglipVisionConfig) -> dict[str, torch.Tensor]:
    hidden, width = text.hidden_size, vision.hidden_size
    tower = SiglipVisionModel(vision).state_dict()
    tower = {name.removeprefix("vision_model."): tensor for name, tensor in tower.items()}
    # The original code drops the tower's last layer before it saves.
    gone = f"encoder.layers.{vision.num_hidden_layers - 1}."
    prefix = "model.vision_tower.vision_tower.vision_model."
    return {
        **Qwen2ForCausalLM(text).state_dict(),
        **{prefix + name: 2 * t for name, t in tower.items() if not name.startswith(gone)},
        "model.mm_projector.0.weight": torch.randn(hidden, width) / width**0.5,
        "model.mm_projector.0.bias": torch.randn(hidden),
        "model.mm_projector.2.weight": torch.randn(hidden, hidden) / hidden**0.5,
        "model.mm_projector.2.bias": torch.randn(hidden),
        "model.image_newline": torch.randn(hidden),
    }


def _save(folder: Path, weights: dict[str, torch.Tensor], shards: int) -> None:
    names, where = sorted(weights), {}
    for index in range(shards):
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[index::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    index_json = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_json))
