"""Model families by `model_type`, their aliases, token counts and known checkpoints.

A family is a file in `families/`, or an entry point of an installed package. Only `load` imports
torch or transformers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from sttm_cli.base.errors import ModelError
from sttm_cli.base.names import FAMILIES
from sttm_cli.base.types import Json
from sttm_cli.models import template
from sttm_cli.models.checkpoint import Checkpoint, cached_folder, read, weight_files
from sttm_cli.models.family import Family, KVShape, StateShapes, VideoLLM
from sttm_cli.models.loading import Placement, reworded

TINY_NAME = "tiny"
TINY = Path(__file__).parent.parent / "tiny" / "checkpoint"


@cache
def families() -> tuple[Family, ...]:
    """List all families, sorted by name; log a warning for those that cannot be imported."""
    listed = map(_listed, FAMILIES.names())
    return tuple(sorted((family for family in listed if family), key=lambda f: f.name))


@cache
def find_family(model_type: str) -> Family | None:
    """Return the family of a `model_type`, None if unknown; imports only that family's file.

    Raises ModelError if an installed package declares the family but does not provide it.
    """
    # The type comes from a checkpoint's config.json; only names of families are imported.
    if not FAMILIES.knows(model_type):
        return None
    family: Family = FAMILIES.load(
        model_type,
        valid=lambda found: isinstance(found, Family) and found.model_type == model_type,
    )
    return family


@cache
def aliases() -> dict[str, str]:
    """Map short names, such as qwen2.5-vl-7b, to hub ids or folders."""
    named = {TINY_NAME: str(TINY)}
    for family in families():
        named |= family.aliases
    return named


def repository_of(name: str) -> str:
    """Return the hub id or folder of a short name, any other name unchanged."""
    if name == TINY_NAME:
        return str(TINY)
    # Ids and paths have a slash; short names have none.
    return name if "/" in name else aliases().get(name, name)


def family_of(checkpoint: Checkpoint) -> Family:
    """Return the family of a checkpoint, with the checkpoint's own defaults.

    A checkpoint can override "frames", "merge_layer" and "positions" under "sttm" in its
    config.json, as the embedded model does. Raises ModelError for an unsupported architecture,
    naming the nearest checkpoint that is supported.
    """
    return _suited(
        repr(checkpoint.name),
        checkpoint.model_type,
        checkpoint.layers,
        checkpoint.config.get("sttm"),
    )


def family_of_loaded(model: Any) -> Family:
    """The family of a model that transformers has loaded; as `family_of`."""
    config = model.config
    layers = config.get_text_config().num_hidden_layers
    own = getattr(config, "sttm", None)
    return _suited(type(model).__name__, config.model_type, layers, own)


def _suited(name: str, model_type: str, layers: int, own: Json | None) -> Family:
    family = find_family(model_type)
    if family is None:
        raise unsupported(name, model_type)
    if family.merge_layer_at_depth and layers == family.merge_layer_at_depth[0]:
        family = replace(family, merge_layer=family.merge_layer_at_depth[1])
    defaults = {each: (own or {}).get(each) for each in ("frames", "merge_layer", "positions")}
    stated = {each: value for each, value in defaults.items() if value is not None}
    return replace(family, **stated)


NEAREST = {
    "qwen3_next": "qwen3.5-4b",
    "qwen2_5_omni": "qwen2.5-vl-7b",
    "qwen3_omni_moe": "qwen3-vl-moe-30b",
    "minicpm": "minicpm-v-4.6",
    "gemma": "gemma-4-e4b",
    "molmo": "molmo2-8b",
    "internvl": "internvl3.5-8b",
    "glm": "glm-v-4.6-9b",
    "chatglm": "glm-v-4.6-9b",
    "llava_next": "llava-video-7b",
    "llava": "llava-onevision-7b",
    "video_llava": "llava-video-7b",
    "videollama": "perception-lm-8b",
    "mllama": "perception-lm-8b",
    "llama": "perception-lm-8b",
    "idefics": "smolvlm2-2.2b",
    "qwen": "qwen3-vl-8b",
}
"""How a type that is not supported begins -> the nearest checkpoint that is; the first that fits
counts."""


def unsupported(name: str, given: str) -> ModelError:
    """The error for a model of a `model_type` without a family, with the nearest checkpoint."""
    near = next((alias for start, alias in NEAREST.items() if given.startswith(start)), None)
    if near is None:
        types = {family.model_type: family for family in families() if family.checkpoints}
        close = get_close_matches(given, types, n=1)
        near = min(types[close[0]].aliases) if close else "qwen3-vl-4b"
    return ModelError(
        f"model {name} is of type {given or 'unknown'!r}, which is not supported",
        f"the nearest that is: {near}; `sttm models` lists all",
    )


def load(
    checkpoint: Checkpoint, placement: Placement, options: frozenset[str] = frozenset()
) -> VideoLLM:
    """Load the checkpoint's weights according to `placement`.

    `options`: the enabled options of `Family.options`.
    """
    family = family_of(checkpoint)
    template.start()
    with reworded(checkpoint, placement.device):
        model = family.load(checkpoint, placement, options)
    if not placement.vision:
        model.encode = _blind  # type: ignore[method-assign, assignment]
    return model


def _listed(model_type: str) -> Family | None:
    try:
        return find_family(model_type)
    except ModelError as error:
        logging.getLogger("sttm_cli").warning("%s", error)
        return None


def _blind(*_: object) -> NoReturn:
    raise RuntimeError("this model was loaded without its vision tower")


# Token counts, KV bytes and context length, from a checkpoint's config alone.


@dataclass(frozen=True)
class TokenCount:
    """Approximate token count of a video: visual tokens, and the text between them, which is
    never merged."""

    visual: int
    text: int


def token_count(
    checkpoint: Checkpoint, frames: int, *, width: int, height: int
) -> TokenCount | None:
    """Estimate the token count of `frames` frames; None if the config lacks the needed fields.

    Visual tokens are exact for families that resize frames to a square, else an upper limit.
    """
    family = find_family(checkpoint.model_type)
    if family is None:
        return None
    try:
        steps, each = family.grid(checkpoint, frames, width=width, height=height)
    except (KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None
    return TokenCount(visual=steps * each, text=steps * family.step_text)


def kv_shapes(checkpoint: Checkpoint) -> list[KVShape] | None:
    """Return the shape of the keys of each layer that holds any; None if the config lacks the
    needed fields."""
    text, family = checkpoint.text, find_family(checkpoint.model_type)
    try:
        if family is not None and family.shapes is not None:
            return list(family.shapes(text))
        heads = text["num_attention_heads"]
        dim = text.get("head_dim") or text["hidden_size"] // heads
        return [
            KVShape(int(text.get("num_key_value_heads") or heads), int(dim))
        ] * checkpoint.layers
    except (KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None


def state_shapes(checkpoint: Checkpoint) -> StateShapes | None:
    """Return the states of a checkpoint's recurrent layers; None without such layers."""
    family = find_family(checkpoint.model_type)
    try:
        return family.recurrent(checkpoint.text) if family and family.recurrent else None
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def context_length(checkpoint: Checkpoint) -> int | None:
    """Return the model's maximum number of tokens; None if the config does not state it."""
    length = checkpoint.text.get("max_position_embeddings")
    return length if isinstance(length, int) else None


# Known models: the aliases, and other supported checkpoints on this machine.


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model that can be named; `bytes`: its weights on this machine, None if missing or
    incomplete."""

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
    """List the aliases, then other downloaded checkpoints of supported architectures."""
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
    """List the hub ids of the models in the hub's cache, complete or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = (folder.name for folder in Path(HF_HUB_CACHE).glob("models--*--*"))
    return [name.removeprefix("models--").replace("--", "/", 1) for name in names]


def _family(folder: Path) -> str:
    """Return the family name of a checkpoint folder, "" for an unsupported architecture."""
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
