"""A video from an http(s) address into a file: bounded in size and in patience."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import VideoError
from sttm_cli.base.types import Progress
from sttm_cli.decode.spool import BLOCK, LEAST_SPEED, TIMEOUT_S, check_size, write

PAGE = "text/html"


def download(address: str, target: Path, *, max_bytes: int, progress: Progress) -> None:
    """Write the file at `address` to `target`; the video of a web page comes by yt-dlp.

    Raises VideoError where it cannot be reached, is too large, stalls or breaks off.
    """
    if address.split("://")[0].lower() not in ("http", "https"):
        raise VideoError(
            f"{address} is not an http(s) address", "give a file or an http(s) address"
        )
    try:
        with open_address(address) as response:
            if response.headers.get_content_type() == PAGE:
                from sttm_cli.decode.web_page import download_from_page

                download_from_page(address, target, max_bytes=max_bytes, progress=progress)
                return
            save(
                address,
                response,
                target,
                max_bytes=max_bytes,
                on_bytes=lambda done, of: progress("download", done, of),
            )
    except urllib.error.HTTPError as error:
        raise VideoError(
            f"{address} gives no video: {error.code} {_line(error.reason)}", "check the address"
        ) from None
    except (
        urllib.error.URLError,
        HTTPException,
        TimeoutError,
        ConnectionError,
        ssl.SSLError,
    ) as error:
        raise VideoError(
            f"{address} cannot be read: {_reason(error)}", "check the address and the network"
        ) from None
    except ValueError:
        raise VideoError(f"{address} is not an address", "check the address") from None


def open_address(
    address: str,
    *,
    connections: Sequence[urllib.request.BaseHandler] | None = None,
    errors: urllib.request.HTTPErrorProcessor | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Any:
    """The response, after redirects; only HTTP and HTTPS have a handler, wherever those lead.

    `connections`: how to connect, instead of anywhere and through the environment's proxies.
    Raises what urllib raises.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        *(connections or _anywhere()),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        errors or urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    own = {"User-Agent": "sttm", "Accept-Encoding": "identity"}
    # Addresses are pasted as they are read, with spaces and other scripts in them.
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={**own, **(headers or {})})
    return opener.open(request, timeout=timeout_s or TIMEOUT_S)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without reading their bodies, which may be endless."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _anywhere() -> Sequence[urllib.request.BaseHandler]:
    proxies = {k: v for k, v in urllib.request.getproxies().items() if k in ("http", "https")}
    proxy = urllib.request.ProxyHandler(proxies)
    return proxy, urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()


def save(
    name: str, response: Any, target: Path, *, max_bytes: int, on_bytes: Callable[[int, int], None]
) -> int:
    """Write a response's body to `target` and return its bytes; `on_bytes` gets those so far and
    those expected (0: unknown).

    Raises VideoError, in which the video is called `name`, where it is too large or breaks off,
    TimeoutError where it stalls.
    """
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else 0
    check_size(name, total, max_bytes)
    done = write(
        _blocks(response),
        target,
        name=name,
        max_bytes=max_bytes,
        on_bytes=lambda done: on_bytes(done, total),
    )
    if done < total:
        raise VideoError(f"{name} broke off after {done:,} of {total:,} bytes", "try again later")
    return done


def _blocks(response: Any) -> Iterator[bytes]:
    """The body as it comes; raises TimeoutError where it comes too slowly."""
    started, done = time.monotonic(), 0
    # read1 returns what there is: read would wait for a whole block, however slowly it comes.
    while block := response.read1(BLOCK):
        done += len(block)
        spent = time.monotonic() - started
        if spent > TIMEOUT_S and done < LEAST_SPEED * spent:
            raise TimeoutError
        yield block


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_S:.0f} s"
    if isinstance(cause, IncompleteRead):
        return "it broke off"
    return getattr(cause, "strerror", None) or _line(str(cause)) or type(cause).__name__


def _line(text: str) -> str:
    """The first line of a server's text, cut to 120 letters."""
    return next(iter(text.splitlines()), "")[:120]
