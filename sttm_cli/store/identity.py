"""Everything that must be equal for one KV to stand for another, as a key and in words."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sttm_cli.base.types import Json

_SHOWN = 60


class Spelled(NamedTuple):
    """The canonical spelling of an identity, and its key: blake3 of that, 64 hex digits."""

    text: bytes
    key: str


def canonical(identity: Json) -> bytes:
    """The one spelling of an identity: sorted keys, no spaces, UTF-8, and escapes for characters
    that UTF-8 cannot encode, which file names may contain.

    Raises ValueError for NaN and infinities, TypeError for values that JSON does not have.
    """
    text = json.dumps(
        identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    # Python's escape for half a surrogate is JSON's too.
    return text.encode(errors="backslashreplace")


def spell(identity: Json) -> Spelled:
    """An identity's canonical spelling and key; raises as `canonical`."""
    from blake3 import blake3

    text = canonical(identity)
    return Spelled(text, str(blake3(text).hexdigest()))


def key_of(identity: Json) -> str:
    """An identity's key; raises as `canonical`."""
    return spell(identity).key


def difference(wanted: Json, stored: Json) -> list[str]:
    """Each leaf in which two identities differ, as "merge.budget: asked 0.3, stored 0.5"."""
    one, other = _leaves(wanted), _leaves(stored)
    return [
        f"{name}: asked {_short(one.get(name))}, stored {_short(other.get(name))}"
        for name in [*one, *(set(other) - set(one))]
        if one.get(name) != other.get(name) or type(one.get(name)) is not type(other.get(name))
    ]


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for name, part in value.items():
        leaves |= _leaves(part, f"{prefix}.{name}" if prefix else str(name))
    return leaves


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
