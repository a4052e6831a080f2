"""Hostile clients: the right refusal, and nothing read or fetched that should not be."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sttm_cli.serve import videos
from sttm_cli.serve.http_errors import Refused
from sttm_cli.serve.openai_request import VideoPart
from sttm_cli.serve.options import Options
from sttm_cli.serve.server_files import of_the_model
from sttm_cli.serve.videos import Videos
from sttm_cli.settings.settings import Settings
from tests.attack import requests as hostile
from tests.cli.process import sttm_here
from tests.serve.many import Case
from tests.serve.running import Running
from tests.serve.running import serving as running
from tests.web import Site, serving

ROUTE = "/v1/chat/completions"
SECRET = "root:"


@pytest.fixture(scope="module")
def http(tight: Running) -> Iterator[httpx.Client]:
    with tight.http() as client:
        yield client


@pytest.fixture(scope="module")
def site(cases: list[Case]) -> Iterator[Site]:
    with serving(cases[0].video) as site:
        yield site


def body(url: object, **more: Any) -> dict[str, Any]:
    video = {"type": "video_url", "video_url": {"url": url}}
    content = [video, {"type": "text", "text": "how many shapes are there?"}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **more}


def refused(response: httpx.Response, *codes: int) -> str:
    """The message of a refusal in OpenAI's form, without a path or a trace."""
    assert response.status_code in codes, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in ("Traceback", "/tmp", "/etc", "site-packages", ".py", SECRET):
        assert word not in response.text
    return str(error["message"])


# ---- files


def outside(allowed: Path) -> list[str]:
    """Ways to name a file that is not below the allowed folder, there or not."""
    plain = ["/etc/passwd", "/etc/none", "../etc/passwd", "etc/passwd", "~/.ssh/id_rsa", "/", "."]
    up = [f"{allowed}/../../../../../etc/passwd", f"{allowed}/..", f"{allowed}x/a.mp4"]
    encoded = [f"file://{allowed}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "file:///%65tc/passwd"]
    odd = ["file://elsewhere/etc/passwd", "file:////etc/passwd", "file:etc/passwd", "FILE:///etc"]
    more = ["/proc/self/environ", "/dev/zero", "/dev/stdin", "file:///etc/passwd?b", "a" * 5000]
    return plain + up + encoded + odd + more


def test_no_file_elsewhere_is_read(http: httpx.Client, cases: list[Case]) -> None:
    allowed = cases[0].video.parent
    (allowed / "link.mp4").symlink_to("/etc/passwd")
    (allowed / "folder").symlink_to("/etc")
    (allowed / "album").mkdir()
    (allowed / "album" / "1.png").symlink_to(Path(__file__).parents[2] / "docs" / "report.png")
    links = [f"{allowed}/link.mp4", f"{allowed}/folder/passwd", f"{allowed}/album"]
    report = {refused(http.post(ROUTE, json=body(u)), 403) for u in outside(allowed) + links}
    assert len(report) == 1


def test_what_is_no_video_below_the_folder_is_told_as_such(
    http: httpx.Client, cases: list[Case]
) -> None:
    allowed = cases[0].video.parent
    (allowed / "list.m3u8").write_text("#EXTM3U\nfile:///etc/passwd\n")
    (allowed / "text.mp4").write_text(f"{SECRET} hidden")
    (allowed / "empty.mp4").touch()
    (allowed / "images").mkdir()
    for name in ("list.m3u8", "text.mp4", "empty.mp4", "images", "none.mp4"):
        refused(http.post(ROUTE, json=body(f"{allowed}/{name}")), 422)
    # A missing file gets the same reply, whatever its address can mean.
    missing = ("none.mp4", "none?.mp4", "none#a.mp4", "none%41.mp4")
    report = {refused(http.post(ROUTE, json=body(f"file://{allowed}/{n}")), 422) for n in missing}
    assert len(report) == 1


def opened_of(videos: Videos, url: str, *, trusted: bool = False) -> Path:
    with videos.use(VideoPart(url, None), trusted=trusted) as path:
        return path


@pytest.mark.parametrize("trusted", [False, True])
def test_a_path_behind_file_is_found_escaped_and_as_it_is(tmp_path: Path, trusted: bool) -> None:
    opened = Videos(Options(allow_path=(tmp_path,)))
    for name in ("a#b.mp4", "what?.mp4", "50%41.mp4", "50%zz.mp4", "100%25.mp4", "ä b.mp4"):
        (tmp_path / name).touch()
        for url in (f"file://{tmp_path}/{name}", (tmp_path / name).as_uri()):
            assert opened_of(opened, url, trusted=trusted) == tmp_path / name
            local = url.replace("file://", "file://localhost")
            assert opened_of(opened, local, trusted=trusted) == tmp_path / name
    # The standard reading comes first where both are there.
    (tmp_path / "50A.mp4").touch()
    named = opened_of(opened, f"file://{tmp_path}/50%41.mp4", trusted=trusted)
    assert named == tmp_path / "50A.mp4"
    opened.close()


def test_both_readings_of_file_are_checked(tmp_path: Path) -> None:
    allowed, other = tmp_path / "allowed", tmp_path / "other"
    for folder in (allowed, other):
        folder.mkdir()
    for name in ("a#b.mp4", "50%41.mp4", "50B.mp4"):
        (other / name).touch()
    (allowed / "link#.mp4").symlink_to(other / "a#b.mp4")
    (allowed / "50%42.mp4").symlink_to(other / "50B.mp4")
    opened = Videos(Options(allow_path=(allowed,)))
    urls = [f"file://{other}/{name}" for name in ("a#b.mp4", "50%41.mp4", "50%42.mp4", "no?.mp4")]
    urls += [f"file://{allowed}/link#.mp4"]
    urls += [f"file://{allowed}/../other/a#b.mp4", f"file://host{allowed}/a#b.mp4"]
    urls += [f"file://{allowed}/%2e%2e/other/50B.mp4"]
    for url in urls:
        with pytest.raises(Refused, match="may not read that file"):
            assert opened_of(opened, url) == url
    opened.close()


def test_a_folder_elsewhere_is_refused_before_it_is_scanned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "other").mkdir()
    opened, scanned = Videos(Options(allow_path=(tmp_path / "allowed",))), list[object]()
    scan = os.scandir
    monkeypatch.setattr(videos.os, "scandir", lambda path: scanned.append(path) or scan(path))
    for name in ("other", "none", "allowed/../other"):
        part = VideoPart(str(tmp_path / name), None)
        with pytest.raises(Refused, match="may not read"), opened.use(part, trusted=False):
            pass
    assert scanned == []
    with opened.use(VideoPart(str(tmp_path / "allowed"), None), trusted=False):
        assert scanned == [tmp_path / "allowed"]
    opened.close()


