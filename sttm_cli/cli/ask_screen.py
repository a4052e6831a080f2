"""The output of `sttm ask` while it answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from sttm_cli.base.events import (
    Answered,
    Noted,
    Progressed,
    Restarted,
    Shown,
    TextPiece,
    Warned,
)
from sttm_cli.base.reports import AnswerReport
from sttm_cli.cli.flags import Output
from sttm_cli.cli.output import StageProgress, cut_off, one_line, print_answer, say, warn


class Screen:
    """Prints events: answers in pieces on a terminal, otherwise one per line."""

    def __init__(self, output: Output, progress: StageProgress, max_new_tokens: int) -> None:
        self.output, self._progress, self._limit = output, progress, max_new_tokens
        self._prints = not output.as_json
        self._streamed = sys.stdout.isatty() and self._prints
        self._printed = self._skip = 0
        self._open, self._name = False, ""
        self._since = time.perf_counter()
        self._answers: list[tuple[str, float]] = []

    def stop(self) -> None:
        """Remove the progress bar."""
        self._progress.stop()

    def begin(self, video: str) -> None:
        """Start the answers about another of several videos; its name precedes each answer."""
        self._printed = self._skip = 0
        self._open, self._streamed = False, False
        self._name = f"{one_line(video)}\t".replace("\t", " ", video.count("\t"))
        self._since = time.perf_counter()
        self._answers = []

    def answered(self, asked: Sequence[str]) -> list[tuple[str, str, float]]:
        """Return the questions answered so far: question, answer, and the seconds it took."""
        return [(q, *answer) for q, answer in zip(asked, self._answers, strict=False)]

    def show(self, event: Shown) -> None:
        if isinstance(event, Progressed):
            self._progress(event.stage, event.done, event.of)
            return
        self._progress.stop()
        match event:
            case Warned(line):
                warn(line)
            case Noted(line) if not self.output.quiet:
                say(line)
            case Restarted(why):
                self._restart(why)
            case TextPiece(text) if self._streamed and not self._skip:
                self._open = True
                print_answer(one_line(text))
            case Answered(answer):
                self._answer(answer)

    def _restart(self, why: str) -> None:
        """Expect all answers once more, skipping those already printed."""
        if self._open:
            print_answer("\n")
        warn(why)
        self._skip, self._open = self._printed, False

    def _answer(self, answer: AnswerReport) -> None:
        if self._skip:
            self._skip -= 1
            return
        self._printed += 1
        now = time.perf_counter()
        self._answers.append((answer["answer"], now - self._since))
        self._since = now
        if self._prints:
            print_answer(self._name + self._ending(answer))
        self._open = False
        if not self.output.quiet and (cut := cut_off(answer.get("ending"), self._limit)):
            warn(cut)

    def _ending(self, answer: AnswerReport) -> str:
        """Return the part of an answer that is not printed yet."""
        if choices := answer.get("choices"):
            best = max(choices, key=lambda option: option["probability"])
            return f"{best['text']}\t{best['probability']:.3f}\n"
        return "\n" if self._streamed else one_line(answer["answer"]) + "\n"
