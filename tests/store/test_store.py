"""The cache keeps its promises: equal in full or a miss, whole or a miss, and nothing is lost."""

from __future__ import annotations

import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sttm_cli.store import Store, difference, key_of, pack
from sttm_cli.types import PrefixKV, TokenCounts

IDENTITY = {"format": 1, "video": {"digest": "d1"}, "merge": {"budget": 0.3}, "model": {"w": "m1"}}


def kv(seed: int = 0, lengths: tuple[int, ...] = (12, 12, 7), dtype=torch.float32) -> PrefixKV:
    torch.manual_seed(seed)
    return PrefixKV(
        keys=[torch.randn(n + 5, 2, 4).to(dtype) for n in lengths],
        values=[torch.randn(n + 5, 2, 4).to(dtype) for n in lengths],
        lengths=lengths,
        merge_layer=2,
        next_positions=(12, 7),
        tokens=TokenCounts(10, 5, 7, 8, 0.8, 0.6),
        grid=(2, 1, 5),
        facts={"decode": {"times_s": [0.0], "warnings": []}, "seconds": {"decode": 0.5}},
    )


def same(a: PrefixKV, b: PrefixKV) -> bool:
    pairs = zip(a.keys + a.values, b.keys + b.values, a.lengths * 2, strict=True)
    return a.lengths == b.lengths and all(torch.equal(x[:n], y[:n]) for x, y, n in pairs)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, warnings: list[str]) -> Store:
    return Store(tmp_path / "cache", warn=warnings.append)


