"""Results of a question: answers, options, cache use; and the clock that times the stages."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

from sttm_cli.base.types import Ending, TokenCounts


@dataclass(frozen=True)
class CacheUse:
    """Use of the cache for one video; token counts are those of the prefix.

    `tier`: the location of a hit: "device", "host" or "disk"; `saved_bytes`: bytes that
    `--kv-dtype` saves in the entry.
    """

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
    """An answer with its token counts and seconds.

    `seconds` has the stages load_model, decode, encode, merge, prefill, restore (None for a stage
    that did not run), and first_token, answer, total; `first_token` covers everything from the
    video file to the first token except loading the model. `ending`: why the text ends; `seed`:
    the seed of a sampled answer, None for a greedy one.
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
        """Whether the model ended the answer."""
        return self.ending is Ending.END


@dataclass(frozen=True)
class Option:
    """A possible answer of `tokens` tokens.

    `log_likelihood`: of exactly this text as the whole answer; `probability`: given that the
    answer is one of the options.
    """

    text: str
    probability: float
    log_likelihood: float
    tokens: int


@dataclass(frozen=True)
class Choice:
    """The options for a question with their likelihoods, in the order given.

    `seconds` as in `Answer`; nothing is generated, so `first_token` is None.
    """

    question: str
    options: tuple[Option, ...]
    cache_hit: bool
    tokens: TokenCounts
    seconds: dict[str, float | None] = field(default_factory=dict)

    @property
    def best(self) -> Option:
        """The likeliest option; the first one of a tie."""
        return max(self.options, key=lambda option: option.log_likelihood)


# The clock: seconds per stage, measured where the stage runs.


T = TypeVar("T")

Stage = Literal["load_model", "decode", "encode", "merge", "prefill", "restore"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Clock:
    """The seconds spent in each stage so far."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._spent: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, *, within: str | None = None) -> Iterator[None]:
        """Add the time spent inside to stage `name`, and subtract it from the stage `within`, which
        it interrupts."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.add(name, spent)
            if within is not None:
                self.add(within, -spent)

    def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """Yield from `items`, and add the time spent waiting for them to stage `name`."""
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
        """Return the seconds per stage, None for a stage that did not run."""
        return {name: self._spent.get(name) for name in STAGES}

    def total(self) -> float:
        return time.perf_counter() - self._started
