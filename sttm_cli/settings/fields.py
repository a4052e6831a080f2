"""The declaration of one setting: its flag, its parsing, its help, and where it may be given."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import UsageError
from sttm_cli.base.names import METHODS, did_you_mean, path_or_address

# Reads one value, given as typed text or as a Python value; the same text for either.


Parse = Callable[[str, Any], Any]
LEAST_TOKENS = 16
NO_TIER = "none"
WITH_THRESHOLDS = "sttm"
"""The method that can be given thresholds in place of a budget."""
_BUDGETS = (
    "give a share of the video's tokens above 0 and up to 1, such as 0.3 or 30%, "
    f"or a whole number of tokens from {LEAST_TOKENS} on"
)
_TIMES = "give seconds or [HH:]MM:SS"
_SIZES = "give bytes, or such as 500M or 20G"
_DURATIONS = "give such as 90s, 10m, 2h or 30d"
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


def parse_tier(flag: str, value: Any) -> str | Path:
    """The path of a folder, or the word "none"."""
    text = parse_text(flag, value)
    if text == NO_TIER:
        return text
    place = path_or_address(text)
    if isinstance(place, str):
        raise UsageError(f"{flag} {text} is not a local folder", "give a folder, or none")
    return place


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
        if {"on", "off"} <= set(allowed) and str(value).lower() in ("true", "false"):
            # As Python and TOML write it.
            return "on" if str(value).lower() == "true" else "off"
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

    As text, "0.3" and "30%" are shares, "1" all tokens, "500" a number of tokens.
    """
    given = value
    if isinstance(value, str) and value.strip().endswith("%"):
        percent = value.strip()[:-1].strip()
        _number(flag, percent, _BUDGETS)
        # In decimals: 33.3 % is the share 0.333, as it would be typed.
        given = float(Decimal(percent) / 100)
    elif isinstance(value, str):
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


def size_text(size: int) -> str:
    """A size as it would be typed: 64M rather than 67108864."""
    for power, unit in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


def parse_duration(flag: str, value: Any) -> float:
    """A duration in seconds; text may end in s, m, h or d."""
    text = value.strip().lower() if isinstance(value, str) else ""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(text[-1:])
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


@dataclass(frozen=True)
class Thresholds:
    """The two cosines of the method `sttm`, given by hand in place of a budget."""

    spatial: float
    temporal: float

    def __format__(self, spec: str) -> str:
        return f"{self.spatial:.10g}/{self.temporal:.10g}"

    @property
    def method(self) -> str:
        """The method `sttm` at these thresholds; its budget is 1."""
        return f"{WITH_THRESHOLDS}:{self}"


def parse_thresholds(flag: str, value: Any) -> Thresholds:
    """Two cosines, SPATIAL/TEMPORAL; a temporal one up to 0 merges nothing in time."""
    text = parse_text(flag, value)
    hint = "give SPATIAL/TEMPORAL, two cosines, such as 0.85/0.6"
    pair = [_number(flag, part.strip(), hint) for part in text.split("/")]
    if len(pair) != 2 or any(abs(cosine) > 1 for cosine in pair):
        raise UsageError(f"{flag} {text!r} is not a pair of thresholds", hint)
    return Thresholds(*pair)


def parse_method(flag: str, value: Any) -> str:
    """The name of a merging method; imports none of them. `sttm:0.85/0.6` has thresholds."""
    name, at, pair = parse_text(flag, value).partition(":")
    if at:
        if name != WITH_THRESHOLDS:
            raise UsageError(
                f"{flag} {name!r} has no thresholds", f"leave :{pair} out, or give sttm:{pair}"
            )
        return parse_thresholds(flag, pair).method
    if not METHODS.knows(name):
        known = METHODS.names()
        meant = did_you_mean(name, known)
        raise UsageError(
            f"{flag} {name!r} is not known", meant or f"choose one of {', '.join(known)}"
        )
    return name


def check_thresholds_alone(method: str, budget: float | int) -> None:
    """Raise UsageError where a method with thresholds is given a budget as well."""
    if ":" in method and budget != 1.0:
        raise UsageError(
            f"--method {method} has thresholds and cannot be combined with --budget {budget:g}",
            "give --budget 1, or leave the thresholds out",
        )


def check_no_thresholds(method: str, flag: str = "--method") -> None:
    """Raise UsageError for thresholds where budgets are given elsewhere, or compared."""
    if ":" in method:
        raise UsageError(
            f"{flag} {method} has thresholds, and this command takes budgets",
            f"give {flag} {method.partition(':')[0]}",
        )


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


class Group(Enum):
    """Settings that commands take together; each is shown in a panel of a command's help."""

    MODEL = "model", "Model"
    FRAMES = "frames", "Frames"
    SOURCE = "source", "Frames"
    STORE = "store", "Cache"
    CACHE = "cache", "Cache"
    ANSWER = "answer", "Answer"
    SERVER = "server", None

    def __init__(self, name: str, panel: str | None) -> None:
        """`panel`: its heading, None for the command's own options."""
        self.panel = panel


class Scope(Enum):
    """Whether a server has a setting for good, or takes it with each request.

    MODEL and SERVER are pinned: they tell one server from another. MODEL shapes the loaded model,
    so a client that names a server by its address must ask for the same. What has the scope
    PROCESS is done in the process itself, by no server.
    """

    MODEL = "model"
    SERVER = "server"
    REQUEST = "request"
    PROCESS = "process"


@dataclass(frozen=True)
class Setting:
    """All that is known of a setting.

    `default` is as typed, None where the model, the video or the machine decides. `parse` reads and
    checks every value, from whichever side it comes. `choices` complete in the shell. `in_config`:
    whether the config file may hold it.
    """

    flags: tuple[str, ...]
    default: Any
    help: str
    group: Group
    parse: Parse
    metavar: str | None = None
    env: str | None = None
    choices: tuple[str, ...] = ()
    in_config: bool = True
    scope: Scope = Scope.REQUEST

    @property
    def flag(self) -> str:
        """The long flag."""
        return self.flags[-1]

    @property
    def name(self) -> str:
        """The field's name, which is the key in the config file."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.parse is parse_switch

    def read(self, value: Any) -> Any:
        """A value as typed or from Python -> the field's own type. Raises UsageError."""
        if value is None and self.default is None:
            return None
        return self.parse(self.flag, value)

    def typed(self, value: Any) -> Iterator[str]:
        """The argument that gives the field this value; none for a value that needs none."""
        if isinstance(value, tuple):
            value = ",".join(value) or None
        if value is True:
            yield self.flag
        elif value is not None and value is not False:
            yield f"{self.flag}={value}"


def declare(default: Any, *flags: str, **known: Any) -> Setting:
    """A setting; one with `choices` and without `parse` takes these words only."""
    return Setting(flags, default, **{"parse": one_of(*known.get("choices", ())), **known})


def setting(default: Any, *flags: str, **known: Any) -> Any:
    """A field of a dataclass with its declaration."""
    declared = declare(default, *flags, **known)
    return field(default=declared.read(default), metadata={"setting": declared})
