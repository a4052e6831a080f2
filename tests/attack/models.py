"""Malformed checkpoints (`checkpoints.py`): each is answered from or refused with exit code 4."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from tests.attack.asking import QUESTION, SAMPLE, Tried, check
from tests.cli.process import sttm_here


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    cases = import_module("tests.attack.checkpoints").cases
    while True:
        for case in cases(rng.randrange(1 << 32)):
            model = folder / "model"
            shutil.rmtree(model, ignore_errors=True)
            case.write(model)
            started = time.monotonic()
            flags = ("--json", "--no-server", "--no-cache", "--frames", 2, "--max-new-tokens", 4)
            ended = sttm_here("ask", SAMPLE, QUESTION, *flags, "--model", model)
            yield Tried(case.name, check(ended, time.monotonic() - started, codes=(0, 4)))
