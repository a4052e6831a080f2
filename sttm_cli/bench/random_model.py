"""Models of real sizes with random weights, to measure a machine without a download.

The transformers classes and the family's code are those of the real checkpoints; only the weights
and the vocabulary differ, and speed does not depend on them.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from sttm_cli.base.device import resolve_attention
from sttm_cli.base.errors import OutOfMemoryError, UsageError
from sttm_cli.bench.geometry import GEOMETRIES, SPECIAL, Geometry, architecture
from sttm_cli.merge.method import find_method
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.loading import free_bytes
from sttm_cli.models.registry import family_of
from sttm_cli.runtime.request import ModelPlan, check_positions, options_of, sized
from sttm_cli.runtime.resources import ModelHost, Resources
from sttm_cli.runtime.session import VideoQA
from sttm_cli.store import NoStore

if TYPE_CHECKING:
    from sttm_cli.models.family import VideoLLM
    from sttm_cli.settings.settings import Settings

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for c in message.content %}"
    "{% if c.type == 'video' %}VIDEO\n{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def random_qa(
    name: str, settings: Settings, *, device: str, dtype: str, layers: int | None, scale: int
) -> VideoQA:
    """Open a session with a random model of geometry `name`, created on its device.

    Raises UsageError for an unknown name or an invalid size, OutOfMemoryError if the weights do
    not fit.
    """
    if name not in GEOMETRIES:
        raise UsageError(f"--geometry {name} is not known", f"known: {', '.join(GEOMETRIES)}")
    geometry = GEOMETRIES[name].shrunk(layers, scale)
    checkpoint = Checkpoint(
        name=name,
        folder=Path(),
        revision=None,
        fingerprint="random weights",
        config={"model_type": geometry.kind},
    )
    family, given = family_of(checkpoint), f"--geometry {name}"
    merge_layer = family.merge_layer if settings.merge_layer is None else settings.merge_layer
    if merge_layer + 2 > geometry.text[2]:
        raise UsageError(
            f"--layers {geometry.text[2]} is too few: tokens are merged before layer {merge_layer}",
            f"give {merge_layer + 2} or more",
        )
    check_positions(settings, family, model=given)
    plan = ModelPlan(
        checkpoint=checkpoint,
        family=family,
        device=device,
        dtype=dtype,
        method=find_method(settings.method),
        merge_layer=merge_layer,
        positions=family.positions if settings.positions == "auto" else settings.positions,
        attention=resolve_attention(device, dtype),
        attention_sizes=sized(settings, resolve_attention(device, dtype)),
        options=options_of(settings, family, model=given),
    )
    model, store = _wrapped(geometry, _random_model(geometry, plan), plan), NoStore()
    resources = Resources(store, host=ModelHost.holding(plan, model, store))
    return VideoQA(settings, resources=resources, model_plan=plan)


def _random_model(geometry: Geometry, plan: ModelPlan) -> Any:
    """Create a model with random weights on its device; raise OutOfMemoryError if too large."""
    from transformers.initialization import no_init_weights
    from transformers.utils import logging

    logging.set_verbosity_error()
    model_class, config = architecture(geometry)
    device, kind = plan.device, getattr(torch, plan.dtype)
    with torch.device("meta"), no_init_weights():
        count = sum(p.numel() for p in model_class._from_config(config).parameters())
    needed, free = count * kind.itemsize, free_bytes(device)
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"{plan.checkpoint.name} takes {needed / 2**30:.1f} GiB in {plan.dtype}, and "
            f"{free / 2**30:.1f} GiB are free on {device}",
            "give --dtype bfloat16, --layers N or --scale S for a smaller one",
        )
    with torch.device(device), no_init_weights():
        model = model_class._from_config(config, dtype=kind, attn_implementation=plan.attention)
    torch.manual_seed(0)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if "norm" in label and label.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)
    return model.eval()


def _wrapped(geometry: Geometry, model: Any, plan: ModelPlan) -> VideoLLM:
    """Wrap the model in its family's class."""
    model.generation_config.eos_token_id = SPECIAL.index("<|im_end|>")
    if geometry.kind.startswith("llava"):
        return _llava(geometry, model, newlines="newlines" in plan.options)
    return _qwen(geometry, model)


def _llava(geometry: Geometry, model: Any, *, newlines: bool) -> VideoLLM:
    from transformers import LlavaOnevisionVideoProcessor

    from sttm_cli.models.families.llava_onevision import LlavaOnevision
    from sttm_cli.models.families.llava_qwen import LlavaVideo

    half = [0.5, 0.5, 0.5]
    frames = LlavaOnevisionVideoProcessor(
        size={"height": 384, "width": 384}, image_mean=half, image_std=half
    )
    if geometry.kind == "llava_qwen":
        return LlavaVideo(model, _tokenizer(), frames=frames, newlines=newlines)
    return LlavaOnevision(model, _processor(frames, "<video>", "<video>"))


def _qwen(geometry: Geometry, model: Any) -> VideoLLM:
    from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    from sttm_cli.models.families.qwen2_5_vl import Qwen25VL
    from sttm_cli.models.families.qwen2_vl import Qwen2VL
    from sttm_cli.models.families.qwen3_vl import Qwen3VL

    family = {"qwen2_vl": Qwen2VL, "qwen2_5_vl": Qwen25VL, "qwen3_vl": Qwen3VL}[geometry.kind]
    frames = Qwen3VLVideoProcessor() if family is Qwen3VL else Qwen2VLVideoProcessor()
    video = "<|video_pad|>"
    return family(model, _processor(frames, video, f"<|vision_start|>{video}<|vision_end|>"))


def _processor(frames: Any, video_token: str, video: str) -> Any:
    """Return the processor attributes that a family reads; `video`: its text in the prompt."""
    return SimpleNamespace(
        tokenizer=_tokenizer(),
        chat_template=TEMPLATE.replace("VIDEO", video),
        video_token=video_token,
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_processor=frames,
    )


def _tokenizer() -> Any:
    """Make a tokenizer with one token per word, digit and punctuation mark; its token counts are
    close to those of a real one."""
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
