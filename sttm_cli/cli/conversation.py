"""A conversation about one video at a time, independent of terminals."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sttm_cli.base.errors import ContextError, SttmError, UsageError
from sttm_cli.base.reports import AskReport, ChatReport, TurnReport
from sttm_cli.base.types import Ending
from sttm_cli.cli.asker import Asker, Questions
from sttm_cli.settings.fields import check_question
from sttm_cli.settings.settings import Settings


class Stopped(Exception):
    """Raised while an event is shown, to end the answer; carries the text so far."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass(frozen=True)
class Turn:
    """A question and its answer; `seconds` counts from the question."""

    question: str
    answer: str
    budget: float | int
    ending: str
    seconds: float

    def to_json(self) -> TurnReport:
        return {
            "question": self.question,
            "answer": self.answer,
            "budget": self.budget,
            "ending": self.ending,
            "seconds": self.seconds,
        }


class Conversation:
    """Questions about `video`, each asked with the turns before it unless `remembers` is False.

    `before` is inserted between the video and the first question. Raises as `Asker.ask`.
    """

    def __init__(
        self, asker: Asker, video: str, *, before: str = "", remembers: bool = True
    ) -> None:
        self._asker, self._remembers = asker, remembers
        self._saved: set[Path] = set()
        self.facts: AskReport
        self.video: str
        self._open(video, before)

    @property
    def settings(self) -> Settings:
        """The current settings."""
        return self._asker.settings

    def open(self, video: str) -> None:
        """Switch to `video`; the turns about the previous video are dropped."""
        self._open(video, before="")

    def ask(self, question: str) -> Turn:
        """Answer a question; the oldest turns are dropped once the model's context is full, and
        counted in `forgotten`."""
        check_question(question)
        started = time.perf_counter()
        try:
            answer, ending = self._answer(question)
        except Stopped as stopped:
            answer, ending = stopped.text, Ending.STOPPED
        seconds = round(time.perf_counter() - started, 3)
        turn = Turn(
            question=question,
            answer=answer,
            budget=self.settings.budget,
            ending=ending,
            seconds=seconds,
        )
        if answer:
            self.turns.append(turn)
        return turn

    def set_budget(self, budget: float | int) -> None:
        """Prepare the video with another budget; the turns stay. A failure changes nothing."""
        before = self.settings
        self._asker.use(replace(before, budget=budget))
        try:
            self.facts = self._asker.ask(Questions(self.video, ()))
        except BaseException:
            self._asker.use(before)
            raise

    def to_json(self) -> ChatReport:
        """Return the whole conversation as JSON."""
        return {
            "schema": "sttm.chat/1",
            "video": self.video,
            "model": self.settings.model,
            "turns": [turn.to_json() for turn in self.turns],
        }

    def to_markdown(self) -> str:
        """Return the whole conversation as Markdown."""
        head = f"# {self.video}\n\nAnswers of {self.settings.model}.\n"
        return head + "".join(f"\n**{t.question}**\n\n{t.answer}\n" for t in self.turns)

    def save(self, path: Path) -> None:
        """Write the conversation as JSON or Markdown, depending on the suffix.

        Raises UsageError for another suffix, and for a file that this conversation did not write.
        """
        if path.suffix not in (".json", ".md"):
            raise UsageError(f"{path} ends in neither .md nor .json", "/save talk.md")
        if path.exists() and path.absolute() not in self._saved:
            raise UsageError(f"{path} already exists", "give another name")
        if path.suffix == ".json":
            text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        else:
            text = self.to_markdown()
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise SttmError(f"{path} cannot be written: {error.strerror or error}") from error
        self._saved.add(path.absolute())

    def _open(self, video: str, before: str) -> None:
        # The report of the video's preparation, without questions.
        self.facts = self._asker.ask(Questions(video, ()))
        self.video, self._before = video, before
        self.turns: list[Turn] = []
        self.forgotten = 0

    def _answer(self, question: str) -> tuple[str, str]:
        while True:
            history = self._history()
            asked = Questions(self.video, [question], history, before=self._before)
            try:
                (answer,) = self._asker.ask(asked)["answers"]
            except ContextError:
                if not history:
                    raise
                self.forgotten += 1
            else:
                return answer["answer"], answer.get("ending", Ending.END)

    def _history(self) -> Sequence[tuple[str, str]]:
        kept = self.turns[self.forgotten :] if self._remembers else []
        return [(turn.question, turn.answer) for turn in kept]
