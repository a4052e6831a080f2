"""A client's questions as the engine processes them, and the events up to the answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sttm_cli.base.events import Progressed, Reported, Warned
from sttm_cli.base.results import Answer, Choice
from sttm_cli.base.types import Json
from sttm_cli.decode import Source
from sttm_cli.settings.settings import Settings

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Job:
    """Questions about one video. The context manager `video` yields its location; with `options`,
    the likeliest of them is the answer. `logprobs`: how many alternatives are reported with each
    token of an answer, None for no report."""

    settings: Settings
    video: AbstractContextManager[Path | Source]
    questions: tuple[str, ...]
    history: Turns = ()
    options: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Piece:
    """The next piece of an answer's text, with its tokens' `logprobs`."""

    text: str
    logprobs: Json | None = None


@dataclass(frozen=True)
class Reply:
    """A complete answer to a prompt of `prompt_tokens`; `logprobs` of the tokens since the last
    piece."""

    answer: Answer | Choice
    prompt_tokens: int
    logprobs: Json | None = None


Event = Warned | Progressed | Piece | Reply | Reported
"""In order of occurrence; the report comes last."""


class Gone(Exception):
    """The client has disconnected."""


class JobRun:
    """A waiting or running job: passes its events on, and stops once its client has
    disconnected."""

    def __init__(self, send: Callable[[Event | None], Any]) -> None:
        self.send = send
        self.cancelled = threading.Event()
        self.started = False
        self.turn: Future[Any] | None = None

    def give_up(self, task: asyncio.Task[None]) -> None:
        """Stop: a running job at its next token or chunk of frames, a waiting one at once."""
        self.cancelled.set()
        if not self.started:
            task.cancel()
        elif self.turn is not None:
            self.turn.cancel()

    def progress(self, stage: str, done: int, of: int) -> None:
        self.check()
        self.send(Progressed(stage, done, of))

    def check(self) -> None:
        """Raise Gone if the client has disconnected."""
        if self.cancelled.is_set():
            raise Gone

    def warn(self, line: str) -> None:
        self.send(Warned(line))
