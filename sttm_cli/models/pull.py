"""Fetching a model ahead of its first question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint import check_name, config_on_hub, from_hub, weight_files
from sttm_cli.models.registry import aliases, find_family, repository_of, unsupported


@dataclass(frozen=True)
class Pulled:
    """A model on this machine: its repository ("" for a folder), folder, and bytes of weights."""

    repository: str
    revision: str | None
    folder: Path
    bytes: int

    def to_json(self) -> Json:
        return {
            "repository": self.repository or None,
            "revision": self.revision,
            "folder": str(self.folder),
            "bytes": self.bytes,
        }


def pulled(name: str, revision: str | None, on_fetch: Callable[[str], None]) -> Pulled:
    """Fetch what of a model is not on this machine; the hub's library shows its own progress.

    Its config is fetched first. Raises ModelError for a name that is not known, an architecture
    that is not supported, and a hub that cannot be reached.
    """
    repository = repository_of(name)
    local = Path(repository).expanduser()
    if local.is_dir():
        return Pulled("", revision, local, _bytes(repository, local))
    check_name(name, repository, aliases())
    kind = str(config_on_hub(repository, revision).get("model_type"))
    if find_family(kind) is None:
        raise unsupported(repr(name), kind)
    folder = from_hub(repository, revision, on_fetch)
    return Pulled(repository, revision, folder, _bytes(repository, folder))


def _bytes(repository: str, folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(repository, folder))
