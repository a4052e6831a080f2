"""This user's servers: list them, stop them, and start one in the background."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sttm_cli import __version__
from sttm_cli.base.errors import SttmError
from sttm_cli.base.reports import ServerFacts, ServerStatus
from sttm_cli.base.system import command as run_again
from sttm_cli.base.system import environment
from sttm_cli.serve.client import Server, ServerGone
from sttm_cli.serve.server_files import ServerFiles, all_files, pinned
from sttm_cli.settings.settings import SETTINGS, Settings

_END_S, _START_S = 600.0, 120.0
_OTHERS_S = 5.0
"""Maximum seconds between a server's lock and its address file."""


@dataclass(frozen=True)
class LocalServer:
    """A live server: its files, the facts in its address file, and its status; `trouble` is the
    reason if there is no status."""

    files: ServerFiles
    facts: ServerFacts
    status: ServerStatus | None
    trouble: str = ""

    def to_json(self) -> dict[str, object]:
        """Return its element of `sttm serve --status --json`."""
        return {**self.facts, **(self.status or {"trouble": self.trouble})}


def running() -> Iterator[LocalServer]:
    """Yield every live server; the files of dead ones are removed."""
    for files in all_files():
        facts = files.read()
        if not files.is_served() or facts is None:
            continue
        try:
            yield LocalServer(files, facts, Server(files).status())
        except ServerGone as error:
            yield LocalServer(files=files, facts=facts, status=None, trouble=str(error))


def end(server: LocalServer) -> None:
    """Stop a server and wait until its running work is finished. Raises SttmError."""
    pid = server.facts["pid"]
    try:
        Server(server.files).stop()
    except ServerGone as error:
        raise SttmError(f"the server with process id {pid} does not listen: {error}") from error
    deadline = time.monotonic() + _END_S
    while server.files.is_served():
        if time.monotonic() > deadline:
            raise SttmError(f"the server with process id {pid} does not end")
        time.sleep(0.02)


def leave_behind(settings: Settings, files: ServerFiles, keep_alive: str) -> Server:
    """Start a server that outlives this process and ends `keep_alive` after its last question.

    It listens on the user's own socket only. Raises ServerGone if it does not start; its log may
    contain the reason.
    """
    if not files.is_served():
        process = _start(settings, files, keep_alive)
        _appears(files, _START_S, lambda: process.poll() is None)
    # Another process may have started one at the same moment; wait for its address file.
    if not _appears(files, _OTHERS_S, files.is_served):
        raise ServerGone(f"it did not start; {files.log} may say why")
    facts = files.read()
    if facts is None or facts["version"] != __version__:
        raise ServerGone("a server of another version runs for these settings")
    return Server(files)


def _start(settings: Settings, files: ServerFiles, keep_alive: str) -> subprocess.Popen[bytes]:
    command = [*run_again("sttm_cli"), "serve", "--socket-only", *_flags(settings)]
    # Append mode: of two servers started at once, the one without the lock also writes here.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    with os.fdopen(os.open(files.log, flags, 0o600), "wb") as log:
        return subprocess.Popen(
            [*command, f"--keep-alive={keep_alive}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment(),
            start_new_session=True,
        )


def _appears(files: ServerFiles, seconds: float, may_come: Callable[[], bool]) -> bool:
    """Wait up to `seconds`, while `may_come()`, for an address file; return whether it appeared."""
    deadline = time.monotonic() + seconds
    while files.read() is None:
        if time.monotonic() > deadline or not may_come():
            return False
        time.sleep(0.02)
    return True


def _flags(settings: Settings) -> Iterator[str]:
    """Yield the command-line flags of the server for `settings`."""
    for name, value in pinned(settings).items():
        yield from SETTINGS[name].typed(value)