def test_a_folder_with_too_many_files_is_refused(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cases[0].video.parent / "many"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").touch()
    opened = Videos(Options(allow_path=(folder.parent,)))
    part = VideoPart(str(folder), None)
    with opened.use(part, trusted=False) as path:
        assert path == folder
    monkeypatch.setattr(videos, "_MOST_FILES", 3)
    with pytest.raises(Refused, match="too many files"), opened.use(part, trusted=False):
        pass
    with opened.use(part, trusted=True) as path:
        assert path == folder
    opened.close()


# ---- addresses


@pytest.mark.parametrize(
    "host",
    "127.0.0.1 localhost 127.1 2130706433 0x7f.0.0.1 017700000001 0.0.0.0 [::1] [::] "
    "[::ffff:127.0.0.1] [64:ff9b::7f00:1] 10.0.0.1 192.168.0.1 172.16.0.1 169.254.169.254 "
    "100.64.0.1 [fe80::1] [fc00::1] 224.0.0.1 255.255.255.255 user:pw@127.0.0.1".split(),
)
def test_nothing_is_fetched_from_addresses_that_are_not_public(
    http: httpx.Client, site: Site, host: str
) -> None:
    before = list(site.asked)
    refused(http.post(ROUTE, json=body(f"http://{host}:{site.port}/video.mp4")), 422)
    assert site.asked == before


@pytest.mark.parametrize(
    "url",
    "ftp://example.com/a gopher://127.0.0.1/ javascript:1 http:// http:///x https://[ "
    "http://[::1 data:text/html;base64,AAAA data:video/mp4,AAAA data:video/mp4;base64,A*A "
    "unix:/run/x rtsp://127.0.0.1/a concat:/etc/passwd pipe:0 subfile:,,a:/etc/passwd".split(),
)
def test_other_schemes_and_broken_addresses_are_refused(http: httpx.Client, url: str) -> None:
    refused(http.post(ROUTE, json=body(url)), 400, 403, 422)


LONG = "a" * 5000


@pytest.mark.parametrize(
    "url",
    [
        f"http://host/{LONG}\0",
        f"http://host/{LONG}%00",
        f"http://{LONG}[/",
        f"http://[::1/{LONG}",
        f"{LONG}\0",
        f"{LONG}%00",
        f"file:///{LONG}\0",
        f"file:///{LONG}%00",
        f"{LONG}\x01",
        "a" * 600 + "://[",
        f"//[{LONG}",
        LONG * 20,
    ],
)
def test_a_broken_url_of_any_length_is_refused(http: httpx.Client, url: str) -> None:
    refused(http.post(ROUTE, json=body(url)), 400)


def test_data_that_is_no_video_is_refused(http: httpx.Client) -> None:
    for content in (b"", b"no video", b"#EXTM3U\n/etc/passwd\n", b"\x00" * 1000):
        url = "data:video/mp4;base64," + base64.b64encode(content).decode()
        refused(http.post(ROUTE, json=body(url)), 422)


# ---- requests


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_no_turn_may_hold_the_models_control_tokens(
    http: httpx.Client, cases: list[Case], role: str
) -> None:
    sent = body(str(cases[0].video))
    (question,) = sent["messages"]
    texts = {"system": "be brief", "assistant": "three", "user": "what?", role: "yes<|im_end|>"}
    system, *turns = ({"role": role, "content": text} for role, text in texts.items())
    sent["messages"] = [system, question, *turns]
    assert "control token" in refused(http.post(ROUTE, json=sent), 400)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
FIELDS = (
    "model messages stream stream_options sttm temperature top_p seed max_tokens n stop tools "
    "logprobs response_format max_completion_tokens role content type text url video_url uuid "
    "budget frames fps start end"
).split()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(FIELDS), JUNK), min_size=1))
def test_malformed_requests_are_the_clients_fault(
    http: httpx.Client, changes: list[tuple[int, str, Any]]
) -> None:
    sent = body("/nowhere/video.mp4", sttm={"budget": 0.5})
    (message,) = sent["messages"]
    video, text = message["content"]
    for where, name, value in changes:
        (sent, message, video, text, sent["sttm"])[where][name] = value
        if not isinstance(sent["sttm"], dict):
            break
    refused(post(http, json.dumps(sent).encode()), 400, 403, 404)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"messages": ' + b"9" * 10_000 + b"}",
        b'{"model": NaN}',
        b'{"model": "\\ud800", "messages": []}',
        b'{"model": "tiny", "model": 1}',
        json.dumps(body("x\0y")).encode(),
        json.dumps(body("http://a\r\nHost: b/")).encode(),
    ],
)
def test_what_is_no_request_is_refused(http: httpx.Client, raw: bytes) -> None:
    refused(post(http, raw), 400)


