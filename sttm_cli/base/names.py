"""Names: plugins looked up by name, addresses of stores, suggestions for misspelt words."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from sttm_cli.base.errors import CacheError, ModelError, SttmError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# Plugins: modules of a folder in this package, and entry points of other packages.


@dataclass(frozen=True)
class Plugins:
    """The entry points of `group`, and the modules of `package` that export `attribute`.

    `label`: what they are, in messages; `error`: what a broken one raises; `separator`: stands in
    names for "_" in file names. A module takes precedence over an entry point of the same name.
    """

    group: str
    label: str
    error: type[SttmError]
    package: str = ""
    attribute: str = ""
    separator: str = "_"

    def own(self) -> list[str]:
        """List the names of the modules in the package, sorted, without importing them."""
        root, _, rest = self.package.partition(".")
        spec = find_spec(root) if root else None
        places = (spec.submodule_search_locations if spec else None) or []
        folders = [str(Path(place, *rest.split("."))) for place in places]
        modules = (module.name for module in iter_modules(folders))
        return sorted(name.replace("_", self.separator) for name in modules)

    def names(self) -> list[str]:
        """List all names, those of the package first, without importing anything."""
        return list(dict.fromkeys([*self.own(), *sorted(self._entry_points())]))

    def knows(self, name: str) -> bool:
        """Return whether `name` exists; entry points are read only if the package lacks it."""
        return name in self.own() or name in self._entry_points()

    def load(self, name: str, valid: Callable[[Any], bool] = callable) -> Any:
        """Import what is called `name`.

        Raises KeyError for an unknown name, and `error` for an entry point that cannot be imported
        or is not `valid`.
        """
        if name in self.own():
            module = import_module(f"{self.package}.{name.replace(self.separator, '_')}")
            return getattr(module, self.attribute)
        point = self._entry_points()[name]
        what = f"{self.label} {name!r} of package {point.dist.name if point.dist else '?'}"
        try:
            found = point.load()
        except Exception as error:  # another package's code
            raise self.error(
                f"{what} cannot be imported: {error}", "update or remove that package"
            ) from error
        if not valid(found):
            raise self.error(
                f"{what} is not a {self.label} of that name", "update or remove that package"
            )
        return found

    def _entry_points(self) -> dict[str, EntryPoint]:
        from importlib.metadata import entry_points

        return {point.name: point for point in entry_points(group=self.group)}


METHODS = Plugins(
    group="sttm_cli.methods",
    label="merging method",
    error=UsageError,
    package="sttm_cli.merge.methods",
    attribute="METHOD",
    separator="-",
)
FAMILIES = Plugins(
    group="sttm_cli.families",
    label="model family",
    error=ModelError,
    package="sttm_cli.models.families",
    attribute="FAMILY",
)
STORES = Plugins(group="sttm_cli.stores", label="store", error=CacheError)
"""By the scheme of an address: `open(address, *, max_bytes, warn) -> Store`."""
RUNNERS = Plugins(group="sttm_cli.runners", label="runner", error=UsageError)
"""By the name given to --on: `open(address, session) -> Runner`; `address` is all of --on."""

# Locations of a cache: a folder, or an address such as s3://bucket/videos.


# At least two characters, since C:// is a drive.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)


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


def absolute_path(path: Path) -> Path:
    """Return the absolute path, without ".." in it; links are followed only to leave one out."""
    if ".." not in path.parts:
        return path.absolute()
    if path.name == "..":
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


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
