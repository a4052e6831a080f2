"""Which names and architectures are known, and what each family takes as its defaults.

Strings and numbers only: looking a model up imports neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

from sttm_cli.base.errors import ModelError
from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import ModelSource
from sttm_cli.models.video_llm import Placement

if TYPE_CHECKING:
    from sttm_cli.models.video_llm import VideoLLM

TINY = Path(__file__).parent.parent / "tiny" / "checkpoint"


@dataclass(frozen=True)
class Family:
    """One architecture. `module` has `load(source, placement) -> VideoLLM`.

    `frames`: the most frames it reads by default; `merge_layer`: the decoder layer before which
    tokens are merged; `positions`: rotary ids after merging; `multiple`: frames per temporal
    patch; `template`: version of the prompt around the video and of the frames' sizes;
    `rotary_axes`: 3 for M-RoPE, whose survivors always keep their ids; `newlines`: whether
    newline tokens can be put between rows of tokens; `merge_layer_at_depth`: another merge
    layer for decoders of so many layers.
    """

    name: str
    module: str
    frames: int
    merge_layer: int
    positions: str
    multiple: int = 1
    template: int = 1
    rotary_axes: int = 1
    newlines: bool = False
    merge_layer_at_depth: tuple[int, int] | None = None

    def to_json(self) -> Json:
        """What a user may want to know of it."""
        return {
            "name": self.name,
            "frames": self.frames,
            "merge_layer": self.merge_layer,
            "positions": self.positions,
        }


FAMILIES: dict[str, Family] = {
    # Merge layer and positions: STTM paper, section 4 and its ablations (layer 2, reassigned);
    # 32 frames: the LLaVA-OneVision model card.
    "llava_onevision": Family(
        "llava-onevision", "sttm_cli.models.llava_onevision", 32, 2, "reassigned"
    ),
    # 64 frames: the model cards. Merge layer and positions: STTM paper, section 4; its 72B, of
    # 80 layers, merges before layer 0.
    "llava_qwen": Family(
        "llava-video",
        "sttm_cli.models.llava_video",
        64,
        2,
        "reassigned",
        newlines=True,
        merge_layer_at_depth=(80, 0),
    ),
    # Merge layer, positions and 128 frames: STTM paper, section 4. Qwen2.5-VL by its likeness.
    "qwen2_vl": Family(
        "qwen2-vl", "sttm_cli.models.qwen2_vl", 128, 2, "survivors", multiple=2, rotary_axes=3
    ),
    "qwen2_5_vl": Family(
        "qwen2.5-vl", "sttm_cli.models.qwen2_5_vl", 128, 2, "survivors", multiple=2, rotary_axes=3
    ),
    # Merged after the three deepstack layers, where the last visual features have come in.
    "qwen3_vl": Family(
        "qwen3-vl", "sttm_cli.models.qwen3_vl", 128, 3, "survivors", multiple=2, rotary_axes=3
    ),
    "qwen3_vl_moe": Family(
        "qwen3-vl-moe", "sttm_cli.models.qwen3_vl", 128, 3, "survivors", multiple=2, rotary_axes=3
    ),
    # 64 frames: the video_sampling of its processors. Merged as the LLaVAs are, by likeness.
    "smolvlm": Family("smolvlm2", "sttm_cli.models.smolvlm", 64, 2, "reassigned"),
    # 64 frames: the most that its authors evaluate with. Merged as the LLaVAs are, by likeness.
    "internvl": Family("internvl3.5", "sttm_cli.models.internvl", 64, 2, "reassigned"),
}

CHECKPOINTS: dict[str, dict[str, str]] = {
    "llava_onevision": {
        "0.5b": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "7b": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    },
    "llava_qwen": {
        "7b": "lmms-lab/LLaVA-Video-7B-Qwen2",
        "7b-video-only": "lmms-lab/LLaVA-Video-7B-Qwen2-Video-Only",
        "72b": "lmms-lab/LLaVA-Video-72B-Qwen2",
    },
    "qwen2_vl": {
        "2b": "Qwen/Qwen2-VL-2B-Instruct",
        "7b": "Qwen/Qwen2-VL-7B-Instruct",
    },
    "qwen2_5_vl": {
        "3b": "Qwen/Qwen2.5-VL-3B-Instruct",
        "7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    },
    "qwen3_vl": {
        "2b": "Qwen/Qwen3-VL-2B-Instruct",
        "4b": "Qwen/Qwen3-VL-4B-Instruct",
        "8b": "Qwen/Qwen3-VL-8B-Instruct",
    },
    "smolvlm": {
        "256m": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "500m": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "2.2b": "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    },
    "qwen3_vl_moe": {"30b": "Qwen/Qwen3-VL-30B-A3B-Instruct"},
    "internvl": {
        "2b": "OpenGVLab/InternVL3_5-2B-HF",
        "4b": "OpenGVLab/InternVL3_5-4B-HF",
        "8b": "OpenGVLab/InternVL3_5-8B-HF",
    },
}
"""Hub ids of each architecture's released sizes."""

ALIASES: dict[str, str] = {
    "tiny": str(TINY),
    **{
        f"{FAMILIES[kind].name}-{size}": repository
        for kind, sizes in CHECKPOINTS.items()
        for size, repository in sizes.items()
    },
}
"""Short names, such as qwen2.5-vl-7b, and what they stand for."""


def defaults_of(source: ModelSource) -> Family:
    """The family of a checkpoint, with the defaults that its own config.json may carry.

    A checkpoint can state other defaults under "sttm" in its config.json ("frames",
    "merge_layer", "positions"): the embedded model does. Raises ModelError for an architecture
    that is not supported, naming those that are.
    """
    family = FAMILIES.get(source.model_type)
    if family is None:
        raise ModelError(
            f"model {source.name!r} is of type {source.model_type or 'unknown'!r}, "
            "which is not supported",
            f"supported types: {', '.join(sorted(FAMILIES))}",
        )
    if family.merge_layer_at_depth and source.layers == family.merge_layer_at_depth[0]:
        family = replace(family, merge_layer=family.merge_layer_at_depth[1])
    own = source.config.get("sttm")
    if not isinstance(own, dict):
        return family
    return replace(
        family,
        frames=int(own.get("frames", family.frames)),
        merge_layer=int(own.get("merge_layer", family.merge_layer)),
        positions=str(own.get("positions", family.positions)),
    )


def load(source: ModelSource, placement: Placement, *, newlines: bool = False) -> VideoLLM:
    """Load the checkpoint's weights where and how `placement` says.

    `newlines` puts newline tokens between rows, where `Family.newlines` says there are any.
    """
    family = defaults_of(source)
    module = import_module(family.module)
    model = cast("VideoLLM", module.load(source, placement))
    if family.newlines:
        model.newlines = newlines  # type: ignore[attr-defined]
    if not placement.vision:
        model.encode = _blind  # type: ignore[method-assign, assignment]
    return model


def _blind(*_: object) -> NoReturn:
    raise RuntimeError("this model was loaded without its vision tower")
