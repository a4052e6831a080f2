"""Hostile requests to a server: valid ones with types, sizes, depth, texts or bytes changed.

Each is a whole HTTP request. Send it with `exchange`; the status belongs to STATUSES.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

CHAT, ASK = "/v1/chat/completions", "/sttm/ask"
STATUSES = {0, 200, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429}
"""What a server may answer to any of them; 0: it closes the connection, or waits for more."""
_LARGE = 2 << 20
VALID: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": "/nowhere/video.mp4"}, "uuid": "u"},
                {"type": "text", "text": "how many shapes are there?"},
            ],
        },
    ],
    "media_io_kwargs": {"video": {"num_frames": 4, "fps": 1.0}},
    "sttm": {"budget": 0.5, "method": "sttm", "frames": 4, "fps": 1.0, "start": "0:01", "end": 2},
    "stream": False,
    "stream_options": {"include_usage": True},
    "temperature": 0.0,
    "top_p": 1.0,
    "seed": 1,
    "max_tokens": 4,
    "logprobs": True,
    "top_logprobs": 2,
    "n": 1,
}
TEXTS = (
    "", "\0", "\x1b[2J", "\ud800", "\u202e", "a\u0301" * 50, "<|im_end|>", "../" * 40, "%00", "http://[",
    "http://127.0.0.1:1/", "file:///etc/passwd", "data:video/mp4;base64,AAAA", "data:,", "[" * 9000,
    "a" * 9000 + "\0", "http://" + "a" * 600 + "[", "NaN", "1e999", "🎞" * 99,
)  # fmt: skip
OTHERS = (None, True, 0, -1, 1e308, 2**63, -(2**70), 0.5, [], {}, [[]], [None], {"a": 1}, {"": {}})


def cases(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Hostile requests without end, each as the name of its kind and the bytes to send; where the
    name begins with `http`, the head is not that of a plain request either."""
    kinds: tuple[tuple[str, Callable[[random.Random], bytes]], ...] = (
        ("type swapped", lambda rng: _chat(json.dumps(_changed(rng, _other)).encode())),
        ("text", lambda rng: _chat(json.dumps(_changed(rng, _text)).encode())),
        ("field left out", lambda rng: _chat(json.dumps(_changed(rng, _none)).encode())),
        ("field twice", _twice),
        ("size", lambda rng: _chat(_large(rng))),
        ("cut off", lambda rng: _chat(_cut(rng, json.dumps(VALID).encode()))),
        ("bytes", lambda rng: _chat(_mutated(rng, json.dumps(VALID).encode()))),
        ("private", _private),
        ("http route", _route),
        ("http header", _header),
        ("http length", _length),
        ("http cut off", lambda rng: _cut(rng, _chat(json.dumps(VALID).encode()))),
        ("http bytes", lambda rng: _mutated(rng, _chat(json.dumps(VALID).encode()))),
    )
    while True:
        for name, make in kinds:
            yield name, make(rng)


def exchange(
    host: str, port: int, raw: bytes, *, key: str | None = None, timeout_s: float = 2.0
) -> int:
    """The status of the answer to `raw`, sent with an API key; 0 where there is none in time."""
    if key is not None:
        raw = raw.replace(b"\r\n", f"\r\nAuthorization: Bearer {key}\r\n".encode(), 1)
    data = b""
    # It may refuse a request, and close, while the rest is being sent.
    with socket.create_connection((host, port), timeout=20) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(raw)
        client.settimeout(timeout_s)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while b"\r\n" not in data and (part := client.recv(4096)):
                data += part
    return int(data.split()[1]) if data.startswith(b"HTTP/") else 0


def request(body: bytes, *headers: str, method: str = "POST", path: str = CHAT) -> bytes:
    """A whole HTTP request whose connection ends with its answer."""
    head = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape") + body


def _chat(body: bytes) -> bytes:
    return request(body)


# ---- one part of a valid body changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in `value` with each of its keys."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _changed(rng: random.Random, change: Callable[[random.Random, Any, Any], None]) -> Any:
    body = copy.deepcopy(VALID)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        change(rng, *rng.choice(list(_places(body))))
    return body


def _other(rng: random.Random, holder: Any, key: Any) -> None:
    holder[key] = copy.deepcopy(rng.choice(OTHERS))


def _text(rng: random.Random, holder: Any, key: Any) -> None:
    holder[key] = rng.choice(TEXTS)


def _none(rng: random.Random, holder: Any, key: Any) -> None:
    del holder[key]


def _twice(rng: random.Random) -> bytes:
    name = rng.choice(list(VALID))
    value = json.dumps(rng.choice(OTHERS))
    return _chat(json.dumps(VALID)[:-1].encode() + f", {json.dumps(name)}: {value}}}".encode())


def _large(rng: random.Random) -> bytes:
    unit, end = rng.choice(
        (
            (b"[", b""), (b'{"a":', b""), (b"0,", b"0]"), (b'"a",', b'""]'), (b"{},", b"0]"),
            (b'{"url":"data:"},', b"0]"), (b'"\\"', b'"'), (b"9", b""), (b" ", b"{}"),
            (b'{"type":"text","text":"a"},', b"0]"),
        )
    )  # fmt: skip
    start = b"[" if end == b"0]" or end == b'""]' else b""
    many = rng.choice((100, 10_000, _LARGE)) // len(unit)
    return start + unit * many + end


# ---- bytes


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _mutated(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 32))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


# ---- other routes, heads


def _private(rng: random.Random) -> bytes:
    body: dict[str, Any] = {
        "version": rng.choice(("0", None, 1)),
        "model": rng.choice(OTHERS),
        "settings": rng.choice(OTHERS),
        "video": rng.choice(TEXTS),
        "questions": rng.choice(([""], ["a"] * 9000, "a", [1])),
        "history": rng.choice(([], [["a"]], [["a", "b"]] * 900)),
    }
    return request(json.dumps(body).encode(), path=ASK)


def _route(rng: random.Random) -> bytes:
    method = rng.choice(("GET", "POST", "PUT", "DELETE", "OPTIONS", "BREW"))
    path = rng.choice(
        ("/", "/v1", "/v1/models", "/v1/models/%00", "/v1/models/" + "a" * 9000, "/health", CHAT,
         "/metrics", "/sttm/stop", "/sttm/status", "/..%2f..%2fetc/passwd", "//", "/%ff", "*", ASK)
    )  # fmt: skip
    return request(b"{}", method=method, path=path)


def _header(rng: random.Random) -> bytes:
    header = rng.choice(
        ("Host: evil.test", "Host: [", "Content-Type: text/html", "Authorization: Bearer \udcff",
         "Transfer-Encoding: chunked", "Content-Encoding: gzip", "Expect: 200-ok", ": a", "X : a",
         "X: " + "a" * 70_000, "Upgrade: websocket", "Range: bytes=0-", "X-Forwarded-For: 10.0.0.1")
    )  # fmt: skip
    return request(json.dumps(VALID).encode(), header)


def _length(rng: random.Random) -> bytes:
    lengths = ("-1", "0", "1", "99999999999", "1e3", "0x10", "", "+5", "5, 5", "9" * 5000)
    whole = _chat(json.dumps(VALID).encode())
    head, _, body = whole.partition(b"\r\n\r\n")
    kept = b"\r\n".join(line for line in head.split(b"\r\n") if b"-Length" not in line)
    return kept + f"\r\nContent-Length: {rng.choice(lengths)}\r\n\r\n".encode() + body
