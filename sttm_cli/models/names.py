"""Names of files in a checkpoint, and of those that its JSON files name."""

from __future__ import annotations

from pathlib import PurePosixPath

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATES = "additional_chat_templates"
_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model", ".bin")
_VOCABULARIES = ("tokenizer", "tiktoken", "vocab", "spiece", "merges")
"""How their names start; their suffixes differ (tokenizer.model.v3)."""


def is_of_model(name: str) -> bool:
    """Whether transformers may open a file of this name at the top of a checkpoint."""
    return name.endswith(_SUFFIXES) or name.startswith(_VOCABULARIES)


def is_inside(name: str) -> bool:
    """Whether a path in a JSON file stays in its folder on every system."""
    path = PurePosixPath(name)
    odd = "\\" in name or ":" in name or not name.isprintable()
    return not odd and not path.is_absolute() and ".." not in path.parts
