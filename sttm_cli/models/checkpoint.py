"""A model's files, their config and a fingerprint of exactly those bytes.

No weight is loaded here, so that a stored KV can be looked up first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.base.filefacts import FileFacts, is_settled
from sttm_cli.base.spelling import did_you_mean
from sttm_cli.base.types import Json

# The files of a checkpoint; anything else in a hub repository is not fetched.
_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
_PART_OF_MODEL = (".json", ".safetensors", ".jinja", ".txt", ".model", ".bin")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine. `fingerprint` is equal only for equal files."""

    name: str
    folder: Path
    revision: str | None
    fingerprint: str
    config: Json

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def layers(self) -> int:
        """Decoder layers, 0 where the config does not state their number."""
        text = self.config.get("text_config")
        layers = (text if isinstance(text, dict) else self.config).get("num_hidden_layers")
        return layers if isinstance(layers, int) else 0


def find_checkpoint(
    name: str,
    repository: str,
    *,
    revision: str | None,
    memo: FileFacts,
    aliases: Iterable[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """The checkpoint in a local folder or of a hub id, which is fetched if need be.

    `name` is the model as typed, `repository` the folder or hub id that it stands for, `aliases`
    the names to suggest for a misspelt one; `tell` gets a line before a model is fetched. Raises
    ModelError for a folder without weights, an unknown id, or a hub that cannot be reached,
    UsageError for a revision of a folder.
    """
    local = Path(repository).expanduser()
    if local.is_dir() and revision is not None:
        raise UsageError(
            f"--revision {revision} cannot be combined with --model {name}, which is a folder",
            "leave it out",
        )
    if local.is_dir():
        _check_folder(name, local)
        return Checkpoint(
            name=name,
            folder=local,
            revision=revision,
            fingerprint=folder_fingerprint(local, memo),
            config=_read_config(name, local),
        )
    if local.is_absolute() or repository.startswith((".", "~")) or repository.count("/") != 1:
        raise ModelError(
            f"model {name!r} is neither an alias, nor a hub id, nor a folder",
            did_you_mean(name, aliases)
            or "give a folder with config.json and *.safetensors, a hub id such as "
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf, or an alias (sttm models lists them)",
        )
    folder = _from_hub(repository, revision, tell)
    _check_folder(name, folder)
    # A snapshot folder is named by its commit: the hub's own fingerprint of all its files.
    return Checkpoint(
        name=name,
        folder=folder,
        revision=revision,
        fingerprint=f"hub:{repository}@{folder.name}",
        config=_read_config(name, folder),
    )


def cached_folder(repository: str, revision: str | None = None) -> Path | None:
    """The snapshot folder in the hub's own cache, None where it is missing or incomplete."""
    try:
        folder = _snapshot(repository, revision, offline=True)
        _check_folder(repository, folder)
    except (OSError, ModelError, ValueError):
        return None
    return folder


def check_unchanged(checkpoint: Checkpoint, memo: FileFacts) -> None:
    """Raise ModelError where a folder's files are no longer those that were fingerprinted."""
    if checkpoint.fingerprint.startswith("hub:"):
        return  # a commit's folder
    if folder_fingerprint(checkpoint.folder, memo) != checkpoint.fingerprint:
        raise ModelError(
            f"model folder {checkpoint.name!r} changed while it was read",
            "ask again once it is complete",
        )


def folder_fingerprint(folder: Path, memo: FileFacts) -> str:
    """blake3 over names and contents of all model files, remembered by their stat."""
    files = sorted(p for p in folder.iterdir() if p.suffix in _PART_OF_MODEL and p.is_file())
    stats = [path.stat() for path in files]
    versions = [
        (p.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)
        for p, s in zip(files, stats, strict=True)
    ]
    key = f"weights:{json.dumps([os.fspath(folder.resolve()), versions])}"
    known = memo.get(key)
    if known is not None and isinstance(known.get("fingerprint"), str):
        return str(known["fingerprint"])
    from blake3 import blake3

    total = blake3()
    for path in files:
        one = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        total.update(f"{path.name}\0{one}\n".encode())
    if is_settled(*stats):
        memo.set(key, {"fingerprint": f"files:{total.hexdigest()}"})
    return f"files:{total.hexdigest()}"


def _check_folder(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {name!r} has no config.json", "give a transformers checkpoint folder"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(_json(name, index).get("weight_map", {}).values())
    else:
        wanted = {"model.safetensors"}
    missing = sorted(str(w) for w in wanted if not (folder / str(w)).is_file())
    if missing or not wanted:
        raise ModelError(
            f"model folder {name!r} lacks its weights: {', '.join(missing[:3])}",
            "give a folder with *.safetensors weights",
        )


def _read_config(name: str, folder: Path) -> Json:
    return _json(name, folder / "config.json")


def _json(name: str, path: Path) -> Json:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {name!r}: {path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"model {name!r}: {path.name} is not a JSON object")
    return value


def _snapshot(repository: str, revision: str | None, *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(_PATTERNS),
            local_files_only=offline,
        )
    )


def _from_hub(repository: str, revision: str | None, tell: Callable[[str], None]) -> Path:
    """The snapshot folder: from the hub's own cache when it is whole, else downloaded."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = cached_folder(repository, revision)
    if folder is not None:
        return folder
    try:
        tell(_to_fetch(repository, revision))
        return _snapshot(repository, revision, offline=False)
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        wanted = f"{repository}@{revision}" if revision else repository
        raise ModelError(
            f"model {wanted!r} is not on this machine and could not be fetched ({_reason(error)})",
            "check the name and the network, log in for gated models (hf auth login), "
            "or give a local folder",
        ) from error


def _to_fetch(repository: str, revision: str | None) -> str:
    """The size of the download, as the hub states it, and the folder it goes to."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    files = snapshot_download(
        repository, revision=revision, allow_patterns=list(_PATTERNS), dry_run=True
    )
    count = sum(file.file_size or 0 for file in files if file.will_download)
    return (
        f"fetching {repository}, {count / 1e9:.1f} GB, once: it is kept in {HF_HUB_CACHE} "
        "(HF_HOME names another place)"
    )


def _reason(error: Exception) -> str:
    # The size is requested first: the hub's library calls that a dry run.
    if type(error).__name__ == "DryRunError":
        return "the hub does not answer, or has no such model"
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
