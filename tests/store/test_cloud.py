"""A cache in a bucket keeps the promises of a folder, whatever the bucket does."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from sttm_cli.store import pack
from tests.store.made import IDENTITY, kv, restored, same

pytest.importorskip("obstore", reason="the extra 'cloud' is not installed")
pytest.importorskip("moto", reason="moto, a server for tests, is not installed")

from sttm_cli.store.bucket_rows import artifact_path, key_in
from sttm_cli.store.cloud import BucketStore
from tests.store.bucket import SECRET, Open, Proxy

BIG = (3000, 3000, 900)


def objects(store: BucketStore) -> dict[str, int]:
    return {listed.path: listed.size for listed in store._bucket.listed("")}


def test_what_one_machine_stored_another_restores_bit_for_bit(open_bucket: Open) -> None:
    one, other = open_bucket("a"), open_bucket("b")
    made = kv(lengths=BIG)
    saved = one.save(IDENTITY, pack(made), label={"video": "v.mp4"})
    assert saved is not None
    found = other.stored(IDENTITY)
    assert found is not None
    assert (found.key, found.bytes, found.location) == (saved.key, saved.bytes, saved.location)
    loaded = restored(other, room=9)
    assert loaded is not None
    assert same(made, loaded)
    assert [len(k) for k in loaded.keys] == [3009, 3009, 909]


def test_a_second_question_fetches_only_what_validates_the_entry(
    open_bucket: Open, proxy: Proxy, tmp_path: Path
) -> None:
    open_bucket("a").save(IDENTITY, pack(kv(lengths=BIG)), label={})
    for machine in ("a", "b"):
        assert restored(open_bucket(machine)) is not None
        proxy.clear()
        assert same(restored(open_bucket(machine)), kv(lengths=BIG))
        assert (dict(proxy.requests), proxy.received) == ({"GET": 1}, 0)
    assert len(list((tmp_path / "b" / "kv").rglob("*.safetensors"))) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_without_copies_every_question_reads_the_bucket(open_bucket: Open, tmp_path: Path) -> None:
    store = open_bucket(tier=None)
    made = kv(lengths=BIG)
    assert store.save(IDENTITY, pack(made), label={}) is not None
    store.set("row", {"a": 1})
    assert store.get("row") == {"a": 1}
    assert same(restored(store), made)
    assert not list(tmp_path.iterdir())


def test_a_copy_of_what_was_replaced_or_removed_is_not_used(
    open_bucket: Open, tmp_path: Path
) -> None:
    one, other = open_bucket("a"), open_bucket("b")
    one.save(IDENTITY, pack(kv()), label={})
    assert same(restored(other), kv())
    one.find(IDENTITY).close()
    one.save(IDENTITY, pack(kv(1)), label={})
    assert same(restored(other), kv(1))
    one.remove([entry.key for entry in one.entries()])
    assert other.find(IDENTITY).entry is None
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_damaged_copy_is_fetched_again(
    open_bucket: Open, warnings: list[str], tmp_path: Path
) -> None:
    made = kv(lengths=BIG)
    open_bucket("a").save(IDENTITY, pack(made), label={})
    (copy,) = (tmp_path / "a" / "kv").rglob("*.safetensors")
    data = bytearray(copy.read_bytes())
    data[-3] ^= 1
    copy.write_bytes(data)
    assert same(restored(open_bucket("a")), made)
    assert "checksum" in warnings[0]
    assert same(restored(open_bucket("a")), made)
    assert len(warnings) == 1


def test_hostile_objects_are_misses_that_are_said_and_replaced(
    open_bucket: Open, warnings: list[str]
) -> None:
    from tests.store.test_hostile import mutations

    store = open_bucket("a")
    other = store.save({**IDENTITY, "video": {"digest": "d2"}}, pack(kv(1)), label={})
    entry = store.save(IDENTITY, pack(kv()), label={})
    assert entry is not None
    assert other is not None
    path = artifact_path(entry.key)

    def whole(key: str) -> bytes:
        return bytes(store._bucket.read(artifact_path(key), 0, 1 << 20).data)

    data, reader = whole(entry.key), open_bucket(tier=None)
    for name, damaged in random.Random(0).sample(mutations(data, whole(other.key)), 60):
        store._bucket.write(path, damaged)
        before = len(warnings)
        assert restored(reader, room=1) is None, name
        assert len(warnings) > before, name
    (finding,) = reader.verify()[1]
    assert finding.location == entry.location
    assert reader.save(IDENTITY, pack(kv()), label={}) is not None
    assert same(restored(open_bucket("b")), kv())
    assert store.verify() == (2, [])
    store._bucket.write(path, b"short")
    assert store.verify(repair=True)[1][0].removed
    assert store.verify() == (1, [])


def test_a_miss_names_the_field_that_differs(open_bucket: Open) -> None:
    one, other = open_bucket("a"), open_bucket("b")
    assert "nothing stored" in other.find(IDENTITY).miss_reason
    one.save(IDENTITY, pack(kv()), label={})
    wanted = {**IDENTITY, "merge": {"budget": 0.5}}
    assert other.find(wanted).miss_reason == "merge.budget: asked 0.5, stored 0.3"


def test_a_listing_reads_no_artifact_and_says_all(open_bucket: Open, proxy: Proxy) -> None:
    store = open_bucket("a")
    long = "x" * 3000
    labels = [{"video": "ä.mp4", "budget": 0.3}, {"video": long + "/end.mp4"}, {}]
    for number, label in enumerate(labels):
        identity = {**IDENTITY, "video": {"digest": f"d{number}"}}
        entry = store.save(identity, pack(kv(), "int8"), label=label)
        store.count_use(entry, saved_s=1.5)
    store.entries()
    proxy.clear()
    entries = {entry.video: entry for entry in open_bucket("b").entries()}
    assert set(entries) == {"d0", "d1", "d2"}
    assert all("list-type=2" in line for line in proxy.lines), proxy.lines
    assert entries["d0"].label == labels[0]
    assert entries["d1"].label["video"].endswith("/end.mp4")
    assert [(e.uses.hits, e.uses.saved_s) for e in entries.values()] == [(1, 1.5)] * 3
    assert all(e.kv_dtype == "int8" and e.saved_bytes > 0 for e in entries.values())
    assert all(len(path) < 1024 for path in objects(store))


def test_an_entry_without_a_row_is_listed_and_gets_one(open_bucket: Open, proxy: Proxy) -> None:
    store = open_bucket("a")
    store.save(IDENTITY, pack(kv()), label={"video": "v.mp4"})
    rows = [path for path in objects(store) if path.startswith("rows/")]
    store._bucket.remove(rows)
    hostile = rows[0][: rows[0].rindex("/")] + "/eJwAAAAA"
    store._bucket.write(hostile, b"")
    assert [entry.label for entry in store.entries()] == [{"video": "v.mp4"}]
    proxy.clear()
    assert [entry.label for entry in store.entries()] == [{"video": "v.mp4"}]
    assert all("list-type=2" in line for line in proxy.lines)


def test_a_row_of_what_was_replaced_describes_nothing(open_bucket: Open, proxy: Proxy) -> None:
    store = open_bucket("a")
    for video in ("a.mp4", "b" * 200 + ".mp4", "c" * 400 + ".mp4", "d.mp4"):
        store.find(IDENTITY).close()
        store.save(IDENTITY, pack(kv()), label={"video": video, "size": len(video) * "x"})
        proxy.clear()
        (entry,) = store.entries()
        assert entry.label["video"] in (video, f"…{video[-60:]}")
        assert all("list-type=2" in line for line in proxy.lines)


def test_uses_of_an_hour_are_written_once_and_counted_all(open_bucket: Open, proxy: Proxy) -> None:
    store = open_bucket("a")
    entry = store.save(IDENTITY, pack(kv()), label={})
    proxy.clear()
    for _ in range(5):
        store.count_use(entry, saved_s=1.0)
    (listed,) = store.entries()
    assert (listed.uses.hits, listed.uses.saved_s) == (5, 5.0)
    assert proxy.requests["PUT"] == 1
    open_bucket("b").count_use(entry, saved_s=1.0)
    open_bucket("b").entries()
    (again,) = open_bucket("c").beginning(entry.key[:7])
    assert again.uses.hits == 3 - 1
    assert len([path for path in objects(store) if path.startswith("uses/")]) == 1


def test_the_least_recently_used_go_first_and_the_bound_holds(
    open_bucket: Open, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_bucket("a")
    identities = [{**IDENTITY, "video": {"digest": f"d{n}"}} for n in range(4)]
    entries = [store.save(identity, pack(kv()), label={}) for identity in identities]
    times = {entry.key: 1000.0 + n for n, entry in enumerate(entries)}
    used = {entries[0].key: 5000.0}

    def changed(one):
        known = used if one.path.startswith("uses") else times
        key = key_in(one.path)
        return one._replace(changed=known.get(key, 0.0))

    store.count_use(entries[0], saved_s=1.0)
    store.entries()
    listed_all = store._bucket.listed_all
    monkeypatch.setattr(store._bucket, "listed_all", lambda f: list(map(changed, listed_all(f))))
    removed = store.prune(2 * entries[0].bytes)
    assert [one.key for one in removed] == [entries[1].key, entries[2].key]
    assert not [p for p in objects(store) if any(entries[n].key in p for n in (1, 2))]
    bounded = open_bucket("b", max_bytes=2 * entries[0].bytes)
    bounded.save({**IDENTITY, "video": {"digest": "new"}}, pack(kv()), label={})
    assert "removed 1 of the least recently used" in warnings[-1]
    assert bounded.bytes <= bounded.max_bytes
    assert bounded.save(IDENTITY, pack(kv(lengths=BIG)), label={}) is None


def test_other_objects_in_the_bucket_are_neither_listed_nor_removed(open_bucket: Open) -> None:
    from obstore.store import S3Store

    store, beside = open_bucket("a"), S3Store("videos", client_options={"allow_http": True})
    store.save(IDENTITY, pack(kv()), label={})
    theirs = ["kv/theirs.safetensors", "kv/a/theirs", "rows/a/x", "uses/a/y", "leases/z", "notes"]
    for path in theirs:
        store._bucket.write(path, b"theirs")
    prefix = store.location.removeprefix("s3://videos/")
    beside.put(f"{prefix}/kv/a/thesis.txt", b"theirs")
    assert len(store.prune(0)) == 1
    assert store.verify(repair=True) == (0, [])
    assert set(theirs) <= set(objects(store))
    assert bytes(beside.get(f"{prefix}/kv/a/thesis.txt").bytes()) == b"theirs"


def test_a_name_that_cannot_be_read_fails_a_listing_and_says_so_and_no_question(
    open_bucket: Open, warnings: list[str]
) -> None:
    import boto3

    store = open_bucket("a")
    store.save(IDENTITY, pack(kv()), label={})
    prefix = store.location.removeprefix("s3://videos/")
    client = boto3.client("s3", endpoint_url=os.environ["MOTO"])
    client.put_object(Bucket="videos", Key=f"{prefix}/sttm-cache-1/kv/a/b//c", Body=b"")
    assert store.entries() == []
    assert "name that cannot be read" in store.failure
    assert "name that cannot be read" in warnings[0]
    assert same(restored(open_bucket("b")), kv())


# ---- faults


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_fails_for_a_while_is_asked_again(
    open_bucket: Open, proxy: Proxy, status: int
) -> None:
    store, made = open_bucket("a"), kv(lengths=BIG)
    proxy.status, proxy.times = status, 3
    assert store.save(IDENTITY, pack(made), label={}) is not None
    proxy.times = 3
    assert same(restored(open_bucket("b")), made)
    assert proxy.times == 0, proxy.lines


def test_connections_cut_in_a_read_and_in_a_write_lose_nothing(
    open_bucket: Open, proxy: Proxy, warnings: list[str]
) -> None:
    store, made = open_bucket("a"), kv(lengths=(40_000, 40_000, 9000))
    proxy.cut_write = 2
    assert store.save(IDENTITY, pack(made), label={}) is not None
    assert proxy.cut_write == 0
    proxy.cut_read = 3
    assert same(restored(open_bucket("b")), made)
    assert proxy.cut_read == 0
    assert store.verify() == (1, [])
    assert warnings == []


def test_an_answer_that_is_lost_leaves_one_whole_entry_with_its_copy(
    open_bucket: Open, proxy: Proxy, warnings: list[str]
) -> None:
    store, made = open_bucket("a"), kv(lengths=BIG)
    store.find(IDENTITY).close()
    proxy.only, proxy.lost = "/kv/", 1
    assert store.save(IDENTITY, pack(made), label={}) is not None
    assert proxy.lost == 0
    proxy.clear()
    assert same(restored(open_bucket("a")), made)
    assert proxy.received == 0
    assert warnings == []


def test_a_server_that_stays_away_costs_the_cache_and_not_the_answer(
    open_bucket: Open, proxy: Proxy, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sttm_cli.store.bucket.RETRY_S", 0.5)
    open_bucket("a").save(IDENTITY, pack(kv()), label={})
    store, alone = open_bucket("a"), open_bucket("b")
    proxy.status, proxy.times = 503, 10**6
    assert same(restored(store), kv())
    assert "status 503" in warnings[0]
    assert "copy on this machine" in warnings[1]
    assert "status 503" in alone.find(IDENTITY).miss_reason
    proxy.clear()
    with alone.computing("a" * 64, on_wait=pytest.fail):
        assert alone.save(IDENTITY, pack(kv()), label={}) is None
    assert alone.entries() == []
    assert alone.failure
    assert not proxy.requests, "a server that is away is not asked again and again"
    proxy.times = 0
    monkeypatch.setattr(alone._bucket, "_paused_until", 0.0)
    assert same(restored(alone), kv())
    assert not alone.failure


def test_two_machines_that_store_the_same_leave_one_whole_entry(open_bucket: Open) -> None:
    one, other = open_bucket("a"), open_bucket("b")
    for store in (one, other):
        assert store.find(IDENTITY).entry is None
    assert one.save(IDENTITY, pack(kv()), label={}) is not None
    assert other.save(IDENTITY, pack(kv()), label={}) is not None
    assert len(other.entries()) == 1
    assert same(restored(open_bucket("b")), kv())


def test_an_entry_replaced_while_the_model_loads_is_a_miss_and_no_mixture(
    open_bucket: Open, warnings: list[str]
) -> None:
    one, other = open_bucket("a"), open_bucket("b")
    one.save(IDENTITY, pack(kv(lengths=(90_000, 9, 9))), label={})
    lookup = other.find(IDENTITY)
    one.find(IDENTITY).close()
    one.save(IDENTITY, pack(kv(1, lengths=(90_000, 9, 9))), label={})
    assert other.load(lookup, device="cpu", room=0) is None
    assert "replaced" in warnings[-1]
    assert same(restored(other), kv(1, lengths=(90_000, 9, 9)))


def test_a_full_disk_costs_the_copy_and_not_the_entry(
    open_bucket: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import resource
    import signal

    store, made = open_bucket("a"), kv(lengths=BIG)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store.set("row", {"a": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, old[1]))
    try:
        assert store.save(IDENTITY, pack(made), label={}) is not None
        assert same(restored(store), made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not list(tmp_path.rglob("*.part"))
    assert same(restored(open_bucket("b")), made)


# ---- what is said


def test_no_message_has_a_secret_in_it(
    open_bucket: Open, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    from tests.cli.process import sttm_here

    monkeypatch.setattr("sttm_cli.store.bucket.RETRY_S", 0.2)
    monkeypatch.setenv("STTM_CACHE_TIER", "none")
    hidden = proxy.address.replace("http://", f"http://me:{SECRET}@")
    said = ""
    for endpoint, status in ((hidden, 0), (hidden, 403), (hidden, 500), ("http://127.0.0.1:1", 0)):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        proxy.status, proxy.times = status, 10**6 if status else 0
        for command in (["ls"], ["verify"], ["path"], ["rm", "ab"]):
            ended = sttm_here("cache", *command, "--cache-dir", address, "--debug")
            said += ended.out + ended.err
            assert (ended.code == 0) == (
                command == ["path"]
                or (not status and endpoint == hidden and command != ["rm", "ab"])
            ), (command, said)
    assert SECRET not in said
    assert "access is denied" in said
    assert "status 500" in said
    assert "cannot be reached" in said


@pytest.mark.parametrize(
    "given",
    [f"s3://an-id:{SECRET}@videos/x", f"s3://videos/x?key={SECRET}", "s3://", "s3://v/../x"],
)
def test_an_address_that_is_none_is_refused_without_being_repeated(given: str) -> None:
    from tests.cli.process import sttm_here

    ended = sttm_here("cache", "ls", "--cache-dir", given)
    assert ended.code == 2
    assert "s3://bucket/prefix" in ended.err
    assert SECRET not in ended.err + ended.out


def test_a_tier_without_a_bucket_is_a_usage_error(tmp_path: Path) -> None:
    from tests.cli.process import sttm_here

    ended = sttm_here("cache", "ls", "--cache-dir", tmp_path, "--cache-tier", tmp_path / "t")
    assert ended.code == 2
    assert "--cache-tier" in ended.err
    assert "--cache-dir" in ended.err


def test_a_server_that_ignores_conditions_costs_double_work_and_doctor_says_so(
    open_bucket: Open, proxy: Proxy
) -> None:
    (well,) = open_bucket("a").probes()
    assert well.problem is None
    proxy.ignore = True
    one, other = open_bucket("a"), open_bucket("b")
    (probe,) = one.probes()
    assert "ignores them" in str(probe.problem)
    with (
        one.computing("b" * 64, on_wait=pytest.fail),
        other.computing("b" * 64, on_wait=pytest.fail),
    ):
        for store in (one, other):
            store.find(IDENTITY).close()
            assert store.save(IDENTITY, pack(kv()), label={}) is not None
    assert same(restored(open_bucket("c")), kv())
    assert one.verify() == (1, [])
    assert not [path for path in objects(one) if path.startswith(("probe", "leases"))]
