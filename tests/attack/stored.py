"""A cache with one stored answer, which artifacts and rows are attacked in."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.attack.asking import SAMPLE, answered, asked

FLAGS = ("--frames", 2)


@dataclass(frozen=True)
class Stored:
    """A video, its cold answer, and an untouched cache folder in which it is stored.

    `flags`: those of all questions.
    """

    flags: tuple[object, ...]
    video: Path
    right: dict[str, Any]
    cache: Path

    def fresh(self) -> Path:
        """A copy of the cache to be attacked, in place of the one before."""
        copy = self.cache.with_name("attacked")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.cache, copy, symlinks=True)
        return copy

    def problem(self, cache: Path) -> str:
        """The reason why the answer with this cache is not right; "" where it is."""
        ended, problem = asked(*self.flags, self.video, cache=cache, codes=(0,))
        if problem:
            return problem
        given = answered(ended)
        return "" if given == self.right else f"another answer: {given}"


def store(folder: Path, *more: object) -> Stored:
    """Ask once, without a cache for the right answer, and once to store; `more` flags with both."""
    flags = (*FLAGS, *more)
    video = Path(shutil.copy(SAMPLE, folder / "video.mp4"))
    cold, problem = asked(*flags, video, cache=None, codes=(0,))
    _, stored = asked(*flags, video, cache=folder / "cache", codes=(0,))
    if problem or stored:
        raise AssertionError(problem or stored)
    return Stored(flags, video, answered(cold), folder / "cache")
