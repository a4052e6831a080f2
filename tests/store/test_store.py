"""Entries are found by all that shaped them, bounded, and in a folder that is one's own."""

from __future__ import annotations

import os
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from sttm_cli.store import LocalStore, difference, key_of, pack
from tests.store.made import IDENTITY, another, kv, restored, same


def test_a_miss_names_the_field_that_differs(store: LocalStore) -> None:
    store.save(IDENTITY, pack(kv()), label={})
    other = {**IDENTITY, "merge": {"budget": 0.5}}
    lookup = store.find(other)
    assert lookup.entry is None
    assert lookup.miss_reason == "merge.budget: asked 0.5, stored 0.3"
    unknown = store.find({**IDENTITY, "video": {"digest": "d2"}})
    assert "video" in unknown.miss_reason


def test_numbers_and_their_look_alikes_are_different_identities() -> None:
    assert key_of({"budget": 1.0}) != key_of({"budget": 1})
    assert difference({"budget": 1.0}, {"budget": 1})
    with pytest.raises(ValueError, match="JSON"):
        key_of({"budget": float("nan")})


def test_the_bound_removes_the_least_recently_used_and_never_the_one_just_written(
    tmp_path: Path,
) -> None:
    one = LocalStore(tmp_path / "size", warn=print).save(IDENTITY, pack(kv()), label={}).bytes
    store = LocalStore(tmp_path / "cache", warn=print, max_bytes=int(2.5 * one))
    identities = [{**IDENTITY, "video": {"digest": f"d{i}"}} for i in range(3)]
    for identity in identities[:2]:
        store.save(identity, pack(kv()), label={})
    store.count_use(store.find(identities[0]).entry, saved_s=1.0)
    store.save(identities[2], pack(kv()), label={})
    assert [store.find(i).entry is not None for i in identities] == [True, False, True]
    assert store.bytes <= store.max_bytes
    tight = LocalStore(tmp_path / "cache", warn=print, max_bytes=one)
    assert len(tight.prune(tight.max_bytes)) == 1
    assert store.bytes == sum(e.bytes for e in store.entries()) <= one


