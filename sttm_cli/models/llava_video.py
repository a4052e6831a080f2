"""LLaVA-Video in its original layout (`llava_qwen`): SigLIP tower, projector, Qwen2 decoder.

The checkpoint's names are mapped, while its shards are read, onto transformers' LLaVA-OneVision,
which has the same modules. Source of the layout, the prompt and the pooling: the LLaVA-NeXT
code with which the checkpoints were made, and their model cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sttm_cli.base.errors import ModelError
from sttm_cli.base.types import Json, Prompt, VisualTokens
from sttm_cli.models.checkpoint import ModelSource
from sttm_cli.models.llava import Llava
from sttm_cli.models.loading import load_files, load_weights
from sttm_cli.models.video_llm import Placement

VIDEO = "<image>"
"""Where the video goes in a prompt: text that is cut out, no token of the vocabulary."""
TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'video' %}<image>\n"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
TIMES = (
    "\nThe video lasts for {duration:.2f} seconds, and {count} frames are uniformly sampled from "
    "it. These frames are located at {times}.Please answer the following questions related to "
    "this video"
)
"""Between video and question, without the full stop, which no tokenizer of the Qwen kind joins
with the word before it, but does join with the line's end behind it."""
RENAMED = {
    r"^model\.(layers|embed_tokens|norm)\.": r"model.language_model.\1.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
}
TOWERS: dict[str, Json] = {
    "google/siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
}
"""Vision towers by the names that checkpoints call them, as their own config.json has them."""


class LlavaVideo(Llava):
    """A loaded LLaVA-Video; see `VideoLLM` for the methods' shapes.

    With `newlines`, a newline token ends each row of each frame as in training. Left out, as in
    the published results of merging, nothing else changes.
    """

    newlines = False

    def __init__(self, model: Any, tokenizer: Any, frames: Any) -> None:
        super().__init__(model, tokenizer, TEMPLATE, video=VIDEO, frames=frames)
        # The places of the video hold no ids of their own: any id keeps them.
        self.video_id = 0

    def prompt(self, tokens: VisualTokens) -> Prompt:
        time, height, width = tokens.grid
        head, after = self.head_ids(), self._times_ids(tokens)
        rows, row = time * height, width + self.newlines
        ids = [*head, *[self.video_id] * (rows * row), *after]
        places = len(head) + torch.arange(rows * row).view(rows, row)[:, :width].flatten()
        return Prompt(
            torch.tensor(ids), places, tokens.grid, torch.arange(len(ids))[None], len(ids)
        )

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        embeds = super().embed_prompt(prompt, tokens)
        if self.newlines:
            ends = prompt.video.view(-1, prompt.grid[2])[:, -1] + 1
            embeds[ends.to(embeds.device)] = self.newline(embeds)
        return embeds

    def weighed(
        self, logits: torch.Tensor, prompt: Sequence[int], made: Sequence[int]
    ) -> torch.Tensor:
        # The original code generates from embeddings: it never sees the prompt's ids.
        return super().weighed(logits, (), made)

    def _times_ids(self, tokens: VisualTokens) -> list[int]:
        text = TIMES.format(
            duration=tokens.duration_s,
            count=len(tokens.times_s),
            times=",".join(f"{time:.2f}s" for time in tokens.times_s),
        )
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _cut(self, rendered: str) -> tuple[str, str]:
        head, tail = super()._cut(rendered)
        return head, f".{tail}"


def load(source: ModelSource, placement: Placement) -> LlavaVideo:
    """Load the original checkpoint, shard by shard; nothing is written to disk.

    Raises ModelError for a vision tower or projector that is not known.
    """
    from transformers import (
        AutoTokenizer,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionVideoProcessor,
    )

    vision = _vision(source)
    tokenizer = load_files(AutoTokenizer, source)
    model = load_weights(
        LlavaOnevisionForConditionalGeneration,
        source,
        placement,
        config=_config(source, vision),
        key_mapping=RENAMED,
    )
    half = [0.5, 0.5, 0.5]
    side = vision["image_size"]
    frames = LlavaOnevisionVideoProcessor(
        size={"height": side, "width": side}, image_mean=half, image_std=half
    )
    return LlavaVideo(model, tokenizer, frames)


def _vision(source: ModelSource) -> Json:
    """The tower up to the layer whose output is used: the original code drops the last one."""
    name, config = source.config.get("mm_vision_tower"), source.config
    tower = config.get("vision_config") or TOWERS.get(str(name))
    kinds = config.get("mm_projector_type"), config.get("mm_spatial_pool_mode")
    if tower is None or kinds != ("mlp2x_gelu", "bilinear"):
        raise ModelError(
            f"model {source.name!r} has vision tower {name!r}, projector {kinds[0]!r} and pooling "
            f"{kinds[1]!r}, which are not supported together",
            f"supported: {', '.join(TOWERS)}, mlp2x_gelu, bilinear",
        )
    layers = tower["num_hidden_layers"] - 1
    return {**tower, "num_hidden_layers": layers, "vision_use_head": False}


def _config(source: ModelSource, vision: Json) -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    # Checkpoints spell out an unused setting as null; transformers warns of its old name.
    text = {k: v for k, v in source.config.items() if v is not None} | {"model_type": "qwen2"}
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision),
        text_config=Qwen2Config(**text),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(source.config.get("tie_word_embeddings")),
    )
