"""`sttm ask` in this process with one loaded model, and what its end must look like."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from sttm_cli.runtime import session
from sttm_cli.runtime.resources import ModelHost, Resources
from sttm_cli.store import LocalStore, NoStore
from tests.cli.process import Ended, sttm_here

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
QUESTION = "how many shapes are there?"
LONGEST_S = 90.0
"""The longest that one hostile file may take, on a machine that does other work as well."""


@dataclass(frozen=True)
class Tried:
    """A case, and the reason why it failed; "" where it did not."""

    name: str
    problem: str = ""


def quiet(line: str) -> None:
    """Nobody reads the warnings of a store that an attack opens."""


@functools.cache
def host() -> ModelHost:
    """The embedded model, loaded at its first use."""
    return ModelHost(NoStore())


def ask(*arguments: object, cache: Path | None) -> Ended:
    """`sttm ask ARGUMENTS QUESTION --json` with the cache folder `cache`, or without one.

    The cache is opened for this run alone, as a process opens it.
    """
    with LocalStore(cache, warn=quiet) if cache else NoStore() as store:
        with_model = functools.partial(session.VideoQA, resources=Resources(store, host=host()))
        with mock.patch.object(session, "VideoQA", with_model):
            return sttm_here("ask", "--json", "--no-server", *arguments, QUESTION)


def check(ended: Ended, seconds: float, codes: tuple[int, ...] = (0, 3)) -> str:
    """The reason why no hostile file may end a run so; "" where it may."""
    if ended.code not in codes:
        return f"exit code {ended.code}: {ended.err[-300:]}"
    if "Traceback" in ended.err:
        return f"a traceback: {ended.err[-300:]}"
    if seconds > LONGEST_S:
        return f"it took {seconds:.0f} s"
    schema = "sttm.ask/1" if ended.code == 0 else "sttm.error/1"
    try:
        shown = ended.json["schema"]
    except (ValueError, KeyError):
        return f"no JSON on stdout: {ended.out[:200]!r}"
    return "" if shown == schema else f"{shown} with exit code {ended.code}"


def asked(
    *arguments: object, cache: Path | None, codes: tuple[int, ...] = (0, 3)
) -> tuple[Ended, str]:
    """`ask`, and the problem with its end."""
    started = time.monotonic()
    ended = ask(*arguments, cache=cache)
    return ended, check(ended, time.monotonic() - started, codes)


def answered(ended: Ended) -> dict[str, Any]:
    """Everything in a report that depends on the video's frames."""
    report = ended.json
    video = report["video"]
    return {
        "answers": [answer["answer"] for answer in report["answers"]],
        "tokens": report["tokens"],
        "video": {name: video[name] for name in ("digest", "duration_s", "frame_times_s")},
    }
