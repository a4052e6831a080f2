"""The files of a checkpoint folder that are loaded, and its JSON read through schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import ModelError
from sttm_cli.base.types import Json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model", ".bin")
_TOKENIZER = ("tokenizer", "tiktoken", "vocab", "spiece", "merges")
"""Starts of the names of vocabularies, whose suffixes differ (tokenizer.model.v3)."""
_TEMPLATES = "additional_chat_templates"
LARGEST_JSON = 64 << 20


def model_files(name: str, folder: Path) -> list[Path]:
    """Every file of a checkpoint that loading it may open, sorted.

    Those at the folder's top, the chat templates below it, and the shards that the index names,
    wherever they are in it. `name` is the model's, for messages. Raises ModelError for an index
    that is damaged or names a file outside the folder.
    """
    top = (path for path in folder.iterdir() if _is_of_model(path.name))
    below = (folder / _TEMPLATES).glob("*.jinja")
    found = {path for path in (*top, *below, *weight_files(name, folder)) if path.is_file()}
    return sorted(found)


def weight_files(name: str, folder: Path) -> list[Path]:
    """The files of the weights, in transformers' order of precedence; they may be missing.

    Raises ModelError as `model_files`.
    """
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    shards = set(read(name, folder / INDEX)["weight_map"].values())
    return [folder / shard for shard in sorted(shards)]


def check_files(name: str, folder: Path) -> Json:
    """config.json of a whole checkpoint; the weights themselves are not read.

    Raises ModelError for a missing file, or one whose fields are not of their types.
    """
    from sttm_cli.models.schema import FILES

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
    values = {file: read(name, folder / file) for file in FILES if (folder / file).is_file()}
    return values["config.json"]


def read(name: str, path: Path) -> Json:
    """A JSON file of a checkpoint, checked against its schema where it has one.

    Raises ModelError that names the file and the field.
    """
    from sttm_cli.models.schema import FILES, problem

    value = _parsed(name, path)
    if not isinstance(value, dict):
        raise ModelError(f"model {name!r}: {path.name} is not a JSON object", "fetch it again")
    wrong = problem(FILES[path.name], value) if path.name in FILES else None
    if wrong:
        raise ModelError(f"model {name!r}: {path.name}: {wrong}", "fetch the model again")
    return value


def _parsed(name: str, path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise ModelError(
            f"model {name!r}: {path.name} cannot be read: {reason}", "fetch the model again"
        ) from error


def _is_of_model(name: str) -> bool:
    return name.endswith(_SUFFIXES) or name.startswith(_TOKENIZER)
