"""`Checkpoint`: the files of a model, their validation, fingerprint and download.

Does not load weights, so that a stored KV can be looked up first.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sttm_cli.base.errors import ModelError, UsageError
from sttm_cli.base.names import did_you_mean
from sttm_cli.base.system import FileFacts, is_settled
from sttm_cli.base.types import Json

# File names in a checkpoint.


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TEMPLATES = "additional_chat_templates"
_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model", ".bin")
_VOCABULARIES = ("tokenizer", "tiktoken", "vocab", "spiece", "merges")
"""Prefixes of vocabulary files, whose suffixes vary (tokenizer.model.v3)."""


def is_of_model(name: str) -> bool:
    """Return whether transformers may open a file of this name at the top of a checkpoint."""
    return name.endswith(_SUFFIXES) or name.startswith(_VOCABULARIES)


def is_inside(name: str) -> bool:
    """Return whether a path in a JSON file stays in its folder on every system."""
    path = PurePosixPath(name)
    odd = "\\" in name or ":" in name or not name.isprintable()
    return not odd and not path.is_absolute() and ".." not in path.parts


# The files of a checkpoint folder, and validation of its JSON files.


CHECKED = (
    "config.json",
    INDEX,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
"""The files with a schema."""
SCHEMAS = 2
"""Version of the schemas; files that passed an earlier version are checked again."""
LARGEST_JSON = 64 << 20
_FETCH = "fetch the model again"


def model_files(name: str, folder: Path) -> list[Path]:
    """List all files of a checkpoint that loading may open, sorted.

    They are the files at the folder's top, the chat templates below it, and the shards in the
    index. `name`: the model's name, for messages. Raises ModelError for an index that is damaged
    or names a file outside the folder.
    """
    top = (path for path in folder.iterdir() if is_of_model(path.name))
    below = (folder / TEMPLATES).glob("*.jinja")
    loaded = {path for path in (*top, *below, *weight_files(name, folder)) if path.is_file()}
    return sorted(loaded)


def weight_files(name: str, folder: Path) -> list[Path]:
    """List the weight files that transformers loads; they may be missing.

    Raises ModelError as `model_files`.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [folder / WEIGHTS]
    weights = read(name, index).get("weight_map")
    shards = list(weights.values()) if isinstance(weights, dict) else []
    if not shards:
        raise ModelError(f"model {name!r}: {INDEX} is not valid: weight_map names no file", _FETCH)
    for shard in shards:
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            reason = "which is not a .safetensors file"
        elif not is_inside(shard):
            reason = "which is outside the folder"
        else:
            continue
        raise ModelError(
            f"model {name!r}: {INDEX} is not valid: weight_map names {shard!r:.80}, {reason}",
            _FETCH,
        )
    return [folder / shard for shard in sorted(set(shards))]


def check_no_adapter(name: str, folder: Path) -> None:
    """Raise ModelError for an adapter in a checkpoint's folder.

    transformers applies it where peft is installed, and leaves it out, silently, where it is not.
    """
    if os.path.lexists(folder / ADAPTER):
        raise ModelError(
            f"model folder {name!r} holds an adapter, {ADAPTER}, which is not supported",
            "merge the adapter into the weights first (peft: merge_and_unload), or remove it",
        )


