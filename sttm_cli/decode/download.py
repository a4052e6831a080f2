"""Download a video from an http(s) address into a file, with bounds on size and time."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import Any

from sttm_cli.base.errors import VideoError
from sttm_cli.base.types import Progress
from sttm_cli.decode.bounded_http import BoundedHandler, Bounds, Connect, TooSlow, connect_anywhere
from sttm_cli.decode.spool import BLOCK, LONGEST_S, TIMEOUT_S, check_size, write

PAGE = "text/html"
HEAD_S = 60.0
"""Time limit until a response begins, including redirects."""


def download(address: str, target: Path, *, max_bytes: int, progress: Progress) -> None:
    """Write the file at `address` to `target`; the video of a web page is fetched with yt-dlp.

    Raises VideoError if it cannot be reached, is too large, stalls or breaks off.
    """
    if address.split("://")[0].lower() not in ("http", "https"):
        raise VideoError(
            f"{address} is not an http(s) address", "give a file or an http(s) address"
        )
    bounds = Bounds(seconds=HEAD_S, silence_s=TIMEOUT_S)
    try:
        with open_address(address, bounds) as response:
            if response.headers.get_content_type() == PAGE:
                from sttm_cli.decode.web_page import download_from_page

                download_from_page(address, target, max_bytes=max_bytes, progress=progress)
                return
            bounds.allow(seconds=LONGEST_S, most_bytes=max_bytes)
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
    bounds: Bounds,
    *,
    connect: Connect | None = None,
    errors: urllib.request.HTTPErrorProcessor | None = None,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """Open an address and return the response, after redirects; only HTTP and HTTPS are followed.

    `connect`: how to connect, instead of to any host and through the environment's proxies. Raises
    urllib's exceptions.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        *(() if connect else (_proxies(),)),
        BoundedHandler(bounds, connect or connect_anywhere),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        errors or urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    own = {"User-Agent": "sttm", "Accept-Encoding": "identity"}
    # Pasted addresses may contain spaces and other scripts.
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={**own, **(headers or {})})
    return opener.open(request, timeout=bounds.wait_s())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without reading their bodies, which may be endless."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _proxies() -> urllib.request.ProxyHandler:
    proxies = urllib.request.getproxies().items()
    return urllib.request.ProxyHandler({k: v for k, v in proxies if k in ("http", "https")})


def save(
    name: str,
    response: Any,
    target: Path,
    *,
    max_bytes: int,
    on_bytes: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Write a response's body to `target` and return its bytes; `on_bytes` gets the bytes so far
    and the total (0: unknown).

    Raises VideoError, naming the video `name`, if it is too large or breaks off, TimeoutError if it
    stalls.
    """
    total = _length(response.headers.get("Content-Length", ""))
    check_size(name, total, max_bytes)
    done = write(
        # read1 returns the bytes available: read would wait for a whole block, however slowly it
        # comes.
        iter(partial(response.read1, BLOCK), b""),
        target,
        name=name,
        max_bytes=max_bytes,
        on_bytes=lambda done: on_bytes(done, total),
    )
    if done < total:
        raise VideoError(f"{name} broke off after {done:,} of {total:,} bytes", "try again later")
    return done


def _length(text: str) -> int:
    """Parse a Content-Length; 0 if it is invalid."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return str(cause) if isinstance(cause, TooSlow) else f"no answer within {TIMEOUT_S:.0f} s"
    if isinstance(cause, IncompleteRead):
        return "it broke off"
    return getattr(cause, "strerror", None) or _line(str(cause)) or type(cause).__name__


def _line(text: str) -> str:
    """Return the first line of a server's text, cut to 120 characters."""
    return next(iter(text.splitlines()), "")[:120]
