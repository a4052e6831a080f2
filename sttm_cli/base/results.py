"""What a question gives back, and what the cache did for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from sttm_cli.base.types import Ending, TokenCounts


@dataclass(frozen=True)
class CacheUse:
    """What the cache did for one video; tokens are those of the prefix. `tier` says where a hit
    lay: "device", "host" or "disk"; `saved_bytes` is what `--kv-dtype` makes the entry smaller."""

    hit: bool
    key: str
    bytes: int
    restored_tokens: int
    prefilled_tokens: int
    miss_reason: str | None
    tier: str | None = None
    saved_bytes: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer, where it came from, and what it took.

    `seconds` has the stages load_model, decode, encode, merge, prefill, restore (None for one
    that did not run), and first_token, answer, total; `first_token` counts everything from the
    video file to the first token but the loading of the model. `ending` says why the text ends
    where it does; `seed` is that of a drawn answer, None for a greedy one.
    """

    question: str
    text: str
    cache_hit: bool
    tokens: TokenCounts
    new_tokens: int
    ending: Ending
    seconds: dict[str, float | None] = field(default_factory=dict)
    seed: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the model itself ended the answer."""
        return self.ending is Ending.END


@dataclass(frozen=True)
class Option:
    """A possible answer: `log_likelihood` of the model saying exactly this and no more, over
    `tokens` tokens, and its `probability` given that the answer is one of the options."""

    text: str
    probability: float
    log_likelihood: float
    tokens: int


@dataclass(frozen=True)
class Choice:
    """Options weighed against each other as answers to a question, in the order given.

    `seconds` as in `Answer`; nothing is generated, so `first_token` is None.
    """

    question: str
    options: tuple[Option, ...]
    cache_hit: bool
    tokens: TokenCounts
    seconds: dict[str, float | None] = field(default_factory=dict)

    @property
    def best(self) -> Option:
        """The likeliest; the first of several that are."""
        return max(self.options, key=lambda option: option.log_likelihood)


# Seconds per stage, each measured where the stage runs.


T = TypeVar("T")

Stage = Literal["load_model", "decode", "encode", "merge", "prefill", "restore"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Clock:
    """Adds up the seconds of each stage; a stage that did not run has none."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, *, within: str | None = None) -> Iterator[None]:
        """Charge what runs inside to stage `name`; `within`: the stage that it interrupts, which
        is not charged for it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.add(name, spent)
            if within is not None:
                self.add(within, -spent)

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield from `items`, charging the time spent waiting for them to stage `name`."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def add(self, name: str, seconds: float) -> None:
        self._spent[name] = self._spent.get(name, 0.0) + seconds

    def spent(self, *names: str) -> float:
        return sum(self._spent.get(name, 0.0) for name in names)

    def seconds(self) -> dict[str, float | None]:
        """Seconds per stage, None for one that did not run."""
        return {name: self._spent.get(name) for name in STAGES}

    def total(self) -> float:
        return time.perf_counter() - self._started
