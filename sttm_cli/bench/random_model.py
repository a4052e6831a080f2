"""Models of true sizes with random weights: what a machine would do, before any download.

The transformers classes and our own code around them are those of the real checkpoints; only the
numbers in the weights and the words of the tokenizer are made up, and speed depends on neither.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from sttm_cli.base.device import resolve_attention
from sttm_cli.base.errors import OutOfMemoryError, UsageError
from sttm_cli.bench.geometry import GEOMETRIES, SPECIAL, Geometry, architecture
from sttm_cli.models import FAMILIES, ModelSource
from sttm_cli.models.placement import free_bytes
from sttm_cli.runtime.request import ModelChoice
from sttm_cli.runtime.session import VideoQA

if TYPE_CHECKING:
    from sttm_cli.base.clock import Clock
    from sttm_cli.models import VideoLLM
    from sttm_cli.settings.settings import Settings

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for c in message.content %}"
    "{% if c.type == 'video' %}VIDEO\n{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class RandomQA(VideoQA):
    """A pipeline around a model that is made here instead of loaded."""

    def __init__(self, settings: Settings, choice: ModelChoice, model: VideoLLM) -> None:
        super().__init__(settings)
        self.choice, self._made = choice, model

    def model(self, clock: Clock | None = None, *, vision: bool = True) -> VideoLLM:
        return self._made


def random_qa(
    name: str, settings: Settings, *, device: str, dtype: str, layers: int | None, scale: int
) -> RandomQA:
    """The pipeline of geometry `name`, its random weights made where they will be.

    Raises UsageError for an unknown name or a size that cannot be, OutOfMemoryError where the
    weights cannot fit.
    """
    if name not in GEOMETRIES:
        raise UsageError(f"--geometry {name} is not known", f"known: {', '.join(GEOMETRIES)}")
    geometry = GEOMETRIES[name].shrunk(layers, scale)
    family = FAMILIES[geometry.kind]
    merge_layer = family.merge_layer if settings.merge_layer is None else settings.merge_layer
    if merge_layer + 2 > geometry.text[2]:
        raise UsageError(
            f"--layers {geometry.text[2]} is too few: tokens are merged before layer {merge_layer}",
            f"give {merge_layer + 2} or more",
        )
    if settings.newlines and not family.newlines:
        raise UsageError(f"--newlines cannot be combined with --geometry {name}", "leave it out")
    if settings.positions == "reassigned" and family.rotary_axes > 1:
        raise UsageError(
            f"--positions reassigned cannot be combined with --geometry {name}", "leave it out"
        )
    attention = resolve_attention(device, dtype)
    model_class, config = architecture(geometry)
    model = _filled(name, model_class, config, device=device, dtype=dtype, attention=attention)
    source = ModelSource(name, Path(), None, "random weights", {})
    positions = family.positions if settings.positions == "auto" else settings.positions
    choice = ModelChoice(source, family, device, dtype, merge_layer, positions, attention)
    dressed = _dressed(geometry, model)
    if settings.newlines:
        dressed.newlines = True  # type: ignore[attr-defined]
    return RandomQA(settings, choice, dressed)


def _filled(
    name: str, model_class: Any, config: Any, *, device: str, dtype: str, attention: str
) -> Any:
    """A model with weights drawn on `device`, after a look at whether they fit."""
    from transformers.initialization import no_init_weights
    from transformers.utils import logging

    logging.set_verbosity_error()

    kind = getattr(torch, dtype)
    with torch.device("meta"), no_init_weights():
        count = sum(p.numel() for p in model_class._from_config(config).parameters())
    needed, free = count * kind.itemsize, free_bytes(device)
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"{name} takes {needed / 2**30:.1f} GiB in {dtype}, and {free / 2**30:.1f} GiB are "
            f"free on {device}",
            "give --dtype bfloat16, --layers N or --scale S for a smaller one",
        )
    with torch.device(device), no_init_weights():
        model = model_class._from_config(config, dtype=kind, attn_implementation=attention)
    torch.manual_seed(0)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if "norm" in label and label.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)
    return model.eval()


def _dressed(geometry: Geometry, model: Any) -> VideoLLM:
    """The family's own code around the model."""
    import transformers as hf

    from sttm_cli.models import (
        llava_onevision,
        llava_video,
        qwen2_5_vl,
        qwen2_vl,
        qwen3_vl,
    )

    tokenizer = _tokenizer()
    model.generation_config.eos_token_id = SPECIAL.index("<|im_end|>")
    if geometry.kind.startswith("llava"):
        half = [0.5, 0.5, 0.5]
        frames = hf.LlavaOnevisionVideoProcessor(
            size={"height": 384, "width": 384}, image_mean=half, image_std=half
        )
        if geometry.kind == "llava_qwen":
            return llava_video.LlavaVideo(model, tokenizer, frames)
        template = TEMPLATE.replace("VIDEO", "<video>")
        return llava_onevision.LlavaOnevision(
            model, tokenizer, template, video="<video>", frames=frames
        )
    third = geometry.kind == "qwen3_vl"
    frames = (hf.Qwen3VLVideoProcessor if third else hf.Qwen2VLVideoProcessor)()
    processor = SimpleNamespace(
        tokenizer=tokenizer,
        chat_template=TEMPLATE.replace("VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"),
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_processor=frames,
    )
    if third:
        return qwen3_vl.Qwen3VL(model, processor)
    if geometry.kind == "qwen2_5_vl":
        return qwen2_5_vl.Qwen25VL(model, processor)
    return qwen2_vl.Qwen2VL(model, processor)


def _tokenizer() -> Any:
    """Words, digits and punctuation, a token each: about as many as a real one gives."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL[1:]),
    )
