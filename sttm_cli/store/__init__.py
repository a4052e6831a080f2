"""The KV of each prefilled video, looked up by identity and fully checked before it is used.

Importing the package imports neither torch nor diskcache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sttm_cli.store.artifact import FORMAT, WITH_STATES, difference, key_of
from sttm_cli.store.opening import open_store
from sttm_cli.store.protocol import NO_BOUND, Entry, Finding, Lookup, Removed, Space, Store

if TYPE_CHECKING:
    from sttm_cli.store.local import LocalStore
    from sttm_cli.store.none import NoStore
    from sttm_cli.store.packing import STORED, PackedKV, pack

__all__ = [
    "FORMAT",
    "NO_BOUND",
    "STORED",
    "WITH_STATES",
    "Entry",
    "Finding",
    "LocalStore",
    "Lookup",
    "NoStore",
    "PackedKV",
    "Removed",
    "Space",
    "Store",
    "difference",
    "key_of",
    "open_store",
    "pack",
]

# Imported on demand (PEP 562): listing entries needs no torch.
_MODULES = {
    "LocalStore": "local",
    "NoStore": "none",
    "PackedKV": "packing",
    "STORED": "packing",
    "pack": "packing",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
