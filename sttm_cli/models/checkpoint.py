"""A model's files, their config and a fingerprint of exactly those bytes.

No weight is loaded here, so that a stored KV can be looked up first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.base.filefacts import FileFacts
from sttm_cli.base.spelling import did_you_mean
from sttm_cli.base.types import Json
from sttm_cli.models.checkpoint_files import check_files, fingerprint, model_files, weight_files

# The files of a checkpoint; anything else in a hub repository is not fetched.
_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine. `fingerprint` is equal only for equal files; `hub` is the
    repository and commit of a snapshot in the hub's cache."""

    name: str
    folder: Path
    revision: str | None
    fingerprint: str
    config: Json
    hub: str = ""

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def text(self) -> Json:
        """The decoder's config: the whole one in layouts without a part for it."""
        text: Json = self.config.get("text_config") or self.config
        return text

    @property
    def layers(self) -> int:
        """Decoder layers, 0 where the config does not state their number."""
        return int(self.text.get("num_hidden_layers") or 0)


def find_checkpoint(
    name: str,
    repository: str,
    *,
    revision: str | None,
    memo: FileFacts,
    aliases: Iterable[str] = (),
    on_fetch: Callable[[str], None] = lambda line: None,
) -> Checkpoint:
    """The checkpoint in a local folder or of a hub id, which is fetched if need be.

    `name` is the model as typed, `repository` the folder or hub id that it stands for, `aliases`
    the names to suggest for a misspelt one; `on_fetch` gets a line before a model is fetched.
    Raises ModelError for a malformed folder, an unknown id, or a hub that cannot be reached,
    UsageError for a revision of a folder.
    """
    local = Path(repository).expanduser()
    if local.is_dir() and revision is not None:
        raise UsageError(
            f"--revision {revision} cannot be combined with --model {name}, which is a folder",
            "leave it out",
        )
    if local.is_dir():
        return _checkpoint(name, local, revision, memo)
    if local.is_absolute() or repository.startswith((".", "~")) or repository.count("/") != 1:
        raise ModelError(
            f"model {name!r} is neither an alias, nor a hub id, nor a folder",
            did_you_mean(name, aliases)
            or "give a folder with config.json and *.safetensors, a hub id such as "
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf, or an alias (sttm models lists them)",
        )
    folder = _from_hub(repository, revision, on_fetch)
    # A snapshot folder is named by its commit.
    return _checkpoint(name, folder, revision, memo, hub=f"{repository}@{folder.name}")


def _checkpoint(
    name: str, folder: Path, revision: str | None, memo: FileFacts, *, hub: str = ""
) -> Checkpoint:
    try:
        config = check_files(name, folder, memo)
        files_hash = fingerprint(folder, model_files(name, folder), memo, hub=hub)
    except OSError as error:
        raise ModelError(f"model folder {name!r} cannot be read: {error}") from error
    return Checkpoint(
        name=name, folder=folder, revision=revision, fingerprint=files_hash, config=config, hub=hub
    )


def cached_folder(repository: str, revision: str | None = None) -> Path | None:
    """The snapshot folder in the hub's own cache, None where it is missing or incomplete."""
    try:
        folder = _snapshot(repository, revision, offline=True)
        needed = [folder / "config.json", *weight_files(repository, folder)]
    except (OSError, ModelError, ValueError):
        return None
    return folder if all(path.is_file() for path in needed) else None


def check_unchanged(checkpoint: Checkpoint, memo: FileFacts) -> None:
    """Raise ModelError where the files are no longer those that were fingerprinted."""
    try:
        files = model_files(checkpoint.name, checkpoint.folder)
        now = fingerprint(checkpoint.folder, files, memo, hub=checkpoint.hub)
    except (OSError, ModelError):
        now = ""
    if now != checkpoint.fingerprint:
        raise ModelError(
            f"model folder {checkpoint.name!r} changed while it was read",
            "ask again once it is complete",
        )


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


def _from_hub(repository: str, revision: str | None, on_fetch: Callable[[str], None]) -> Path:
    """The snapshot folder: from the hub's own cache when it is whole, else downloaded."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = cached_folder(repository, revision)
    if folder is not None:
        return folder
    try:
        on_fetch(_to_fetch(repository, revision))
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
