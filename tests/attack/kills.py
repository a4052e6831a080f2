"""SIGKILL at random moments: nothing stored is lost, nothing is half stored, the next run is
right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from sttm_cli.store import LocalStore
from tests.attack.asking import QUESTION, SAMPLE, Tried
from tests.cli.warm import Warm

ANSWER = "three\n"


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    with Warm.start() as warm:
        yield from _killed(warm, rng, folder)


def _killed(warm: Warm, rng: random.Random, folder: Path) -> Iterator[Tried]:
    cache, videos = folder / "cache", folder / "videos"
    videos.mkdir()
    for number in range(2):
        (videos / f"{number}.mp4").write_bytes(SAMPLE.read_bytes() + bytes(number))
    kept, other = videos / "0.mp4", videos / "1.mp4"
    ended, seconds = warm.run("ask", kept, QUESTION, cache=cache)
    if ended.out != ANSWER:
        raise AssertionError(ended)
    while True:
        arguments = rng.choice(
            [("ask", other, QUESTION, "--refresh"), ("precompute", videos, "--refresh")]
        )
        moment = rng.choice(["locks/*", "kv/*/*.part", "index/*"])
        after = rng.uniform(0, 0.01 if "part" in moment else 2 * seconds)
        warm.run(*arguments, cache=cache, kill_from=moment, kill_after=after)
        problem = _damage(cache)
        again, _ = warm.run("ask", kept, QUESTION, "--json", cache=cache)
        if not problem and (again.code or not again.json["cache"]["hit"]):
            problem = f"the stored video is lost: {again.err[-200:]}"
        if not problem and again.json["answers"][0]["answer"] + "\n" != ANSWER:
            problem = f"another answer: {again.out[-200:]}"
        yield Tried(f"{arguments[0]} killed {after:.3f} s after {moment}", problem)


def _damage(cache: Path) -> str:
    warnings: list[str] = []
    with LocalStore(cache, warn=warnings.append) as store:
        findings = store.verify()[1]
    return "; ".join([*warnings, *(finding.problem for finding in findings)])
