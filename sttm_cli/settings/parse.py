"""Reads one value, given as typed text or as a Python value; the same text for either.

Each function takes the flag's name and the value, which is never None, and raises UsageError that
names the flag, the value and what is allowed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from sttm_cli.base.address import path_or_address
from sttm_cli.base.errors import UsageError
from sttm_cli.base.plugins import METHODS
from sttm_cli.base.spelling import did_you_mean

Parse = Callable[[str, Any], Any]
LEAST_TOKENS = 16
_BUDGETS = (
    "give a share of the video's tokens above 0 and up to 1, such as 0.3, "
    f"or a whole number of tokens from {LEAST_TOKENS} on"
)
_TIMES = "give seconds or [HH:]MM:SS"
_SIZES = "give bytes, or such as 500M or 20G"
_DURATIONS = "give such as 90s, 10m or 2h"
_LARGEST = 2**63 - 1


def parse_text(flag: str, value: Any) -> str:
    """A name or a path, as text; not an empty one."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(text, str):
        raise UsageError(f"{flag} {value!r} is not a name", "give it as text")
    if not text:
        raise UsageError(f"{flag} is empty", "give a value, or leave it out")
    return text


def parse_place(flag: str, value: Any) -> str | Path:
    """The path of a folder, which need not exist, or the text of an address."""
    return path_or_address(parse_text(flag, value))


def parse_names(flag: str, value: Any) -> tuple[str, ...]:
    """Names, as a text with commas or as a sequence; sorted, each once."""
    if isinstance(value, str):
        value = [name for name in value.split(",") if name.strip()]
    if not isinstance(value, list | tuple | set | frozenset):
        raise UsageError(f"{flag} {value!r} is not a list of names", "give NAME,NAME")
    return tuple(sorted({parse_text(flag, name).strip() for name in value}))


