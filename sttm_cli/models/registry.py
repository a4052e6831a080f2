"""Model families by `model_type`, and the short names of their checkpoints.

A family is a file in `families/`, or an entry point of an installed package. No lookup here
imports torch or transformers; only `load` does.
"""

from __future__ import annotations

import logging
import pkgutil
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import NoReturn

from sttm_cli.base.errors import ModelError
from sttm_cli.base.types import Json
from sttm_cli.models import families as package
from sttm_cli.models import template
from sttm_cli.models.checkpoint import Checkpoint, cached_folder, read, weight_files
from sttm_cli.models.family import Family, VideoLLM
from sttm_cli.models.loading import Placement, reworded

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


def supported_types() -> list[str]:
    """The `model_type` of every family, sorted."""
    return sorted(known.model_type for known in families())


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
        raise ModelError(
            f"model {checkpoint.name!r} is of type {checkpoint.model_type or 'unknown'!r}, "
            "which is not supported",
            f"supported types: {', '.join(supported_types())}",
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


# Token counts of a video and bytes per token, from a checkpoint's config alone.


@dataclass(frozen=True)
class TokenCount:
    """About how many tokens a video gives: visual ones, and text between them, never merged."""

    visual: int
    text: int


def token_count(
    checkpoint: Checkpoint, frames: int, *, width: int, height: int
) -> TokenCount | None:
    """About how many tokens `frames` frames give; None where the config does not state it.

    Visual tokens are exact for families that square their frames. For those that keep the aspect
    ratio the count is the limit of their authors' preprocessing.
    """
    family = find_family(checkpoint.model_type)
    if family is None:
        return None
    try:
        steps, each = family.grid(checkpoint, frames, width=width, height=height)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None
    return TokenCount(visual=steps * each, text=steps * family.step_text)


def layer_bytes(checkpoint: Checkpoint, itemsize: int) -> int | None:
    """Bytes of a token's key and value in one decoder layer; None where the config does not
    state them."""
    text = checkpoint.text
    try:
        heads = text["num_attention_heads"]
        dim = text.get("head_dim") or text["hidden_size"] // heads
        return 2 * int(text.get("num_key_value_heads") or heads) * int(dim) * itemsize
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def context_length(checkpoint: Checkpoint) -> int | None:
    """The most tokens the model was trained for; None where the config does not state it."""
    length = checkpoint.text.get("max_position_embeddings")
    return length if isinstance(length, int) else None


# Models that a user can name: the aliases, and other supported checkpoints on this machine.


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model by the name to give (`alias`, else the hub id); `bytes` of its weights on this
    machine, None where it is missing or incomplete."""

    alias: str | None
    repository: str
    family: str
    bytes: int | None

    @property
    def name(self) -> str:
        return self.alias or self.repository

    def to_json(self) -> Json:
        return {
            "alias": self.alias,
            "repository": self.repository,
            "family": self.family,
            "present": self.bytes is not None,
            "bytes": self.bytes,
        }


def known_models() -> list[Known]:
    """The aliases, then other downloaded checkpoints whose architecture is supported."""
    released = [
        Known(alias=alias, repository=hub_id, family=family.name, bytes=_bytes(hub_id))
        for family in families()
        for alias, hub_id in family.aliases.items()
    ]
    others = sorted(set(_downloaded()) - {known.repository for known in released})
    return [_tiny(), *released, *filter(None, map(_other, others))]


def _tiny() -> Known:
    return Known(
        alias="tiny", repository="(embedded)", family=_family(TINY), bytes=_folder_bytes(TINY)
    )


def _other(repository: str) -> Known | None:
    folder = cached_folder(repository)
    family = _family(folder) if folder else ""
    if not folder or not family:
        return None
    return Known(alias=None, repository=repository, family=family, bytes=_folder_bytes(folder))


def _downloaded() -> list[str]:
    """Hub ids of the models in the hub's cache, complete or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = (folder.name for folder in Path(HF_HUB_CACHE).glob("models--*--*"))
    return [name.removeprefix("models--").replace("--", "/", 1) for name in names]


def _family(folder: Path) -> str:
    """The family of a checkpoint folder, "" where its architecture is not supported."""
    try:
        family = find_family(str(read(str(folder), folder / "config.json").get("model_type")))
    except ModelError:
        return ""
    return family.name if family else ""


def _bytes(repository: str) -> int | None:
    folder = cached_folder(repository)
    return _folder_bytes(folder) if folder else None


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(str(folder), folder))
