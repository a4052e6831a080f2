"""The index: lost, broken or full of rows that nobody needs."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sttm_cli.store import LocalStore, pack
from tests.store.made import IDENTITY, another, kv, restored


@pytest.mark.parametrize("damage", [b"", b"this is no database" * 100])
def test_a_lost_or_broken_index_costs_nothing_but_time(store: LocalStore, damage: bytes) -> None:
    store.save(IDENTITY, pack(kv()), label={})
    store.close()
    for path in (store.path / "index").glob("cache.db*"):
        path.write_bytes(damage)
    other = another(store)
    assert restored(other) is not None
    assert len(other.entries()) == 1
    other.set("row", {"a": 1})
    assert another(store).get("row") == {"a": 1}


def rows(store: LocalStore) -> list[str]:
    with closing(sqlite3.connect(store.path / "index" / "cache.db")) as database:
        return [key for (key,) in database.execute("SELECT key FROM Cache")]


def test_no_row_is_left_of_what_was_removed(store: LocalStore) -> None:
    for seed, budget in enumerate((0.3, 0.5, 0.7)):
        identity = {**IDENTITY, "merge": {"budget": budget}}
        entry = store.save(identity, pack(kv(seed)), label={})
        store.load(store.find(identity), device="cpu", room=0)
        store.count_use(entry, saved_s=1.0)
    assert len(rows(store)) == 7
    store.remove([entry.key])
    assert "video:d1" in rows(store)
    store.prune(0)
    assert rows(store) == []


def test_what_nobody_asked_for_in_months_is_forgotten(store: LocalStore, monkeypatch) -> None:
    monkeypatch.setattr("sttm_cli.store.index.MEMORY_S", -1.0)
    store.set("digest:of a file that is gone", {"blake3": "d1"})
    monkeypatch.undo()
    store.set("digest:of another", {"blake3": "d2"})
    entry = store.save(IDENTITY, pack(kv()), label={})
    assert sorted(rows(store)) == [f"about:{entry.key}", "digest:of another", "video:d1"]


def test_an_index_that_failed_once_is_used_again(store: LocalStore, monkeypatch) -> None:
    monkeypatch.setattr("sttm_cli.store.index.PATIENCE_S", 0.05)
    store.set("row", {"a": 1})
    store.close()
    with closing(sqlite3.connect(store.path / "index" / "cache.db")) as locked:
        locked.execute("BEGIN EXCLUSIVE")
        assert store.get("row") is None
    assert store.get("row") is None
    monkeypatch.setattr("time.monotonic", lambda now=time.monotonic: now() + 61)
    assert store.get("row") == {"a": 1}


def test_a_folder_that_cannot_be_entered_is_a_cache_of_nothing(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with without_rights(closed), LocalStore(closed / "cache", warn=lambda line: None) as store:
        store.set("row", {"a": 1})
        assert store.get("row") is None
        assert store.find(IDENTITY).entry is None
        assert store.save(IDENTITY, pack(kv()), label={}) is None


@contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """As a user who may not enter the folder: root may enter all."""
    if not hasattr(os, "geteuid"):
        pytest.skip("there are no such rights here")
    if os.geteuid():
        folder.chmod(0)
        yield
        folder.chmod(0o700)
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
