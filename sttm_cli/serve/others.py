"""The servers that this user has running: looking at them, ending them, leaving one behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

from sttm_cli.config import Settings
from sttm_cli.errors import SttmError
from sttm_cli.serve.address import Place, pinned, places
from sttm_cli.serve.client import Server, ServerGone
from sttm_cli.types import Json

_END_S, _START_S = 600.0, 120.0


def running() -> Iterator[tuple[Place, Json]]:
    """Every living server: where it is, and what it tells of itself. Dead ones are cleared."""
    for place in places():
        facts = place.read()
        if facts is None or not place.is_served():
            place.clear()
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
    flags = list(_flags(settings))
    command = [sys.executable, "-m", "sttm_cli", "serve", "--socket-only", *flags]
    with os.fdopen(os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        process = subprocess.Popen(
            [*command, f"--keep-alive={keep_alive}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if place.read() is not None:
            return Server(place)
        # Another process may have started one at the same moment: then its address comes.
        if process.poll() is not None and not place.is_served():
            break
        time.sleep(0.02)
    raise ServerGone(f"it did not start; {place.log} says why")


def _flags(settings: Settings) -> Iterator[str]:
    """The flags that make a server the one for `settings`."""
    for name, value in pinned(settings).items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            yield flag
        elif value not in (None, False):
            yield f"{flag}={value}"
