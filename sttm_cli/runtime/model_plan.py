"""`ModelPlan`: the model as it will be used, complete before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sttm_cli.base.device import KERNELS, resolve_attention, resolve_device, resolve_dtype
from sttm_cli.base.errors import UsageError
from sttm_cli.base.system import FileFacts
from sttm_cli.base.types import Json
from sttm_cli.merge.method import Method, find_method
from sttm_cli.models.checkpoint import Checkpoint, find_checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.given import given_checkpoint, placed
from sttm_cli.models.loading import Placement
from sttm_cli.models.registry import (
    aliases,
    family_of,
    repository_of,
)
from sttm_cli.settings.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """The checkpoint, its device and dtype, and how its tokens will be merged.

    `options`: the enabled ones of `Family.options`, sorted. `system`: the prompt before the video.
    """

    checkpoint: Checkpoint
    family: Family
    device: str
    dtype: str
    method: Method
    merge_layer: int
    positions: str
    attention: str = "sdpa"
    attention_sizes: bool = False
    spread: bool = False
    options: tuple[str, ...] = ()
    system: str = ""

    def placement(self, *, vision: bool = True) -> Placement:
        """Return the device, dtype and attention to load the model with."""
        return Placement(
            device=self.device,
            dtype=self.dtype,
            attention=self.attention,
            spread=self.spread,
            vision=vision,
        )

    @cached_property
    def identity(self) -> Json:
        """Return the model's part of a KV's identity."""
        return {
            "family": self.family.name,
            "weights": self.checkpoint.fingerprint,
            "dtype": self.dtype,
            "device": self.device.split(":")[0],
            "attention": self.attention,
        }

    @cached_property
    def loaded_as(self) -> tuple[object, ...]:
        """Return a key that is equal for two plans which one loaded model serves."""
        return (*self.identity.values(), self.options)


def plan_model(settings: Settings, checked: CheckedModel) -> ModelPlan:
    """Resolve how the model of `check_model` will run; no weight is loaded.

    Raises UsageError for a device that does not exist, a method that cannot be imported, and
    attention that cannot take sizes.
    """
    checkpoint, family, options = checked
    layer, positions = settings.merge_layer, settings.positions
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    return ModelPlan(
        checkpoint=checkpoint,
        family=family,
        device=device,
        dtype=dtype,
        method=find_method(settings.method),
        merge_layer=family.merge_layer if layer is None else layer,
        positions=family.positions if positions == "auto" else positions,
        attention=resolve_attention(device, dtype),
        attention_sizes=sized(settings, resolve_attention(device, dtype)),
        # An explicit --device disables spreading.
        spread=settings.device == "auto" and device == "cuda",
        options=options,
        system=settings.system or "",
    )


def plan_loaded(model: Any, processor: Any, settings: Settings) -> ModelPlan:
    """Return the plan for an already loaded transformers model; raises as `plan_model`, and
    UsageError for --device and --dtype, which are the model's own."""
    for name in ("device", "dtype"):
        if (asked := getattr(settings, name)) != "auto":
            raise UsageError(
                f"{name} {asked!r} cannot be combined with a loaded model, which has its own",
                f"leave {name} out",
            )
    checkpoint = given_checkpoint(model, processor, stored=not settings.no_cache)
    family = family_of(checkpoint)
    options = _options(settings, checkpoint, family)
    layer, positions = settings.merge_layer, settings.positions
    return ModelPlan(
        checkpoint=checkpoint,
        family=family,
        method=find_method(settings.method),
        merge_layer=family.merge_layer if layer is None else layer,
        positions=family.positions if positions == "auto" else positions,
        attention_sizes=sized(settings, placed(model)["attention"]),
        options=options,
        system=settings.system or "",
        **placed(model),
    )


def with_choices(plan: ModelPlan, settings: Settings) -> ModelPlan:
    """Return the plan for other settings if the caller loaded its model; otherwise the plan itself.
    Raises as `plan_loaded`."""
    if plan.checkpoint.loaded is None:
        return plan
    # Settings that keep the weights from being hashed again.
    other = plan_loaded(*plan.checkpoint.loaded, replace(settings, no_cache=True, refresh=False))
    return replace(other, checkpoint=plan.checkpoint)


