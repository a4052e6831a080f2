"""What hostile addresses answer: endless, slow, broken off, compressed, in circles, naming others.

A case has the routes of one site; the video's address is that of START.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.attack.asking import SAMPLE
from tests.attack.site import RESET, SILENCE, Part, Route, Site

START = "/start"
MOST_BYTES = 1 << 20
"""Of a video that is downloaded."""
VIDEO = SAMPLE.read_bytes()
KINDS = ("video/mp4", "application/octet-stream", "text/plain", "image/png", "", "a/b; c=d", "\xff")
PLAYLIST_KINDS = (
    *KINDS,
    "application/vnd.apple.mpegurl",
    "application/dash+xml",
    "audio/x-mpegurl",
)
RIGHT, REFUSED, EITHER = (0,), (3,), (0, 3)
SLOW_S = 0.05
PAGES, SLOW = 0.015, 0.03
"""The shares of web pages, for which yt-dlp takes seconds, and of what waits for patience."""


@dataclass(frozen=True)
class Case:
    """`codes`: the ends that are right; with 0 alone, the sample's answer. `is_slow`: to be given
    up by patience alone. `is_cut_off`: a download of it must fail."""

    name: str
    routes: dict[str, Route]
    codes: tuple[int, ...] = REFUSED
    is_slow: bool = False
    is_cut_off: bool = False
    is_page: bool = False


def cases(rng: random.Random, site: Site, secret: Path) -> Iterator[Case]:
    """Cases without end. `secret`: a video on this machine that no page may lead to."""
    while True:
        drawn = rng.random()
        if drawn < PAGES:
            from tests.attack.web_pages import page

            yield page(rng, site, secret)
        else:
            make = rng.choice(SLOW_MAKERS if drawn < PAGES + SLOW else MAKERS)
            yield make(rng, site, secret)


def head(*lines: str, status: str = "200 OK", kind: str = "video/mp4") -> bytes:
    """The head of an answer."""
    first = [f"HTTP/1.1 {status}", *([f"Content-Type: {kind}"] if kind else [])]
    return "\r\n".join([*first, *lines, "Connection: close", "", ""]).encode("latin-1", "replace")


def length(data: bytes) -> str:
    return f"Content-Length: {len(data)}"


def once(*parts: Part) -> Route:
    return lambda: iter(parts)


def endless(start: bytes, more: bytes) -> Route:
    """`start`, and then `more` again and again, in large pieces."""
    block = more * max(1, (1 << 18) // len(more))

    def parts() -> Iterator[Part]:
        yield start
        while True:
            yield block

    return parts


def dripping(start: bytes, more: bytes) -> Route:
    """`start`, and then `more` byte by byte."""

    def parts() -> Iterator[Part]:
        yield start
        while True:
            for at in range(len(more)):
                yield more[at : at + 1]
                yield SLOW_S

    return parts


def pieces(rng: random.Random, data: bytes) -> list[Part]:
    """`data` in a few pieces of any size."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(5)))
    bounds = [0, *cuts, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(bounds) if b > a]


def chunked(rng: random.Random, data: bytes, *, end: bool = True) -> bytes:
    body = bytearray()
    for piece in pieces(rng, data):
        assert isinstance(piece, bytes)
        extension = rng.choice([b"", b";a=b", b" ; c"])
        body += b"%x" % len(piece) + extension + b"\r\n" + piece + b"\r\n"
    if end:
        body += b"0\r\n" + b"X-Trailer: a\r\n" * rng.choice([0, 0, 3]) + b"\r\n"
    return bytes(body)


def whole(rng: random.Random) -> bytes:
    """A right answer, in one of the ways that HTTP has."""
    kind = rng.choice(KINDS)
    ways = (
        lambda: head(length(VIDEO), kind=kind) + VIDEO,
        lambda: head(kind=kind) + VIDEO,
        lambda: head("Transfer-Encoding: chunked", kind=kind) + chunked(rng, VIDEO),
        lambda: b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + head(length(VIDEO), kind=kind) + VIDEO,
        lambda: head(*(f"X-{n}: {'a' * n}" for n in range(50)), length(VIDEO), kind=kind) + VIDEO,
    )
    return rng.choice(ways)()


# ---- right ones


