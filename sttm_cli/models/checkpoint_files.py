"""The files of a checkpoint folder that are loaded, and its JSON checked against schemas."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import ModelError
from sttm_cli.base.filefacts import FileFacts, is_settled
from sttm_cli.base.types import Json
from sttm_cli.models.names import INDEX, TEMPLATES, WEIGHTS, is_inside, is_of_model

CHECKED = (
    "config.json",
    INDEX,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
)
"""The files that have a schema."""
SCHEMAS = 1
"""Version of the schemas: what an earlier one passed is checked again."""
LARGEST_JSON = 64 << 20
_FETCH = "fetch the model again"


def model_files(name: str, folder: Path) -> list[Path]:
    """Every file of a checkpoint that loading it may open, sorted.

    Those at the folder's top, the chat templates below it, and the shards that the index names,
    wherever in the folder. `name` is the model's, for messages. Raises ModelError for an index
    that is damaged or names a file outside the folder.
    """
    top = (path for path in folder.iterdir() if is_of_model(path.name))
    below = (folder / TEMPLATES).glob("*.jinja")
    loaded = {path for path in (*top, *below, *weight_files(name, folder)) if path.is_file()}
    return sorted(loaded)


def weight_files(name: str, folder: Path) -> list[Path]:
    """The files of the weights, in transformers' order of precedence; they may be missing.

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


def check_files(name: str, folder: Path, memo: FileFacts) -> Json:
    """config.json of a complete checkpoint; the weights themselves are not read.

    A file that passed is remembered in `memo` by its stat. Raises ModelError for a missing file,
    or one whose fields are not of their types.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {name!r} has no config.json", "give a transformers checkpoint folder"
        )
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
    """A JSON file of a checkpoint. Raises ModelError where it is damaged or not an object."""
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


_CONTENT_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def fingerprint(folder: Path, files: Sequence[Path], memo: FileFacts, *, hub: str = "") -> str:
    """A hash over the names and contents of `files` of `folder`, which links may lead out of.

    `hub`, the repository and commit of a snapshot in the hub's cache, spares reading the weights:
    there each file is a link to a blob that is named by its own content's hash and never written
    again. A blob that changed after it was linked is read, and so is a file that is not a link.
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
    made = _made(folder, files, hub)
    if is_settled(*(stat for stat, _ in stats)):
        memo.set(key, {"fingerprint": made})
    return made


def _made(folder: Path, files: Sequence[Path], hub: str) -> str:
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
    """The content hash by which the hub's cache names the blob behind `path`, None where the file
    is not a link to one, or where the blob's content is another by now."""
    if not path.is_symlink():
        return None
    blob = path.resolve()
    if blob.parent.name != "blobs" or not _CONTENT_HASH.fullmatch(blob.name):
        return None
    # The blob is complete before the link is made. A copied cache may have lost that order.
    unwritten = blob.stat().st_ctime_ns <= path.lstat().st_ctime_ns
    return blob.name if unwritten or _hub_hash(blob) == blob.name else None


def _hub_hash(blob: Path) -> str:
    """The hub's hash of a file: sha256, or for a small one that of git."""
    size, is_git = blob.stat().st_size, len(blob.name) == 40
    total = hashlib.sha1(b"blob %d\0" % size) if is_git else hashlib.sha256()
    with blob.open("rb") as file:
        while data := file.read(1 << 20):
            total.update(data)
    return total.hexdigest()
