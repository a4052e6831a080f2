"""The KV of each prefilled video on disk: found by identity, checked in full before it is used."""

from sttm_cli.store.artifact import FORMAT
from sttm_cli.store.entry import Entry, Finding, Lookup
from sttm_cli.store.identity import difference, key_of
from sttm_cli.store.local import Store
from sttm_cli.store.none import NoStore
from sttm_cli.store.packing import STORED, PackedKV, pack

__all__ = [
    "FORMAT",
    "STORED",
    "Entry",
    "Finding",
    "Lookup",
    "NoStore",
    "PackedKV",
    "Store",
    "difference",
    "key_of",
    "pack",
]
