"""Requests to a bucket, through obstore: bounded in time, with errors in words of our own.

obstore's messages quote the endpoint, which may contain a password; none of them is passed on.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from sttm_cli.base.errors import CacheError, UsageError
from sttm_cli.base.names import BUCKETS, credentials_of
from sttm_cli.store.artifact import Damaged

FOLDER = "sttm-cache-1"
"""All objects are below it, so that no other program's are ever listed or removed; with the version
of the layout."""
TIMEOUT_S = 30.0
"""Of one request, its body included."""
RETRY_S = 20.0
"""A request that fails with 5xx, or whose connection is cut, is repeated within this time."""
WRITES = 5
"""Attempts at a conditional write whose connection is cut."""
PAUSE_S = 60.0
"""After a bucket that did not answer: until it is asked again."""
SLOWEST = 1 << 20
"""Bytes a second: a larger upload gets more time."""
MOST_AT_ONCE = 5 << 30
"""S3 takes no more in one request; longer artifacts go in parts, without a condition."""
UPLOAD_PART = 64 << 20
"""Bytes of such a part. The object is there once all of them are."""
PAGE = 1000
"""Objects of one request of a listing, and of one that removes."""
SIDE_BY_SIDE = 16
"""Requests of a listing that run at once: one for each first digit of a key."""
ENDPOINTS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
)
"""Variables with the address of another server than the scheme's own; it may be one without TLS."""
_CODES = {
    301: "it is in another region (AWS_REGION)",
    307: "it is in another region (AWS_REGION)",
    400: "the request or the credentials are not accepted (status 400)",
    401: "the credentials are not accepted",
    403: "access is denied",
    404: "the bucket does not exist",
}


T = TypeVar("T")


class BucketError(OSError):
    """The bucket did not do as asked; the message gives the reason, without secrets."""


class Unchanged(Exception):
    """The object is still the version that was named."""


class Changed(Exception):
    """The object is not the version that was named, or there is one where none was expected."""


class Version(NamedTuple):
    """A version of an object, as the server names it; which of both it uses is its own choice."""

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
        """From obstore's own description."""
        version = Version(meta["e_tag"], meta["version"])
        return cls(meta["path"], meta["size"], version, meta["last_modified"].timestamp())


class Got(NamedTuple):
    """A part of an object, and the object."""

    data: memoryview
    object: Listed


class Traffic:
    """Requests by method, listings as LIST, and the bytes of objects."""

    def __init__(self) -> None:
        self.requests = Counter[str]()
        self.received = self.sent = 0
        self._lock = Lock()

    def add(self, method: str = "", count: int = 1, *, received: int = 0, sent: int = 0) -> None:
        """Count requests, and bytes."""
        with self._lock:
            self.requests.update({method: count} if method else {})
            self.received += received
            self.sent += sent


class Bucket:
    """The objects of one cache in a bucket; paths are below its folder.

    Methods raise BucketError. After one that says that the server does not answer, all do so at
    once for a while. `traffic`: what was asked so far; repetitions after a failure are not counted.
    """

    def __init__(self, address: str) -> None:
        """Raises UsageError for a malformed address, CacheError without the extra `cloud`."""
        self.address = address.rstrip("/")
        self._place = _place(address)
        self._client = _client(*self._place, seconds=TIMEOUT_S, retry_s=RETRY_S)
        self._paused_until, self._reason = 0.0, ""
        self.traffic = Traffic()

    def read(
        self, path: str, begin: int, end: int, *, same: Version | None = None, known: str = ""
    ) -> Got:
        """The bytes from `begin` to `end`, fewer at the object's end.

        `same`: the version that is expected, else Changed is raised. `known`: an ETag for which
        Unchanged is raised. Raises FileNotFoundError, and Damaged where the object ends before
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
        """The object without its bytes; None where there is none."""
        self.traffic.add("HEAD")
        try:
            return self._do(lambda: Listed.of(self._client.head(path)), missing_ok=True)
        except FileNotFoundError:
            return None

    def write(
        self, path: str, data: Any, *, create: bool = False, same: Version | None = None
    ) -> Version:
        """Write a whole object from bytes in memory, in one request.

        `create`: only where there is none; `same`: only over this version. Raises Changed
        otherwise, unless the server ignores conditions.
        """
        size = len(data)
        client, more = self._client, SLOWEST * TIMEOUT_S
        if size > more:
            seconds = TIMEOUT_S + size / SLOWEST
            client = _client(*self._place, seconds=seconds, retry_s=seconds)
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
        """The objects below a folder by their names, from `after` on, as they arrive."""
        pages = iter(self._client.list(folder, offset=after or None, chunk_size=PAGE))
        self.traffic.add("LIST")
        while page := self._do(lambda: [Listed.of(meta) for meta in next(pages, ())]):
            yield from page
            if len(page) == PAGE:
                self.traffic.add("LIST")

    def listed_all(self, folder: str) -> list[Listed]:
        """All objects of the sixteen folders FOLDER/0 to FOLDER/f, which are listed at once."""
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            parts = pool.map(lambda digit: [*self.listed(f"{folder}/{digit}")], "0123456789abcdef")
            return [listed for part in parts for listed in part]

    def full(self, path: str) -> str:
        """The address of an object."""
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
            raise BucketError(_CODES[404]) from None
        except known.PermissionDeniedError:
            raise BucketError("access is denied") from None
        except known.UnauthenticatedError:
            raise BucketError("the credentials are not accepted") from None
        except (known.BaseError, OSError, ValueError) as error:
            code, reason = _reason(str(error))
            if code == 416:
                raise Damaged("it ends before its tensors do") from None
            if code == 0 or code >= 500:
                self._paused_until, self._reason = time.monotonic() + PAUSE_S, reason
            raise BucketError(reason) from None


def _put(client: Any, path: str, data: Any, mode: Any) -> Any:
    """One request; without a condition where the server or its settings know none.

    obstore does not repeat a conditional request whose connection was cut, since it may have been
    done. Whoever calls this tells by what is stored.
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
        if mode == "overwrite" or _reason(str(error))[0] != 501:
            raise
        return client.put(path, data, use_multipart=False)


