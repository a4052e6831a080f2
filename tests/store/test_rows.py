"""A row of the index is read as it was written under its own key, or it is not there."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from sttm_cli.store import LocalStore, pack
from tests.store.made import IDENTITY, another, kv

ROWS = {
    "probe:2:/v.mp4": {"duration_s": 8.0, "frames": 64, "notes": []},
    "digest:/v.mp4": {"blake3": "d1" * 32},
    "digest:/w.mp4": {"blake3": "d2" * 32},
}


def filled(store: LocalStore) -> Path:
    """The index's database, with all rows in the file itself."""
    for key, row in ROWS.items():
        store.set(key, row)
    store.close()
    path = store.path / "index" / "cache.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def test_a_flipped_bit_is_a_missing_row_and_never_another(store: LocalStore) -> None:
    path = filled(store)
    whole = path.read_bytes()
    places = set()
    for key, row in ROWS.items():
        for text in (key.encode(), json.dumps(row).encode()):
            begin = whole.index(text)
            places.update(range(begin, begin + len(text)))
    wrong, missing = list[str](), 0
    for place in sorted(places)[::3]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with another(store) as other:
            rows = {key: other.get(key) for key in ROWS}
        missing += None in rows.values()
        wrong += [f"{place}: {k}" for k, row in rows.items() if row not in (None, ROWS[k])]
    assert wrong == []
    assert missing > len(places) / 6


def test_a_row_under_another_key_is_not_there(store: LocalStore) -> None:
    with closing(sqlite3.connect(filled(store))) as database:
        database.execute(
            "UPDATE Cache SET value = (SELECT value FROM Cache WHERE key = 'digest:/w.mp4') "
            "WHERE key = 'digest:/v.mp4'"
        )
        database.commit()
    assert another(store).get("digest:/v.mp4") is None
    assert another(store).get("digest:/w.mp4") == ROWS["digest:/w.mp4"]


def test_a_row_without_a_seal_is_not_there(store: LocalStore) -> None:
    with closing(sqlite3.connect(filled(store))) as database:
        database.execute("UPDATE Cache SET value = ?", (json.dumps({"blake3": "d3"}),))
        database.commit()
    assert [another(store).get(key) for key in ROWS] == [None] * 3


def test_a_listing_leaves_out_what_was_changed_in_its_rows(store: LocalStore) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={"video": "v.mp4"})
    store.count_use(entry, saved_s=1.0)
    with closing(sqlite3.connect(filled(store))) as database:
        database.execute("UPDATE Cache SET value = replace(value, 'v.mp4', 'w.mp4')")
        database.execute("UPDATE Cache SET value = replace(value, '\"hits\": 1', '\"hits\": 7')")
        database.commit()
    (listed,) = another(store).entries()
    assert (listed.label, listed.uses.hits) == ({"video": "v.mp4"}, 0)


def test_a_row_that_is_not_text_hides_no_other(store: LocalStore) -> None:
    with closing(sqlite3.connect(filled(store))) as database:
        database.execute(
            "UPDATE Cache SET value = CAST(x'ff00fe' AS TEXT) WHERE key = 'digest:/v.mp4'"
        )
        database.commit()
    other = another(store)
    assert other.get("digest:/v.mp4") is None
    assert other.get("digest:/w.mp4") == ROWS["digest:/w.mp4"]
