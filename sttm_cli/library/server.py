"""Runner for a server: the server computes, this process probes the videos and counts outcomes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from sttm_cli.base.errors import SttmError
from sttm_cli.base.events import Shown, Warned
from sttm_cli.base.results import STAGES
from sttm_cli.base.types import TokenCounts
from sttm_cli.library.in_process import LocalRunner
from sttm_cli.library.loop import Admit, Item
from sttm_cli.library.outcome import STORED, Computed, Failed, Job, Outcome, Skipped, Stopped
from sttm_cli.library.prepare import NOT_STORED
from sttm_cli.serve.client import ServerGone

if TYPE_CHECKING:
    from sttm_cli.runtime.session import VideoQA
    from sttm_cli.serve.client import Server


class ServerRunner:
    """Has `server` prepare each video; continues in this process if the server is gone."""

    def __init__(self, qa: VideoQA, server: Server) -> None:
        self._qa, self._server = qa, server

    def run(self, items: Iterator[Item], admit: Admit) -> Iterator[Outcome]:
        for item in items:
            if not isinstance(item, Job):
                yield item
                continue
            try:
                yield admit(item) or self._prepared(item)
            except ServerGone as error:
                self._qa.warn(f"the server did not answer ({error}): continuing without it")
                yield from LocalRunner(self._qa).run(chain([item], items), admit)
                return

    def _prepared(self, job: Job) -> Outcome:
        warnings: list[str] = []

        def show(event: Shown) -> None:
            if isinstance(event, Warned):
                warnings.append(event.line)

        try:
            source = job.request.source
            # A server, which may be on another machine, fetches remote videos itself.
            copy = source.path if source.is_copy and self._server.files is not None else None
            report = self._server.ask(self._qa.settings, source.name, (), show=show, copy=copy)
        except SttmError as error:
            return Failed(job.path, error.message)
        cache, tokens = report["cache"], report["tokens"]
        if report["video"]["fallback"]:
            return Failed(job.path, f"it is not stored: {warnings[-1] if warnings else 'see ask'}")
        if not cache["bytes"]:
            return Stopped(job.path, NOT_STORED)
        if cache["hit"]:
            return Skipped(job.path, STORED, bytes=cache["bytes"])
        return Computed(
            path=job.path,
            bytes=cache["bytes"],
            tokens=TokenCounts(tokens["video_full"], tokens["video_kept"], tokens["prefix"]),
            video_s=job.video_s,
            seconds={name: report["seconds"][name] for name in STAGES},
            warnings=tuple(warnings),
        )
