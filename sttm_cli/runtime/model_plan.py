"""The model as it will be used: complete before a weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from sttm_cli.base.device import resolve_attention, resolve_device, resolve_dtype
from sttm_cli.base.errors import UsageError
from sttm_cli.base.filefacts import FileFacts
from sttm_cli.base.types import Json
from sttm_cli.merge.method import Method, find_method
from sttm_cli.models.checkpoint import Checkpoint, find_checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.placement import Placement
from sttm_cli.models.registry import aliases, family_of, repository_of
from sttm_cli.settings.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """The checkpoint, where and how it will run, and how its tokens will be merged.

    `options`: those of `Family.options` that are on, sorted.
    """

    checkpoint: Checkpoint
    family: Family
    device: str
    dtype: str
    method: Method
    merge_layer: int
    positions: str
    attention: str = "sdpa"
    spread: bool = False
    options: tuple[str, ...] = ()

    def placement(self, *, vision: bool = True) -> Placement:
        """Where and how it is loaded."""
        return Placement(
            device=self.device,
            dtype=self.dtype,
            attention=self.attention,
            spread=self.spread,
            vision=vision,
        )

    @cached_property
    def identity(self) -> Json:
        """What of the model shapes a KV."""
        return {
            "family": self.family.name,
            "weights": self.checkpoint.fingerprint,
            "dtype": self.dtype,
            "device": self.device.split(":")[0],
            "attention": self.attention,
        }

    @cached_property
    def loaded_as(self) -> tuple[object, ...]:
        """Equal for two plans that one loaded model serves."""
        return (*self.identity.values(), self.options)


def plan_model(
    settings: Settings, facts: FileFacts, on_fetch: Callable[[str], None] = lambda line: None
) -> ModelPlan:
    """Resolve `--model` and what belongs to it; no weight is loaded for it. `on_fetch` gets a
    line before a model is fetched.

    Raises ModelError for a model that is missing or not supported, UsageError for a device or
    a merge layer that does not exist.
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
    layer, positions = settings.merge_layer, settings.positions
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    _check_layer(layer, checkpoint)
    check_positions(settings, family, model=f"--model {name}")
    return ModelPlan(
        checkpoint=checkpoint,
        family=family,
        device=device,
        dtype=dtype,
        method=find_method(settings.method),
        merge_layer=family.merge_layer if layer is None else layer,
        positions=family.positions if positions == "auto" else positions,
        attention=resolve_attention(device, dtype),
        # A device named by hand is the one that is meant.
        spread=settings.device == "auto" and device == "cuda",
        options=options_of(settings, family, model=f"--model {name}"),
    )


def _known_names() -> Iterator[str]:
    """Listed only where a name was not found."""
    yield from aliases()


def check_positions(settings: Settings, family: Family, *, model: str) -> None:
    """Raise UsageError where the family cannot reassign positions; `model` is the flag given."""
    if settings.positions == "reassigned" and family.rotary_axes > 1:
        raise UsageError(
            f"--positions reassigned cannot be combined with {model}: "
            f"tokens of {family.name} have ids in time, height and width",
            "leave it out, or give --positions survivors",
        )


def options_of(settings: Settings, family: Family, *, model: str) -> tuple[str, ...]:
    """The family's options that are on; raises UsageError for one that it does not have.

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


def _check_layer(layer: int | None, checkpoint: Checkpoint) -> None:
    layers = checkpoint.layers
    if layer is not None and layers and layer >= layers:
        raise UsageError(
            f"--merge-layer {layer} is not possible: {checkpoint.name} has {layers} layers",
            f"give 0 to {layers - 1}",
        )
