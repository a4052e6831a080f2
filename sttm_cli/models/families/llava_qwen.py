"""LLaVA-Video in its original layout (`llava_qwen`): SigLIP tower, projector, Qwen2 decoder.

Loaded into transformers' LLaVA-OneVision, which has the same modules, by renaming the weights
while the shards are read. Source of layout, prompt and pooling: the LLaVA-NeXT code and the
model cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sttm_cli.base.errors import ModelError
from sttm_cli.base.types import Json, Prompt, VisualTokens
from sttm_cli.models.chat_format import prompt_1d
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.families.llava_onevision import Llava, pooled_side
from sttm_cli.models.family import Family
from sttm_cli.models.loading import Placement, load_files, load_weights

if TYPE_CHECKING:
    import torch

VIDEO = "<image>"
"""Marks the video's place in a prompt; text that is cut out, not a token of the vocabulary."""
TEMPLATE = (
    "{% if messages[0].role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
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
"""Text between video and question, without its full stop, which Qwen tokenizers merge with the
following line end."""
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
"""Configs of vision towers, by their names in checkpoints."""


class LlavaVideo(Llava):
    """A loaded LLaVA-Video; see `VideoLLM` for the methods' shapes.

    With `newlines`, a newline token ends each row of each frame, as in training. By default there
    are none, as in the paper's merging results.
    """

    def __init__(self, model: Any, tokenizer: Any, *, frames: Any, newlines: bool = False) -> None:
        processor = SimpleNamespace(
            tokenizer=tokenizer,
            video_processor=frames,
            video_token=VIDEO,
            chat_template=TEMPLATE,
        )
        super().__init__(model, processor)
        # The video has no token id of its own; any id can hold its places.
        self.video_id = 0
        self._newlines = newlines

    def prompt(self, tokens: VisualTokens) -> Prompt:
        time, height, width = tokens.grid
        head, after = self.head_ids(), self._times_ids(tokens)
        row = width + self._newlines
        end = len(head) + time * height * row
        starts = range(len(head), end, row)
        ids = [*head, *[self.video_id] * (end - len(head)), *after]
        return prompt_1d(ids, [s + i for s in starts for i in range(width)], tokens.grid)

    def embed_prompt(self, prompt: Prompt, tokens: VisualTokens) -> torch.Tensor:
        embeds = super().embed_prompt(prompt, tokens)
        if self._newlines:
            ends = prompt.video.view(-1, prompt.grid[2])[:, -1] + 1
            embeds[ends.to(embeds.device)] = self.newline(embeds)
        return embeds

    def weighed(
        self, logits: torch.Tensor, prompt: Sequence[int], made: Sequence[int]
    ) -> torch.Tensor:
        # The original code generates from embeddings, without the prompt's ids.
        return super().weighed(logits, (), made)

    def _times_ids(self, tokens: VisualTokens) -> list[int]:
        text = TIMES.format(
            duration=tokens.duration_s,
            count=len(tokens.times_s),
            times=",".join(f"{time:.2f}s" for time in tokens.times_s),
        )
        return self.ids_after(text)

    def _cut(self, rendered: str) -> tuple[str, str]:
        head, tail = super()._cut(rendered)
        return head, f".{tail}"


def load(checkpoint: Checkpoint, placement: Placement, options: frozenset[str]) -> LlavaVideo:
    """Load the original checkpoint without writing a converted one.

    Raises ModelError for an unsupported vision tower or projector.
    """
    from transformers import (
        AutoTokenizer,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionVideoProcessor,
    )

    vision = _vision(checkpoint)
    tokenizer = load_files(AutoTokenizer, checkpoint)
    model = load_weights(
        LlavaOnevisionForConditionalGeneration,
        checkpoint,
        placement,
        config=_config(checkpoint, vision),
        key_mapping=RENAMED,
    )
    half = [0.5, 0.5, 0.5]
    side = vision["image_size"]
    frames = LlavaOnevisionVideoProcessor(
        size={"height": side, "width": side}, image_mean=half, image_std=half
    )
    return LlavaVideo(model, tokenizer, frames=frames, newlines="newlines" in options)


def _vision(checkpoint: Checkpoint) -> Json:
    """Return the tower's config without the last layer, which the original code drops."""
    config, tower = checkpoint.config, _tower(checkpoint)
    name = config.get("mm_vision_tower")
    kinds = config.get("mm_projector_type"), config.get("mm_spatial_pool_mode")
    if tower is None or kinds != ("mlp2x_gelu", "bilinear"):
        raise ModelError(
            f"model {checkpoint.name!r} has vision tower {name!r}, projector {kinds[0]!r} "
            f"and pooling {kinds[1]!r}, which are not supported together",
            f"supported: {', '.join(TOWERS)}, mlp2x_gelu, bilinear",
        )
    layers = tower["num_hidden_layers"] - 1
    return {**tower, "num_hidden_layers": layers, "vision_use_head": False}


def _tower(checkpoint: Checkpoint) -> Json | None:
    name = str(checkpoint.config.get("mm_vision_tower"))
    tower: Json | None = checkpoint.config.get("vision_config") or TOWERS.get(name)
    return tower


def _config(checkpoint: Checkpoint, vision: Json) -> Any:
    from transformers import LlavaOnevisionConfig, Qwen2Config, SiglipVisionConfig

    # Checkpoints contain an unused setting as null, for whose old name transformers warns.
    text = {k: v for k, v in checkpoint.config.items() if v is not None} | {"model_type": "qwen2"}
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**vision),
        text_config=Qwen2Config(**text),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=bool(checkpoint.config.get("tie_word_embeddings")),
    )


def grid(checkpoint: Checkpoint, frames: int, *, width: int, height: int) -> tuple[int, int]:
    """Count one step per frame, with the square frame's tokens after pooling, without newlines."""
    vision = _tower(checkpoint) or {}
    return frames, pooled_side(vision["image_size"], vision["patch_size"]) ** 2


# 64 frames: the model cards. Merge layer and positions: STTM paper, section 4; its 72B, of
# 80 layers, merges before layer 0.
FAMILY = Family(
    name="llava-video",
    model_type="llava_qwen",
    checkpoints={
        "7b": "lmms-lab/LLaVA-Video-7B-Qwen2",
        "7b-video-only": "lmms-lab/LLaVA-Video-7B-Qwen2-Video-Only",
        "72b": "lmms-lab/LLaVA-Video-72B-Qwen2",
    },
    options={
        "newlines": "Put a newline token after each row of tokens, as LLaVA-Video was trained.",
    },
    frames=64,
    merge_layer=2,
    merge_layer_at_depth=(80, 0),
    positions="reassigned",
    step_text=8,
    grid=grid,
    load=load,
)
