"""Opening a store from a path or an address."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from sttm_cli.base.address import path_or_address, scheme_of
from sttm_cli.base.errors import CacheError, UsageError
from sttm_cli.base.spelling import did_you_mean
from sttm_cli.store.protocol import Store

GROUP = "sttm_cli.stores"
"""Entry points of this group open stores: the name is the scheme of an address, the object is
called as `open(address, *, max_bytes, warn)` and returns a Store."""


def open_store(
    where: str | Path | None, *, warn: Callable[[str], None], max_bytes: int | None = None
) -> Store:
    """Open the store at a path or an address; None stores nothing.

    `max_bytes`: its bound, None for the store's own choice. Raises UsageError for an address of
    an unknown scheme, CacheError where the code for it cannot be loaded.
    """
    if where is None:
        from sttm_cli.store.none import NoStore

        return NoStore()
    place = path_or_address(where)
    if isinstance(place, Path):
        from sttm_cli.store.local import LocalStore

        return LocalStore(place, max_bytes=max_bytes, warn=warn)
    point = _entry_point(place)
    try:
        opener = point.load()
    except (ImportError, AttributeError) as error:
        raise CacheError(f"the store for {place} cannot be loaded: {error}") from error
    store: Store = opener(place, max_bytes=max_bytes, warn=warn)
    return store


def _entry_point(address: str) -> EntryPoint:
    scheme = scheme_of(address)
    known = {point.name: point for point in entry_points(group=GROUP)}
    if scheme in known:
        return known[scheme]
    names = ", ".join(f"{name}://" for name in sorted(known)) or "none"
    raise UsageError(
        f"--cache-dir {address}: there is no store for {scheme}://",
        did_you_mean(scheme, known) or f"give a folder; installed stores: {names}",
    )