def check_files(name: str, folder: Path, memo: FileFacts) -> Json:
    """Validate a checkpoint's files, without reading the weights, and return its config.json.

    Files that pass are recorded in `memo` by their stat. Raises ModelError for a missing file, a
    field of the wrong type, or an adapter.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {name!r} has no config.json", "give a transformers checkpoint folder"
        )
    check_no_adapter(name, folder)
    missing = [path for path in weight_files(name, folder) if not path.is_file()]
    if missing:
        listed = ", ".join(str(path.relative_to(folder)) for path in missing[:3])
        raise ModelError(
            f"model folder {name!r} lacks its weights: {listed}",
            "give a folder with *.safetensors weights",
        )
    paths = [folder / file for file in CHECKED if (folder / file).is_file()]
    stats = [path.stat() for path in paths]
    key = f"schemas:{SCHEMAS}:{json.dumps([*map(_version, paths, stats)])}"
    config = read(name, paths[0])
    if memo.get(key) is None:
        _check_fields(name, paths)
        if is_settled(*stats):
            memo.set(key, {"passed": True})
    return config


def read(name: str, path: Path) -> Json:
    """Read a JSON file of a checkpoint. Raises ModelError if it is damaged or not an object."""
    value = _parsed(name, path)
    if not isinstance(value, dict):
        raise ModelError(f"model {name!r}: {path.name} is not a JSON object", _FETCH)
    return value


def _check_fields(name: str, paths: list[Path]) -> None:
    from sttm_cli.models.schema import problem

    for path in paths:
        wrong = problem(path.name, read(name, path))
        if wrong:
            raise ModelError(f"model {name!r}: {path.name} is not valid: {wrong}", _FETCH)


def _version(path: Path, stat: os.stat_result) -> tuple[str, int, int, int, int, int]:
    where = os.fspath(path.resolve())
    return where, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _parsed(name: str, path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise ModelError(f"model {name!r}: {path.name} cannot be read: {reason}", _FETCH) from error


# The fingerprint: a hash of exactly the files that are loaded.


_CONTENT_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def fingerprint(folder: Path, files: Sequence[Path], memo: FileFacts, *, hub: str = "") -> str:
    """Hash the names and contents of `files` in `folder`, following links.

    With `hub`, the repository and commit of a snapshot in the hub's cache, the weights need not be
    read: each file there is a link to a blob named by its content's hash. A blob that changed
    after it was linked is read, and so is a file that is not a link.
    """
    stats = [(path.stat(), path.lstat()) for path in files]
    versions = [
        (
            _name(folder, path),
            s.st_dev,
            s.st_ino,
            s.st_size,
            s.st_mtime_ns,
            s.st_ctime_ns,
            link.st_ctime_ns,
        )
        for path, (s, link) in zip(files, stats, strict=True)
    ]
    key = f"weights:{json.dumps([os.fspath(folder.resolve()), hub, versions])}"
    known = memo.get(key)
    if known is not None and isinstance(known.get("fingerprint"), str):
        return str(known["fingerprint"])
    computed = _hashed(folder, files, hub)
    if is_settled(*(stat for stat, _ in stats)):
        memo.set(key, {"fingerprint": computed})
    return computed


def _hashed(folder: Path, files: Sequence[Path], hub: str) -> str:
    from blake3 import blake3

    total = blake3()
    for path in files:
        blob = _blob(path) if hub else None
        one = blob or blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        total.update(f"{_name(folder, path)}\0{one}\n".encode())
    return f"hub:{hub}:{total.hexdigest(16)}" if hub else f"files:{total.hexdigest()}"


def _name(folder: Path, path: Path) -> str:
    return os.fsencode(path.relative_to(folder).as_posix()).decode(errors="backslashreplace")


def _blob(path: Path) -> str | None:
    """Return the content hash in the name of the blob behind `path`.

    None if the file is not a link to a blob, or if the blob has changed.
    """
    if not path.is_symlink():
        return None
    blob = path.resolve()
    if blob.parent.name != "blobs" or not _CONTENT_HASH.fullmatch(blob.name):
        return None
    # The hub's library completes the blob before it creates the link, but copying a cache can
    # change that order.
    unwritten = blob.stat().st_ctime_ns <= path.lstat().st_ctime_ns
    return blob.name if unwritten or _hub_hash(blob) == blob.name else None


def _hub_hash(blob: Path) -> str:
    """Compute the hub's hash of a file: sha256, or git's hash for a small file."""
    size, is_git = blob.stat().st_size, len(blob.name) == 40
    total = hashlib.sha1(b"blob %d\0" % size) if is_git else hashlib.sha256()
    with blob.open("rb") as file:
        while data := file.read(1 << 20):
            total.update(data)
    return total.hexdigest()


# Finding a checkpoint: a local folder, or a hub id that is downloaded if needed.


# Other files of a hub repository are not downloaded.
_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine.

    `fingerprint` is equal only for equal files; `hub`: the repository and commit of a snapshot in
    the hub's cache; `loaded`: a model and its processor that were loaded by the caller, and have no
    files here.
    """

    name: str
    folder: Path
    revision: str | None
    fingerprint: str
    config: Json
    hub: str = ""
    loaded: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def text(self) -> Json:
        """The decoder's config; in layouts without a separate one, the whole config."""
        text: Json = self.config.get("text_config") or self.config
        return text

    @property
    def layers(self) -> int:
        """The number of decoder layers, 0 if the config does not state it."""
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
    """Find the checkpoint in a local folder or of a hub id, and download it if needed.

    `name`: the model as typed; `repository`: its folder or hub id; `aliases`: names to suggest for
    a misspelt one; `on_fetch` is called with a line before a download. Raises ModelError for a
    malformed folder, an unknown id, or an unreachable hub, UsageError for a revision of a folder.
    """
    local = Path(repository).expanduser()
    if local.is_dir() and revision is not None:
        raise UsageError(
            f"--revision {revision} cannot be combined with --model {name}, which is a folder",
            "leave it out",
        )
    if local.is_dir():
        return _checkpoint(name, local, revision, memo)
    check_name(name, repository, aliases)
    folder = from_hub(repository, revision, on_fetch)
    # A snapshot folder is named by its commit.
    return _checkpoint(name, folder, revision, memo, hub=f"{repository}@{folder.name}")