def _right(rng: random.Random, site: Site, secret: Path) -> Case:
    return Case("whole", {START: once(*pieces(rng, whole(rng)))}, RIGHT)


def _moved(rng: random.Random, site: Site, secret: Path) -> Case:
    steps = [START, *(f"/{n}" for n in range(rng.randrange(1, 6))), "/end"]
    routes: dict[str, Route] = {"/end": once(whole(rng))}
    for here, there in itertools.pairwise(steps):
        to = rng.choice([there, site.at(there), f"{there}?a=b", f"//127.0.0.1:{site.port}{there}"])
        status = rng.choice(["301 a", "302 b", "303 c", "307 d", "308 e"])
        start = head(f"Location: {to}", status=status)
        routes[here] = rng.choice([once(start), endless(start, b"body")])
    return Case("moved", routes, RIGHT)


# ---- without end


def _endless_body(rng: random.Random, site: Site, secret: Path) -> Case:
    size = rng.choice(["Transfer-Encoding: chunked", f"Content-Length: {10**12}", "X: y"])
    block = rng.choice([VIDEO, bytes(4096), rng.randbytes(4096), b"#EXTM3U\n", b"\r\n"])
    start = head(size, kind=rng.choice(KINDS)) + VIDEO * (size == "X: y")
    more = b"%x\r\n%b\r\n" % (len(block), block) if "chunked" in size else block
    return Case(f"endless body, {size}", {START: endless(start, more)}, is_cut_off=True)


def _too_large(rng: random.Random, site: Site, secret: Path) -> Case:
    """A video that would be answered, were it not larger than is allowed, if by a byte."""
    data = VIDEO + bytes(
        MOST_BYTES - len(VIDEO) + rng.choice([1, 1, 1000, rng.randrange(MOST_BYTES)])
    )
    answers = (
        head(length(data)) + data,
        head() + data,
        head("Transfer-Encoding: chunked") + chunked(rng, data),
    )
    return Case("too large", {START: once(rng.choice(answers))}, is_cut_off=True)