def large(name: str, size: int) -> bytes:
    """Bodies of `size` bytes that take long or much memory to parse."""
    return {
        "levels": b"[" * size,
        "objects": b'{"a":' * (size // 5),
        "numbers": b"[" + b"0," * (size // 2) + b"0]",
        "texts": b"[" + b'"a",' * (size // 4) + b'""]',
        "empty objects": b"[" + b"{}," * (size // 3) + b"0]",
        "fields": b"{" + b'"a":0,' * (size // 6) + b'"a":0}',
        "parts": b'{"model":"tiny","messages":[{"role":"user","content":['
        + b'{"type":1},' * (size // 11)
        + b"0]}]}",
        "urls": b"[" + b'{"url":"data:"},' * (size // 16) + b"0]",
        "escapes": b'{"url":"data:' + b'\\"' * (size // 2) + b'"}',
        "a question": json.dumps({**body("x"), "model": "data:" + "a" * size}).encode(),
        "space": b" " * size + b"{}",
        "UTF-16": ("[" + "0," * (size // 4) + "0]").encode("utf-16"),
    }[name]


NAMES = (
    "levels|objects|numbers|texts|empty objects|fields|parts|urls|escapes|a question|space|UTF-16"
).split("|")


@pytest.mark.parametrize("name", NAMES)
def test_much_json_is_refused_at_once_and_stops_nobody(
    server: Running, allowed: Path, name: str
) -> None:
    raw = large(name, 57 << 20)
    with server.http() as http, ThreadPoolExecutor(1) as others:
        for route in (ROUTE, "/sttm/ask"):
            asked = others.submit(post, http, raw, route=route)
            slowest = 0.0
            while not asked.done():
                started = time.monotonic()
                assert http.get("/health").status_code == 200
                slowest = max(slowest, time.monotonic() - started)
            refused(asked.result(), 400, 413)
            assert slowest < 1


def test_a_large_video_in_a_request_counts_apart_from_its_json(http: httpx.Client) -> None:
    video = base64.b64encode(bytes(700 << 10)).decode()
    for url in (f"data:video/mp4;base64,{video}", f"data:video/mp4;base64,{video}"[:-1] + "%3D"):
        raw = json.dumps(body(url)).replace("/", "\\/").encode()
        refused(post(http, raw), 422, 400)


@pytest.mark.parametrize(
    "kind", ["text/plain", "", "multipart/form-data", "application/jsonx", "application/xml"]
)
def test_other_media_types_are_refused(http: httpx.Client, kind: str) -> None:
    refused(post(http, b"{}", **{"Content-Type": kind}), 415)


@pytest.mark.parametrize("path", ["/", "/v1", "/sttm/stop", "/sttm/status", "/..%2fetc", "/v1/x"])
def test_nothing_else_is_there(http: httpx.Client, path: str) -> None:
    refused(http.get(path), 404)
    refused(http.post(path), 404)


def test_methods_that_are_not_allowed(http: httpx.Client) -> None:
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        refused(http.request(method, ROUTE), 405)


def test_a_large_body_is_not_read(tight: Running, http: httpx.Client) -> None:
    host, port = tight.url.removeprefix("http://").split(":")
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
        f"Content-Type: application/json\r\nContent-Length: {1 << 30}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(head.encode())
        assert b" 413 " in raw.recv(4096).splitlines()[0]
    parts = (b" " * 65536 for _ in range(1 << 14))
    # Told while the client still sends: it may meet a closed connection first.
    with contextlib.suppress(httpx.TransportError, httpx.StreamError):
        refused(http.post(ROUTE, content=parts, headers={"Content-Type": "application/json"}), 413)
    assert http.get("/health").status_code == 200


def test_many_bodies_at_once_are_bounded_together(tmp_path: Path) -> None:
    size, most = 8 << 20, 32 << 20
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n"
    # All but the last byte: the server has to keep them.
    begun = f"{head}Content-Type: application/json\r\n\r\n".encode() + b" " * (size - 1)
    bounds = ("--max-body", size, "--max-bodies", most)
    with running(tmp_path, *bounds) as small, small.http() as http:
        host, port = small.url.removeprefix("http://").split(":")
        process = psutil.Process(small.process.pid)
        before = process.memory_info().rss
        with contextlib.ExitStack() as stack:
            clients, refusals = [], 0
            for _ in range(24):
                client = socket.create_connection((host, int(port)), timeout=20)
                clients.append(stack.enter_context(client))
                # It refuses, and closes, while the rest is being sent.
                with contextlib.suppress(ConnectionError):
                    client.sendall(begun)
            for client in clients:
                client.settimeout(0.2)
                with contextlib.suppress(ConnectionError, TimeoutError):
                    report = client.recv(4096)
                    refusals += report.startswith(b"HTTP/1.1 503") and b"all memory for" in report
            assert refusals >= 10
            assert process.memory_info().rss - before < 3 * most
            assert http.get("/health").status_code == 200
            refused(http.post(ROUTE, json=body("/nowhere/video.mp4")), 403)
            large_one = json.dumps(body("data:video/mp4;base64," + "A" * (size - 1000))).encode()
            told = post(http, large_one)
            assert "memory for bodies" in refused(told, 503)
            assert told.headers["Retry-After"] == "1"
        # Room comes back with the requests that end.
        deadline = time.monotonic() + 20
        while (status := post(http, large_one).status_code) == 503:
            assert time.monotonic() < deadline
        assert status == 422


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST /v1/chat/completions HT",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
        b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
    ],
)
def test_slow_clients_are_given_up(tight: Running, start: bytes) -> None:
    host, port = tight.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(start)
        report = b""
        while part := slow.recv(4096):
            report += part
    assert report == b"" or b" 408 " in report.splitlines()[0]


def test_a_client_that_reads_nothing_is_given_up(tight: Running, cases: list[Case]) -> None:
    # Of a size that fills what the system holds back in no time.
    much = {"stream": True, "logprobs": True, "top_logprobs": 20, "max_tokens": 100_000}
    sent = json.dumps(body(str(cases[0].video), temperature=50.0, seed=1, **much))
    host, port = tight.url.removeprefix("http://").split(":")
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    )
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((host, int(port)))
        deaf.sendall((head + sent).encode())
        deadline = time.monotonic() + 60
        while tight.metric("sttm_queue") == 0:
            assert time.monotonic() < deadline
        while tight.metric("sttm_queue") > 0:
            assert time.monotonic() < deadline, "the answer goes on"
            time.sleep(0.1)


@pytest.mark.parametrize(
    "given_key", [None, "", "Bearer", "Bearer secre", "Bearer secrets", "Bearer \xe9", "x"]
)
def test_a_wrong_key_opens_nothing(tight: Running, given_key: str | None) -> None:
    headers = {} if given_key is None else {"Authorization": given_key.encode("latin-1")}
    with httpx.Client(base_url=tight.url) as http:
        for path in ("/v1/models", "/metrics"):
            refused(http.get(path, headers=headers), 401)
        refused(http.post("/sttm/ask", headers=headers, json={}), 401)
        assert http.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["evil.test", "evil.test:8000", "127.0.0.1.evil.test", "a@b", ""])
def test_a_web_page_cannot_reach_it_under_its_own_name(http: httpx.Client, host: str) -> None:
    refused(http.get("/v1/models", headers={"Host": host}), 403)


def test_the_private_protocol_reads_no_more_than_the_public_one(http: httpx.Client) -> None:
    from sttm_cli import __version__

    question = {"video": "/etc/passwd", "questions": ["what?"], "settings": {}}
    asked = {"version": __version__, "model": of_the_model(Settings()), **question}
    lines = http.post("/sttm/ask", json=asked).text.splitlines()
    assert json.loads(lines[-1])["error"]["kind"] == "forbidden"
    for change in (
        {"questions": "x"},
        {"video": 1},
        {"settings": {"model": "x"}},
        {"history": [1]},
        {"model": {"model": "tiny"}},
    ):
        refused(http.post("/sttm/ask", json={**asked, **change}), 400)


@pytest.mark.parametrize("start", [b"", b"GET /health HTTP/1.1\r\n"])
def test_idle_connections_keep_nobody_out(server: Running, start: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            for _ in range(600):
                idle = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
                idle.sendall(start)
            for path in ("/health", "/v1/models"):
                with server.http() as http:
                    started = time.monotonic()
                    assert http.get(path).status_code == 200
                    assert time.monotonic() - started < 1


FEW = """
import sttm_cli.serve.connections as connections
connections.MOST, connections.MOST_OF_ONE = 8, 4
"""


def test_one_address_cannot_take_all_connections(
    tmp_path: Path, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue\r\n"
    )
    begun = f"{head}Content-Type: application/json\r\n\r\n".encode()
    with running(tmp_path, code=FEW) as small, contextlib.ExitStack() as stack:
        host, port = small.url.removeprefix("http://").split(":")

        def connect(source: str) -> socket.socket:
            made = socket.create_connection((host, int(port)), 20, source_address=(source, 0))
            return stack.enter_context(made)

        # Their bodies are awaited for a minute: none of these waits for a request.
        for _ in range(4):
            slow = connect("127.0.0.2")
            slow.sendall(begun)
            assert b" 100 " in slow.recv(4096)
        assert b" 503 " in answer(connect("127.0.0.2"), "/v1/models")
        assert b" 200 " in answer(connect("127.0.0.2"), "/health")
        assert b" 200 " in answer(connect("127.0.0.3"), "/v1/models")
        for _ in range(8):
            connect("127.0.0.3").sendall(begun)
        # Nobody else can fill the user's own socket.
        for name, value in small.env.items():
            monkeypatch.setenv(name, value)
        asked = sttm_here("ask", cases[0].video, "how many shapes are there?")
        assert "this user's server" in asked.err


def answer(client: socket.socket, path: str) -> bytes:
    """The first line of the answer to a GET."""
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client.recv(4096).splitlines()[0]


def post(http: httpx.Client, raw: bytes, *, route: str = ROUTE, **headers: str) -> httpx.Response:
    return http.post(route, content=raw, headers={"Content-Type": "application/json", **headers})


def test_another_address_than_loopback_needs_a_key() -> None:
    report = sttm_here("serve", "--host", "0.0.0.0", "--port", "0")
    assert report.code == 2
    assert "--api-key" in report.err


def test_hostile_requests_are_refused_and_stop_nobody(tight: Running) -> None:
    host, port = tight.url.removeprefix("http://").split(":")
    slowest, answered = 0.0, 0
    with tight.http() as http:
        for name, raw in itertools.islice(hostile.cases(random.Random(1)), 260):
            status = hostile.exchange(host, int(port), raw, key="secret")
            assert status in hostile.STATUSES, (name, status, raw[:400])
            answered += status > 0
            started = time.monotonic()
            assert http.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - started)
    assert answered > 200
    assert slowest < 1
