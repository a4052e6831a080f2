"""How things are named: modules found by their name, addresses of stores, and misspelt words."""

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

# Modules that are found by their name: those of a folder in the package, and entry points.


@dataclass(frozen=True)
class Plugins:
    """Modules of `package`, each exporting `attribute`, and the entry points of `group`.

    Names are typed with "-" where a file has "_". A module of the package goes before an entry
    point of the same name.
    """

    package: str
    attribute: str
    group: str

    def own(self) -> list[str]:
        """Names of the modules in the package, sorted; imports nothing."""
        root, _, rest = self.package.partition(".")
        spec = find_spec(root)
        places = (spec.submodule_search_locations if spec else None) or []
        folders = [str(Path(place, *rest.split("."))) for place in places]
        return sorted(module.name.replace("_", "-") for module in iter_modules(folders))

    def names(self) -> list[str]:
        """All names, those of the package first; imports none of the modules."""
        return list(dict.fromkeys([*self.own(), *sorted(self._entry_points())]))

    def knows(self, name: str) -> bool:
        """Whether there is a module of this name; asks other packages only where it must."""
        return name in self.own() or name in self._entry_points()

    def load(self, name: str) -> Any:
        """Import the module of this name and return what it exports. Raises KeyError."""
        if name in self.own():
            module = import_module(f"{self.package}.{name.replace('-', '_')}")
            return getattr(module, self.attribute)
        return self._entry_points()[name].load()

    def _entry_points(self) -> dict[str, Any]:
        from importlib.metadata import entry_points

        return {point.name: point for point in entry_points(group=self.group)}


METHODS = Plugins("sttm_cli.merge.methods", "METHOD", "sttm_cli.methods")
"""Ways to merge a video's tokens."""

# Where a cache is: a folder, or an address such as s3://bucket/videos.


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


# What a person may have meant by a word that is not known.


MOST = 8
"""Names that are suggested at once."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "did you mean llava-onevision-7b?", or "" where nothing comes near.

    A word that begins names, or stands in them, suggests those; another one the name nearest to it.
    """
    from difflib import get_close_matches

    word, names = word.lower(), list(known)
    near = [name for name in names if len(word) > 1 and name.startswith(word)]
    near = near or [name for name in names if len(word) > 2 and word in name]
    near = near or get_close_matches(word, names, n=1)
    *first, last = near[:MOST] or [""]
    words = f"{', '.join(first)} or {last}" if first else last
    return f"did you mean {words}?" if words else ""
