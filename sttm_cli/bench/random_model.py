"""Models of real sizes with random weights, to measure a machine without a download.

The transformers classes and the family's code are those of the real checkpoints; only the weights
and the vocabulary differ, and speed does not depend on them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from sttm_cli.base.device import resolve_attention
from sttm_cli.base.errors import OutOfMemoryError, UsageError
from sttm_cli.bench.geometry import GEOMETRIES, SPECIAL, Geometry
from sttm_cli.merge.method import find_method
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.loading import free_bytes
from sttm_cli.models.registry import family_of
from sttm_cli.runtime.model_plan import ModelPlan, check_positions, options_of, sized
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
        config={**geometry.config, "model_type": geometry.kind},
    )
    family, given = family_of(checkpoint), f"--geometry {name}"
    merge_layer = family.merge_layer if settings.merge_layer is None else settings.merge_layer
    if merge_layer + 2 > geometry.layers:
        raise UsageError(
            f"--layers {geometry.layers} is too few: tokens are merged before layer {merge_layer}",
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
    model, store = _wrapped(geometry, plan), NoStore()
    resources = Resources(store, host=ModelHost.holding(plan, model, store))
    return VideoQA(settings, resources=resources, model_plan=plan)


def _wrapped(geometry: Geometry, plan: ModelPlan) -> VideoLLM:
    """Create a random model, and let its family wrap it as it wraps a loaded one."""
    config = geometry.model_config()
    loaded = _random_model(config, plan), _processor(geometry, config)
    checkpoint = replace(plan.checkpoint, loaded=loaded)
    return plan.family.load(checkpoint, plan.placement(), frozenset(plan.options))


def _random_model(config: Any, plan: ModelPlan) -> Any:
    """Create a model with random weights on its device; raise OutOfMemoryError if too large."""
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights
    from transformers.utils import logging

    logging.set_verbosity_error()
    device, kind, make = plan.device, getattr(torch, plan.dtype), AutoModelForImageTextToText
    with torch.device("meta"), no_init_weights():
        count = sum(p.numel() for p in make.from_config(config).parameters())
    needed, free = count * kind.itemsize, free_bytes(device)
    if free is not None and needed > free:
        raise OutOfMemoryError(
            f"{plan.checkpoint.name} takes {needed / 2**30:.1f} GiB in {plan.dtype}, and "
            f"{free / 2**30:.1f} GiB are free on {device}",
            "give --dtype bfloat16, --layers N or --scale S for a smaller one",
        )
    with torch.device(device), no_init_weights():
        model = make.from_config(config, dtype=kind, attn_implementation=plan.attention)
    torch.manual_seed(0)
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            if "norm" in label and label.endswith("weight"):
                parameter.fill_(1)
            else:
                parameter.normal_(0, 0.02)
    model.generation_config.eos_token_id = SPECIAL.index("<|im_end|>")
    return model.eval()


def _processor(geometry: Geometry, config: Any) -> Any:
    """Return the processor attributes that a family reads, the tokenizer alone without `video`."""
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

    if not geometry.video:
        return _tokenizer()
    (frames,) = VIDEO_PROCESSOR_MAPPING[type(config)].values()
    return SimpleNamespace(
        tokenizer=_tokenizer(),
        chat_template=TEMPLATE.replace("VIDEO", geometry.video),
        video_token=SPECIAL[config.video_token_id],
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
        video_processor=frames(**geometry.frames),
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
