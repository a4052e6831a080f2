"""Rendering of chat templates in a child process with limited time and memory."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
from contextlib import suppress
from threading import Lock, Timer
from typing import Any

from sttm_cli.base.errors import ModelError
from sttm_cli.base.system import command, environment

PATIENCE_S = 30.0
"""Wall-clock seconds for one prompt; the child has a lower limit of processor time."""


def start() -> None:
    """Start the child process ahead of its first prompt, for example while weights are loaded."""
    with _lock:
        _running()


def render(template: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    """Render `messages` up to the start of the model's answer, as transformers does.

    `variables`: the tokenizer's special tokens. Thread-safe. Raises ModelError if the template is
    damaged, raises, or takes too much time or memory.
    """
    job = {"template": template, "messages": messages, "variables": variables}
    with _lock:
        answer = _running().answer(json.dumps(job).encode() + b"\n")
    if "text" not in answer:
        raise ModelError(
            f"the model's chat template cannot be rendered: {answer['error']}",
            "give a checkpoint whose chat template supports videos",
        )
    return str(answer["text"])


class _Process:
    """A rendering child process and its pipes."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            command("sttm_cli.models.template_child"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def answer(self, job: bytes) -> dict[str, str]:
        watch = Timer(PATIENCE_S, self._process.kill)
        watch.daemon = True
        watch.start()
        try:
            line = self._exchanged(job)
        except BaseException:
            # A late answer would be read as that of the next prompt.
            self.end()
            raise
        finally:
            watch.cancel()
        if line.endswith(b"\n"):
            answer: dict[str, str] = json.loads(line)
            return answer
        self.end()
        return {"error": "it takes too much time"}

    def _exchanged(self, job: bytes) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with suppress(BrokenPipeError):
            stdin.write(job)
            stdin.flush()
        return stdout.readline()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


_lock = Lock()
_process: _Process | None = None


def _running() -> _Process:
    global _process
    # A forked process must not read from its parent's pipes.
    if _process is None or _process.owner != os.getpid() or not _process.is_alive:
        _process = _Process()
    return _process


@atexit.register
def _end() -> None:
    if _process is not None and _process.owner == os.getpid():
        _process.end()
