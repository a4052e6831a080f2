"""A web server on this machine that gives a video in good and in bad ways."""

from __future__ import annotations

import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

PAGE = b"<html><head><title>film</title></head><body><video src='/video.mp4'></video></body></html>"
PLAYLIST = "application/vnd.apple.mpegurl"
ENDLESS = ("/endless-page", "/endless-redirect", "/endless-playlist.m3u8")
SEGMENT = b"#EXTINF:1,\n/video.mp4\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nTransfer-Encoding: chunked\r\n\r\n"
RAW = {
    "/dripping-head": (b"HTTP/1.1 200 OK\r\n", b"x"),
    "/endless-interim": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "/dripping-chunk": (CHUNKED + b"1;", b"x"),
    "/unchanged": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 0\r\n\r\n", b""),
    "/endless-trailers": (CHUNKED + b"1\r\na\r\n0\r\n", b"a: b\r\n" * 10_000),
}
"""Answers as they go over the wire: the beginning, and what follows without end."""


class Site:
    """The server's address, and the paths that were asked for."""

    def __init__(self, video: bytes, scheme: str = "http") -> None:
        self.video, self.scheme = video, scheme
        self.asked: list[str] = []
        self.port = 0

    def at(self, path: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/{path}"


@contextmanager
def serving(video: Path, tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve `video` until the block ends, over TLS where a context is given."""
    site = Site(video.read_bytes(), "https" if tls else "http")

    class Handler(_Handler):
        pass

    Handler.site = site
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.port = server.server_address[1]
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_CONNECT(self) -> None:
        """As a proxy does it: bytes go to and fro until one side ends."""
        self.site.asked.append(f"CONNECT {self.path}")
        host, port = self.path.split(":")
        with socket.create_connection((host, int(port))) as other:
            self.send_response(200)
            self.end_headers()
            Thread(target=_copy, args=(other, self.connection), daemon=True).start()
            _copy(self.connection, other)

    def _answer(self, *, body: bool) -> None:
        if body:
            self.site.asked.append(self.path)
        if self.path in RAW:
            self._send_raw(*RAW[self.path])
            return
        kind, data, headers = self._page()
        self.send_response(302 if "Location" in headers else 200)
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        try:
            self._send(data)
        except OSError:
            # The client had enough.
            return

    def _send(self, data: bytes) -> None:
        if self.path == "/endless-playlist.m3u8":
            self.wfile.write(b"#EXTM3U\n")
        while self.path in ENDLESS:
            self.wfile.write(data)
        if self.path == "/dripping-page":
            while True:
                self.wfile.write(b" ")
                time.sleep(0.1)
        if self.path == "/bomb-page":
            self._send_bomb()
        if self.path == "/dripping":
            data = self._drip()
        elif self.path == "/silent":
            time.sleep(3)
        self.wfile.write(data)

    def _send_raw(self, start: bytes, more: bytes) -> None:
        """For 20 seconds: whoever has more patience than that is let go."""
        self.close_connection = True
        ends = time.monotonic() + 20
        try:
            self.wfile.write(start)
            while more and time.monotonic() < ends:
                self.wfile.write(more)
                if len(more) == 1:
                    time.sleep(0.1)
        except OSError:
            return

    def _page(self) -> tuple[str, bytes, dict[str, str]]:
        """Content type, body and headers of the path that was asked for."""
        video = self.site.video
        whole = {"Content-Length": str(len(video))}
        return {
            "/moved": ("video/mp4", b"", {"Location": "/video.mp4"}),
            "/to-a-file": ("video/mp4", b"", {"Location": "file:///etc/hostname"}),
            "/to-loopback": ("video/mp4", b"", {"Location": self.site.at("video.mp4")}),
            "/to-ftp": ("video/mp4", b"", {"Location": "ftp://127.0.0.1/video.mp4"}),
            "/in-circles": ("video/mp4", b"", {"Location": self.site.at("in-circles")}),
            "/half-a-chunk": ("video/mp4", b"1000\r\nabc", {"Transfer-Encoding": "chunked"}),
            "/broken-off": ("video/mp4", video[:-10], whole),
            "/endless": ("video/mp4", bytes(5 << 20), {}),
            "/huge": ("video/mp4", b"", {"Content-Length": str(10**12)}),
            "/text": ("text/plain", b"no video at all\n" * 100, {}),
            "/endless-page": ("text/html", PAGE * 1000, {}),
            "/dripping-page": ("text/html", PAGE, {}),
            "/bomb-page": ("text/html", b"", {"Content-Encoding": "gzip"}),
            "/endless-redirect": ("text/html", bytes(1 << 16), {"Location": "/video.mp4"}),
            "/page-of-a-playlist": (
                "text/html",
                PAGE.replace(b"video.mp4", b"endless-playlist.m3u8"),
                {},
            ),
            "/endless-playlist.m3u8": (PLAYLIST, SEGMENT * 1000, {}),
            "/page-of-a-long-playlist": (
                "text/html",
                PAGE.replace(b"video.mp4", b"long-playlist.m3u8"),
                {},
            ),
            "/long-playlist.m3u8": (
                PLAYLIST,
                b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n" + SEGMENT * 5000 + b"#EXT-X-ENDLIST\n",
                {},
            ),
            "/page": ("text/html; charset=utf-8", PAGE, {}),
            "/empty": ("video/mp4", b"", {}),
        }.get(self.path, ("video/mp4", video, whole))

    def _send_bomb(self) -> None:
        """A page of 16 GiB, compressed to 16 MiB."""
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        head = packer.flush(zlib.Z_FULL_FLUSH)
        # After a full flush, a block stands for itself.
        block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
        self.wfile.write(head + block * 1024)

    def _drip(self) -> bytes:
        for byte in self.site.video[:30]:
            self.wfile.write(bytes([byte]))
            time.sleep(0.1)
        return b""

    def log_message(self, format: str, *args: object) -> None:
        pass
