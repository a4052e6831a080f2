"""The settings of one run, checked once when they are made."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, get_args

from sttm_cli.base.address import path_or_address
from sttm_cli.base.errors import UsageError
from sttm_cli.base.types import Sampling

Decoder = Literal["auto", "decord", "av"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
KVDType = Literal["auto", "float16", "bfloat16", "int8"]
Positions = Literal["auto", "reassigned", "survivors"]

LEAST_TOKENS = 16
BUDGETS = (
    "give a share of the video's tokens above 0 and up to 1, such as 0.3, "
    f"or a whole number of tokens from {LEAST_TOKENS} on"
)
TIMES = "give seconds or [HH:]MM:SS"
SIZES = "give bytes, or such as 500M or 20G"
DURATIONS = "give such as 90s, 10m or 2h"
MAX_DOWNLOAD = 4 << 30
STDIN = "-"
DEFAULT_MODEL = "tiny"
DEFAULT_BUDGET = 0.5


@dataclass(frozen=True)
class Settings:
    """Everything that shapes an answer, but the video and the question.

    `budget` is a share of the video's tokens in (0, 1], or a whole number of tokens >= 16;
    `start` and `end` are seconds from the video's first frame; None leaves the choice to the
    model's defaults. Times and sizes may be given as they are typed, such as "1:30" and "2G".
    Raises UsageError, naming the flag, the value and what is allowed.
    """

    model: str = DEFAULT_MODEL
    revision: str | None = None
    budget: float | int = DEFAULT_BUDGET
    merge_layer: int | None = None
    positions: Positions = "auto"
    newlines: bool = False
    fps: float | None = None
    frames: int | None = None
    start: float | None = None
    end: float | None = None
    decoder: Decoder = "auto"
    device: str = "auto"
    dtype: DType = "auto"
    kv_dtype: KVDType = "auto"
    cache_dir: str | Path | None = None
    no_cache: bool = False
    refresh: bool = False
    max_bytes: int | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    top_p: float | None = None
    max_download: int = MAX_DOWNLOAD

    def __post_init__(self) -> None:
        self._read()
        if not self.model:
            raise UsageError("--model is empty", "give an alias, a hub id or a folder")
        _at_least("--merge-layer", self.merge_layer, 0)
        _at_least("--frames", self.frames, 1)
        _at_least("--max-new-tokens", self.max_new_tokens, 1)
        _at_least("--max-bytes", self.max_bytes, 1)
        _at_least("--max-download", self.max_download, 1)
        _check_fps(self.fps)
        _check_range(self.start, self.end)
        _one_of("--decoder", self.decoder, get_args(Decoder))
        _one_of("--dtype", self.dtype, get_args(DType))
        _one_of("--kv-dtype", self.kv_dtype, get_args(KVDType))
        _one_of("--positions", self.positions, get_args(Positions))
        self._check_sampling()
        if self.no_cache and self.refresh:
            raise UsageError(
                "--no-cache and --refresh cannot hold together",
                "--refresh makes a stored entry anew, --no-cache stores none: choose one",
            )

    def _read(self) -> None:
        """Bring every value to its type; equal settings are then equal in the cache too."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__}
        read: dict[str, Any] = {
            "model": os.fspath(self.model),
            "cache_dir": None if self.cache_dir is None else path_or_address(self.cache_dir),
            "budget": parse_budget(self.budget),
            "start": parse_seconds("--start", self.start),
            "end": parse_seconds("--end", self.end),
            "max_bytes": None
            if self.max_bytes is None
            else parse_bytes("--max-bytes", self.max_bytes),
            "max_download": parse_bytes("--max-download", self.max_download),
        }
        for name in ("merge_layer", "frames", "max_new_tokens", "seed"):
            read[name] = _as_whole(_flag(name), given[name])
        for name in ("fps", "temperature", "top_p"):
            read[name] = _as_real(_flag(name), given[name])
        for name, value in read.items():
            object.__setattr__(self, name, value)

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(self.temperature, self.seed, self.top_p)

    def _check_sampling(self) -> None:
        temperature = self.sampling.temperature
        for flag, value in (("--seed", self.seed), ("--top-p", self.top_p)):
            if value is not None and temperature == 0:
                raise UsageError(
                    f"{flag} {value} cannot hold with --temperature 0, which draws nothing",
                    f"give a --temperature above 0, or leave {flag} out",
                )


def parse_budget(budget: str | float, flag: str = "--budget") -> float | int:
    """A budget as a float in (0, 1], a share, or a whole number >= 16; raises UsageError.

    As text, "0.3" is a share, "1" all tokens, "500" a number of tokens.
    """
    value: Any = budget
    if isinstance(budget, str):
        value = _number(flag, budget, BUDGETS)
        if value.is_integer() and "." not in budget and "e" not in budget.lower():
            value = int(value)
    if _is_number(value, Real) and 0 < float(value) <= 1:
        return float(value)
    if _is_number(value, Integral) and int(value) >= LEAST_TOKENS:
        return int(value)
    raise UsageError(
        f"{flag} {budget} is not possible",
        BUDGETS,
    )


