"""Where a cache is: a folder, or an address such as s3://bucket/videos."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

# Two characters at least: C:// is a drive.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


def scheme_of(address: str) -> str:
    """The part before "://" in lower case, "" for a path."""
    match = _SCHEME.match(address)
    return match[1].lower() if match else ""


def path_or_address(where: str | os.PathLike[str]) -> str | Path:
    """A path as Path, also one given as file://; any other address as its text, unchanged."""
    text = os.fspath(where)
    scheme = scheme_of(text)
    if scheme == "file":
        return Path(url2pathname(urlsplit(text).path))
    return text if scheme else Path(text)


def absolute(where: str | Path) -> str:
    """The same place, independent of the folder that a process runs in."""
    return where if isinstance(where, str) else str(where.absolute())
