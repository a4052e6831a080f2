"""Videos that are objects of a bucket (s3://, gs://, az://): listed, and fetched into a file.

obstore's messages quote the endpoint, which may contain a password; none of them is passed on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sttm_cli.base.errors import DisturbedError, SttmError, UsageError, VideoError
from sttm_cli.base.names import credentials_of, scheme_of
from sttm_cli.decode.spool import check_size, write

SCHEMES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
"""The schemes of buckets, and obstore's names of their clients."""
PART = 8 << 20
"""Bytes of an object that are fetched in one request."""
PAGE = 1000
"""Objects of a listing that are looked at together."""
TIMEOUT_S = 60.0
"""Of one request, its body included."""
RETRY_S = 30.0
"""A request that fails with 5xx, or whose connection is cut, is repeated within this time."""
_STATUS = re.compile(r"status(?: code)?:? (\d{3})")
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Object:
    """An object as a listing or a header describes it. `tag`: the server's mark of its bytes, ""
    where it gives none."""

    address: str
    size: int
    tag: str

    @property
    def version(self) -> str:
        """What tells these bytes from others at the same address, "" where nothing does."""
        return f"{self.address}|{self.size}|{self.tag}" if self.tag else ""


def in_bucket(video: object) -> bool:
    """Whether a video is named by the address of an object."""
    return isinstance(video, str) and scheme_of(video) in SCHEMES


def find_objects(address: str, suffixes: frozenset[str]) -> list[str]:
    """The addresses that `address` stands for: a pattern (`*`, `?`, `[`, and `**` for any depth);
    what ends with "/" or names a bucket alone, searched for `suffixes` to any depth; else itself.

    Raises SttmError where the bucket cannot be listed or the extra is missing.
    """
    scheme, bucket, key = _parts(address)
    root = f"{scheme}://{bucket}/"
    if match := _MAGIC.search(key):
        wanted = key.split("/")
        folder = key[: match.start()].rpartition("/")[0]
        return [root + k for k in _keys(address, folder) if _matches(k.split("/"), wanted)]
    if key and not key.endswith("/"):
        _client(scheme, bucket)
        return [address]
    depth = len(Path(key).parts)
    return [root + k for k in _keys(address, key.rstrip("/")) if _is_video(k, depth, suffixes)]


def object_at(address: str) -> Object:
    """The size and the tag of an object; raises VideoError where there is none to be read."""
    scheme, bucket, key = _parts(address)
    client = _client(scheme, bucket)
    meta = _asked(address, lambda: client.head(key))
    return Object(address, int(meta["size"]), str(meta.get("e_tag") or ""))


def fetch(
    found: Object, target: Path, *, max_bytes: int, on_bytes: Callable[[int, int], None]
) -> None:
    """Write an object's bytes to `target`; `on_bytes` gets those so far and all of them.

    Raises VideoError where it is too large or cannot be read, DisturbedError where it is replaced
    meanwhile.
    """
    check_size(found.address, found.size, max_bytes)
    done = write(
        _blocks(found),
        target,
        name=found.address,
        max_bytes=max_bytes,
        on_bytes=lambda done: on_bytes(done, found.size),
    )
    if done != found.size:
        raise VideoError(
            f"{found.address} broke off after {done:,} of {found.size:,} bytes", "try again later"
        )


def _blocks(found: Object) -> Iterator[bytes]:
    """An object's bytes, part by part: a connection that is cut costs one part."""
    scheme, bucket, key = _parts(found.address)
    client = _client(scheme, bucket)
    for start in range(0, found.size, PART):
        options: dict[str, Any] = {"range": (start, min(start + PART, found.size))}
        if found.tag:
            options["if_match"] = found.tag
        yield bytes(
            _asked(found.address, lambda o=options: client.get(key, options=o).bytes())  # type: ignore[misc]
        )


def _keys(address: str, folder: str) -> Iterator[str]:
    """The keys below a folder, in order, but for those with a part that begins with a dot."""
    scheme, bucket, _ = _parts(address)
    client, depth = _client(scheme, bucket), len(Path(folder).parts)
    pages = iter(client.list(folder or None, chunk_size=PAGE))
    while page := _asked(address, lambda: next(pages, None), listing=True):
        for meta in page:
            key = str(meta["path"])
            if not any(part.startswith(".") for part in key.split("/")[depth:]):
                yield key


