"""The model as it will be used: complete before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from sttm_cli.base.device import resolve_attention, resolve_device, resolve_dtype
from sttm_cli.base.errors import UsageError
from sttm_cli.base.filefacts import Memo
from sttm_cli.base.types import Json
from sttm_cli.models import ALIASES, Family, ModelSource, Placement, defaults_of, find_source
from sttm_cli.settings.settings import Settings


@dataclass(frozen=True)
class ModelPlan:
    """The checkpoint, where and how it will run, and where its tokens will be merged."""

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

    @cached_property
    def identity(self) -> Json:
        """What of the model shapes a KV."""
        return {
            "family": self.family.name,
            "weights": self.source.fingerprint,
            "dtype": self.dtype,
            "device": self.device.split(":")[0],
            "attention": self.attention,
        }

    @cached_property
    def loaded_as(self) -> tuple[object, ...]:
        """Equal for two plans that one loaded model serves."""
        return (*self.identity.values(), self.newlines)


def plan_model(
    settings: Settings, facts: Memo, on_fetch: Callable[[str], None] = lambda line: None
) -> ModelPlan:
    """Resolve `--model` and what belongs to it; no weight is loaded for it. `on_fetch` gets a
    line before a model is fetched.

    Raises ModelError for a model that is missing or not supported, UsageError for a device or
    a merge layer that does not exist.
    """
    name = settings.model
    repository = ALIASES.get(name, name)
    source = find_source(
        name, repository, revision=settings.revision, memo=facts, aliases=ALIASES, tell=on_fetch
    )
    family = defaults_of(source)
    layer, positions = settings.merge_layer, settings.positions
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    _check_layer(layer, source)
    _check_family(settings, family)
    return ModelPlan(
        source=source,
        family=family,
        device=device,
        dtype=dtype,
        merge_layer=family.merge_layer if layer is None else layer,
        positions=family.positions if positions == "auto" else positions,
        attention=resolve_attention(device, dtype),
        # A device named by hand is the one that is meant.
        spread=settings.device == "auto" and device == "cuda",
        newlines=settings.newlines,
    )


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


def _check_layer(layer: int | None, source: ModelSource) -> None:
    layers = source.layers
    if layer is not None and layers and layer >= layers:
        raise UsageError(
            f"--merge-layer {layer} is not possible: {source.name} has {layers} layers",
            f"give 0 to {layers - 1}",
        )
