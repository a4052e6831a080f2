"""The client of a server; imports nothing heavy, so that a follow-up question starts at once."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sttm_cli import __version__
from sttm_cli.base.errors import ContextError, UsageError, VideoError
from sttm_cli.base.events import (
    Answered,
    Failure,
    Heard,
    Reported,
    Sent,
    Show,
    from_line,
)
from sttm_cli.base.reports import AskReport, ServerStatus
from sttm_cli.base.shapes import ShapeError, shaped
from sttm_cli.base.types import Json
from sttm_cli.serve.http_errors import ErrorReply
from sttm_cli.serve.server_files import (
    ServerFiles,
    files_of,
    may_be_served,
    of_the_model,
    per_request,
)
from sttm_cli.settings.settings import Settings

if TYPE_CHECKING:
    from sttm_cli.decode.bounded_http import Bounds

HOST, KEY = "STTM_HOST", "STTM_API_KEY"
_OF_THE_QUESTION = {error.kind: error for error in (UsageError, ContextError, VideoError)}
"""Failures that would also happen in this process; all others are the server's own."""
_CONNECT_S = 5.0
_HEARD_S = 10.0
"""A living server confirms at once that it has received a question."""
_MOST_BYTES = 64 << 20
"""Of all lines of a reply; the report of a long video is below 1 MiB."""
_WORK_S = 6 * 3600.0
"""How long the work on one request may take, at a server that others may run."""
_MOST_REPLY = 1 << 20
"""Of a status or of a refusal."""
_NO_REPORT = "it ended before the answer did"
_OTHER_PROTOCOL = "it speaks another protocol"
_TOO_MUCH = f"it sends more than {_MOST_BYTES >> 20} MiB"


class ServerGone(Exception):
    """The server does not answer, or speaks another protocol; the text is a brief reason."""


@dataclass(frozen=True)
class Server:
    """A server: `files` for this user's own, otherwise `address` (http://host:port).

    `keep_alive`: the seconds that a background server stays after the last question.
    """

    files: ServerFiles | None
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
        show: Show = lambda event: None,
        history: Sequence[tuple[str, str]] = (),
        options: Sequence[str] = (),
        copy: Path | None = None,
    ) -> AskReport:
        """Return the report of all questions; `show` is called with each event as it happens.

        `copy`: the local copy of the video at the address `video`. Raises ServerGone if the server
        fails or sends an invalid reply, and UsageError, ContextError or VideoError for the
        question.
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
        answered = 0
        with closing(self._events("/sttm/ask", body)) as events:
            for event in events:
                if isinstance(event, Failure):
                    # Name the video as the user did, not as the server does.
                    raise self._failure(replace(event, message=event.message.replace(sent, video)))
                if isinstance(event, Reported):
                    _check_answers(event.report, answered, questions, options)
                    event.report["video"]["path"] = video
                    return event.report
                if not isinstance(event, Heard):
                    answered += isinstance(event, Answered)
                    show(event)
        raise ServerGone(_NO_REPORT)

    def status(self) -> ServerStatus:
        """Return the server's status. Raises ServerGone."""
        try:
            return shaped(json.loads(self._reply("GET", "/sttm/status")), ServerStatus, "status")
        except (ValueError, RecursionError) as error:
            raise ServerGone(_OTHER_PROTOCOL) from error

    def stop(self) -> None:
        """Ask the server to finish its work and end. Raises ServerGone."""
        self._reply("POST", "/sttm/stop")

    def _reply(self, method: str, path: str) -> bytes:
        connection, _ = self._connection(_CONNECT_S)
        try:
            connection.request(method, path, headers=_headers())
            return connection.getresponse().read(_MOST_REPLY)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerGone(_why(error)) from error
        finally:
            connection.close()

    def _failure(self, failure: Failure) -> Exception:
        if self.files is None and failure.kind == VideoError.kind:
            # This process may be able to read a video that the server may not or cannot.
            return ServerGone(failure.message)
        return _error_of(failure)

    def _events(self, path: str, body: Json) -> Generator[Sent, None, None]:
        connection, bounds = self._connection(_HEARD_S)
        left = _MOST_BYTES
        try:
            connection.request("POST", path, json.dumps(body).encode(), _headers())
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response.status, response.read(_MOST_REPLY))
            # The server has the question: from now on it works.
            if bounds is not None:
                bounds.await_work(seconds=_WORK_S, most_bytes=_MOST_BYTES)
            elif connection.sock is not None:
                connection.sock.settimeout(None)
            while line := response.readline(left):
                if not line.endswith(b"\n"):
                    raise ServerGone(_NO_REPORT if len(line) < left else _TOO_MUCH)
                left -= len(line)
                yield from_line(line)
        except UsageError:
            # A refusal, not a ValueError of the connection.
            raise
        except ShapeError as error:
            raise ServerGone(_OTHER_PROTOCOL) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ServerGone(_why(error)) from error
        finally:
            connection.close()

    def _connection(self, timeout: float) -> tuple[http.client.HTTPConnection, Bounds | None]:
        """A connection, and its bounds unless the server is this user's own."""
        if self.files is not None:
            return _UnixConnection(self.files.socket, timeout), None
        from sttm_cli.decode.bounded_http import Bounds, connection_to

        parts, bounds = urlsplit(self.address), Bounds(seconds=2 * timeout, silence_s=timeout)
        secure = parts.scheme == "https"
        return connection_to(parts.hostname or "", parts.port, bounds, secure=secure), bounds


def find_server(settings: Settings, say: Callable[[str], None]) -> Server | None:
    """Return the server to ask: the one at STTM_HOST, otherwise this user's own for these settings.

    `say` reports a server that has died or has another version; such a server is not used.
    """
    if not may_be_served(settings):
        return None
    if os.environ.get(HOST):
        return Server(None, _read_host(os.environ[HOST]))
    files = files_of(settings)
    facts = files.read() if files else None
    if files is None or facts is None:
        return None
    if not files.is_served():
        say("a server was here and has died: answering without it")
        return None
    if facts["version"] != __version__:
        say(f"a server of sttm {facts['version']} runs, this is {__version__}: not used")
        return None
    return Server(files)


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


def _check_answers(
    report: AskReport, answered: int, questions: Sequence[str], options: Sequence[str]
) -> None:
    """Raise ServerGone unless every question has one answer, with its options if it has any."""
    given = [len(answer.get("choices", ())) for answer in report["answers"]]
    if given != [len(options)] * len(questions) or answered != len(questions):
        raise ServerGone(_OTHER_PROTOCOL)


def _refusal(status: int, body: bytes) -> Exception:
    """Return the error for a reply whose status is not 200."""
    try:
        error = shaped(json.loads(body), ErrorReply, "the reply")["error"]
    except (ValueError, RecursionError):
        return ServerGone(f"it answers {status}")
    return _error_of(Failure(error["code"] or "error", error["message"], ""))


def _error_of(failure: Failure) -> Exception:
    """Return the question's error, with its own exit code; ServerGone for any other failure."""
    kind = _OF_THE_QUESTION.get(failure.kind)
    return kind(failure.message, failure.hint) if kind else ServerGone(failure.message)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "nothing listens there"
    return _NO_REPORT


class _UnixConnection(http.client.HTTPConnection):
    """HTTP through a socket in the file system."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