def parse_switch(flag: str, value: Any) -> bool:
    """A switch: True or False."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise UsageError(f"{flag} {value!r} is not a boolean", "give true or false")
    return value


def one_of(*allowed: str) -> Parse:
    """Parsing of a choice among words."""

    def parse(flag: str, value: Any) -> str:
        if value not in allowed:
            raise UsageError(
                f"{flag} {value!r} is not known", f"choose one of {', '.join(allowed)}"
            )
        return str(value)

    return parse


def whole_number(least: int) -> Parse:
    """Parsing of a whole number from `least` on."""

    def parse(flag: str, value: Any) -> int:
        number = parse_whole(flag, value)
        if not least <= number <= _LARGEST:
            raise UsageError(f"{flag} {value} is not possible", f"it starts at {least}")
        return number

    return parse


def parse_whole(flag: str, value: Any) -> int:
    """A whole number."""
    try:
        if isinstance(value, str) or _is_number(value, Integral):
            return int(value)
    except ValueError:
        pass
    raise UsageError(f"{flag} {value!r} is not a whole number", "give a whole number")


def parse_real(flag: str, value: Any) -> float:
    """A number, as a float."""
    if isinstance(value, str):
        return _number(flag, value, "give a number")
    if not _is_number(value, Real):
        raise UsageError(f"{flag} {value!r} is not a number", "give a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def parse_fps(flag: str, value: Any) -> float:
    """Frames per second, above 0 and up to 1000."""
    fps = parse_real(flag, value)
    if not 0 < fps <= 1000:
        raise UsageError(f"{flag} {fps} is not possible", "it lies above 0 and up to 1000")
    return fps


def parse_budget(flag: str, value: Any) -> float | int:
    """A budget as a float in (0, 1], a share, or a whole number >= 16.

    As text, "0.3" is a share, "1" all tokens, "500" a number of tokens.
    """
    given = value
    if isinstance(value, str):
        given = _number(flag, value, _BUDGETS)
        if given.is_integer() and "." not in value and "e" not in value.lower():
            given = int(given)
    if _is_number(given, Real) and 0 < given <= 1:
        return float(given)
    if _is_number(given, Integral) and LEAST_TOKENS <= given <= _LARGEST:
        return int(given)
    raise UsageError(f"{flag} {value} is not possible", _BUDGETS)


def parse_seconds(flag: str, value: Any) -> float:
    """A time in seconds from 0 on, given in seconds or, as text, as [HH:]MM:SS."""
    if not isinstance(value, str):
        seconds = parse_real(flag, value)
        if not 0 <= seconds < math.inf:
            raise UsageError(f"{flag} {seconds} is not possible", "it is a time from 0 on")
        return seconds
    numbers = [_number(flag, part, _TIMES) for part in value.strip().split(":")]
    if len(numbers) > 3 or any(n < 0 for n in numbers) or any(n >= 60 for n in numbers[1:]):
        raise UsageError(f"{flag} {value!r} is not a time", _TIMES)
    return float(sum(n * 60**i for i, n in enumerate(reversed(numbers))))


def parse_bytes(flag: str, value: Any) -> int:
    """A size in bytes; text may end in K, M, G or T (KiB, MiB, GiB, TiB)."""
    if not isinstance(value, str):
        return int(whole_number(1)(flag, value))
    stripped = value.strip().upper().removesuffix("IB").removesuffix("B")
    power = "KMGT".find(stripped[-1:]) + 1 if stripped[-1:] else 0
    size = _number(flag, stripped[:-1] if power else stripped, _SIZES) * 1024**power
    if not 1 <= size <= _LARGEST:
        raise UsageError(f"{flag} {value!r} is not a size", _SIZES)
    return int(size)


def parse_duration(flag: str, value: Any) -> float:
    """A duration in seconds; text may end in s, m or h."""
    text = value.strip().lower() if isinstance(value, str) else ""
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    if isinstance(value, str):
        seconds = _number(flag, text[:-1] if unit else text, _DURATIONS) * (unit or 1)
    else:
        seconds = parse_real(flag, value)
    if not 0 < seconds < math.inf:
        raise UsageError(f"{flag} {value!r} is not a duration", _DURATIONS)
    return seconds


def _number(flag: str, text: str, hint: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{flag} {text!r} is not a number", hint) from None
    if not math.isfinite(value):
        raise UsageError(f"{flag} {text!r} is not a finite number", hint)
    return value


def _is_number(value: object, kind: type) -> bool:
    # Python counts True among the whole numbers.
    return isinstance(value, kind) and type(value) is not bool


def parse_method(flag: str, value: Any) -> str:
    """The name of a merging method; imports none of them."""
    name = parse_text(flag, value)
    if not METHODS.knows(name):
        known = METHODS.names()
        meant = did_you_mean(name, known)
        raise UsageError(
            f"{flag} {name!r} is not known", meant or f"choose one of {', '.join(known)}"
        )
    return name


def check_question(text: object) -> None:
    """Raise UsageError unless a question is text, and not an empty one."""
    if not isinstance(text, str):
        raise UsageError(f"the question is {text!r}", "give it as text")
    if not text.strip():
        raise UsageError("the question is empty", "ask something about the video")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the question {text!r} is not UTF-8 text") from None


def parse_choices(text: str) -> list[str]:
    """Read options as typed, "A|B|C"."""
    options = [option.strip() for option in text.split("|")]
    check_options(options)
    return options


def check_options(options: Sequence[str]) -> None:
    """Raise UsageError unless there are two or more options, none empty and none twice."""
    if len(options) < 2:
        raise UsageError("--choices names a single option", 'give two or more: "A|B"')
    if any(not option.strip() for option in options):
        raise UsageError("--choices holds an empty option", 'give them as "A|B|C"')
    twice = [option for option in options if options.count(option) > 1]
    if twice:
        raise UsageError(f"--choices names {twice[0]!r} twice", "give each option once")
