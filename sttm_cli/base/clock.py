"""Seconds per stage, each measured where the stage runs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, get_args

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