def _is_video(key: str, depth: int, suffixes: frozenset[str]) -> bool:
    return os.path.splitext(key)[1].lower() in suffixes and len(key.split("/")) > depth


def _matches(parts: list[str], wanted: list[str]) -> bool:
    """Whether the parts of a key match those of a pattern, as a shell would have it."""
    if not wanted or not parts:
        return not parts and all(want == "**" for want in wanted)
    if wanted[0] == "**":
        return _matches(parts, wanted[1:]) or _matches(parts[1:], wanted)
    return fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _parts(address: str) -> tuple[str, str, str]:
    """Scheme, bucket and key of an address; raises UsageError."""
    scheme = scheme_of(address)
    bucket, _, key = address[len(scheme) + 3 :].partition("/")
    if "@" in bucket or not bucket:
        raise UsageError(
            f"{scheme}://... names no bucket, or more than a bucket and a key",
            f"give {scheme}://bucket/key, and credentials through the environment or a profile",
        )
    return scheme, bucket, key


@lru_cache(maxsize=8)
def _client(scheme: str, bucket: str) -> Any:
    """obstore's client of a bucket; credentials come from the environment, a profile or the
    machine's role."""
    try:
        from obstore import exceptions, store
    except ImportError as error:
        raise SttmError(
            f"videos in a bucket need what is not installed: {error.name}",
            "pip install 'sttm-cli[cloud]'",
        ) from None
    more = _s3_settings() if scheme == "s3" else {}
    plain = urlsplit(str(more.get("endpoint", ""))).scheme == "http"
    options = {"timeout": timedelta(seconds=TIMEOUT_S), "connect_timeout": timedelta(seconds=5)}
    try:
        return getattr(store, SCHEMES[scheme])(
            bucket,
            client_options={**options, **({"allow_http": True} if plain else {})},
            retry_config={"max_retries": 8, "retry_timeout": timedelta(seconds=RETRY_S)},
            **more,
        )
    except (exceptions.BaseError, ValueError):
        raise SttmError(
            f"{scheme}://{bucket} cannot be opened: its settings in the environment are incomplete",
            credentials_of(scheme),
        ) from None


def _s3_settings() -> dict[str, Any]:
    """What obstore does not find by itself: the endpoint of the newer variables, and profiles."""
    settings: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        settings["endpoint"] = endpoint
    if not os.environ.get("AWS_ACCESS_KEY_ID") and _has_profiles():
        from boto3 import Session
        from obstore.auth.boto3 import Boto3CredentialProvider

        session = Session()
        if session.get_credentials() is not None:
            settings["credential_provider"] = Boto3CredentialProvider(session)
        if session.region_name:
            settings["region"] = session.region_name
    return settings


def _has_profiles() -> bool:
    named = (os.environ.get(f"AWS_{name}") for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"))
    places = [Path(place) for place in named if place]
    places += [Path.home() / ".aws" / name for name in ("config", "credentials")]
    return any(place.is_file() for place in places)


def _asked(address: str, request: Callable[[], Any], *, listing: bool = False) -> Any:
    """The answer to a request; raises VideoError, in words without the server's."""
    from obstore.exceptions import BaseError, PreconditionError

    try:
        return request()
    except PreconditionError:
        raise DisturbedError(
            f"{address} changed while it was read", "ask again once it is complete"
        ) from None
    # A missing object is a FileNotFoundError.
    except (BaseError, OSError, ValueError) as error:
        verb = "listed" if listing else "read"
        reason = _reason(error)
        hint = "check the address, the credentials and the network"
        if "credentials" in reason:
            hint = credentials_of(scheme_of(address))
        raise VideoError(f"{address} cannot be {verb}: {reason}", hint) from None


def _reason(error: Exception) -> str:
    text, kind = str(error), type(error).__name__
    if isinstance(error, FileNotFoundError) or kind == "NotFoundError":
        return "there is no such object or bucket"
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return "the credentials do not allow it"
    found = _STATUS.search(text)
    if found and found[1] in ("401", "403"):
        return f"the credentials do not allow it (status {found[1]})"
    if found:
        return f"the server answers with status {found[1]}"
    if "credential" in text.lower() or "169.254.169.254" in text:
        return "no credentials were found"
    if "kind: Timeout" in text or "timed out" in text:
        return "the server does not answer in time"
    return "the server cannot be reached" if "kind: Connect" in text else "the connection fails"
