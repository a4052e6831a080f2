"""Where a model's files are, and a fingerprint of exactly those bytes.

Everything here is known without loading a weight, so that a stored KV can be looked up first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.base.filefacts import Memo, is_settled
from sttm_cli.base.spelling import did_you_mean
from sttm_cli.base.types import Json

# What a checkpoint folder is made of; anything else in a hub repository is not fetched.
_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
_PART_OF_MODEL = (".json", ".safetensors", ".jinja", ".txt", ".model", ".bin")


@dataclass(frozen=True)
class ModelSource:
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
        """How many layers the decoder has, 0 where the config does not tell."""
        text = self.config.get("text_config")
        found = (text if isinstance(text, dict) else self.config).get("num_hidden_layers")
        return found if isinstance(found, int) else 0


def find_source(
    name: str,
    repository: str,
    *,
    revision: str | None,
    memo: Memo,
    aliases: Iterable[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> ModelSource:
    """Find the checkpoint folder for a local path or a hub id, fetching it if need be.

    `name` is what the user typed, `repository` what it stands for, `aliases` what else might
    have been meant; `tell` gets a line before a model is fetched. Raises ModelError for a
    folder without weights, an unknown id, or a hub that cannot be reached, UsageError for a
    revision of a folder.
    """
    local = Path(repository).expanduser()
    if local.is_dir() and revision is not None:
        raise UsageError(
            f"--revision {revision} cannot be combined with --model {name}, which is a folder",
            "leave it out",
        )
    if local.is_dir():
        _check_folder(name, local)
        print_ = folder_fingerprint(local, memo)
        return ModelSource(name, local, revision, print_, _read_config(name, local))
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
    return ModelSource(
        name, folder, revision, f"hub:{repository}@{folder.name}", _read_config(name, folder)
    )


def cached_folder(repository: str, revision: str | None = None) -> Path | None:
    """The snapshot folder in the hub's own cache, None where it is not there or not whole."""
    try:
        folder = _snapshot(repository, revision, offline=True)
        _check_folder(repository, folder)
    except (OSError, ModelError, ValueError):
        return None
    return folder


def check_unchanged(source: ModelSource, memo: Memo) -> None:
    """Raise ModelError where a folder's files are not those that were fingerprinted."""
    if source.fingerprint.startswith("hub:"):
        return  # a commit's folder
    if folder_fingerprint(source.folder, memo) != source.fingerprint:
        raise ModelError(
            f"model folder {source.name!r} changed while it was read", "ask again once it is whole"
        )


def folder_fingerprint(folder: Path, memo: Memo) -> str:
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
    """How much is to be fetched, as the hub says, and where it will be."""
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
    # What is asked first is how large it is: the hub's library calls that a dry run.
    if type(error).__name__ == "DryRunError":
        return "the hub does not answer, or has no such model"
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
