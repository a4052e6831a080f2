"""Damaged, swapped, planted: a stored file is whole and the right one, or a miss."""

from __future__ import annotations

import json
import os
import pickle
import random
import sqlite3
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from sttm_cli.base.types import Json, PrefixKV
from sttm_cli.store import LocalStore, pack
from sttm_cli.store.artifact import canonical, seal_of
from tests.store.made import IDENTITY, another, kv, restored, with_states


def mutations(data: bytes, other: bytes) -> list[tuple[str, bytes]]:
    """At least 500 ways in which a stored file may be damaged."""
    rng = random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    found = [(f"cut at {n}", data[:n]) for n in range(0, len(data), max(1, len(data) // 120))]
    for n in rng.sample(range(len(data)), 300):
        flipped = bytearray(data)
        flipped[n] ^= 1 << rng.randrange(8)
        found.append((f"bit flipped in byte {n}", bytes(flipped)))
    for length in (0, 1, 2**16, 2**31, 2**62, 2**64 - 1, header, header - 7):
        found.append((f"header length {length}", length.to_bytes(8, "little") + data[8:]))
    for old, new in [
        (b'"lengths\\":[12,12,7]', b'"lengths\\":[12,12,8]'),
        (b'"lengths\\":[12,12,7]', b'"lengths\\":[99999999999999,12,7]'),
        (b'"shape":[12,2,4]', b'"shape":[12,4,2]'),
        (b'"dtype":"F32"', b'"dtype":"F16"'),
        (b'"format\\":3', b'"format\\":2'),
        (b'"format\\":4', b'"format\\":3'),
        (b'"recurrent\\":[2,3,5]', b'"recurrent\\":[2,5,3]'),
        (b'"shape":[2,3,5]', b'"shape":[3,2,5]'),
        (b'"layers\\":[0,2,4]', b'"layers\\":[0,2]'),
        (b'"sizes\\":[1,2,', b'"sizes\\":[2,2,'),
        (b'"kv_dtype\\":"int8', b'"kv_dtype\\":"bool'),
        (b'"dtype\\":"float32', b'"dtype\\":"int8'),
        (b'"next_positions\\":[12,7]', b'"next_positions\\":[12,8]'),
        (b'"merge_layer\\":2', b'"merge_layer\\":1'),
        (b'"budget\\":0.3', b'"budget\\":0.5'),
    ]:
        if old in data:
            swapped = data.replace(old, new, 1)
            grown = len(swapped) - len(data)
            length = int.from_bytes(data[:8], "little") + grown
            found.append((f"{old!r} -> {new!r}", length.to_bytes(8, "little") + swapped[8:]))
    body = data[header:]
    half = len(body) // 2
    found.append(("tensors swapped", data[:header] + body[half:] + body[:half]))
    found.append(("another entry's file", other))
    found.append(("bytes appended", data + b"\0" * 64))
    found += [(f"noise {n}", rng.randbytes(len(data))) for n in range(60)]
    found.append(("deep JSON", (100000).to_bytes(8, "little") + b"[" * 100000))
    return found


@pytest.mark.parametrize("make", [kv, with_states])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_500_damaged_files_are_misses_and_never_a_crash_or_other_numbers(
    store: LocalStore, warnings: list[str], kv_dtype: str, make: Callable[[], PrefixKV]
) -> None:
    entry = store.save(IDENTITY, pack(make(), kv_dtype), label={})
    elsewhere = store.save({**IDENTITY, "video": {"digest": "d2"}}, pack(kv(1)), label={})
    data, used = Path(entry.location).read_bytes(), list[str]()
    cases = mutations(data, Path(elsewhere.location).read_bytes())
    assert len(cases) >= 500
    fresh = another(store, warnings.append)
    for name, damaged in cases:
        Path(entry.location).write_bytes(damaged)
        if restored(fresh, room=1) is not None:
            used.append(name)
    assert not used
    assert len(warnings) >= len(cases)


def test_a_link_out_of_the_folder_is_not_followed(store: LocalStore, tmp_path: Path) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    Path(entry.location).rename(tmp_path / "outside")
    Path(entry.location).symlink_to(tmp_path / "outside")
    assert another(store).find(IDENTITY).entry is None


def test_verify_names_each_damage_and_repair_removes_it(store: LocalStore) -> None:
    entries = [
        store.save({**IDENTITY, "video": {"digest": f"d{i}"}}, pack(kv(i)), label={})
        for i in range(3)
    ]
    data = bytearray(Path(entries[1].location).read_bytes())
    data[-3] ^= 1
    Path(entries[1].location).write_bytes(data)
    Path(entries[2].location).write_bytes(b"short")
    checked, found = another(store).verify()
    findings = {Path(f.location): f.problem for f in found}
    assert checked == 3
    assert set(findings) == {Path(entries[1].location), Path(entries[2].location)}
    assert "checksum" in findings[Path(entries[1].location)]
    assert len(another(store).verify(repair=True)[1]) == 2
    assert another(store).verify() == (1, [])
    assert Path(entries[0].location).exists()


class Payload:
    """Unpickling it creates the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_pickles_planted_in_the_index_are_never_loaded(store: LocalStore, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    store.set("known", {"a": 1})
    store.save(IDENTITY, pack(kv()), label={})
    store.close()
    payload = pickle.dumps(Payload(marker))
    (store.path / "index" / "payload.val").write_bytes(payload)
    database = sqlite3.connect(store.path / "index" / "cache.db")
    database.execute("UPDATE Cache SET mode = 4, value = ?", (payload,))
    database.execute("UPDATE Cache SET mode = 4, filename = 'payload.val' WHERE rowid = 1")
    database.execute("UPDATE Cache SET raw = 0, key = ? WHERE rowid = 2", (payload,))
    database.commit()
    database.close()
    other = another(store)
    assert other.get("known") is None
    entry = other.find(IDENTITY).entry
    assert restored(other) is not None
    other.set("known", {"a": 2})
    assert other.find({**IDENTITY, "model": {"w": "m2"}}).entry is None
    other.remove([entry.key])
    assert not marker.exists()


def test_a_byte_changed_behind_an_unchanged_time_is_found(store: LocalStore) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    assert restored(store) is not None
    before = Path(entry.location).stat()
    with Path(entry.location).open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x01")
    os.utime(Path(entry.location), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert restored(another(store)) is None


def test_damage_under_an_unchanged_stat_is_found_at_every_restore(
    store: LocalStore, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk does that returns other bytes: neither a time nor the inode tells."""
    entry = store.save(IDENTITY, pack(kv()), label={})
    assert restored(store) is not None
    assert restored(store) is not None
    place = Path(entry.location)
    whole, before = place.read_bytes(), os.stat(place)
    place.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    monkeypatch.setattr(os, "fstat", lambda descriptor: before)
    assert restored(store) is None
    assert "checksum" in warnings[-1]


def test_a_header_of_millions_of_layers_is_refused_before_they_are_laid_out(
    store: LocalStore,
) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    place = Path(entry.location)
    data, layers = place.read_bytes(), 1_750_000
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    record = json.loads(header["__metadata__"]["sttm"])
    record["lengths"] = [1] * layers
    text = canonical(record)
    header["__metadata__"] = {"sttm": text.decode(), "seal": seal_of(text)}
    written = json.dumps(header, separators=(",", ":")).encode()
    place.write_bytes(len(written).to_bytes(8, "little") + written)
    store.close()
    (store.path / "index" / "cache.db").unlink()
    tracemalloc.start()
    assert another(store).entries() == []
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 100 << 20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("after_spatial", {}),
        ("after_spatial", False),
        ("after_spatial", -1),
        ("spatial_threshold", True),
        ("spatial_threshold", float("nan")),
        ("temporal_threshold", 10**400),
        ("temporal_threshold", "0.6"),
        ("prefix", 7.0),
    ],
)
def test_counts_of_another_type_are_damage_though_the_record_is_sealed(
    store: LocalStore, field: str, value: object
) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    path = Path(entry.location)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    record = json.loads(header["__metadata__"]["sttm"])
    record["tokens"][field] = value
    text = json.dumps(record)
    header["__metadata__"] |= {"sttm": text, "seal": seal_of(text.encode())}
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[start:])
    assert "damaged" in store.find(IDENTITY).miss_reason


