"""The local files of video parts: downloaded, sent with the request, or an allowed file."""

from __future__ import annotations

import base64
import binascii
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

from sttm_cli.serve.downloads import Downloads
from sttm_cli.serve.http_errors import Refused
from sttm_cli.serve.openai_request import VideoPart
from sttm_cli.serve.options import Options

_MOST_UUIDS = 4096
_MOST_FILES = 65_536
"""Maximum files of a folder of images: 18 hours at one image per second."""
_MOST_LETTERS = 65_536
"""Maximum characters of an address or a path."""
_HELD = "held/"
"""Prefix of the names of videos sent with a request, among the urls of uuids."""


class Videos:
    """Opens the videos that clients name, as local files for as long as they are used.

    A uuid names the video that it was last sent with; a known uuid needs no url.
    """

    def __init__(self, options: Options) -> None:
        self._allowed = [path.resolve() for path in options.allow_path]
        self._folder = TemporaryDirectory(prefix="sttm-serve-", ignore_cleanup_errors=True)
        self._downloads = Downloads(Path(self._folder.name), options)
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Remove every copy."""
        self._folder.cleanup()

    @contextmanager
    def use(self, part: VideoPart, *, trusted: bool) -> Iterator[Path]:
        """Yield the local file of `part`; `trusted` clients may name any file that this user can
        read.

        Raises Refused if the video is not allowed, VideoError if it cannot be fetched.
        """
        url = self._url(part)
        scheme = "data" if _is_data(url) else urlsplit(url).scheme.lower()
        if scheme in ("http", "https"):
            with self._downloads.use(url) as path:
                self._remember(part.uuid, url)
                yield path
        elif scheme == "data":
            with self._downloads.use_data(_content(url)) as (path, name):
                self._remember(part.uuid, _HELD + name)
                yield path
        elif part.url is None and url.startswith(_HELD):
            with self._downloads.use_again(url.removeprefix(_HELD)) as held:
                if held is None:
                    raise _unknown()
                yield held
        else:
            path = self._file(url, trusted=trusted)
            self._remember(part.uuid, url)
            yield path

    def _url(self, part: VideoPart) -> str:
        if part.url is not None:
            _check(part.url)
            return part.url
        with self._lock:
            url = self._known.get(part.uuid or "")
        if url is None:
            raise _unknown()
        return url

    def _remember(self, uuid: str | None, url: str) -> None:
        if uuid is None:
            return
        with self._lock:
            self._known[uuid] = url
            self._known.move_to_end(uuid)
            while len(self._known) > _MOST_UUIDS:
                self._known.popitem(last=False)

    def _file(self, url: str, *, trusted: bool) -> Path:
        found = [self._checked(path, trusted=trusted) for path in _local_paths(url)]
        # If no candidate exists, reply as for the first, and before looking into a folder: clients
        # must not learn which files exist.
        path = next((path for path in found if path and _exists(path)), found[0])
        if path is None:
            raise _forbidden()
        if not trusted and path.is_dir():
            self._check_folder(path)
        return path

    def _checked(self, path: Path, *, trusted: bool) -> Path | None:
        """Return `path` with links resolved; None if the client may not name it."""
        if trusted:
            return path
        try:
            real = path.resolve()
        except (OSError, RuntimeError, ValueError):
            return None
        return real if self._is_allowed(real) else None

    def _check_folder(self, folder: Path) -> None:
        """Refuse a folder of images with a link to a file that is not allowed."""
        try:
            with os.scandir(folder) as entries:
                for number, entry in enumerate(entries):
                    if number >= _MOST_FILES:
                        raise Refused(422, "the folder has too many files", code="video")
                    if entry.is_symlink() and not self._is_allowed(Path(entry.path).resolve()):
                        raise _forbidden()
        except (OSError, RuntimeError):
            raise _forbidden() from None

    def _is_allowed(self, file: Path) -> bool:
        return any(file.is_relative_to(folder) for folder in self._allowed)


def _content(url: str) -> bytes:
    """Return the bytes in a data: url. Raises Refused."""
    head, comma, body = url.partition(",")
    media = head[len("data:") :].lower().split(";")
    if not comma or media[-1] != "base64" or not media[0].startswith(("video/", "image/gif")):
        raise Refused(400, "a data: url must be data:video/...;base64,...", code="bad_url")
    try:
        return base64.b64decode(body if "%" not in body else unquote(body), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "the data: url is not valid base64", code="bad_url") from None


def _local_paths(url: str) -> list[Path]:
    """Return the paths that a url can mean: the standard file:// path first, then the raw text.

    Clients such as lmms-eval put a raw path behind file://, with its `#`, `?` and `%`. Raises
    Refused.
    """
    parts = urlsplit(url)
    if parts.scheme and parts.scheme != "file":
        raise Refused(400, "a video's url must be http(s), data or file", code="bad_url")
    if not parts.scheme:
        return [Path(url)]
    texts = [] if parts.query or parts.fragment else [unquote(parts.path)]
    literal = url[len("file://") :].removeprefix("localhost")
    if url[4:].startswith("://") and literal.startswith("/"):
        texts.append(literal)
    if parts.netloc not in ("", "localhost") or not texts:
        raise _forbidden()
    return [Path(text) for text in dict.fromkeys(texts)]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _check(url: str) -> None:
    """Refuse text that is not a url; the content of a data: url is checked when it is read."""
    if _is_data(url):
        return
    try:
        urlsplit(url)
        is_valid = 0 < len(url) <= _MOST_LETTERS and "\0" not in unquote(url)
    except ValueError:
        is_valid = False
    if not is_valid or any(ord(letter) < 32 for letter in url):
        raise Refused(400, "the video's url is not valid", code="bad_url")


def _forbidden() -> Refused:
    return Refused(403, "this server may not read that file", code="forbidden")


def _unknown() -> Refused:
    return Refused(404, "no video of this uuid is known; send its url", code="not_found")
