"""Values of a request's body; what is not as it should be is refused (400)."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from sttm_cli.base.types import Json
from sttm_cli.serve.http_errors import Refused


def read_object(body: bytes) -> Json:
    """A body that must be one JSON object. Raises Refused (400)."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        bad("the body is not valid JSON")
    if not isinstance(value, dict):
        bad("the body must be a JSON object")
    return value


def check_text(fields: Json) -> None:
    """Refuse what no tokenizer and no answer could hold: NaN, and half of a surrogate pair."""
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        bad("the body holds what is neither text nor number")


def as_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        bad(f"{name!r} must be a text")
    return value


def as_flag(value: Any, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        bad(f"{name!r} must be true or false")
    return bool(value)


def as_number(value: Any, name: str) -> float | int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or abs(value) > 1e15 or not math.isfinite(value):
        bad(f"{name!r} must be a number")
    return value  # type: ignore[no-any-return]


def as_whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        bad(f"{name!r} must be a whole number")
    return value


def bad(message: str) -> NoReturn:
    raise Refused(400, message, code="invalid_request")
