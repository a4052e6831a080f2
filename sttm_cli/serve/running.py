"""The servers that this user has running: looking at them, ending them, leaving one behind."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator

from sttm_cli import __version__
from sttm_cli.base.errors import SttmError
from sttm_cli.base.subprocesses import command as run_again
from sttm_cli.base.subprocesses import environment
from sttm_cli.base.types import Json
from sttm_cli.serve.client import Server, ServerGone
from sttm_cli.serve.place import Place, pinned, places
from sttm_cli.settings.settings import SETTINGS, Settings

_END_S, _START_S = 600.0, 120.0
_OTHERS_S = 5.0
"""How long the start of a server takes from holding its place to telling its address."""


def running() -> Iterator[tuple[Place, Json]]:
    """Every living server: where it is, and what it tells of itself. Dead ones are cleared."""
    for place in places():
        facts = place.read()
        if not place.is_served() or facts is None:
            continue
        try:
            yield place, {**facts, **Server(place).get("/sttm/status")}
        except ServerGone as error:
            yield place, {**facts, "trouble": str(error)}


def end(place: Place, pid: int) -> None:
    """Ask a server to stop, and wait until what it runs is finished. Raises SttmError."""
    try:
        Server(place).get("/sttm/stop", method="POST")
    except ServerGone as error:
        raise SttmError(f"the server with process id {pid} does not listen: {error}") from error
    deadline = time.monotonic() + _END_S
    while place.is_served():
        if time.monotonic() > deadline:
            raise SttmError(f"the server with process id {pid} does not end")
        time.sleep(0.02)


def leave_behind(settings: Settings, place: Place, keep_alive: str) -> Server:
    """Start a server at `place` that outlives this process and ends `keep_alive` after its last
    question; it listens for this user's own `sttm` only. Raises ServerGone where it does not come
    up; its log then says why."""
    if not place.is_served():
        process = _start(settings, place, keep_alive)
        _appears(place, _START_S, lambda: process.poll() is None)
    # Another process may have started one at the same moment: then its address comes.
    if not _appears(place, _OTHERS_S, place.is_served):
        raise ServerGone(f"it did not start; {place.log} may say why")
    facts = place.read() or {}
    if facts.get("version") != __version__:
        raise ServerGone("one of another version is in its place")
    return Server(place)


def _start(settings: Settings, place: Place, keep_alive: str) -> subprocess.Popen[bytes]:
    command = [*run_again("sttm_cli"), "serve", "--socket-only", *_flags(settings)]
    # Appended to: two may be started at once, of which one finds the place held.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    with os.fdopen(os.open(place.log, flags, 0o600), "wb") as log:
        return subprocess.Popen(
            [*command, f"--keep-alive={keep_alive}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment(),
            start_new_session=True,
        )


def _appears(place: Place, seconds: float, may_come: Callable[[], bool]) -> bool:
    """Whether a server tells its address within `seconds`, or for as long as it may come."""
    deadline = time.monotonic() + seconds
    while place.read() is None:
        if time.monotonic() > deadline or not may_come():
            return False
        time.sleep(0.02)
    return True


def _flags(settings: Settings) -> Iterator[str]:
    """The flags that make a server the one for `settings`."""
    for name, value in pinned(settings).items():
        yield from SETTINGS[name].typed(value)
