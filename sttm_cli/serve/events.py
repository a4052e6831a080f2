"""One asking on its way: what was asked, what it has come to so far, and whether anybody waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sttm_cli.base.results import Answer, Choice
from sttm_cli.base.types import Json
from sttm_cli.decode import Source
from sttm_cli.runtime.ask_report import answer_json
from sttm_cli.settings.settings import Settings

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Asking:
    """Questions about one video. `video` gives where it is while it is entered; with `options`
    the likeliest of them is the answer. `logprobs`: how many alternatives each token of an answer
    is told with, None for no such thing."""

    settings: Settings
    video: AbstractContextManager[Path | Source]
    questions: tuple[str, ...]
    history: Turns = ()
    options: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Told:
    """What one asking has come to so far: a line for the person, progress, a piece of text, an
    answer; with the last answer the whole report. `logprobs`: of the tokens since the last."""

    kind: str
    value: Any
    prompt_tokens: int = 0
    logprobs: Json | None = None


class Gone(Exception):
    """Nobody waits for this any longer."""


def told_json(told: Told) -> Json:
    """An event as the private protocol of `sttm ask` sends it."""
    value = answer_json(told.value) if isinstance(told.value, (Answer, Choice)) else told.value
    return {told.kind: value}


class Run:
    """One asking's way back to who asked, and whether anybody still does."""

    def __init__(self, tell: Callable[[Told | None], Any]) -> None:
        self.tell = tell
        self.cancelled = threading.Event()
        self.started = False
        self.turn: Future[Any] | None = None

    def give_up(self, task: asyncio.Task[None]) -> None:
        """Nobody waits any longer: what runs ends at its next token or chunk of frames; what
        waits for its turn ends here."""
        self.cancelled.set()
        if not self.started:
            task.cancel()
        elif self.turn is not None:
            self.turn.cancel()

    def progress(self, stage: str, done: int, of: int) -> None:
        self.check()
        self.tell(Told("progress", [stage, done, of]))

    def check(self) -> None:
        """Raise Gone where nobody waits any longer."""
        if self.cancelled.is_set():
            raise Gone

    def warn(self, line: str) -> None:
        self.tell(Told("warning", line))
