"""Request bodies as pydantic models; a body that does not match its model is refused (400)."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from sttm_cli.serve.http_errors import Refused

# Bounds on untrusted JSON, checked before anything is built from it.


MOST_BYTES = 1 << 20
"""Bytes of a body without the contents of data: urls."""
MOST_DEPTH = 32
MOST_PARTS = 50_000
"""Maximum number of strings, commas, brackets, and escaped quotes."""
_PART = re.compile(rb'["\[\]{},]')
_URL = re.compile(rb'"url"\s{0,8}:\s{0,8}"data:\Z')
_LOOK_BACK = 40
_BACKSLASH = 0x5C


class TooLarge(ValueError):
    """JSON with more bytes or parts than allowed."""


class TooDeep(ValueError):
    """JSON with more levels than allowed."""


def check_json(body: bytes | bytearray) -> None:
    """Raise TooLarge or TooDeep for a body beyond the bounds; its syntax is not checked.

    The body is read once, and no further than to the first violation, so this takes milliseconds.
    """
    position = depth = parts = free = 0
    # `free`: bytes of data: urls so far.
    while part := _PART.search(body, position, MOST_BYTES + free):
        position = part.end()
        depth += (part[0] in b"[{") - (part[0] in b"]}")
        parts += 1
        if part[0] == b'"':
            is_video = _URL.search(body, max(0, position - _LOOK_BACK), position + len(b"data:"))
            start = position
            position, quotes = _string_end(body, start, MOST_PARTS - parts)
            parts += quotes
            free += position - start if is_video else 0
        if depth > MOST_DEPTH:
            raise TooDeep
        if parts >= MOST_PARTS:
            raise TooLarge
    if len(body) - free > MOST_BYTES:
        raise TooLarge


def _string_end(body: bytes | bytearray, start: int, most: int) -> tuple[int, int]:
    """Return the position after the string whose text begins at `start`, and its number of escaped
    quotes, of which at most `most` are passed."""
    end, quotes = body.find(b'"', start), 0
    while end >= 0 and quotes < most and _is_escaped(body, start, end):
        end, quotes = body.find(b'"', end + 1), quotes + 1
    return (end + 1 if end >= 0 else len(body)), quotes


def _is_escaped(body: bytes | bytearray, start: int, end: int) -> bool:
    first = end
    while first > start and body[first - 1] == _BACKSLASH:
        first -= 1
    return (end - first) % 2 == 1


Whole = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Number = Annotated[float, Field(ge=-1e15, le=1e15)]
_NOT_JSON = "the body is not valid JSON"
_EXPECTED = " should be "
_NAMES = {
    "a valid string": "a text",
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid list": "a list",
    "a valid array": "a list",
    "a finite number": "a number",
    "a valid number": "a number",
    "a valid dictionary": "an object",
    "an object": "an object",
}
"""pydantic's name of a type, and JSON's."""


class Body(BaseModel):
    """A body, or an object within one. Values must have the declared types; nothing is converted.

    Unknown fields are ignored.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")


class ClosedBody(Body):
    """A body whose unknown fields are refused unless they are empty or off: they might be meant to
    change the answer. Those in `passed_over` cannot; `hint` ends the message."""

    passed_over: ClassVar[frozenset[str]] = frozenset()
    hint: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        known = cls.model_fields.keys() | cls.passed_over
        for name in sorted(given if isinstance(given, dict) else ()):
            if given[name] and name not in known:
                raise ValueError(f"{name[:40]!r} is not supported{cls.hint}")
        return given


B = TypeVar("B", bound=Body)


def read_body(
    body: bytes | bytearray, model: type[B], *, with_file_names: bool = False, trusted: bool = False
) -> B:
    """Parse `body` as a `model`. Raises Refused (400) with one line that names the field, and 413
    for more JSON than `check_json` allows; `trusted` clients may send any amount.

    `with_file_names`: texts may contain bytes of file names that are not valid Unicode.
    """
    try:
        if not trusted:
            check_json(body)
        if with_file_names:
            return model.model_validate(json.loads(body.decode()))
        return model.model_validate_json(body)
    except TooLarge:
        message = "the body has more than 1 MiB, or 50,000 parts, of JSON beside its data: url"
        raise Refused(413, message, code="too_large") from None
    except TooDeep:
        bad(f"{_NOT_JSON}, or has more than {MOST_DEPTH} levels")
    except ValidationError as error:
        bad(_line(error.errors(include_url=False, include_input=False)[0]))
    except (ValueError, RecursionError):
        bad(_NOT_JSON)


def bad(message: str) -> NoReturn:
    raise Refused(400, message, code="invalid_request")


def _line(error: ErrorDetails) -> str:
    """Return one line that names the field and its fault."""
    name, text = _field(error["loc"]), error["msg"]
    if error["type"] == "json_invalid":
        return _NOT_JSON
    if error["type"] == "missing":
        return f"{name!r} is needed"
    if error["type"] == "value_error":
        text = str(error["ctx"]["error"])
        return f"{name!r}: {text}" if name else text
    if not name:
        return "the body must be a JSON object"
    if error["type"] in ("model_type", "dict_type"):
        return f"{name!r} must be an object"
    _, expected, what = text.partition(_EXPECTED)
    return f"{name!r} must be {_NAMES.get(what, what)}" if expected else f"{name!r}: {text}"


def _field(location: tuple[int | str, ...]) -> str:
    """Return a field's name as in JavaScript: messages[0].content. Tags of unions, in angle
    brackets, are skipped."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif not part.startswith("<"):
            name += f".{part[:40]}" if name else part[:40]
    return name
