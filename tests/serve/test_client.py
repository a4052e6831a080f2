"""A server that sends anything but the protocol counts as gone; it can do nothing else."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random

import pytest

from sttm_cli.base.errors import ContextError, SttmError, UsageError
from sttm_cli.base.events import (
    Answered,
    Failure,
    Heard,
    Reported,
    Sent,
    Show,
    Shown,
    TextPiece,
    to_line,
)
from sttm_cli.base.reports import AnswerReport, AskReport
from sttm_cli.serve import client
from sttm_cli.serve.client import Server, ServerGone
from sttm_cli.serve.http_errors import Refused
from sttm_cli.settings.settings import Settings
from tests.attack.addresses import dripping, endless, head, once
from tests.attack.site import MOST_SENT, SILENCE, Route
from tests.attack.site import serving as endless_site
from tests.base.test_events import ANSWER, BROKEN, REPORT
from tests.cli.process import sttm_here
from tests.test_startup import HEAVY, modules_after

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"
COUNT = "how many shapes are there?"
PLAIN: AnswerReport = {"question": COUNT, "answer": "three", "new_tokens": 2, "ending": "end"}
REPORTED: AskReport = {**REPORT, "answers": [PLAIN]}


@contextmanager
def replying(body: bytes, status: int = 200) -> Iterator[Server]:
    """A server that answers every request with `body`."""

    class Reply(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Reply)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield Server(None, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asked(server: Server, show: Show = lambda event: None) -> AskReport:
    return server.ask(Settings(), "video.mp4", [COUNT], show=show)


def lines(*events: Sent) -> bytes:
    return "".join(map(to_line, events)).encode()


def test_the_clients_own_modules_import_nothing_of_a_server() -> None:
    loaded = modules_after("import sttm_cli.serve.client, sttm_cli.serve.local_servers")
    assert not loaded & {*HEAVY, "pydantic", "starlette", "uvicorn", "asyncio", "psutil"}


def test_events_come_in_order_and_end_with_the_report() -> None:
    sent = lines(Heard("1"), TextPiece("three"), Answered(PLAIN), Reported(REPORTED))
    with replying(sent + b"what follows is not read") as server:
        shown: list[Shown] = []
        report = asked(server, shown.append)
    assert shown == [TextPiece("three"), Answered(PLAIN)]
    assert report == {**REPORTED, "video": {**REPORT["video"], "path": "video.mp4"}}


@pytest.fixture(scope="module")
def broken() -> Iterator[tuple[Server, list[bytes]]]:
    """A server whose next reply is the last of a list."""
    replies: list[bytes] = []

    class Reply(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(replies.pop())

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Reply)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Server(None, f"http://127.0.0.1:{server.server_address[1]}"), replies
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("line", BROKEN)
def test_a_malformed_event_is_a_server_that_is_gone(
    broken: tuple[Server, list[bytes]], line: str
) -> None:
    server, replies = broken
    replies.append(lines(Heard("1")) + line.encode() + b"\n")
    with pytest.raises(ServerGone, match="another protocol"):
        asked(server)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"[1, 2]\n",
        lines(Heard("1")),
        lines(Answered(PLAIN)),
        lines(Reported(REPORTED)),
        lines(Answered(PLAIN), Answered(PLAIN), Reported(REPORTED)),
        lines(Answered(PLAIN), Reported({**REPORTED, "answers": []})),
        lines(Answered(PLAIN), Reported({**REPORTED, "answers": [PLAIN, PLAIN]})),
        lines(Answered(PLAIN), Reported({**REPORTED, "answers": [ANSWER]})),
        lines(Answered(PLAIN), Reported(REPORTED))[:-9],
    ],
)
def test_a_reply_without_its_report_or_with_other_answers_is_a_server_that_is_gone(
    sent: bytes,
) -> None:
    with replying(sent) as server, pytest.raises(ServerGone):
        asked(server)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[" * 100_000,
        b"[]",
        b'{"error": "text"}',
        b'{"error": {"message": 1, "type": "t", "param": null, "code": "usage"}}',
        b'{"error": {"message": "m", "type": "t", "param": null, "code": ["usage"]}}',
        b'{"error": {"message": "m", "type": "t", "param": null, "code": null}}',
        b'{"error": {"code": "usage"}}',
    ],
)
def test_a_malformed_refusal_is_a_server_that_is_gone(body: bytes) -> None:
    with replying(body, 400) as server, pytest.raises(ServerGone):
        asked(server)


def test_a_refusal_of_the_question_is_the_error_that_it_is_here() -> None:
    body = json.dumps(Refused(400, "it is wrong", code="usage").to_json()).encode()
    with replying(body, 400) as server, pytest.raises(UsageError, match="it is wrong"):
        asked(server)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"ready": 1}', b'{"ready": true}'])
def test_a_malformed_status_is_a_server_that_is_gone(body: bytes) -> None:
    with replying(body) as server, pytest.raises(ServerGone):
        server.status()


HEADS = (
    *(
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 400 Bad",
        b"HTTP/1.1 abc",
        b"HTTP/9.9 200 OK",
    ),
    *(b"", b"\0", b"HTTP/1.1 999 x", b"HTTP/1.1 99 x", b"HTTP/1.1 204 N", b"HTTP/1.1 304 N"),
    *(b"HTTP/1.1 103 E", b"HTTP/1.1 101 S", b"HTTP/1.1 302 F\r\nLocation: file:///x"),
    *(b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 200 OK", b"HTTP/1.1 200 OK" + b"\r\nX: a" * 120),
    b"HTTP/1.1 200 " + b"a" * 70_000,
)
HEADERS = (
    *(b"X: a", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: abc", b": a", b"X"),
    *(
        b"Content-Length: 99999999999999999999",
        b"Transfer-Encoding: chunked",
        b"X: \xff",
        b"\xff: a",
    ),
    *(b"Transfer-Encoding: gzip", b"Connection: close", b"Content-Encoding: gzip", b"X: \0"),
)


def mutated(random: Random, data: bytes) -> bytes:
    """`data` with a few other bytes."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 2, 8))):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def hostile_reply(random: Random) -> bytes:
    """A whole HTTP reply whose status, headers or body are not what a server sends."""
    good = lines(Heard("1"), TextPiece("three"), Answered(PLAIN), Reported(REPORTED))
    refusal = json.dumps(Refused(400, "it is wrong", code="usage").to_json()).encode()
    cut = good[: random.randrange(len(good))]
    body = random.choice((good, refusal, b"", cut, mutated(random, good), mutated(random, refusal)))
    head = random.choice(HEADS[:3] if random.random() < 0.6 else HEADS)
    raw = b"\r\n".join([head, random.choice(HEADERS), b"", body])
    return mutated(random, raw) if random.random() < 0.2 else raw


