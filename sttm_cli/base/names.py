"""Names: plugins looked up by name, addresses of stores, suggestions for misspelt words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

# Plugins: modules of a folder in this package, and entry points of other packages.


@dataclass(frozen=True)
class Plugins:
    """Modules of `package`, each exporting `attribute`, and the entry points of `group`.

    Names have "-" in place of "_" in file names. A module of the package takes precedence over an
    entry point of the same name.
    """

    package: str
    attribute: str
    group: str

    def own(self) -> list[str]:
        """List the names of the modules in the package, sorted, without importing them."""
        root, _, rest = self.package.partition(".")
        spec = find_spec(root)
        places = (spec.submodule_search_locations if spec else None) or []
        folders = [str(Path(place, *rest.split("."))) for place in places]
        return sorted(module.name.replace("_", "-") for module in iter_modules(folders))

    def names(self) -> list[str]:
        """List all names, those of the package first, without importing anything."""
        return list(dict.fromkeys([*self.own(), *sorted(self._entry_points())]))

    def knows(self, name: str) -> bool:
        """Return whether `name` exists; entry points are read only if the package lacks it."""
        return name in self.own() or name in self._entry_points()

    def load(self, name: str) -> Any:
        """Import the module called `name` and return its attribute. Raises KeyError."""
        if name in self.own():
            module = import_module(f"{self.package}.{name.replace('-', '_')}")
            return getattr(module, self.attribute)
        return self._entry_points()[name].load()

    def _entry_points(self) -> dict[str, Any]:
        from importlib.metadata import entry_points

        return {point.name: point for point in entry_points(group=self.group)}


METHODS = Plugins("sttm_cli.merge.methods", "METHOD", "sttm_cli.methods")
"""The merging methods."""

# Locations of a cache: a folder, or an address such as s3://bucket/videos.


# At least two characters, since C:// is a drive.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


BUCKETS = ("s3", "gs", "az")
"""The schemes of buckets, which need the extra `cloud`."""


_CREDENTIALS = {
    "s3": (
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION"),
        "~/.aws and the machine's role",
    ),
    "gs": (("GOOGLE_APPLICATION_CREDENTIALS",), "gcloud's login and the machine's account"),
    "az": (
        ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
        "the machine's identity",
    ),
}


def credentials_of(scheme: str) -> str:
    """Return where credentials for a bucket are looked for, and which variables are set."""
    names, beside = _CREDENTIALS[scheme]
    states = (f"{name} ({'set' if os.environ.get(name) else 'not set'})" for name in names)
    return f"credentials are looked for in {', '.join(states)}, {beside}"


def scheme_of(address: str) -> str:
    """Return the part before "://" in lower case, "" for a path."""
    match = _SCHEME.match(address)
    return match[1].lower() if match else ""


def path_or_address(where: str | os.PathLike[str]) -> str | Path:
    """Return a path or file:// address as Path, any other address unchanged."""
    text = os.fspath(where)
    scheme = scheme_of(text)
    if scheme == "file":
        return Path(url2pathname(urlsplit(text).path))
    return text if scheme else Path(text)


def absolute(where: str | Path) -> str:
    """Return the location in a form independent of the working folder."""
    return where if isinstance(where, str) else str(where.absolute())


# Suggestions for misspelt words.


MOST = 8
"""Names that are suggested at once."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "did you mean llava-onevision-7b?", or "" if no known word is similar.

    Known words that begin with `word`, or contain it, go before the most similar one.
    """
    from difflib import get_close_matches

    word, names = word.lower(), list(known)
    near = [name for name in names if len(word) > 1 and name.startswith(word)]
    near = near or [name for name in names if len(word) > 2 and word in name]
    near = near or get_close_matches(word, names, n=1)
    *first, last = near[:MOST] or [""]
    words = f"{', '.join(first)} or {last}" if first else last
    return f"did you mean {words}?" if words else ""
