"""Groups that fail in the ways that the runner watches for."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.attack.asking import Tried


def hangs(rng: random.Random, folder: Path) -> Iterator[Tried]:
    # Nothing that runs in this process gets its turn.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
    yield Tried("first")
    time.sleep(1e6)


def grows(rng: random.Random, folder: Path) -> Iterator[Tried]:
    yield Tried("first")
    held = []
    while len(held) < 64:
        held.append(b"x" * (64 << 20))
        time.sleep(0.05)


def dies(rng: random.Random, folder: Path) -> Iterator[Tried]:
    yield Tried("first")
    os.kill(os.getpid(), signal.SIGKILL)


def raises(rng: random.Random, folder: Path) -> Iterator[Tried]:
    yield Tried("first")
    raise ZeroDivisionError