def _endless_head(rng: random.Random, site: Site, secret: Path) -> Case:
    name, start, more = rng.choice(
        (
            ("status", b"HTTP/1.1 200 ", b"O"),
            ("headers", b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
            ("header", b"HTTP/1.1 200 OK\r\nX: ", b"a"),
            ("folded header", b"HTTP/1.1 200 OK\r\nX: a\r\n", b" a\r\n"),
            ("interim", b"", b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\n"),
            ("chunk size", head("Transfer-Encoding: chunked"), b"0"),
            ("chunk extension", head("Transfer-Encoding: chunked") + b"1;", b"a"),
            ("trailers", head("Transfer-Encoding: chunked") + b"0\r\n", b"X-A: b\r\n"),
            ("empty chunks", head("Transfer-Encoding: chunked"), b"1\r\na\r\n"),
            ("location", b"HTTP/1.1 302 Found\r\nLocation: /", b"a"),
            ("nothing but lines", b"", b"\r\n"),
        )
    )
    # Trailers come behind a body that is whole, though empty.
    return Case(f"endless {name}", {START: endless(start, more)}, is_cut_off=name != "trailers")


def _endless_error(rng: random.Random, site: Site, secret: Path) -> Case:
    status = rng.choice([204, 205, 300, 304, 400, 401, 403, 404, 407, 416, 429, 500, 503, 599, 999])
    codes = EITHER if status in (204, 205) else REFUSED
    start = head("Retry-After: 999999", status=f"{status} no")
    route = rng.choice([endless(start, b"error"), once(start)])
    return Case(f"status {status}", {START: route}, codes)


# ---- slow


def _dripping(rng: random.Random, site: Site, secret: Path) -> Case:
    start = head(length(VIDEO))
    places = {
        "head": (b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
        "status": (b"", b"HTTP/1.1 200 OK" * 99),
        "body": (start + VIDEO[: rng.randrange(len(VIDEO) - 5000)], bytes(1000)),
        "chunk": (head("Transfer-Encoding: chunked") + b"ffff\r\n", VIDEO),
        "extension": (head("Transfer-Encoding: chunked") + b"1;", b"a"),
        "error": (b"HTTP/1.1 500 ", b"error" * 99),
    }
    name, (before, more) = rng.choice(list(places.items()))
    route = dripping(before, more)
    return Case(f"dripping {name}", {START: route}, is_slow=True, is_cut_off=True)


def _silent(rng: random.Random, site: Site, secret: Path) -> Case:
    answer = head(length(VIDEO)) + VIDEO
    at = rng.choice([0, rng.randrange(80), rng.randrange(len(answer))])
    route = once(answer[:at], SILENCE)
    return Case("silent", {START: route}, is_slow=True, is_cut_off=True)


# ---- leading elsewhere


def _circle(rng: random.Random, site: Site, secret: Path) -> Case:
    count = rng.choice([1, 2, 5, 40])
    names = [START, *(f"/{n}" for n in range(1, count))]
    body = rng.choice([once, lambda start: endless(start, b"body")])
    routes = {
        here: body(head(f"Location: {there}", status="302 Found"))
        for here, there in zip(names, [*names[1:], START], strict=True)
    }
    return Case(f"circle of {count}", routes)


def _elsewhere(rng: random.Random, site: Site, secret: Path) -> Case:
    place = rng.choice(
        (
            secret.as_uri(), str(secret.as_uri()).replace("file:", "FILE:"), f"file:{secret}",
            f"ftp://127.0.0.1:{site.port}/named", "data:video/mp4;base64,AAAA", "javascript:1",
            "gopher://127.0.0.1/", "unix:/run/x", "http://", "http://[", "http://[::1", "https:///x",
            "http://a\0b/", "http://127.0.0.1:99999/", "http://127.0.0.1:x/", "http://127.0.0.1:1/",
            "http://" + "a" * 9000, "//", "http://\xff/", "http:", "://",
            "jar:file:///x", "local-file:x",
        )
    )  # fmt: skip
    status = rng.choice(["301 a", "302 b", "303 c", "307 d", "308 e"])
    route = once(head(f"Location: {place}", status=status))
    return Case(f"leading to {place[:30]!r}", {START: route}, is_cut_off=True)


def _naming(rng: random.Random, site: Site, secret: Path) -> Case:
    """A file that names others, which only a web page may."""
    names = [site.at("/named"), "/named", secret.as_uri(), str(secret), f"concat:{secret}"]
    other = rng.choice(names)
    texts = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{other}\n",
        f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{other}"\n#EXTINF:1,\n{other}\n',
        f'#EXTM3U\n#EXT-X-MAP:URI="{other}"\n#EXTINF:1,\n{other}\n',
        f"ffconcat version 1.0\nfile '{other}'\n",
        f"file '{other}'\n" * 99,
        f"[playlist]\nFile1={other}\nNumberOfEntries=1\n",
        f"[Reference]\nRef1={other}\n",
        f"<asx version='3'><entry><ref href='{other}'/></entry></asx>",
        f"<?xml version='1.0'?><MPD><Period><BaseURL>{other}</BaseURL></Period></MPD>",
        f"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM '{other}'>]><a>&b;</a>",
        f"<smil><body><video src='{other}'/></body></smil>",
        f"RTSPtext{other}",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        f"WEBVTT\n\n00:00.000 --> 00:01.000\n{other}\n",
        f"{other}\n" * 50,
        f"dvdvideo:{other}",
    )
    data = rng.choice([b"", b"\xef\xbb\xbf", b" \n"]) + rng.choice(texts).encode()
    data += rng.choice([b"", b" " * rng.randrange(9000), b"#\n" * 90_000])
    route = once(head(length(data), kind=rng.choice(PLAYLIST_KINDS)) + data)
    return Case(f"naming others: {data[:16]!r}", {START: route})


# ---- broken off, malformed


def _broken_off(rng: random.Random, site: Site, secret: Path) -> Case:
    if rng.random() < 0.5:
        start, body = head(length(VIDEO)), VIDEO
    else:
        start, body = head("Transfer-Encoding: chunked"), chunked(rng, VIDEO, end=False)
    answer = start + body
    # Behind the last byte of a body with chunks the last chunk is missing.
    at = rng.choice([rng.randrange(len(start)), rng.randrange(len(answer))])
    end = [] if rng.random() < 0.5 else [SLOW_S, RESET]
    return Case("broken off", {START: once(answer[:at], *end)}, is_cut_off=at >= len(start))


def _malformed(rng: random.Random, site: Site, secret: Path) -> Case:
    lengths = ("-1", "0", "1", "1e3", "0x10", "", "+5", "5, 5", "9" * 5000, "\u0664", " 5", "5 5")
    size = rng.choice(lengths)
    sizes = ("-1", "0x5", "g", "", "f" * 40, " 5", "5 5", "+5", "1_0", "\xff")
    chunk = rng.choice(sizes).encode("latin-1")
    answers = {
        f"length {size[:9]!r}": head(f"Content-Length: {size}") + VIDEO,
        "two lengths": head(length(VIDEO), "Content-Length: 5") + VIDEO,
        "length and chunks": head("Content-Length: 5", "Transfer-Encoding: chunked")
        + chunked(rng, VIDEO),
        f"chunk size {chunk!r}": head("Transfer-Encoding: chunked") + chunk + b"\r\n" + VIDEO,
        "another encoding": head("Transfer-Encoding: gzip, chunked") + VIDEO,
        "no HTTP": rng.randbytes(rng.randrange(5000)),
        "the video alone": VIDEO,
        "a status": b"HTTP/1.1 " + rng.choice([b"abc", b"-5 a", b"99999 a", b"2 a", b"", b"200"])
        + b"\r\n\r\n" + VIDEO,
        "another version": b"HTTP/" + rng.choice([b"9.9", b"0.9", b"x", b""]) + b" 200 OK\r\n\r\n",
        "header without a colon": b"HTTP/1.1 200 OK\r\nabc\r\n\r\n" + VIDEO,
        "many headers": head(*(f"X-{n}: a" for n in range(200))) + VIDEO,
        "control characters": head("X: \x1b[2J\0", status="404 \x1b[2J\x9b\u202e"),
        "empty": head(length(b"")),
        "text": head() + b"no video at all\n" * rng.randrange(1, 5000),
    }  # fmt: skip
    name, answer = rng.choice(list(answers.items()))
    return Case(name, {START: once(answer)}, EITHER)


def _mutated(rng: random.Random, site: Site, secret: Path) -> Case:
    answer = bytearray(whole(rng))
    end = rng.choice([60, len(answer)])
    for _ in range(rng.choice([1, 1, 4, 32])):
        answer[rng.randrange(min(end, len(answer)))] ^= 1 << rng.randrange(8)
    # A status of a page, or a number of redirects, may come of it.
    return Case("bits", {START: once(bytes(answer), SLOW_S)}, EITHER)


# ---- compressed


def bomb(size: int) -> bytes:
    """`size` bytes of zeros, which gzip makes a thousandth of."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block, parts = bytes(1 << 20), []
    for _ in range(size >> 20):
        parts.append(packer.compress(block))
    return b"".join([*parts, packer.flush()])


BOMB = bomb(64 << 20)


def _compressed(rng: random.Random, site: Site, secret: Path) -> Case:
    """Nothing was asked for in another encoding, and nothing is unpacked."""
    encoding = rng.choice(["gzip", "deflate", "br", "zstd", "identity, gzip", "gzip, gzip"])
    data = rng.choice([BOMB, gzip.compress(BOMB), gzip.compress(VIDEO), gzip.compress(b"#EXTM3U")])
    kind = rng.choice(KINDS)
    start = head(f"Content-Encoding: {encoding}", length(data), kind=kind)
    route = rng.choice([once(start + data), endless(head(f"Content-Encoding: {encoding}"), BOMB)])
    return Case(f"compressed, {encoding}", {START: route})


def _json_page(rng: random.Random, site: Site, secret: Path) -> Case:
    kind = rng.choice(["application/json", "application/xml", "image/svg+xml"])
    data = rng.choice([b"[" * 900_000, json.dumps({"url": site.at("/named")}).encode()])
    return Case(f"as {kind}", {START: once(head(length(data), kind=kind) + data)})


Maker = Callable[[random.Random, Site, Path], Case]
MAKERS: tuple[Maker, ...] = (
    _right, _moved, _too_large, _endless_body, _endless_head, _endless_error, _circle, _elsewhere,
    _naming, _naming, _broken_off, _broken_off, _malformed, _malformed, _mutated, _mutated,
    _compressed, _json_page,
)  # fmt: skip
SLOW_MAKERS: tuple[Maker, ...] = (_dripping, _silent)