def _reason(text: str) -> tuple[int, str]:
    """The HTTP status in an error of obstore, 0 without one, and the error in plain words."""
    if match := re.search(r"status code: (\d{3})", text):
        code = int(match[1])
        return code, _CODES.get(code, f"the server answers with status {code}")
    if "invalid path" in text:
        # Of somebody else's: everything but a listing still works.
        return 400, "an object below it has a name that cannot be read, such as one with '//'"
    if "credential" in text.lower() or "169.254.169.254" in text:
        return 0, "no credentials were found, or they cannot be used"
    for kind, words in (
        ("Connect", "the server cannot be reached"),
        ("Timeout", "the server does not answer in time"),
    ):
        if f"kind: {kind}," in text:
            return 0, words
    return 0, "the connection fails"


def _place(address: str) -> tuple[str, str, str]:
    """Scheme, bucket, and the prefix of all objects; raises UsageError."""
    try:
        parts = urlsplit(address)
    except ValueError:
        parts = urlsplit("")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            "--cache-dir is the address of a bucket with more than a bucket and a prefix in it",
            "give s3://bucket/prefix, and credentials through the environment or a profile",
        )
    if parts.scheme not in BUCKETS or not parts.netloc:
        raise UsageError(f"--cache-dir {address} names no bucket", "give s3://bucket/prefix")
    prefix = [unquote(part) for part in parts.path.split("/") if part]
    if any(part in (".", "..") for part in prefix):
        raise UsageError(f"--cache-dir {address} has '.' or '..' in it", "give s3://bucket/prefix")
    return parts.scheme, parts.netloc, "/".join([*prefix, FOLDER])


def _client(scheme: str, bucket: str, prefix: str, *, seconds: float, retry_s: float) -> Any:
    try:
        from obstore import exceptions, store
    except ImportError as error:
        raise CacheError(
            f"a cache in a bucket needs what is not installed: {error.name}",
            "pip install 'sttm-cli[cloud]'",
        ) from None
    kind: Any = {"s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore}[scheme]
    more = _s3_settings() if scheme == "s3" else {}
    http = any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS)
    try:
        return kind(
            bucket,
            prefix=prefix,
            client_options={
                "timeout": timedelta(seconds=seconds),
                "connect_timeout": timedelta(seconds=5),
                **({"allow_http": True} if http else {}),
            },
            retry_config={
                "max_retries": 8,
                "retry_timeout": timedelta(seconds=retry_s),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=4),
                    "base": 2,
                },
            },
            **more,
        )
    except (exceptions.BaseError, ValueError):
        raise CacheError(
            f"{scheme}://{bucket} cannot be opened: its settings in the environment are incomplete",
            credentials_of(scheme),
        ) from None


def _s3_settings() -> dict[str, Any]:
    """What obstore does not find by itself: the endpoint of the newer variables, and profiles."""
    settings: dict[str, Any] = {}
    if endpoint := next(filter(None, map(os.environ.get, ENDPOINTS[:2])), None):
        settings["endpoint"] = endpoint
    if not os.environ.get("AWS_ACCESS_KEY_ID") and _has_profiles():
        from boto3 import Session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider

        try:
            session = Session()
            found = session.get_credentials() is not None
        except BotoCoreError as error:
            # Of these messages only names of profiles and files are known to be in them.
            kind = type(error).__name__
            raise CacheError(
                f"the profile in AWS_PROFILE or the files in ~/.aws cannot be used ({kind})",
                "aws configure list shows what they hold",
            ) from None
        if found:
            settings["credential_provider"] = Boto3CredentialProvider(session)
        if session.region_name:
            settings["region"] = session.region_name
    return settings


def _has_profiles() -> bool:
    names = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
    named = [Path(os.environ[name]) for name in names if os.environ.get(name)]
    usual = [Path.home() / ".aws" / name for name in ("config", "credentials")]
    return any(place.is_file() for place in named + usual)
