"""Models that a user can name: the aliases, and what else of a known kind is on this machine.

Reads the hub's own cache; imports neither torch nor transformers and asks no network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import cached_folder
from sttm_cli.models.registry import ALIASES, CHECKPOINTS, FAMILIES, TINY


@dataclass(frozen=True)
class Known:
    """A model by the name to give (`alias`, else the hub id); `bytes` of its weights on this
    machine, None where it is not there or not whole."""

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
    found = [_alias(alias, where) for alias, where in ALIASES.items()]
    others = sorted(set(_downloaded()) - set(ALIASES.values()))
    return found + [known for repository in others if (known := _other(repository))]


def _alias(alias: str, where: str) -> Known:
    if where == str(TINY):
        return Known(alias, "(embedded)", _family(TINY), _bytes(TINY))
    family = next(FAMILIES[kind].name for kind, of in CHECKPOINTS.items() if where in of.values())
    folder = cached_folder(where)
    return Known(alias, where, family, _bytes(folder) if folder else None)


def _other(repository: str) -> Known | None:
    folder = cached_folder(repository)
    family = _family(folder) if folder else ""
    return Known(None, repository, family, _bytes(folder)) if folder and family else None


def _downloaded() -> list[str]:
    """Hub ids of the models in the hub's cache, whole or not."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = (folder.name for folder in Path(HF_HUB_CACHE).glob("models--*--*"))
    return [name.removeprefix("models--").replace("--", "/", 1) for name in names]


def _family(folder: Path) -> str:
    """The family of a checkpoint folder, "" where its architecture is not supported."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        return FAMILIES[kind].name
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _bytes(folder: Path) -> int | None:
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    return sum(sizes) if sizes else None