def check_name(name: str, repository: str, aliases: Iterable[str]) -> None:
    """Raise ModelError for what cannot be a hub id; `name` is the model as typed."""
    if (
        Path(repository).is_absolute()
        or repository.startswith((".", "~"))
        or (repository.count("/") != 1)
    ):
        raise ModelError(
            f"model {name!r} is neither an alias, nor a hub id, nor a folder",
            did_you_mean(name, aliases)
            or "give a folder with config.json and *.safetensors, a hub id such as "
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf, or an alias (sttm models lists them)",
        )


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
    """Return the snapshot folder in the hub's cache, None if it is missing or incomplete."""
    try:
        folder = _snapshot(repository, revision, offline=True)
        needed = [folder / "config.json", *weight_files(repository, folder)]
    except (OSError, ModelError, ValueError):
        return None
    return folder if all(path.is_file() for path in needed) else None


def check_unchanged(checkpoint: Checkpoint, memo: FileFacts) -> None:
    """Raise ModelError if the files have changed since they were fingerprinted."""
    try:
        files = model_files(checkpoint.name, checkpoint.folder)
        now = fingerprint(checkpoint.folder, files, memo, hub=checkpoint.hub)
    except (OSError, ModelError):
        now = ""
    if now != checkpoint.fingerprint:
        raise ModelError(
            f"model folder {checkpoint.name!r} changed while it was read",
            "try again when it is complete",
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


def from_hub(repository: str, revision: str | None, on_fetch: Callable[[str], None]) -> Path:
    """Return the snapshot folder in the hub's cache, downloaded if missing or incomplete.

    Raises ModelError if it cannot be fetched.
    """
    folder = cached_folder(repository, revision)
    if folder is not None:
        return folder
    with _fetching(repository, revision):
        on_fetch(_to_fetch(repository, revision))
        return _snapshot(repository, revision, offline=False)


def config_on_hub(repository: str, revision: str | None) -> Json:
    """A model's config.json, fetched alone; raises as `from_hub`, and for one that is not JSON."""
    from huggingface_hub import hf_hub_download

    with _fetching(repository, revision):
        # Fails at once where the hub cannot be reached; a file alone is asked for many times.
        _to_fetch(repository, revision)
        path = Path(hf_hub_download(repository, "config.json", revision=revision))
    return read(repository, path)


@contextmanager
def _fetching(repository: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        wanted = f"{repository}@{revision}" if revision else repository
        if offline := offline_by():
            raise ModelError(
                f"model {wanted!r} is not on this machine and could not be fetched "
                f"({offline} is set)",
                f"unset {offline} to fetch it, or give a local folder",
            ) from error
        raise ModelError(
            f"model {wanted!r} is not on this machine and could not be fetched ({_reason(error)})",
            "check the name and the network, log in for gated models (hf auth login), "
            "or give a local folder",
        ) from error


def offline_by() -> str:
    """The variable of the environment that keeps the hub's library offline, "" where none does."""
    from huggingface_hub.constants import is_offline_mode

    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    named = next((name for name in names if os.environ.get(name)), names[0])
    return named if is_offline_mode() else ""


def _to_fetch(repository: str, revision: str | None) -> str:
    """Describe a download: its size and its folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    files = snapshot_download(
        repository, revision=revision, allow_patterns=list(_PATTERNS), dry_run=True
    )
    count = sum(file.file_size or 0 for file in files if file.will_download)
    return (
        f"fetching {repository}, {count / 1e9:.1f} GB, once: it is kept in {HF_HUB_CACHE} "
        "(set HF_HOME to change this)"
    )


def _reason(error: Exception) -> str:
    # The hub's library requests the size first, and calls that a dry run.
    if type(error).__name__ == "DryRunError":
        return "the hub does not answer, or has no such model"
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