RESEALED: dict[str, Callable[[Json, Json], object]] = {
    # From a record and the header of its tensors, whose seal will be right.
    "no states in its format": lambda record, places: record.pop("states"),
    "states in the other format": lambda record, places: record.update(format=3),
    "format as a truth": lambda record, places: record.update(format=True),
    "no list": lambda record, places: record.update(states=None),
    "a layer less": lambda record, places: record["states"]["layers"].pop(),
    "a layer twice": lambda record, places: record["states"]["layers"].append(4),
    "a layer that has keys": lambda record, places: record["states"]["layers"].insert(1, 1),
    "a layer that is not there": lambda record, places: record["states"]["layers"].append(9),
    "a truth for a layer": lambda record, places: record["states"].update(layers=[False, 2, 4]),
    "all layers": lambda record, places: record.update(lengths=[0] * 6),
    "no layer": lambda record, places: record.update(lengths=[12] * 5 + [7]),
    "another shape": lambda record, places: record["states"].update(conv=[4, 6]),
    "an axis less": lambda record, places: record["states"].update(recurrent=[6, 5]),
    "an empty shape": lambda record, places: record["states"].update(recurrent=[0, 3, 5]),
    "a shape below nothing": lambda record, places: record["states"].update(recurrent=[-2, -3, 5]),
    "a huge shape": lambda record, places: record["states"].update(conv=[2**39, 2**39]),
    "no shape": lambda record, places: record["states"].update(conv="64"),
    "a field more": lambda record, places: record["states"].update(more=1),
    "another type of keys": lambda record, places: record.update(dtype="bfloat16"),
    "a state of another type": lambda record, places: places["layers.2.conv"].update(dtype="F16"),
    "a state missing": lambda record, places: places.pop("layers.2.recurrent"),
    "a state too many": lambda record, places: places.update(
        {"layers.1.conv": dict(places["layers.2.conv"])}
    ),
    "a state in another's place": lambda record, places: places.update(
        {"layers.0.conv": places["layers.2.conv"]}
    ),
}