def sized(settings: Settings, attention: str) -> bool:
    """Whether merged tokens count by their size; raises UsageError where attention cannot."""
    if settings.attention_sizes == "auto":
        return find_method(settings.method).sizes and attention in KERNELS
    counted = settings.attention_sizes == "on"
    if counted and attention not in KERNELS:
        raise UsageError(
            f"--attention-sizes on cannot be combined with the attention {attention!r}",
            f"load the model with one of {', '.join(KERNELS)}",
        )
    return counted


CheckedModel = tuple[Checkpoint, Family, tuple[str, ...]]
"""A checkpoint, its family, and the family's options that are on."""


def check_model(
    settings: Settings, facts: FileFacts, on_fetch: Callable[[str], None] = lambda line: None
) -> CheckedModel:
    """Find the checkpoint of `--model`; torch is not imported. `on_fetch` gets a line before a
    model is fetched.

    Raises ModelError for a model that is missing or not supported, UsageError for settings that
    do not fit it.
    """
    name = settings.model
    checkpoint = find_checkpoint(
        name,
        repository_of(name),
        revision=settings.revision,
        memo=facts,
        aliases=_known_names(),
        on_fetch=on_fetch,
    )
    family = family_of(checkpoint)
    return checkpoint, family, _options(settings, checkpoint, family)


def _options(settings: Settings, checkpoint: Checkpoint, family: Family) -> tuple[str, ...]:
    """The family's options that are on; raises UsageError for settings that do not fit it."""
    _check_layer(settings.merge_layer, checkpoint, family)
    check_positions(settings, family, model=f"--model {settings.model}")
    return options_of(settings, family, model=f"--model {settings.model}")


def _known_names() -> Iterator[str]:
    """List the known names; called only if a name is unknown."""
    yield from aliases()


def check_positions(settings: Settings, family: Family, *, model: str) -> None:
    """Raise UsageError if the family cannot reassign positions; `model` is the flag as typed."""
    if settings.positions == "reassigned" and family.rotary_axes > 1:
        raise UsageError(
            f"--positions reassigned cannot be combined with {model}: "
            f"tokens of {family.name} have ids in time, height and width",
            "leave it out, or give --positions survivors",
        )
    if settings.positions == "survivors" and family.windows:
        raise UsageError(
            f"--positions survivors cannot be combined with {model}: "
            f"layers of {family.name} see a window, which counts consecutive ids",
            "leave it out, or give --positions reassigned",
        )


def options_of(settings: Settings, family: Family, *, model: str) -> tuple[str, ...]:
    """Return the family's enabled options; raises UsageError for one that it does not have.

    `model` is the flag that chose the family, as typed.
    """
    for option in settings.options:
        if option not in family.options:
            known = ", ".join(family.options)
            raise UsageError(
                f"--options {option} cannot be combined with {model}: {family.name} has no such "
                "option",
                f"its options: {known}" if known else "leave it out",
            )
    return settings.options


def _check_layer(layer: int | None, checkpoint: Checkpoint, family: Family) -> None:
    layers = checkpoint.layers
    deepest = _deepest(checkpoint, family)
    if layer is not None and deepest < layer < layers:
        raise UsageError(
            f"--merge-layer {layer} is not possible: later layers of {checkpoint.name} reuse the "
            f"keys and values of layer {deepest}",
            f"give 0 to {deepest}",
        )
    if layer is not None and layers and layer >= layers:
        raise UsageError(
            f"--merge-layer {layer} is not possible: {checkpoint.name} has {layers} layers",
            f"give 0 to {layers - 1}",
        )


def _deepest(checkpoint: Checkpoint, family: Family) -> int:
    if family.deepest is None:
        return checkpoint.layers
    try:
        return family.deepest(checkpoint.text)
    except (KeyError, TypeError, AttributeError, ValueError):
        # Loading says what is wrong with the config.
        return checkpoint.layers
