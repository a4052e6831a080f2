"""What must be equal for one KV to stand for another, as a key and as words."""

from __future__ import annotations

import json
from typing import Any

from sttm_cli.base.types import Json

_SHOWN = 60


def canonical(identity: Json) -> bytes:
    """The one spelling of an identity: sorted keys, no spaces, UTF-8, escapes for what is no text
    (file names need not be).

    Raises ValueError for NaN and infinities, TypeError for what JSON cannot hold.
    """
    text = json.dumps(
        identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    # Python's escape for half a surrogate is JSON's too.
    return text.encode(errors="backslashreplace")


def key_of(identity: Json) -> str:
    """blake3 of the canonical identity: 64 hex digits."""
    from blake3 import blake3

    return str(blake3(canonical(identity)).hexdigest())


def difference(wanted: Json, found: Json) -> list[str]:
    """Each leaf in which two identities differ, as "merge.budget: asked 0.3, stored 0.5"."""
    one, other = _leaves(wanted), _leaves(found)
    return [
        f"{name}: asked {_short(one.get(name))}, stored {_short(other.get(name))}"
        for name in [*one, *(set(other) - set(one))]
        if one.get(name) != other.get(name) or type(one.get(name)) is not type(other.get(name))
    ]


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, part in value.items():
        found |= _leaves(part, f"{prefix}.{name}" if prefix else str(name))
    return found


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
