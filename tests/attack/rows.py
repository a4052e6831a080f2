"""Bits and values changed in rows of the index: every answer is the cold one, and every stored KV
is the one of its key."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from sttm_cli.runtime.resources import Resources
from sttm_cli.runtime.session import VideoQA
from sttm_cli.store import LocalStore, NoStore
from tests.attack.asking import Tried, host, quiet
from tests.attack.stored import store

VALUES: tuple[Any, ...] = (0, 1, -1, 9.0, 1e30, None, "x", "", [], {}, True, ["a"], {"a": 1})


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    stored = store(folder)
    with VideoQA(frames=2, resources=Resources(NoStore(), host=host())) as qa:
        key = qa.request(stored.video).key
    while True:
        cache = stored.fresh()
        if rng.random() < 0.3:
            # Facts are used where the KV itself must be computed again.
            for artifact in cache.glob("kv/*/*"):
                artifact.unlink()
        name = _attacked(cache / "index" / "cache.db", rng)
        problem = stored.problem(cache)
        yield Tried(name, problem or _foreign(cache, key))


def _attacked(database: Path, rng: random.Random) -> str:
    """Change one row of the index; its name and the change."""
    with closing(sqlite3.connect(database)) as opened, opened:
        rows = opened.execute("SELECT rowid, key, value FROM Cache ORDER BY key").fetchall()
        rowid, key, value = rng.choice(rows)
        if rng.random() < 0.5:
            data = bytearray(value.encode())
            at, bit = rng.randrange(len(data)), rng.randrange(7)
            data[at] ^= 1 << bit
            changed, what = data.decode(errors="replace"), f"bit {bit} of byte {at}"
        else:
            changed, what = _edited(value, rng)
        opened.execute("UPDATE Cache SET value = ? WHERE rowid = ?", (changed, rowid))
    return f"{str(key).split(':')[0]}: {what}"


def _edited(value: str, rng: random.Random) -> tuple[str, str]:
    try:
        row = json.loads(value)
    except ValueError:
        return "{}", "emptied"
    if not isinstance(row, dict) or not row:
        return "[]", "emptied"
    field, other = rng.choice(list(row)), rng.choice(VALUES)
    return json.dumps({**row, field: other}), f"{field} = {other!r}"


def _foreign(cache: Path, key: str) -> str:
    """What is stored besides the one right key."""
    with LocalStore(cache, warn=quiet) as opened:
        others = [entry.key[:12] for entry in opened.entries() if entry.key != key]
    return f"stored under another key: {', '.join(others)}" if others else ""
