"""A video and a model as they will be used: complete before anything is decoded or loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from sttm_cli.base.device import resolve_attention, resolve_device, resolve_dtype
from sttm_cli.base.errors import UsageError
from sttm_cli.base.filefacts import Memo
from sttm_cli.base.types import FramePlan, Json, VideoInfo
from sttm_cli.decode import Source, digest, plan_frames, remembered_probe
from sttm_cli.merge.method import find_method
from sttm_cli.models import (
    ALIASES,
    Family,
    ModelSource,
    Placement,
    context_length,
    defaults_of,
    find_source,
    layer_bytes,
    token_count,
)
from sttm_cli.settings.settings import Settings
from sttm_cli.store import FORMAT, STORED, key_of


@dataclass(frozen=True)
class ModelChoice:
    """The checkpoint, where and how it will run, and how its tokens will be merged."""

    source: ModelSource
    family: Family
    device: str
    dtype: str
    merge_layer: int
    positions: str
    attention: str = "sdpa"
    spread: bool = False
    newlines: bool = False

    def placement(self, *, vision: bool = True) -> Placement:
        """Where and how it is loaded."""
        return Placement(self.device, self.dtype, self.attention, self.spread, vision)

    def identity(self) -> Json:
        return {
            "family": self.family.name,
            "weights": self.source.fingerprint,
            "dtype": self.dtype,
            "device": self.device.split(":")[0],
            "attention": self.attention,
        }


@dataclass(frozen=True)
class Request:
    """A video and everything that shapes its KV."""

    source: Source
    digest: str
    info: VideoInfo
    plan: FramePlan
    identity: Json

    @property
    def path(self) -> Path:
        """Where the video's bytes are now."""
        return self.source.path

    @property
    def key(self) -> str:
        return key_of(self.identity)


def choose_model(
    settings: Settings, memo: Memo, tell: Callable[[str], None] = lambda line: None
) -> ModelChoice:
    """Resolve `--model` and what goes with it; no weight is loaded for it. `tell` gets a line
    before a model is fetched.

    Raises ModelError for a model that is missing or not supported, UsageError for a device or
    a merge layer that is not there.
    """
    name = settings.model
    repository = ALIASES.get(name, name)
    source = find_source(
        name, repository, revision=settings.revision, memo=memo, aliases=ALIASES, tell=tell
    )
    family = defaults_of(source)
    layer, positions = settings.merge_layer, settings.positions
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    _check_layer(layer, source)
    _check_family(settings, family)
    return ModelChoice(
        source,
        family,
        device,
        dtype,
        family.merge_layer if layer is None else layer,
        family.positions if positions == "auto" else positions,
        resolve_attention(device, dtype),
        # A device named by hand is the one that is meant.
        settings.device == "auto" and device == "cuda",
        settings.newlines,
    )


def make_request(source: Source, choice: ModelChoice, settings: Settings, memo: Memo) -> Request:
    """Read the video's header and digest its bytes; decodes nothing. Raises as `plan_video`."""
    info, plan = plan_video(source, choice, settings, memo)
    with source.told_by_name():
        video_digest = digest(source.path, memo)
    # The header is read by a program of which another version may find other facts: those that
    # frames and prompts depend on count beside the bytes.
    video = {"digest": video_digest, "duration_s": info.duration_s}
    identity = _identity(video, plan, choice, settings)
    return Request(source, video_digest, info, plan, identity)


def plan_video(
    source: Source, choice: ModelChoice, settings: Settings, memo: Memo
) -> tuple[VideoInfo, FramePlan]:
    """Read the video's header and choose its frames.

    Raises VideoError for a file that is no readable video, UsageError for a range that lies
    outside of it and for more frames than the model's context takes.
    """
    with source.told_by_name():
        info = remembered_probe(source.path, memo, image_fps=settings.fps or 1.0)
    plan = plan_frames(
        info,
        # What the user asks for may exceed the model's default.
        max_frames=settings.frames or choice.family.frames,
        fps=settings.fps,
        frames=settings.frames,
        start=settings.start,
        end=settings.end,
        decoder=settings.decoder,
    )
    _check_context(plan, choice)
    return info, plan


def kv_bytes(plan: FramePlan, choice: ModelChoice, budget: float, *, dtype: str) -> int | None:
    """About how many bytes a video's KV takes in `dtype`; None where the model does not tell.

    Layers below the merge layer hold every token, the others the budget's.
    """
    source, layers = choice.source, choice.source.layers
    each = layer_bytes(source, STORED[dtype].itemsize)
    width, height = plan.size
    count = token_count(source, len(plan.times_s), width=width, height=height)
    if each is None or count is None or not layers:
        return None
    full = count.visual
    kept = min(full, budget) if isinstance(budget, int) else int(full * budget)
    below = min(choice.merge_layer, layers)
    merged = below * full + (layers - below) * kept
    return each * (merged + layers * count.text)


def _identity(video: Json, plan: FramePlan, choice: ModelChoice, settings: Settings) -> Json:
    """All that shapes a stored KV; one may stand for another only where this is equal."""
    return {
        "format": FORMAT,
        "video": video,
        "frames": plan.identity(),
        "model": choice.identity(),
        "merge": {
            "method": find_method(settings.method).identity,
            "layer": choice.merge_layer,
            "budget": settings.budget,
            "positions": choice.positions,
        },
        "kv_dtype": choice.dtype if settings.kv_dtype == "auto" else settings.kv_dtype,
        "prompt": {"template": choice.family.template, "newlines": choice.newlines},
        "libraries": _libraries(choice),
    }


def _libraries(choice: ModelChoice) -> Json:
    """What frames are resized and tokens are made and computed by: another version may do it
    otherwise."""
    names = ["tokenizers", "torch", "torchvision", "transformers"]
    if choice.attention.startswith("flash"):
        names.append("flash_attn")
    return {name: _version(name) for name in names}


@cache
def _version(name: str) -> str:
    # What is loaded stays; looking it up takes longer than all else about a video that is stored.
    return version(name)


def _check_family(settings: Settings, family: Family) -> None:
    if settings.positions == "reassigned" and family.rotary_axes > 1:
        raise UsageError(
            f"--positions reassigned cannot hold with --model {settings.model}: "
            f"tokens of {family.name} have ids in time, height and width",
            "leave it out, or give --positions survivors",
        )
    if settings.newlines and not family.newlines:
        raise UsageError(
            f"--newlines cannot hold with --model {settings.model}: "
            f"{family.name} was not trained with newline tokens between rows",
            "leave it out",
        )


def _check_context(plan: FramePlan, choice: ModelChoice) -> None:
    """Before minutes of decoding: whatever the budget, the layers below the merge layer run every
    token at a position of its own (M-RoPE has several axes of them)."""
    width, height = plan.size
    frames, limit = len(plan.times_s), context_length(choice.source)
    count = token_count(choice.source, frames, width=width, height=height)
    if choice.family.rotary_axes == 1 and limit and count and count.visual >= limit:
        raise UsageError(
            f"{frames} frames give {count.visual:,} tokens, the model's context takes {limit:,}",
            "use fewer --frames",
        )


def _check_layer(layer: int | None, source: ModelSource) -> None:
    layers = source.layers
    if layer is not None and layers and layer >= layers:
        raise UsageError(
            f"--merge-layer {layer} is not possible: {source.name} has {layers} layers",
            f"give 0 to {layers - 1}",
        )
