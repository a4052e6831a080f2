"""Ask a running server if there is one, and otherwise answer in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from sttm_cli.base.events import (
    Answered,
    Noted,
    Progressed,
    Restarted,
    Show,
    TextPiece,
    Warned,
)
from sttm_cli.base.reports import AskReport
from sttm_cli.settings.settings import KEEP_ALIVE, STDIN, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from sttm_cli.base.results import Answer, Choice
    from sttm_cli.decode import Sources
    from sttm_cli.runtime.session import VideoQA
    from sttm_cli.serve.client import Server


@dataclass(frozen=True)
class Questions:
    """Questions about one video; with `options`, the likeliest of them is the answer.

    `before` is inserted between the video and the first question of the conversation.
    """

    video: str
    asked: Sequence[str]
    history: Sequence[tuple[str, str]] = ()
    options: Sequence[str] = ()
    before: str = ""

    def as_sent(self) -> Questions:
        """Return the questions with `before` prepended to the conversation's first question."""
        if not self.before:
            return self
        if self.history:
            (first, answer), *later = self.history
            return replace(self, history=[(self._led(first), answer), *later], before="")
        return replace(self, asked=[self._led(question) for question in self.asked], before="")

    def _led(self, question: str) -> str:
        # An empty question stays empty, so that the error names it.
        return f"{self.before}\n\n{question}" if question.strip() else question


class Asker:
    """Answers questions; a context manager. The model is only imported and loaded if no server
    answers."""

    def __init__(
        self, settings: Settings, show: Show, *, server: bool, keep_alive: str | None = None
    ) -> None:
        self.settings, self._show = settings, show
        self._server = self._find(keep_alive) if server else None

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *exception: object) -> None:
        for name in ("_session", "_sources"):
            if name in self.__dict__:
                getattr(self, name).close()

    def use(self, settings: Settings) -> None:
        """Answer with other settings from now on; the model stays loaded."""
        self.settings = settings
        if "_qa" in self.__dict__:
            self._qa.release()
            self._qa = self._session.with_settings(settings)

    @property
    def loaded(self) -> bool:
        """Whether a model is ready: a server's, or one in this process."""
        return self._server is not None or ("_session" in self.__dict__ and self._session.loaded)

    def ask(self, questions: Questions) -> AskReport:
        """Return the `sttm.ask/1` report of all questions; without questions, prepare the video.

        If the server fails midway, Restarted is shown and all questions are answered here.
        """
        report = self._ask(questions.as_sent())
        for answer, question in zip(report["answers"], questions.asked, strict=True):
            answer["question"] = question
        return report

    def _ask(self, questions: Questions) -> AskReport:
        if self._server is not None and questions.video != STDIN:
            from sttm_cli.serve.client import ServerGone

            try:
                return self._remotely(self._server, questions)
            except ServerGone as error:
                self._server = None
                why = f"the server did not answer ({error}): answering without it"
                self._show(Restarted(why))
        return self._here(questions)

    def _remotely(self, server: Server, questions: Questions) -> AskReport:
        return server.ask(
            self.settings,
            questions.video,
            questions.asked,
            show=self._show,
            history=questions.history,
            options=questions.options,
            copy=self._copy(server, questions.video),
        )

    def _copy(self, server: Server, video: str) -> Path | None:
        """Fetch the video of an address, once for all questions; None for a file, and for a server
        that fetches it itself because it may be on another machine."""
        if server.files is None or "://" not in video:
            return None
        return self._sources.find(video).path

    @cached_property
    def _sources(self) -> Sources:
        from sttm_cli.decode.source import Sources

        return Sources(max_bytes=self.settings.max_download, progress=self._progress)

    def _here(self, questions: Questions) -> AskReport:
        qa = self._qa
        answers: list[Answer | Choice] = []
        prepared = qa.prepare(questions.video)
        # Imports torch, which a wrong path does not need.
        from sttm_cli.runtime.prepared import answer_json, ask_report

        qa.check(prepared, questions.asked)
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
                        on_text=lambda text: self._show(TextPiece(text)),
                    )
                )
            self._show(Answered(answer_json(answers[-1])))
        return ask_report(prepared, answers, settings=qa.settings, plan=qa.model_plan)

    @cached_property
    def _qa(self) -> VideoQA:
        """The session with the current settings."""
        return self._session

    @cached_property
    def _session(self) -> VideoQA:
        """The session that owns the store, the model and the copies of videos."""
        from sttm_cli.runtime.session import VideoQA

        return VideoQA(self.settings, warn=self._warn, progress=self._progress)

    def _warn(self, line: str) -> None:
        self._show(Warned(line))

    def _progress(self, stage: str, done: int, of: int) -> None:
        self._show(Progressed(stage, done, of))

    def _find(self, keep_alive: str | None) -> Server | None:
        from sttm_cli.serve.client import ServerGone, find_server

        server = find_server(self.settings, self._warn)
        if server is not None:
            self._show(Noted(f"asking {server}"))
            stays = KEEP_ALIVE.read(keep_alive)
            server = replace(server, keep_alive=stays)
        elif keep_alive is not None:
            try:
                server = self._leave(keep_alive)
            except ServerGone as error:
                self._warn(f"no server is left behind: {error}")
        return server

    def _leave(self, keep_alive: str) -> Server | None:
        """Start a server that stays for `keep_alive` after the last question."""
        from sttm_cli.serve.local_servers import leave_behind
        from sttm_cli.serve.server_files import files_of

        files = files_of(self.settings)
        if files is None:
            self._warn("no server is left behind: these settings are answered here")
            return None
        self._progress("load", 0, 1)
        server = leave_behind(self.settings, files, keep_alive)
        stays = keep_alive if keep_alive[-1:].isalpha() else f"{keep_alive} s"
        self._show(Noted(f"a server stays for {stays} after the last question"))
        return server
