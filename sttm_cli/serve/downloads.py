"""Local copies of the videos at http(s) addresses, bounded in bytes."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from sttm_cli.base.errors import VideoError
from sttm_cli.decode.bounded_http import Bounds, connect_anywhere
from sttm_cli.decode.download import open_address, save
from sttm_cli.serve.options import Options
from sttm_cli.serve.public_internet import connect_public

_SILENCE_S = 20.0
_CHECK = "check the address"


@dataclass
class Copy:
    """A downloaded video. With `validators`, its origin can reply that it is unchanged."""

    path: Path
    bytes: int = 0
    validators: dict[str, str] = field(default_factory=dict)
    users: int = 0


class Downloads:
    """Copies by address, downloaded again only if the origin reports a change.

    They take at most twice `max_download` in total; the least recently used are removed first, and
    copies in use stay.
    """

    def __init__(self, folder: Path, options: Options) -> None:
        self._folder, self._options = folder, options
        self._copies: OrderedDict[str, Copy] = OrderedDict()
        self._lock = threading.Lock()
        # A lock exists as long as a thread holds or awaits it.
        self._busy = WeakValueDictionary[str, threading.Lock]()

    @contextmanager
    def use(self, address: str) -> Iterator[Path]:
        """Yield the local copy of `address`; raises VideoError if it exceeds bounds or fails."""
        with self._lock:
            busy = self._busy.setdefault(address, threading.Lock())
        with busy, self._known(address) as known:
            copy = self._current(address, known)
        with self._used(copy):
            yield copy.path

    @contextmanager
    def use_data(self, content: bytes) -> Iterator[tuple[Path, str]]:
        """Yield the local copy of a video sent with a request, and a name for `use_again`."""
        name = sha256(content).hexdigest()
        with self._lock:
            if name not in self._copies:
                path = self._folder / name
                path.write_bytes(content)
                self._copies[name] = Copy(path, len(content))
            copy = self._copies[name]
            copy.users += 1
        with self._used(copy):
            yield copy.path, name

    @contextmanager
    def use_again(self, name: str) -> Iterator[Path | None]:
        """Yield the copy that `use_data` made, None if it was removed."""
        with self._known(name) as copy:
            yield None if copy is None else copy.path

    @contextmanager
    def _known(self, name: str) -> Iterator[Copy | None]:
        """Yield the existing copy, which is kept for the duration of the block."""
        with self._lock:
            copy = self._copies.get(name)
            if copy is not None:
                copy.users += 1
        if copy is None:
            yield None
            return
        with self._used(copy):
            yield copy

    @contextmanager
    def _used(self, copy: Copy) -> Iterator[None]:
        try:
            yield
        finally:
            with self._lock:
                copy.users -= 1
                self._shrink()

    def _current(self, address: str, known: Copy | None) -> Copy:
        """Return `known` if it is still current, otherwise a new copy; counts one more user."""
        path = self._folder / sha256(address.encode()).hexdigest()[:32]
        part = path.with_suffix(".part")
        copy = Copy(path)
        try:
            fresh = self._fetch(address, known.validators if known else {}, part, copy)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        with self._lock:
            if known and not fresh:
                copy = known
            else:
                part.replace(path)
            self._copies[address] = copy
            self._copies.move_to_end(address)
            copy.users += 1
            self._shrink()
        return copy

    def _fetch(self, address: str, validators: dict[str, str], part: Path, copy: Copy) -> bool:
        """Download to `part`; False if the existing copy is still current."""
        seconds, most = self._options.download_timeout, self._options.max_download
        bounds, started = Bounds(seconds=seconds, silence_s=_SILENCE_S), time.monotonic()
        try:
            with self._open(address, validators, bounds) as response:
                if response.status == 304 and validators:
                    return False
                if response.status == 304:
                    # Nobody asked whether anything changed.
                    raise VideoError("the video's address answers 304", _CHECK)
                copy.validators = _validators(response.headers)
                left = seconds - (time.monotonic() - started)
                bounds.allow(seconds=left, most_bytes=most)
                copy.bytes = save("the video", response, part, max_bytes=most)
                return True
        except urllib.error.HTTPError as error:
            raise VideoError(f"the video's address answers {error.code}", _CHECK) from None
        except TimeoutError:
            raise VideoError("the video's address is too slow", "try again later") from None
        except (OSError, HTTPException, ValueError):
            raise VideoError("the video's address cannot be read", _CHECK) from None

    def _open(self, address: str, validators: dict[str, str], bounds: Bounds) -> Any:
        # No proxies, which would resolve names unchecked.
        connect = connect_anywhere if self._options.allow_private else connect_public
        return open_address(
            address, bounds, connect=connect, errors=_Responses(), headers=validators
        )

    def _shrink(self) -> None:
        total = sum(copy.bytes for copy in self._copies.values())
        for address, copy in list(self._copies.items()):
            if total <= 2 * self._options.max_download:
                break
            if copy.users == 0:
                total -= self._copies.pop(address).bytes
                copy.path.unlink(missing_ok=True)


class _Responses(urllib.request.HTTPErrorProcessor):
    """304 is an answer, not an error."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response if response.code == 304 else super().http_response(request, response)

    https_response = http_response


def _validators(headers: Any) -> dict[str, str]:
    pairs = (("If-None-Match", "ETag"), ("If-Modified-Since", "Last-Modified"))
    return {ask: headers[given] for ask, given in pairs if headers.get(given)}
