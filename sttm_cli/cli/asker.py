"""Questions put to a server of the user's own where one runs, else answered in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sttm_cli.base.types import Json
from sttm_cli.settings.settings import KEEP_ALIVE, STDIN, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from sttm_cli.base.results import Answer, Choice
    from sttm_cli.decode import Sources
    from sttm_cli.runtime.session import VideoQA
    from sttm_cli.serve.client import Server

Tell = Callable[[str, Any], None]
"""Gets what happens, as it happens: ("warning", line), ("progress", [stage, done, of]),
("text", piece) and ("answer", one of the report's answers)."""


@dataclass(frozen=True)
class Questions:
    """Questions about one video; with `options` the likeliest of them is the answer.

    `before` stands between the video and the first question of the conversation.
    """

    video: str
    asked: Sequence[str]
    history: Sequence[tuple[str, str]] = ()
    options: Sequence[str] = ()
    before: str = ""

    def as_sent(self) -> Questions:
        """With `before` at the head of the conversation's first question."""
        if not self.before:
            return self
        if self.history:
            (first, answer), *later = self.history
            return replace(self, history=[(self._led(first), answer), *later], before="")
        return replace(self, asked=[self._led(question) for question in self.asked], before="")

    def _led(self, question: str) -> str:
        # An empty question stays one: it is refused by name.
        return f"{self.before}\n\n{question}" if question.strip() else question


class Asker:
    """Answers questions; a context manager. The model is imported and loaded only where no
    server answers."""

    def __init__(
        self, settings: Settings, tell: Tell, *, server: bool, keep_alive: str | None = None
    ) -> None:
        self.settings, self._tell = settings, tell
        self._server = self._find(keep_alive) if server else None

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *exception: object) -> None:
        for name in ("_qa", "_sources"):
            if name in self.__dict__:
                getattr(self, name).close()

    def use(self, settings: Settings) -> None:
        """Answer with other settings from here on; the model and its place stay."""
        self.settings = settings
        if "_qa" in self.__dict__:
            self._qa.settings = settings

    def ask(self, questions: Questions) -> Json:
        """The report `sttm.ask/1` of all questions; without any, the video is prepared.

        Where the server ends in the middle, "again" is told and everything is answered here.
        """
        report = self._ask(questions.as_sent())
        for answer, question in zip(report["answers"], questions.asked, strict=True):
            answer["question"] = question
        return report

    def _ask(self, questions: Questions) -> Json:
        if self._server is not None and questions.video != STDIN:
            from sttm_cli.serve.client import ServerGone

            try:
                return self._remotely(self._server, questions)
            except ServerGone as error:
                self._server = None
                self._tell("again", f"the server did not answer ({error}): answering without it")
        return self._here(questions)

    def _remotely(self, server: Server, questions: Questions) -> Json:
        report: Json = {}
        for kind, value in server.ask(
            self.settings,
            questions.video,
            questions.asked,
            history=questions.history,
            options=questions.options,
            copy=self._copy(server, questions.video),
        ):
            if kind == "report" and isinstance(value, dict):
                report = value
            else:
                self._tell(kind, value)
        return report

    def _copy(self, server: Server, video: str) -> Path | None:
        """What an address gives, fetched once for all questions; None for a file, and where the
        server is to fetch it, which may be another machine."""
        if server.place is None or "://" not in video:
            return None
        return self._sources.find(video).path

    @cached_property
    def _sources(self) -> Sources:
        from sttm_cli.decode.source import Sources

        return Sources(
            max_bytes=self.settings.max_download,
            progress=lambda *stage: self._tell("progress", stage),
        )

    def _here(self, questions: Questions) -> Json:
        from sttm_cli.runtime.ask_report import answer_json, ask_report

        qa = self._qa
        answers: list[Answer | Choice] = []
        prepared = qa.prepare(questions.video)
        qa.check(questions.asked)
        for question in questions.asked:
            if questions.options:
                answers.append(
                    qa.choose(prepared, question, questions.options, history=questions.history)
                )
            else:
                answers.append(
                    qa.answer(
                        prepared,
                        question,
                        history=questions.history,
                        on_text=lambda text: self._tell("text", text),
                    )
                )
            self._tell("answer", answer_json(answers[-1]))
        return ask_report(qa, prepared, answers)

    @cached_property
    def _qa(self) -> VideoQA:
        from sttm_cli.runtime.session import VideoQA

        return VideoQA(
            self.settings,
            warn=lambda line: self._tell("warning", line),
            progress=lambda *stage: self._tell("progress", stage),
        )

    def _find(self, keep_alive: str | None) -> Server | None:
        from sttm_cli.serve.client import ServerGone, find_server

        server = find_server(self.settings, lambda line: self._tell("warning", line))
        if server is not None:
            self._tell("note", f"asking {server}")
            stays = KEEP_ALIVE.read(keep_alive)
            server = replace(server, keep_alive=stays)
        elif keep_alive is not None:
            try:
                server = self._leave(keep_alive)
            except ServerGone as error:
                self._tell("warning", f"no server is left behind: {error}")
        return server

    def _leave(self, keep_alive: str) -> Server | None:
        """A server of this user's own that stays for `keep_alive` after the last question."""
        from sttm_cli.serve.place import place_of
        from sttm_cli.serve.running import leave_behind

        place = place_of(self.settings)
        if place is None:
            self._tell("warning", "no server is left behind: these settings are answered here")
            return None
        self._tell("progress", ("load", 0, 1))
        server = leave_behind(self.settings, place, keep_alive)
        self._tell("note", f"a server stays for {keep_alive} after the last question")
        return server