def test_no_reply_of_a_server_raises_anything_else() -> None:
    random, replies = Random(3), list[bytes]()

    def reply(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # Closed: the test is over.
                return
            with client, contextlib.suppress(OSError):
                client.recv(1 << 16)
                client.sendall(replies.pop())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=reply, args=(listener,), daemon=True).start()
        server = Server(None, f"http://127.0.0.1:{listener.getsockname()[1]}")
        for number in range(1500):
            replies[:] = [hostile_reply(random)]
            with contextlib.suppress(ServerGone, UsageError):
                (lambda: asked(server), server.status, server.stop)[number % 3]()


@pytest.mark.parametrize(
    ("kind", "error"), [("usage", UsageError), ("context", ContextError), ("memory", ServerGone)]
)
def test_a_failure_of_the_question_is_the_error_that_it_is_here(
    kind: str, error: type[Exception]
) -> None:
    with replying(lines(Failure(kind, "it is wrong", "change it"))) as server:
        with pytest.raises(error) as caught:
            asked(server)
        assert type(caught.value) is error
        if isinstance(caught.value, SttmError):
            assert (caught.value.message, caught.value.hint) == ("it is wrong", "change it")


@pytest.mark.parametrize("kind", ["usage", "error", "video"])
def test_no_server_chooses_an_exit_code(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"kind": kind, "message": "it is wrong", "hint": "", "exit_code": 77}
    with replying(json.dumps({"error": error}).encode() + b"\n") as server:
        monkeypatch.setenv("STTM_HOST", server.address)
        ended = sttm_here("ask", SAMPLE, COUNT)
    assert (ended.code, ended.out) == (0, "three\n")
    assert "answering without it" in ended.err


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_a_server_that_lies_in_the_middle_is_left_for_this_process(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = lines(Heard("1"), TextPiece("thr")) + b'{"answer": {"question": null}}\n'
    with replying(sent) as server:
        monkeypatch.setenv("STTM_HOST", server.address)
        given = (SAMPLE, COUNT) if command == "ask" else (SAMPLE,)
        ended = sttm_here(command, *given, stdin=f"{COUNT}\n")
    assert (ended.code, ended.out) == (0, "three\n")
    assert "another protocol" in ended.err


EVENTS = head(kind="application/x-ndjson")
PIECES = lines(Heard("1"), TextPiece("three ")) * 99
ENDLESS: dict[str, Route] = {
    "lines of the head": endless(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "interim answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "dripping head": dripping(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "events": endless(EVENTS, PIECES),
    "one event": endless(EVENTS, b" "),
    "chunks": endless(head("Transfer-Encoding: chunked"), b"1\r\n \r\n"),
    "a refusal": endless(head(status="400 no"), b" "),
    "silence": once(EVENTS, lines(Heard("1")), SILENCE),
    "dripping events": dripping(EVENTS, PIECES),
}


@pytest.mark.parametrize("route", ENDLESS.values(), ids=ENDLESS)
def test_a_server_that_never_comes_to_an_end_is_gone(
    route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_HEARD_S": 0.5, "_CONNECT_S": 0.5, "_WORK_S": 1.0}.items():
        monkeypatch.setattr(client, name, value)
    monkeypatch.setattr(client, "_MOST_BYTES", 1 << 20)
    with endless_site() as site:
        server = Server(None, site.at(""))
        site.begin({"/sttm/ask": route, "/sttm/status": route})
        for use in (lambda: asked(server), server.status):
            started = time.monotonic()
            with pytest.raises(ServerGone):
                use()
            assert time.monotonic() - started < 20
        assert site.sent < MOST_SENT
