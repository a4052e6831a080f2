"""The servers that this user has running: looking at them, ending them, leaving one behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sttm_cli.errors import SttmError
from sttm_cli.serve.address import Place, places
from sttm_cli.serve.client import Server, ServerGone
from sttm_cli.types import Json

_END_S = 600.0


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
