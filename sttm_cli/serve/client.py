"""Talking to a resident server; imports nothing heavy, so that a follow-up feels instant."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sttm_cli import __version__
from sttm_cli.base.errors import SttmError, UsageError
from sttm_cli.base.types import Json
from sttm_cli.serve.place import Place, may_be_served, of_the_model, per_request, place_of
from sttm_cli.settings.settings import Settings

HOST, KEY = "STTM_HOST", "STTM_API_KEY"
_OF_THE_QUESTION = ("usage", "context", "video")
_CONNECT_S = 5.0
_HEARD_S = 10.0
"""A server that lives says at once that it has heard."""


class ServerGone(Exception):
    """There is no server that would answer; its text says why, in a few words."""


class ServerFailure(SttmError):
    """What a server could not do; told as if it had happened here."""

    def __init__(self, told: Json) -> None:
        super().__init__(str(told.get("message", "the server failed")), str(told.get("hint", "")))
        self.kind = str(told.get("kind", "error"))
        self.exit_code = int(told.get("exit_code", 1))


@dataclass(frozen=True)
class Server:
    """A server: `place` for one of this user's own, else `address` (http://host:port).

    `keep_alive`: seconds that one which was left behind is to stay after the last question.
    """

    place: Place | None
    address: str = ""
    keep_alive: float | None = None

    def __str__(self) -> str:
        return self.address or "this user's server"

    def ask(
        self,
        settings: Settings,
        video: str,
        questions: Sequence[str],
        *,
        history: Sequence[tuple[str, str]] = (),
        options: Sequence[str] = (),
        copy: Path | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """Events in the order in which they happen, the last one ("report", sttm.ask/1).

        `copy`: the file with what the address `video` gave.
        Raises ServerGone where the server is none or dies, ServerFailure for what it tells.
        """
        sent = video if "://" in video and copy is None else str((copy or Path(video)).absolute())
        body = {
            "version": __version__,
            "model": of_the_model(settings),
            "keep_alive": self.keep_alive,
            "video": sent,
            "name": video if copy else None,
            "questions": list(questions),
            "history": [list(turn) for turn in history],
            "options": list(options),
            "settings": per_request(settings),
        }
        for event in self._lines("/sttm/ask", body):
            ((kind, value),) = event.items()
            if kind == "error":
                # As the user named it, not as the server knows it.
                message = str(value.get("message", "")).replace(sent, video)
                if self.place is None and value.get("kind") == "video":
                    # What it may not or cannot read may well be readable here.
                    raise ServerGone(message)
                raise _failure({**value, "message": message})
            if kind == "report":
                value["video"]["path"] = video
            if kind != "heard":
                yield kind, value

    def get(self, path: str, *, method: str = "GET") -> Json:
        """A JSON object from the server. Raises ServerGone."""
        connection = self._connection(_CONNECT_S)
        try:
            connection.request(method, path, headers=_headers())
            value = json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerGone(_why(error)) from error
        finally:
            connection.close()
        return value if isinstance(value, dict) else {}

    def _lines(self, path: str, body: Json) -> Iterator[Json]:
        connection = self._connection(_HEARD_S)
        try:
            connection.request("POST", path, json.dumps(body).encode(), _headers())
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response.status, response.read())
            if connection.sock is not None:
                # Heard: from here on it takes what it takes.
                connection.sock.settimeout(None)
            last: Json = {}
            for line in response:
                last = json.loads(line)
                if not (isinstance(last, dict) and len(last) == 1):
                    raise ServerGone("it speaks another protocol")
                yield last
            if not {"report", "error"} & set(last):
                raise ServerGone("it ended before the answer did")
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerGone(_why(error)) from error
        finally:
            connection.close()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self.place is not None:
            return _UnixConnection(self.place.socket, timeout)
        parts = urlsplit(self.address)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=timeout)


def find_server(settings: Settings, say: Callable[[str], None]) -> Server | None:
    """The server to ask: the one of STTM_HOST, else this user's own for these settings.

    One that is dead or of another version is said, and none.
    """
    if not may_be_served(settings):
        return None
    if os.environ.get(HOST):
        return Server(None, _read_host(os.environ[HOST]))
    place = place_of(settings)
    facts = place.read() if place else None
    if place is None or facts is None:
        return None
    if not place.is_served():
        say("a server was here and has died: answering without it")
        return None
    if facts.get("version") != __version__:
        say(f"a server of sttm {facts.get('version')} runs, this is {__version__}: not used")
        return None
    return Server(place)


def _read_host(text: str) -> str:
    address = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None:
        raise UsageError(f"{HOST}={text!r} is not the address of a server", "give HOST:PORT")
    return address


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY)
    json_body = {"Content-Type": "application/json"}
    return {**json_body, "Authorization": f"Bearer {key}"} if key else json_body


def _refusal(status: int, body: bytes) -> Exception:
    """What an answer other than 200 means."""
    try:
        told = json.loads(body)["error"]
        return _failure({"kind": told["code"], "message": told["message"]})
    except (ValueError, KeyError, TypeError):
        return ServerGone(f"it answers {status}")


def _failure(told: Json) -> Exception:
    """A failure of the question itself, which would fail here as well, or of the server."""
    if told.get("kind") in _OF_THE_QUESTION:
        return ServerFailure(told)
    return ServerGone(str(told.get("message", "it failed")))


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "nothing listens there"
    return "it ended before the answer did"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP through a socket in the file system."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
