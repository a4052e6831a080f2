"""Open a store by its path or address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sttm_cli.base.bucket import CLIENTS
from sttm_cli.base.errors import UsageError
from sttm_cli.base.names import STORES, did_you_mean, path_or_address, scheme_of
from sttm_cli.settings.fields import NO_TIER
from sttm_cli.settings.settings import cache_tier
from sttm_cli.store.none import NoStore
from sttm_cli.store.protocol import Store


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
    _check_scheme(place)
    store: Store = STORES.load(scheme_of(place))(place, max_bytes=max_bytes, warn=warn)
    return store


def _check_scheme(address: str) -> None:
    scheme, known = scheme_of(address), sorted({*CLIENTS, *STORES.names()})
    if scheme not in known:
        names = ", ".join(f"{name}://" for name in known)
        raise UsageError(
            f"--cache-dir {address}: there is no store for {scheme}://",
            did_you_mean(scheme, known) or f"give a folder; installed stores: {names}",
        )
