"""Runs the groups of attacks and counts their cases."""

from __future__ import annotations

import itertools
import random
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from tests.attack.asking import Tried

GROUPS = {
    "videos": "videos",
    "artifacts": "artifacts",
    "rows": "rows",
    "checkpoints": "models",
    "requests": "server",
    "swaps": "swaps",
    "kills": "kills",
    "disks": "disks",
}
"""The module here of each group: its `attack(rng, folder)` is an endless iterator over the cases
that were tried."""


@dataclass
class Count:
    """The cases of one group, and the failed ones."""

    group: str
    tried: int = 0
    failed: list[Tried] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def line(self) -> str:
        return f"{self.group:<12} {self.tried:>7,} {len(self.failed):>7,} {self.seconds:>8.0f} s"


def run(
    group: str,
    folder: Path,
    *,
    seed: int,
    most: int | None = None,
    seconds: float | None = None,
    on_failed: Callable[[Tried], None] = lambda tried: None,
) -> Count:
    """Try the group's cases in the order that follows from `seed`: all of them, or the first
    `most`, or those that begin within `seconds`."""
    count, started = Count(group), time.monotonic()
    rng = random.Random(f"{seed}/{group}")
    for tried in itertools.islice(_cases(group, rng, folder), most):
        count.tried += 1
        if tried.problem:
            count.failed.append(tried)
            on_failed(tried)
        count.seconds = time.monotonic() - started
        if seconds is not None and count.seconds > seconds:
            break
    return count


def _cases(group: str, rng: random.Random, folder: Path) -> Iterator[Tried]:
    attack = import_module(f"tests.attack.{GROUPS[group]}").attack
    try:
        yield from attack(rng, folder)
    except ModuleNotFoundError as error:
        # The cases of a group may be left out of a checkout.
        if not (error.name or "").startswith("tests.attack."):
            raise
    except Exception:
        yield Tried("the group itself", traceback.format_exc())
