"""Requests to a bucket through obstore: bounded in time, with our own error messages.

obstore's messages quote the endpoint, which may contain a password, so none is passed on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from sttm_cli.base.bucket import CLIENTS, open_client, reason_of
from sttm_cli.base.errors import CacheError, UsageError
from sttm_cli.store.artifact import Damaged

FOLDER = "sttm-cache-1"
"""All objects are below this folder, so that no other program's objects are listed or removed;
includes the version of the layout."""
TIMEOUT_S = 30.0
"""Time limit of a request, including its body."""
RETRY_S = 20.0
"""A request that fails with 5xx or a broken connection is retried within this time."""
WRITES = 5
"""Attempts at a conditional write when the connection breaks."""
PAUSE_S = 60.0
"""Pause before a bucket that did not answer is tried again."""
SLOWEST = 1 << 20
"""Bytes per second: larger uploads get a proportionally longer time limit."""
MOST_AT_ONCE = 5 << 30
"""S3's maximum for one request; larger artifacts are uploaded in parts, without a condition."""
UPLOAD_PART = 64 << 20
"""Bytes of such a part. The object exists once all parts are uploaded."""
PAGE = 1000
"""Objects per request of a listing or a removal."""
SIDE_BY_SIDE = 16
"""Concurrent requests of a listing: one for each first digit of a key."""

T = TypeVar("T")


class BucketError(OSError):
    """A bucket request failed; the message gives the reason, without secrets."""


class Unchanged(Exception):
    """The object still has the given version."""


class Changed(Exception):
    """The object does not have the given version, or exists although none was expected."""


class Version(NamedTuple):
    """A version of an object as the server reports it; servers use either field or both."""

    e_tag: str | None
    version: str | None


class Listed(NamedTuple):
    """An object in a listing: its path below the cache, bytes, version, and the server's time of
    its last change in seconds since the epoch."""

    path: str
    size: int
    version: Version
    changed: float

    @classmethod
    def of(cls, meta: Any) -> Listed:
        """Convert obstore's description."""
        version = Version(meta["e_tag"], meta["version"])
        return cls(meta["path"], meta["size"], version, meta["last_modified"].timestamp())


class Got(NamedTuple):
    """A range of an object's bytes, with the object's listing."""

    data: memoryview
    object: Listed


class Traffic:
    """Counts of requests by method (listings as LIST) and of object bytes."""

    def __init__(self) -> None:
        self.requests = Counter[str]()
        self.received = self.sent = 0
        self._lock = Lock()

    def add(self, method: str = "", count: int = 1, *, received: int = 0, sent: int = 0) -> None:
        """Add requests and bytes."""
        with self._lock:
            self.requests.update({method: count} if method else {})
            self.received += received
            self.sent += sent


