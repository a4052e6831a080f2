"""Validation of JSON from another process against TypedDicts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from types import UnionType
from typing import (
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

T = TypeVar("T")


class ShapeError(ValueError):
    """JSON of another shape than declared; the message names the first field that differs."""


def shaped(value: object, shape: type[T], name: str) -> T:
    """Return `value` if it has the type `shape`; else raise ShapeError, which calls it `name`.

    Supports TypedDicts, list, dict, Literal, unions, str, int, float, bool, None and object. Keys
    that a TypedDict does not declare are ignored. Numbers must be finite and below 2**63.
    """
    wrong = _mismatch(value, shape, name)
    if wrong is not None:
        raise ShapeError(f"{wrong} is missing or of another type")
    return value  # type: ignore[return-value]


def _mismatch(value: object, shape: Any, name: str) -> str | None:
    """Return the name of the first part of `value` that differs from `shape`, if any."""
    origin, inner = get_origin(shape), get_args(shape)
    if origin in (Union, UnionType):
        wrong = [_mismatch(value, each, name) for each in inner]
        return None if None in wrong else wrong[0]
    if is_typeddict(shape) and isinstance(value, dict):
        return _first(_field(value, key, hint, name) for key, hint in _hints(shape).items())
    if origin is list and isinstance(value, list):
        return _first(_mismatch(each, inner[0], f"{name}[{i}]") for i, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return _first(_mismatch(each, inner[1], f"{name}.{key}") for key, each in value.items())
    return None if _is_plain(value, shape) else name


def _field(value: dict[str, object], key: str, hint: Any, name: str) -> str | None:
    if get_origin(hint) is NotRequired:
        (hint,) = get_args(hint)
        if key not in value:
            return None
    return _mismatch(value[key], hint, f"{name}.{key}") if key in value else f"{name}.{key}"


def _is_plain(value: object, shape: Any) -> bool:
    if get_origin(shape) is Literal:
        return isinstance(value, str) and value in get_args(shape)
    # bool is a subclass of int in Python; JSON does not distinguish 1 and 1.0.
    if shape in (int, float):
        kinds = int if shape is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) < 2**63
    return (
        isinstance(value, shape) if isinstance(shape, type) and not is_typeddict(shape) else False
    )


def _first(names: Iterable[str | None]) -> str | None:
    return next((name for name in names if name is not None), None)


@cache
def _hints(shape: Any) -> dict[str, Any]:
    return get_type_hints(shape, include_extras=True)
