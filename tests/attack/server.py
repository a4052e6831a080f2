"""Hostile requests (`requests.py`): each gets an answer of the client's fault at most, and the
server goes on."""

from __future__ import annotations

import http.client
import itertools
import random
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

from tests.attack.asking import LONGEST_S, Tried
from tests.serve.running import serving

AT_ONCE = 32
"""Many of them keep their connection waiting for what they have promised."""
RAW = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"OPTIONS ", b"DELETE ")


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    cases = import_module("tests.attack.requests").cases(rng)
    with serving(folder) as running, ThreadPoolExecutor(AT_ONCE) as pool:
        place = urlsplit(running.url)

        def tried(case: tuple[str, bytes]) -> Tried:
            return Tried(case[0], _problem(place.hostname or "", place.port or 80, case[1]))

        waiting = deque(pool.submit(tried, case) for case in itertools.islice(cases, AT_ONCE))
        for case in cases:
            yield waiting.popleft().result()
            waiting.append(pool.submit(tried, case))


def _problem(host: str, port: int, data: bytes) -> str:
    started = time.monotonic()
    connection = http.client.HTTPConnection(host, port, timeout=LONGEST_S)
    try:
        if data.startswith(RAW):
            status = _status_of(connection, data)
        else:
            head = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", data, head)
            status = connection.getresponse().status
    except (ConnectionError, http.client.HTTPException):
        # Closed without an answer: what is no HTTP deserves none.
        status = 0
    except TimeoutError:
        return f"no answer after {time.monotonic() - started:.0f} s"
    finally:
        connection.close()
    if status >= 500 and status != 503:
        return f"status {status}"
    return _health(host, port)


def _status_of(connection: http.client.HTTPConnection, data: bytes) -> int:
    """The status that a whole request, head and body, is answered with."""
    connection.connect()
    connection.sock.sendall(data)
    connection.sock.settimeout(5)
    try:
        line = connection.sock.recv(64).split(b" ")
    except TimeoutError:
        # It waits for a body that the head has promised.
        return 0
    return int(line[1]) if len(line) > 1 and line[1].isdigit() else 0


def _health(host: str, port: int) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except OSError as error:
        return f"/health: {error}"
    finally:
        connection.close()
    return "" if status == 200 else f"/health: {status}"