class Bucket:
    """The objects of one cache in a bucket; paths are below its folder.

    Methods raise BucketError. After one that reports an unresponsive server, all fail immediately
    for a while. `traffic`: the requests so far, without retries after failures.
    """

    def __init__(self, address: str) -> None:
        """Raise UsageError for a malformed address, CacheError without the extra `cloud`."""
        self.address = address.rstrip("/")
        self._place = _place(address)
        self._client = self._open(TIMEOUT_S, RETRY_S)
        self._paused_until, self._reason = 0.0, ""
        self.traffic = Traffic()

    def read(
        self, path: str, begin: int, end: int, *, same: Version | None = None, known: str = ""
    ) -> Got:
        """Return the bytes from `begin` to `end`, fewer at the object's end.

        `same`: the expected version, otherwise Changed is raised. `known`: an ETag for which
        Unchanged is raised. Raises FileNotFoundError, and Damaged if the object ends before
        `begin`.
        """
        options: dict[str, Any] = {"range": (begin, end)}
        if same is not None and same.e_tag:
            options["if_match"] = same.e_tag
        if known:
            options["if_none_match"] = known

        def get() -> Got:
            self.traffic.add("GET")
            result = self._client.get(path, options=options)
            data = memoryview(result.bytes())
            self.traffic.add(received=len(data))
            return Got(data, Listed.of(result.meta))

        return self._do(get, missing_ok=True)

    def head(self, path: str) -> Listed | None:
        """Return the object's listing; None if it does not exist."""
        self.traffic.add("HEAD")
        try:
            return self._do(lambda: Listed.of(self._client.head(path)), missing_ok=True)
        except FileNotFoundError:
            return None

    def write(
        self, path: str, data: Any, *, create: bool = False, same: Version | None = None
    ) -> Version:
        """Write a whole object from memory in one request.

        `create`: only if the object does not exist; `same`: only over this version. Otherwise
        raises Changed, unless the server ignores conditions.
        """
        size = len(data)
        client, more = self._client, SLOWEST * TIMEOUT_S
        if size > more:
            seconds = TIMEOUT_S + size / SLOWEST
            client = self._open(seconds, seconds)
        mode: Any = "create" if create else "overwrite"
        if same is not None:
            named = {name: value for name, value in same._asdict().items() if value}
            mode = named or "overwrite"

        self.traffic.add("PUT", sent=size)

        def put() -> Version:
            if size >= MOST_AT_ONCE:
                put = client.put(path, data, use_multipart=True, chunk_size=UPLOAD_PART)
            else:
                put = _put(client, path, data, mode)
            return Version(put["e_tag"], put["version"])

        return self._do(put)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove objects; missing ones are not an error."""
        if paths:
            self.traffic.add("DELETE", -(-len(paths) // PAGE))
            self._do(lambda: self._client.delete(list(paths)))

    def listed(self, folder: str, *, after: str = "") -> Iterator[Listed]:
        """Yield the objects below a folder in order of their names, starting after `after`."""
        pages = iter(self._client.list(folder, offset=after or None, chunk_size=PAGE))
        self.traffic.add("LIST")
        while page := self._do(lambda: [Listed.of(meta) for meta in next(pages, ())]):
            yield from page
            if len(page) == PAGE:
                self.traffic.add("LIST")

    def listed_all(self, folder: str) -> list[Listed]:
        """Return all objects of the sixteen folders FOLDER/0 to FOLDER/f, listed concurrently."""
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            parts = pool.map(lambda digit: [*self.listed(f"{folder}/{digit}")], "0123456789abcdef")
            return [listed for part in parts for listed in part]

    def _open(self, seconds: float, retry_s: float) -> Any:
        scheme, bucket, prefix = self._place
        return open_client(
            scheme,
            bucket,
            prefix=prefix,
            seconds=seconds,
            retry_s=retry_s,
            what="a cache in a bucket needs",
            error=CacheError,
        )

    def full(self, path: str) -> str:
        """Return the full address of an object."""
        return f"{self.address}/{FOLDER}/{path}"

    def _do(self, action: Callable[[], T], *, missing_ok: bool = False) -> T:
        from obstore import exceptions as known

        if time.monotonic() < self._paused_until:
            raise BucketError(self._reason)
        try:
            return action()
        except known.NotModifiedError:
            raise Unchanged from None
        except (known.AlreadyExistsError, known.PreconditionError):
            raise Changed from None
        except FileNotFoundError:
            if missing_ok:
                raise FileNotFoundError("it does not exist") from None
            raise BucketError("the bucket does not exist") from None
        except (known.BaseError, OSError, ValueError) as error:
            code, reason = reason_of(error)
            if code == 416:
                raise Damaged("it ends before its tensors do") from None
            if code == 0 or code >= 500:
                self._paused_until, self._reason = time.monotonic() + PAUSE_S, reason
            raise BucketError(reason) from None


def _put(client: Any, path: str, data: Any, mode: Any) -> Any:
    """Make one request, unconditionally if the server or its settings do not support conditions.

    obstore does not retry a conditional request after a broken connection, since it may have been
    executed. The caller finds out from the stored object.
    """
    from obstore import exceptions as known

    try:
        for attempt in range(WRITES):
            try:
                return client.put(path, data, mode=mode, use_multipart=False)
            except known.GenericError as error:
                if "kind: Interrupted," not in str(error) or attempt == WRITES - 1:
                    raise
                time.sleep(0.1 * 2**attempt)
    except (known.NotSupportedError, NotImplementedError):
        return client.put(path, data, use_multipart=False)
    except known.GenericError as error:
        if mode == "overwrite" or reason_of(error)[0] != 501:
            raise
        return client.put(path, data, use_multipart=False)


def _place(address: str) -> tuple[str, str, str]:
    """Return the scheme, the bucket, and the prefix of all objects; raises UsageError."""
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = urlsplit("")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            "--cache-dir is the address of a bucket with more than a bucket and a prefix in it",
            "give s3://bucket/prefix, and credentials through the environment or a profile",
        )
    if parts.scheme not in CLIENTS or not parts.netloc:
        raise UsageError(f"--cache-dir {address} names no bucket", "give s3://bucket/prefix")
    prefix = [unquote(part) for part in parts.path.split("/") if part]
    if any(part in (".", "..") for part in prefix):
        raise UsageError(f"--cache-dir {address} has '.' or '..' in it", "give s3://bucket/prefix")
    return parts.scheme, parts.netloc, "/".join([*prefix, FOLDER])