def parse_choices(text: str) -> list[str]:
    """Read options as typed, "A|B|C"."""
    options = [option.strip() for option in text.split("|")]
    check_options(options)
    return options


def check_question(text: object) -> None:
    """Raise UsageError unless a question is text, and not an empty one."""
    if not isinstance(text, str):
        raise UsageError(f"the question is {text!r}", "give it as text")
    if not text.strip():
        raise UsageError("the question is empty", "ask something about the video")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the question {text!r} is no text in UTF-8") from None


def check_options(options: Sequence[str]) -> None:
    """Raise UsageError unless there are two or more options, none empty and none twice."""
    if len(options) < 2:
        raise UsageError("--choices names a single option", 'give two or more: "A|B"')
    if any(not option.strip() for option in options):
        raise UsageError("--choices holds an empty option", 'give them as "A|B|C"')
    twice = [option for option in options if options.count(option) > 1]
    if twice:
        raise UsageError(f"--choices names {twice[0]!r} twice", "give each option once")


def parse_seconds(flag: str, text: Any) -> float | None:
    """A time in seconds, given as a number or as text, in seconds or as [HH:]MM:SS."""
    if not isinstance(text, str):
        return _as_real(flag, text)
    parts = text.strip().split(":")
    if len(parts) > 3:
        raise UsageError(f"{flag} {text!r} is not a time", TIMES)
    numbers = [_number(flag, part, TIMES) for part in parts]
    if any(n < 0 for n in numbers) or any(n >= 60 for n in numbers[1:]):
        raise UsageError(f"{flag} {text!r} is not a time", TIMES)
    return float(sum(n * 60**i for i, n in enumerate(reversed(numbers))))


def parse_bytes(flag: str, text: str | int) -> int:
    """A size, given as a number of bytes or as text, with K, M, G or T (KiB, MiB, GiB, TiB)."""
    if not isinstance(text, str):
        return int(_as_whole(flag, text) or 0)
    stripped = text.strip().upper().removesuffix("IB").removesuffix("B")
    power = "KMGT".find(stripped[-1:]) + 1 if stripped[-1:] else 0
    value = _number(flag, stripped[:-1] if power else stripped, SIZES)
    if value <= 0:
        raise UsageError(f"{flag} {text!r} is not a size", SIZES)
    return int(value * 1024**power)


def parse_duration(flag: str, text: str) -> float:
    """Read a duration as typed, 90s, 10m or 2h, or plain seconds, and return seconds."""
    stripped = text.strip().lower()
    unit = {"s": 1, "m": 60, "h": 3600}.get(stripped[-1:])
    value = _number(flag, stripped[:-1] if unit else stripped, DURATIONS)
    if value <= 0:
        raise UsageError(f"{flag} {text!r} is not a duration", DURATIONS)
    return float(value * (unit or 1))


def cache_dir(given: str | Path | None = None) -> str | Path:
    """Where the cache is, a folder or the text of an address: as given, else STTM_CACHE_DIR, else
    the user's cache folder."""
    where = os.environ.get("STTM_CACHE_DIR") or None if given is None else given
    if where is not None:
        return path_or_address(where)
    from platformdirs import user_cache_path

    return user_cache_path("sttm")


def cache_folder(given: str | Path | None = None) -> Path:
    """As `cache_dir`; raises UsageError for an address, which is not a folder."""
    where = cache_dir(given)
    if isinstance(where, Path):
        return where
    raise UsageError(f"--cache-dir {where} is not a local folder", "give a folder to measure in")


def _number(flag: str, text: str, hint: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{flag} {text!r} is not a number", hint) from None
    if not math.isfinite(value):
        raise UsageError(f"{flag} {text!r} is not a finite number", hint)
    return value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_number(value: object, kind: type) -> bool:
    # Python counts True among the whole numbers.
    return isinstance(value, kind) and type(value) is not bool


def _as_whole(flag: str, value: Any) -> int | None:
    if value is None:
        return None
    if not _is_number(value, Integral):
        raise UsageError(f"{flag} {value!r} is not a whole number")
    return int(value)


def _as_real(flag: str, value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value, Real):
        raise UsageError(f"{flag} {value!r} is not a number")
    return float(value)


def _at_least(flag: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UsageError(f"{flag} {value} is not possible", f"it starts at {least}")


def _one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{flag} {value!r} is not known", f"choose one of {', '.join(allowed)}")


def _check_fps(fps: float | None) -> None:
    if fps is not None and not 0 < fps <= 1000:
        raise UsageError(f"--fps {fps} is not possible", "it lies above 0 and up to 1000")


def _check_range(start: float | None, end: float | None) -> None:
    for flag, value in (("--start", start), ("--end", end)):
        if value is not None and not 0 <= value < float("inf"):
            raise UsageError(f"{flag} {value} is not possible", "it is a time from 0 on")
    if start is not None and end is not None and end <= start:
        raise UsageError(f"--end {end:g} is not after --start {start:g}")