def another(store: Store, warn: Callable[[str], None] = print) -> Store:
    """The same folder as another process would open it."""
    return Store(store.path, warn=warn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_saved_is_loaded_bit_for_bit_with_room_behind(store: Store, dtype) -> None:
    saved = kv(dtype=dtype)
    assert store.save(IDENTITY, pack(saved), label={"video": "v.mp4"})
    other = another(store)
    entry = other.find(IDENTITY).entry
    loaded = other.load(entry, device="cpu", room=9)
    assert same(saved, loaded)
    assert [len(k) for k in loaded.keys] == [21, 21, 16]
    assert (loaded.merge_layer, loaded.next_positions, loaded.grid) == (2, (12, 7), (2, 1, 5))
    assert (loaded.tokens, loaded.facts) == (saved.tokens, saved.facts)
    assert entry.label == {"video": "v.mp4"}
    assert entry.bytes == entry.path.stat().st_size


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rounded_kv_is_restored_as_its_maker_goes_on_with_it(
    store: Store, dtype: torch.dtype, kv_dtype: str
) -> None:
    lossless, made = kv(dtype=dtype), kv(dtype=dtype)
    made.keys[1][:3] *= 1e9
    packed = pack(made, kv_dtype)
    entry = store.save(IDENTITY, packed, label={})
    loaded = another(store).load(entry, device="cpu", room=3)
    assert same(made, loaded)
    assert loaded.keys[0].dtype is dtype
    assert all(t[:n].isfinite().all() for t, n in zip(made.keys, made.lengths, strict=True))
    assert (made.values[2][:7] - lossless.values[2][:7]).abs().max() < 0.03
    assert entry.kv_dtype == kv_dtype
    assert entry.saved_bytes == made.nbytes - packed.nbytes
    assert entry.path.stat().st_size - entry.bytes == 0


def test_rows_read_in_pieces_are_those_read_at_once(store: Store, monkeypatch) -> None:
    made = kv(lengths=(300, 300, 41))
    entry = store.save(IDENTITY, pack(made, "int8"), label={})
    monkeypatch.setattr("sttm_cli.store.reading.PIECE", 64)
    assert same(made, another(store).load(entry, device="cpu", room=0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_a_gpu_gets_what_a_cpu_gets(store: Store, kv_dtype: str, monkeypatch) -> None:
    made = kv(lengths=(300, 300, 41))
    entry = store.save(IDENTITY, pack(made, kv_dtype), label={})
    monkeypatch.setattr("sttm_cli.store.reading.PIECE", 640)
    loaded = another(store).load(entry, device="cuda", room=7)
    assert all(tensor.is_cuda for tensor in loaded.keys + loaded.values)
    loaded.keys, loaded.values = ([t.cpu() for t in side] for side in (loaded.keys, loaded.values))
    assert same(made, loaded)


def test_a_staging_buffer_is_not_written_before_the_copy_out_of_it_is_done() -> None:
    from sttm_cli.store.reading import _Slot

    class Event:
        waited = False

        def synchronize(self) -> None:
            self.waited = True

    slot = _Slot(8, pinned=False)
    slot._copied = Event()
    assert slot.bytes(4).numel() == 4
    assert slot._copied.waited


def test_int8_tensors_are_plain_safetensors_with_their_scales(store: Store) -> None:
    made = kv()
    entry = store.save(IDENTITY, pack(made, "int8"), label={})
    with safe_open(entry.path, "pt") as file:
        stored, scale, offset = (
            file.get_tensor(f"layers.2.key{part}") for part in ("", ".scale", ".offset")
        )
    assert stored.dtype is torch.int8
    assert torch.equal(stored * scale + offset, made.keys[2][:7])


def test_the_file_is_plain_safetensors(store: Store) -> None:
    saved = kv()
    entry = store.save(IDENTITY, pack(saved), label={})
    with safe_open(entry.path, "pt") as file:
        assert torch.equal(file.get_tensor("layers.2.value"), saved.values[2][:7])


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_the_format_is_pinned_byte_for_byte(store: Store, kv_dtype: str) -> None:
    from blake3 import blake3

    small = kv()
    for i, tensor in enumerate(small.keys + small.values):
        tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape) + i)
    entry = store.save(IDENTITY, pack(small, kv_dtype), label={"video": "v.mp4"})
    data = entry.path.read_bytes()
    assert data[8:].startswith(b'{"__metadata__":{"sttm":"{\\"checksum\\":\\"blake3:')
    assert (8 + int.from_bytes(data[:8], "little")) % 64 == 0
    assert blake3(data).hexdigest() == PINNED[kv_dtype]


PINNED = {
    "auto": "ba567481ab163c88b5c20fcdf5697a3f20df78a9aa7605fd51b6c44a776eb2fb",
    "int8": "03699a8723750258e1e4e3123870872e5423bc413764d0ed993e9cd33b7c4823",
}


def test_a_miss_names_the_field_that_differs(store: Store) -> None:
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
        (b'"format\\":2', b'"format\\":1'),
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


@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_500_damaged_files_are_misses_and_never_a_crash_or_other_numbers(
    store: Store, warnings: list[str], kv_dtype: str
) -> None:
    entry = store.save(IDENTITY, pack(kv(), kv_dtype), label={})
    elsewhere = store.save({**IDENTITY, "video": {"digest": "d2"}}, pack(kv(1)), label={})
    data, used = entry.path.read_bytes(), list[str]()
    cases = mutations(data, elsewhere.path.read_bytes())
    assert len(cases) >= 500
    fresh = another(store, warnings.append)
    for name, damaged in cases:
        entry.path.write_bytes(damaged)
        found = fresh.find(IDENTITY).entry
        if found and fresh.load(found, device="cpu", room=1) is not None:
            used.append(name)
    assert not used
    assert len(warnings) >= len(cases)


def test_a_link_out_of_the_folder_is_not_followed(store: Store, tmp_path: Path) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    entry.path.rename(tmp_path / "outside")
    entry.path.symlink_to(tmp_path / "outside")
    assert another(store).find(IDENTITY).entry is None


def test_verify_names_each_damage_and_repair_removes_it(store: Store) -> None:
    entries = [
        store.save({**IDENTITY, "video": {"digest": f"d{i}"}}, pack(kv(i)), label={})
        for i in range(3)
    ]
    data = bytearray(entries[1].path.read_bytes())
    data[-3] ^= 1
    entries[1].path.write_bytes(data)
    entries[2].path.write_bytes(b"short")
    checked, found = another(store).verify()
    findings = {f.path: f.problem for f in found}
    assert checked == 3
    assert set(findings) == {entries[1].path, entries[2].path}
    assert "checksum" in findings[entries[1].path]
    assert len(another(store).verify(repair=True)[1]) == 2
    assert another(store).verify() == (1, [])
    assert entries[0].path.exists()


class Payload:
    """Unpickling it creates the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_pickles_planted_in_the_index_are_never_loaded(store: Store, tmp_path: Path) -> None:
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
    assert other.load(entry, device="cpu", room=0) is not None
    other.set("known", {"a": 2})
    assert other.find({**IDENTITY, "model": {"w": "m2"}}).entry is None
    other.remove([entry.key])
    assert not marker.exists()


@pytest.mark.parametrize("damage", [b"", b"this is no database" * 100])
def test_a_lost_or_broken_index_costs_nothing_but_time(store: Store, damage: bytes) -> None:
    store.save(IDENTITY, pack(kv()), label={})
    store.close()
    for path in (store.path / "index").glob("cache.db*"):
        path.write_bytes(damage)
    other = another(store)
    assert other.load(other.find(IDENTITY).entry, device="cpu", room=0) is not None
    assert len(other.entries()) == 1
    other.set("row", {"a": 1})
    assert another(store).get("row") == {"a": 1}


def test_the_bound_removes_the_least_recently_used_and_never_the_one_just_written(
    tmp_path: Path,
) -> None:
    one = Store(tmp_path / "size", warn=print).save(IDENTITY, pack(kv()), label={}).bytes
    store = Store(tmp_path / "cache", warn=print, max_bytes=int(2.5 * one))
    identities = [{**IDENTITY, "video": {"digest": f"d{i}"}} for i in range(3)]
    for identity in identities[:2]:
        store.save(identity, pack(kv()), label={})
    store.count_use(store.find(identities[0]).entry, saved_s=1.0)
    store.save(identities[2], pack(kv()), label={})
    assert [store.find(i).entry is not None for i in identities] == [True, False, True]
    assert store.bytes <= store.max_bytes
    tight = Store(tmp_path / "cache", warn=print, max_bytes=one)
    assert len(tight.prune(tight.max_bytes)) == 1
    assert store.bytes == sum(e.bytes for e in store.entries()) <= one


def test_an_entry_larger_than_the_bound_is_not_stored(tmp_path: Path, warnings) -> None:
    store = Store(tmp_path / "cache", warn=warnings.append, max_bytes=100)
    assert store.save(IDENTITY, pack(kv()), label={}) is None
    assert "--max-bytes" in warnings[0]


def test_an_entry_removed_while_it_is_read_stays_readable(store: Store) -> None:
    from sttm_cli.store.artifact import open_artifact, read_header
    from sttm_cli.store.reading import read_tensors

    saved = kv()
    entry = store.save(IDENTITY, pack(saved), label={})
    with open_artifact(entry.path) as file:
        another(store).remove([entry.key])
        assert same(read_tensors(file, read_header(file), device="cpu", room=0), saved)


def test_reading_from_a_missing_folder_creates_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "none", warn=print)
    assert store.find(IDENTITY).entry is None
    assert store.get("x") is None
    assert store.entries() == []
    assert not (tmp_path / "none").exists()


def test_the_folder_is_private(store: Store) -> None:
    store.save(IDENTITY, pack(kv()), label={})
    assert store.path.stat().st_mode & 0o077 == 0


def test_a_folder_that_everybody_may_write_is_not_used(tmp_path: Path, warnings) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    store = Store(tmp_path / "open", warn=warnings.append)
    assert store.save(IDENTITY, pack(kv()), label={}) is None
    assert store.find(IDENTITY).entry is None
    assert len(warnings) == 1


def test_a_full_disk_is_a_warning_and_leaves_what_was_there(store: Store, warnings) -> None:
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
    assert [p.name for p in (store.path / "kv").rglob("*.*")] == [kept.path.name]
    assert store.verify() == (1, [])


SAVER = """
import sys, itertools
from pathlib import Path
from sttm_cli.store import Store, pack
from tests.store.test_store import IDENTITY, kv
store = Store(Path(sys.argv[1]), warn=print)
print("ready", flush=True)
for n in itertools.count():
    identity = {**IDENTITY, "video": {"digest": f"{n % 5}"}}
    store.save(identity, pack(kv(n % 5, (900, 900, 300))), label={})
"""


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_a_killed_writer_leaves_whole_entries_only(tmp_path: Path) -> None:
    rng = random.Random(1)
    for _ in range(6):
        process = run_python(SAVER, tmp_path / "cache")
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.wait()
        process.stdout.close()
        store = Store(tmp_path / "cache", warn=print)
        assert not store.verify()[1]
        store.close()
    store = Store(tmp_path / "cache", warn=print)
    store.prune(store.max_bytes)
    assert not list((tmp_path / "cache").rglob("*.part"))
    store.save(IDENTITY, pack(kv()), label={})
    assert store.find(IDENTITY).entry is not None


COMPUTER = """
import sys, time
from pathlib import Path
from sttm_cli.store import Store, key_of, pack
from tests.store.test_store import IDENTITY, kv
store = Store(Path(sys.argv[1]), warn=print)
for n in range(4):
    identity = {**IDENTITY, "video": {"digest": f"{n}"}}
    with store.computing(key_of(identity), on_wait=lambda: None):
        entry = store.find(identity).entry
        if entry is None:
            time.sleep(0.2)
            store.save(identity, pack(kv(n)), label={})
            print("computed", n, flush=True)
        else:
            assert store.load(entry, device="cpu", room=0) is not None
"""


def test_eight_processes_over_four_videos_compute_each_once(tmp_path: Path) -> None:
    processes = [run_python(COMPUTER, tmp_path / "cache") for _ in range(8)]
    lines = [line for p in processes for line in p.communicate(timeout=120)[0].splitlines()]
    assert [p.returncode for p in processes] == [0] * 8
    assert sorted(lines) == [f"computed {n}" for n in range(4)]


def test_a_lock_whose_holder_was_killed_is_taken_over(tmp_path: Path) -> None:
    holder = run_python(
        """
        import sys, time
        from pathlib import Path
        from sttm_cli.store import Store
        with Store(Path(sys.argv[1]), warn=print).computing("k", on_wait=print):
            print("held", flush=True)
            time.sleep(60)
        """,
        tmp_path / "cache",
    )
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    waited: list[bool] = []
    with Store(tmp_path / "cache", warn=print).computing("k", lambda: waited.append(True)):
        assert not waited
