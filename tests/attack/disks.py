"""Disks that are full at any byte: the answer comes, nothing stored is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from sttm_cli.store import LocalStore
from tests.attack.asking import QUESTION, SAMPLE, Tried
from tests.attack.kills import ANSWER
from tests.cli.process import Ended
from tests.cli.warm import Warm


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    with Warm.start() as warm:
        yield from _full(warm, rng, folder)


def _full(warm: Warm, rng: random.Random, folder: Path) -> Iterator[Tried]:
    cache, kept = folder / "cache", folder / "kept.mp4"
    kept.write_bytes(SAMPLE.read_bytes())
    warm.run("ask", kept, QUESTION, cache=cache)
    with LocalStore(cache, warn=print) as store:
        before = {entry.key for entry in store.entries()}
        size = store.bytes
    other = folder / "other.mp4"
    for number in range(1 << 62):
        other.write_bytes(SAMPLE.read_bytes() + number.to_bytes(8, "little"))
        # Its answer goes to a file as well, which must have room for it.
        room = 4096 + rng.choice([rng.randrange(size), rng.randrange(40_000), 0])
        ended, _ = warm.run("ask", other, QUESTION, cache=cache, file_bytes=room)
        yield Tried(f"files of at most {room:,} bytes", _problem(ended, cache, before))
        # What did fit is taken away again, so that the next case has something to store.
        with LocalStore(cache, warn=print) as store:
            store.remove({entry.key for entry in store.entries()} - before)


def _problem(ended: Ended, cache: Path, before: set[str]) -> str:
    if (ended.code, ended.out) != (0, ANSWER):
        return f"exit code {ended.code}: {ended.out!r} {ended.err[-300:]}"
    if "Traceback" in ended.err:
        return ended.err[-300:]
    with LocalStore(cache, warn=print) as store:
        damaged = [finding.problem for finding in store.verify()[1]]
        lost = before - {entry.key for entry in store.entries()}
    return "; ".join([*damaged, *(f"{key[:12]} is lost" for key in sorted(lost))])
