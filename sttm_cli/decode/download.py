"""A video from an http(s) address into a file: bounded in size and in patience."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from sttm_cli.decode.source import BLOCK, Progress, check_size, write
from sttm_cli.errors import VideoError

TIMEOUT_S = 30.0
"""How long a connection may give nothing, and how long it may be slower than LEAST_SPEED."""
LEAST_SPEED = 1000
"""Bytes a second on average below which a download counts as stalled."""
PAGE = "text/html"


def download(address: str, target: Path, *, max_bytes: int, progress: Progress) -> None:
    """Write what `address` gives to `target`; what a web page shows comes by yt-dlp.

    Raises VideoError where it cannot be reached, is too large, stalls or breaks off.
    """
    if address.split("://")[0].lower() not in ("http", "https"):
        raise VideoError(f"{address} is no http(s) address", "give a file or an http(s) address")
    try:
        with _open(address) as response:
            if response.headers.get_content_type() == PAGE:
                from sttm_cli.decode.page import download_from_page

                download_from_page(address, target, max_bytes=max_bytes, progress=progress)
                return
            _save(address, response, target, max_bytes, progress)
    except urllib.error.HTTPError as error:
        raise VideoError(
            f"{address} gives no video: {error.code} {error.reason}", "check the address"
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


def _open(address: str) -> Any:
    """The response, after redirects; only HTTP and HTTPS have a handler, wherever those lead."""
    opener = urllib.request.OpenerDirector()
    proxies = {k: v for k, v in urllib.request.getproxies().items() if k in ("http", "https")}
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    headers = {"User-Agent": "sttm", "Accept-Encoding": "identity"}
    # Addresses are pasted as they are read, with spaces and other scripts in them.
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers=headers)
    return opener.open(request, timeout=TIMEOUT_S)


def _save(address: str, response: Any, target: Path, max_bytes: int, progress: Progress) -> None:
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else 0
    check_size(address, total, max_bytes)
    done = write(
        _blocks(response),
        target,
        name=address,
        max_bytes=max_bytes,
        on_bytes=lambda done: progress("download", done, total),
    )
    if done < total:
        raise VideoError(
            f"{address} broke off after {done:,} of {total:,} bytes", "try again later"
        )


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
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
