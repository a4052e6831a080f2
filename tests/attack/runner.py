"""Runs the groups of attacks and counts their cases."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import random
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

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
    "pages": "pages",
    "folders": "folders",
}
"""The module here of each group: its `attack(rng, folder)` is an endless iterator over the cases
that were tried."""


MOST_MB = dict.fromkeys(GROUPS, 3072) | {"videos": 4096, "pages": 1536}
"""The most memory of a process of each group: the one that asks, a server, a decoder."""
LONGEST_S = 240.0
"""Until a group has its next case, also the first, on a machine that does other work as well."""


@dataclass
class Count:
    """The cases of one group, and the failed ones; `peak`: bytes of its largest process."""

    group: str
    tried: int = 0
    failed: list[Tried] = field(default_factory=list)
    seconds: float = 0.0
    peak: int = 0

    @property
    def line(self) -> str:
        return (
            f"{self.group:<12} {self.tried:>7,} {len(self.failed):>7,} {self.seconds:>8.0f} s "
            f"{self.peak >> 20:>7,} MiB"
        )


def run(
    group: str,
    folder: Path,
    *,
    seed: int,
    most: int | None = None,
    seconds: float | None = None,
    longest_s: float = LONGEST_S,
    on_failed: Callable[[Tried], None] = lambda tried: None,
    count: Count | None = None,
) -> Count:
    """Try the group's cases in the order that follows from `seed`: all of them, or the first
    `most`, or those that begin within `seconds`.

    They run in a process of their own. Where that hangs for `longest_s`, grows beyond `MOST_MB` or
    dies, it is ended, its case has failed, and another process goes on with other cases.
    """
    count, started = count or Count(group), time.monotonic()
    for attempt in itertools.count():
        name, before = f"{seed}/{group}" + (f"/{attempt}" if attempt else ""), count.tried
        place = folder / str(attempt)
        place.mkdir()
        with _Process(group, place, name) as process:
            for tried in process.cases(count, longest_s):
                count.tried += 1
                if tried.problem:
                    count.failed.append(tried)
                    on_failed(tried)
                count.seconds = time.monotonic() - started
                late = seconds is not None and count.seconds > seconds
                if late or count.tried == most:
                    return count
        if process.is_done or count.tried - before < 2:
            return count
    raise AssertionError


class _Process:
    """A process that tries a group's cases, watched from here."""

    def __init__(self, group: str, folder: Path, seed: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        # Whoever starts processes of its own may not be a daemon.
        self._process = context.Process(target=_try, args=(GROUPS[group], folder, seed, theirs))
        self._process.start()
        theirs.close()
        self._most, self._seed, self._tried = MOST_MB[group] << 20, seed, 0
        self.is_done = self._has_failed = False

    def cases(self, count: Count, longest_s: float) -> Iterator[Tried]:
        """Its cases; the last one is that which ended it, if one did."""
        since = time.monotonic()
        while True:
            try:
                found = self._ours.recv() if self._ours.poll(0.2) else ()
            except (EOFError, ConnectionError):
                self._process.join(30)
                yield self._failed(f"exit code {self._process.exitcode}")
                return
            if found is None:
                self.is_done = True
                return
            size = max(map(_peak, self._tree()), default=0)
            count.peak = max(count.peak, size)
            if size > self._most:
                yield self._failed(f"{size:,} bytes of memory at the peak")
                return
            if found:
                self._tried, since = self._tried + 1, time.monotonic()
                yield found
            # To start may take longer than a case.
            longest = longest_s if self._tried else LONGEST_S
            if not found and time.monotonic() - since > longest:
                yield self._failed(f"no end after {longest:.0f} s")
                return

    def _failed(self, reason: str) -> Tried:
        self._has_failed = True
        return Tried(f"case {self._tried + 1} of {self._seed}", reason)

    def _tree(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *exception: object) -> None:
        # It ends what it has started itself, at its next case; what hangs is killed.
        tree = self._tree()
        self._ours.close()
        if exception[0] is None and not self._has_failed:
            self._process.join(60)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.join()


def _peak(process: psutil.Process) -> int:
    """The most bytes of memory that a process has had; what it has now where Linux is not."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        with contextlib.suppress(psutil.Error):
            return int(process.memory_info().rss)
        return 0


def _try(place: str, folder: Path, seed: str, pipe: Connection) -> None:
    """In the process: send each case that was tried, until nobody reads them; None at the end."""
    cases = _cases(place, seed, folder)
    with contextlib.suppress(ConnectionError), contextlib.closing(cases):
        for tried in cases:
            pipe.send(tried)
        pipe.send(None)


def _cases(place: str, seed: str, folder: Path) -> Generator[Tried]:
    module, _, name = place.partition(":")
    try:
        attack = getattr(import_module(f"tests.attack.{module}"), name or "attack")
        yield from attack(random.Random(seed), folder)
    except Exception:
        yield Tried("the group itself", traceback.format_exc())