def test_an_entry_larger_than_the_bound_is_not_stored(tmp_path: Path, warnings) -> None:
    store = LocalStore(tmp_path / "cache", warn=warnings.append, max_bytes=100)
    assert store.save(IDENTITY, pack(kv()), label={}) is None
    assert "--max-bytes" in warnings[0]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the disk have so many free bytes, and so many in all."""

    def has(count: int, total: int = 1 << 40) -> None:
        monkeypatch.setattr(
            "sttm_cli.store.files.shutil.disk_usage", lambda place: usage(total, 0, count)
        )

    usage = namedtuple("usage", "total used free")
    return has


def test_a_disk_that_fills_up_evicts_nothing_of_what_is_stored(
    store: LocalStore, warnings: list[str], free: Callable[..., None]
) -> None:
    free(1 << 30)
    identities = [{**IDENTITY, "video": {"digest": f"d{i}"}} for i in range(6)]
    for identity in identities[:5]:
        store.save(identity, pack(kv()), label={})
    bound = store.max_bytes
    free(0)
    assert store.max_bytes == bound
    assert another(store).prune(bound) == []
    assert warnings == []
    assert another(store, warnings.append).save(identities[5], pack(kv()), label={}) is None
    assert all(store.stored(identity) for identity in identities[:5])
    assert len(warnings) == 1
    assert "would leave less than 268,435,456 free" in warnings[0]


def test_the_automatic_bound_evicts_with_a_word_and_follows_the_size_of_the_disk(
    store: LocalStore, warnings: list[str], free: Callable[..., None]
) -> None:
    identities = [{**IDENTITY, "video": {"digest": f"d{i}"}} for i in range(3)]
    entries = [store.save(identity, pack(kv()), label={}) for identity in identities[:2]]
    free(1 << 40, 20 * entries[0].bytes)
    other = another(store, warnings.append)
    assert other.max_bytes == 2 * entries[0].bytes
    other.save(identities[2], pack(kv()), label={})
    assert [store.stored(i) is not None for i in identities] == [False, True, True]
    removed = f"removed 1 of the least recently used entries ({entries[0].bytes:,} bytes)"
    assert removed in warnings[0]
    assert "automatic bound" in warnings[0]
    assert "--max-bytes" not in warnings[0]
    # A disk of an unknown size.
    free(0, 0)
    assert another(store).max_bytes == 20 << 30
    assert another(store, pytest.fail).save(identities[0], pack(kv()), label={}) is not None


def test_a_message_names_the_bound_that_was_given_or_that_there_was_none(
    tmp_path: Path, warnings: list[str], free: Callable[..., None]
) -> None:
    free(100, 100)
    for max_bytes, named in ((None, "the automatic bound of 10 bytes"), (50, "--max-bytes 50")):
        store = LocalStore(tmp_path / "cache", warn=warnings.append, max_bytes=max_bytes)
        assert store.save(IDENTITY, pack(kv()), label={}) is None
        assert named in warnings.pop()


def test_an_entry_removed_while_it_is_read_stays_readable(store: LocalStore) -> None:
    saved = kv()
    entry = store.save(IDENTITY, pack(saved), label={})
    lookup = store.find(IDENTITY)
    another(store).remove([entry.key])
    assert same(store.load(lookup, device="cpu", room=0), saved)
    assert store.find(IDENTITY).entry is None


def test_an_entry_replaced_while_the_model_loads_is_read_as_it_was_found(store: LocalStore) -> None:
    saved = kv()
    store.save(IDENTITY, pack(saved), label={})
    assert restored(store) is not None
    lookup = store.find(IDENTITY)
    another(store).save(IDENTITY, pack(kv(1)), label={})
    assert same(store.load(lookup, device="cpu", room=0), saved)
    assert same(restored(store), kv(1))


def test_a_file_overwritten_in_place_while_the_model_loads_is_not_used(
    store: LocalStore, warnings: list[str]
) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    assert restored(store) is not None
    lookup = store.find(IDENTITY)
    data = bytearray(Path(entry.location).read_bytes())
    data[-3] ^= 1
    Path(entry.location).write_bytes(data)
    assert store.load(lookup, device="cpu", room=0) is None
    assert "checksum" in warnings[-1]


def test_nothing_stays_open_after_a_lookup(store: LocalStore) -> None:
    store.save(IDENTITY, pack(kv()), label={})
    store.close()
    before = len(os.listdir("/proc/self/fd"))
    assert store.stored(IDENTITY) is not None
    store.find(IDENTITY).close()
    with store.find(IDENTITY) as lookup:
        assert lookup.entry is not None
    assert restored(store) is not None
    assert store.find({**IDENTITY, "model": {}}).miss_reason
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_reading_from_a_missing_folder_creates_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "none", warn=print)
    assert store.find(IDENTITY).entry is None
    assert store.get("x") is None
    assert store.entries() == []
    assert not (tmp_path / "none").exists()


def test_the_folder_is_private(store: LocalStore) -> None:
    store.save(IDENTITY, pack(kv()), label={})
    assert store.path.stat().st_mode & 0o077 == 0


def test_a_folder_that_everybody_may_write_is_not_used(tmp_path: Path, warnings) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    store = LocalStore(tmp_path / "open", warn=warnings.append)
    assert store.save(IDENTITY, pack(kv()), label={}) is None
    assert store.find(IDENTITY).entry is None
    assert len(warnings) == 1


def test_a_full_disk_is_a_warning_and_leaves_what_was_there(store: LocalStore, warnings) -> None:
    import resource

    kept = store.save(IDENTITY, pack(kv()), label={})
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, old[1]))
    try:
        assert store.save({**IDENTITY, "video": {"digest": "d2"}}, pack(kv(1)), label={}) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert len(warnings) == 1
    assert [p.name for p in (store.path / "kv").rglob("*.*")] == [Path(kept.location).name]
    assert store.verify() == (1, [])


def test_names_that_are_no_text_are_kept(store: LocalStore) -> None:
    made, name = kv(), os.fsdecode(b"a\xff.png")
    made.facts["decode"]["warnings"] = [f"{name} is damaged"]
    store.save(IDENTITY, pack(made), label={"model": name})
    other = another(store)
    assert other.find(IDENTITY).entry.label == {"model": name}
    assert restored(other).facts == made.facts
    assert store.verify() == (1, [])


def test_the_bound_holds_though_not_every_save_looks_at_all_files(tmp_path: Path) -> None:
    one = LocalStore(tmp_path / "size", warn=print).save(IDENTITY, pack(kv()), label={}).bytes
    store = LocalStore(tmp_path / "cache", warn=print, max_bytes=100 * one)
    looks, scan = [], store._folder.scan
    store._folder.scan = lambda: looks.append(1) or scan()
    for n in range(110):
        store.save({**IDENTITY, "video": {"digest": f"d{n}"}}, pack(kv()), label={})
        if n == 99:
            assert len(looks) < 70
    assert 99 * one < store.bytes <= store.max_bytes
