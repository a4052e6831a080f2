"""Hostile requests (`requests.py`): each is answered with a status of STATUSES, and the
server goes on."""

from __future__ import annotations

import http.client
import itertools
import random
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from tests.attack.asking import LONGEST_S, Tried
from tests.attack.requests import STATUSES, exchange
from tests.attack.requests import cases as hostile
from tests.serve.running import serving

AT_ONCE = 32
"""Many of them keep their connection waiting for what they have promised."""
WAITING_S = 5.0
HEALTH_S = 5.0
"""2 seconds, and 3 more on a machine that does other work as well."""


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    cases = hostile(rng)
    with serving(folder) as running, ThreadPoolExecutor(AT_ONCE) as pool:
        place = urlsplit(running.url)

        def tried(case: tuple[str, bytes]) -> Tried:
            return Tried(case[0], _problem(place.hostname or "", place.port or 80, *case))

        waiting = deque(pool.submit(tried, case) for case in itertools.islice(cases, AT_ONCE))
        for case in cases:
            yield waiting.popleft().result()
            waiting.append(pool.submit(tried, case))


def _problem(host: str, port: int, name: str, data: bytes) -> str:
    started = time.monotonic()
    # A head that is not plain may promise a body that never comes: the server waits for it.
    timeout_s = WAITING_S if name.startswith("http") else LONGEST_S
    try:
        status = exchange(host, port, data, timeout_s=timeout_s)
    except OSError as error:
        return f"no connection: {error}"
    except ValueError as error:
        return f"no HTTP: {error}"
    if status not in STATUSES:
        return f"status {status}"
    if not status and time.monotonic() - started > LONGEST_S:
        return f"no answer after {LONGEST_S:.0f} s"
    return _health(host, port)


def _health(host: str, port: int) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=HEALTH_S)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except OSError as error:
        return f"/health: {error}"
    finally:
        connection.close()
    return "" if status == 200 else f"/health: {status}"
