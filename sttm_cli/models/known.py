"""Models that a user can name: the aliases, and other supported checkpoints on this machine.

Reads the hub's own cache; imports neither torch nor transformers and uses no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.errors import ModelError
from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import cached_folder
from sttm_cli.models.checkpoint_files import read, weight_files
from sttm_cli.models.registry import TINY, families, find_family


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