@pytest.mark.parametrize("change", RESEALED.values(), ids=RESEALED)
def test_states_that_are_not_a_models_are_damage_though_the_record_is_sealed(
    store: LocalStore, change: Callable[[Json, Json], object]
) -> None:
    entry = store.save(IDENTITY, pack(with_states()), label={})
    path = Path(entry.location)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    record = json.loads(header.pop("__metadata__")["sttm"])

    def seal() -> None:
        text = json.dumps(record)
        meta = {"sttm": text, "seal": seal_of(text.encode())}
        changed = json.dumps({"__metadata__": meta, **header}).encode()
        path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[start:])

    seal()
    assert restored(another(store)) is not None
    change(record, header)
    seal()
    assert "entry damaged" in another(store).find(IDENTITY).miss_reason
    assert restored(another(store)) is None


def test_the_number_of_layers_is_bounded(store: LocalStore) -> None:
    assert store.save(IDENTITY, pack(kv(lengths=(1,) * 1024)), label={}) is not None
    assert restored(store) is not None
    assert store.save(IDENTITY, pack(kv(lengths=(1,) * 1025)), label={}) is None


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir])
def test_anything_but_a_regular_file_is_a_miss_and_not_waited_for(
    store: LocalStore, warnings: list[str], plant: Callable[[Path], None]
) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    Path(entry.location).unlink()
    plant(Path(entry.location))
    assert "not a regular file" in store.find(IDENTITY).miss_reason
    assert store.entries() == []
    (finding,) = store.verify(repair=True)[1]
    assert finding.removed is not Path(entry.location).exists()
    assert ("cannot be removed" in warnings[-1]) is Path(entry.location).exists()


def test_files_behind_a_linked_folder_are_not_removed(store: LocalStore, tmp_path: Path) -> None:
    store.save(IDENTITY, pack(kv()), label={})
    (tmp_path / "weights").mkdir()
    theirs = [tmp_path / "weights" / name for name in (f"{'a' * 64}.safetensors", "other.part")]
    for path in theirs:
        path.write_bytes(b"theirs")
    (store.path / "kv" / "zz").symlink_to(tmp_path / "weights")
    assert len(store.prune(0)) == 1
    assert store.verify(repair=True) == (0, [])
    assert all(path.exists() for path in theirs)
