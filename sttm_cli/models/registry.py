"""Model families by `model_type`, and the short names of their checkpoints.

A family is a file in `families/`, or an entry point of an installed package. No lookup here
imports torch or transformers; only `load` does.
"""

from __future__ import annotations

import logging
import pkgutil
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import NoReturn

from sttm_cli.base.errors import ModelError
from sttm_cli.models import families as package
from sttm_cli.models import template
from sttm_cli.models.checkpoint import Checkpoint
from sttm_cli.models.family import Family
from sttm_cli.models.loading import reworded
from sttm_cli.models.placement import Placement
from sttm_cli.models.video_llm import VideoLLM

GROUP = "sttm_cli.families"
TINY_NAME = "tiny"
TINY = Path(__file__).parent.parent / "tiny" / "checkpoint"


@cache
def families() -> tuple[Family, ...]:
    """All families, sorted by name; one that cannot be imported is left out with a warning."""
    listed = map(_listed, _own_types() | entry_points(group=GROUP).names)
    return tuple(sorted((family for family in listed if family), key=lambda f: f.name))


@cache
def find_family(model_type: str) -> Family | None:
    """The family of a `model_type`, None for an unknown one; only its own file is imported.

    Raises ModelError where an installed package announces the family but does not provide it.
    """
    # A checkpoint's config.json names the type: only files of this folder can be meant by it.
    if model_type in _own_types():
        module = import_module(f"{package.__name__}.{model_type}")
        family: Family = module.FAMILY
        return family
    for point in entry_points(group=GROUP, name=model_type):
        return _installed(point)
    return None


@cache
def aliases() -> dict[str, str]:
    """Short names, such as qwen2.5-vl-7b, and the hub id or folder that each stands for."""
    named = {TINY_NAME: str(TINY)}
    for family in families():
        named |= family.aliases
    return named


def repository_of(name: str) -> str:
    """The hub id or folder that `name` stands for: itself, unless it is a short name."""
    if name == TINY_NAME:
        return str(TINY)
    # Ids and paths have a slash; short names have none.
    return name if "/" in name else aliases().get(name, name)


def family_of(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint, with the defaults that its own config.json may carry.

    A checkpoint can state other defaults under "sttm" in its config.json ("frames",
    "merge_layer", "positions"): the embedded model does. Raises ModelError for an architecture
    that is not supported, naming those that are.
    """
    family = find_family(checkpoint.model_type)
    if family is None:
        supported = sorted(known.model_type for known in families())
        raise ModelError(
            f"model {checkpoint.name!r} is of type {checkpoint.model_type or 'unknown'!r}, "
            "which is not supported",
            f"supported types: {', '.join(supported)}",
        )
    if family.merge_layer_at_depth and checkpoint.layers == family.merge_layer_at_depth[0]:
        family = replace(family, merge_layer=family.merge_layer_at_depth[1])
    own = checkpoint.config.get("sttm") or {}
    stated = {name: own[name] for name in ("frames", "merge_layer", "positions") if name in own}
    return replace(family, **stated)


def load(
    checkpoint: Checkpoint, placement: Placement, options: frozenset[str] = frozenset()
) -> VideoLLM:
    """Load the checkpoint's weights where and how `placement` says.

    `options`: those of `Family.options` that are on.
    """
    family = family_of(checkpoint)
    template.start()
    with reworded(checkpoint, placement.device):
        model = family.load(checkpoint, placement, options)
    if not placement.vision:
        model.encode = _blind  # type: ignore[method-assign, assignment]
    return model


@cache
def _own_types() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(package.__path__))


def _listed(model_type: str) -> Family | None:
    try:
        return find_family(model_type)
    except ModelError as error:
        logging.getLogger("sttm_cli").warning("%s", error)
        return None


def _installed(point: EntryPoint) -> Family:
    package_name = point.dist.name if point.dist else "?"
    try:
        family = point.load()
    except Exception as error:  # another package's code
        raise ModelError(
            f"model family {point.name!r} of package {package_name} cannot be imported: {error}",
            "update or remove that package",
        ) from error
    if not isinstance(family, Family) or family.model_type != point.name:
        raise ModelError(
            f"model family {point.name!r} of package {package_name} is not a Family of that type",
            "update or remove that package",
        )
    return family


def _blind(*_: object) -> NoReturn:
    raise RuntimeError("this model was loaded without its vision tower")
