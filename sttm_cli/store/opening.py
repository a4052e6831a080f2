"""Open a store by its path or address."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from sttm_cli.base.bucket import CLIENTS
from sttm_cli.base.errors import CacheError, UsageError
from sttm_cli.base.names import did_you_mean, path_or_address, scheme_of
from sttm_cli.settings.fields import NO_TIER
from sttm_cli.settings.settings import cache_tier
from sttm_cli.store.none import NoStore
from sttm_cli.store.protocol import Store

GROUP = "sttm_cli.stores"
"""Entry points that open stores: the name is the scheme of an address; the object is called as
`open(address, *, max_bytes, warn)` and returns a Store."""


def open_store(
    where: str | Path | None,
    *,
    warn: Callable[[str], None],
    max_bytes: int | None = None,
    tier: str | Path | None = None,
) -> Store:
    """Open the store at a path or an address; with None, a store that keeps nothing.

    `max_bytes`: its bound, None for the store's default. `tier`: the folder for local copies of a
    bucket, None for the default. Raises UsageError for an address with an unknown scheme and for a
    tier without a bucket, CacheError if the store's code cannot be loaded.
    """
    if where is None:
        return NoStore()
    place = path_or_address(where)
    if isinstance(place, str) and scheme_of(place) in CLIENTS:
        from sttm_cli.store.cloud import BucketStore

        return BucketStore(place, max_bytes=max_bytes, warn=warn, tier=cache_tier(tier))
    if tier is not None and tier != NO_TIER:
        raise UsageError(
            f"--cache-tier {tier} cannot be combined with --cache-dir {place}",
            "a tier keeps copies of a bucket: leave --cache-tier out, or give '--cache-tier none'",
        )
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
    names = ", ".join(f"{name}://" for name in sorted({*CLIENTS, *known}))
    raise UsageError(
        f"--cache-dir {address}: there is no store for {scheme}://",
        did_you_mean(scheme, {*CLIENTS, *known}) or f"give a folder; installed stores: {names}",
    )
