"""One computation per video, among processes of several machines, in a bucket and in a folder."""

from __future__ import annotations

import multiprocessing
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from sttm_cli.store import LocalStore, key_of, open_store, pack
from sttm_cli.store import lease as leases_of
from sttm_cli.store.lease import FolderLeases, holding
from tests.store.bucket import Open, Proxy, environment
from tests.store.made import IDENTITY, kv, same

LIMIT_S = 5.0


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that begin as forks of one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@pytest.fixture(params=["bucket", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """Where machines share a cache, and what a process needs to reach it."""
    if request.param == "folder":
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o2770)
        return str(shared), {}
    proxy = request.getfixturevalue("proxy")
    return request.getfixturevalue("address"), environment(proxy.address)


@contextmanager
def machine(where: str, env: dict[str, str], tmp: Path, clock_s: float = 0.0) -> Iterator[Any]:
    """The cache as a process of another machine has it, whose clock is off by so much."""
    name = secrets.token_hex(4)
    os.environ.update(env, STTM_CACHE_TIER=str(tmp / name), XDG_CACHE_HOME=str(tmp / f"{name}-own"))
    leases_of.LIMIT_S, leases_of.POLL_S = LIMIT_S, 0.1
    now = time.time
    time.time = lambda: now() + clock_s
    with open_store(where, warn=print) as store:
        yield store


def compute(
    place: tuple[str, dict[str, str]], tmp: Path, name: str, clock_s: float, pause_s: float
) -> None:
    """As `ask` does; a computation leaves a file beside the cache."""
    with machine(*place, tmp, clock_s) as store:
        if store.stored(IDENTITY) is None:
            with store.computing(key_of(IDENTITY), on_wait=lambda: None):
                if store.stored(IDENTITY) is None:
                    time.sleep(pause_s)
                    (tmp / f"computed by {name}").touch()
                    assert store.save(IDENTITY, pack(kv()), label={}) is not None
        assert store.load(store.find(IDENTITY), device="cpu", room=0) is not None


def hold_for_ever(place: tuple[str, dict[str, str]], tmp: Path, begun: Event) -> None:
    with machine(*place, tmp) as store, store.computing(key_of(IDENTITY), on_wait=print):
        begun.set()
        time.sleep(600)


def test_of_eight_machines_one_computes_though_clocks_are_a_minute_apart(
    processes: ForkServerContext, place: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    # It takes longer than a lease lasts that is not renewed.
    started = [
        processes.Process(
            target=compute, args=(place, tmp_path, str(n), 60.0 * (n % 3 - 1), 2.5 * LIMIT_S)
        )
        for n in range(8)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(200)
    assert [process.exitcode for process in started] == [0] * 8
    assert len(list(tmp_path.glob("computed by *"))) == 1


def test_a_holder_that_is_killed_delays_the_others_and_not_for_good(
    processes: ForkServerContext, place: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    begun = processes.Event()
    holder = processes.Process(target=hold_for_ever, args=(place, tmp_path, begun))
    holder.start()
    assert begun.wait(120)
    holder.kill()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    others = [
        processes.Process(target=compute, args=(place, tmp_path, str(n), 60.0 * n, 0.0))
        for n in range(3)
    ]
    for process in others:
        process.start()
    for process in others:
        process.join(200)
    assert [process.exitcode for process in others] == [0] * 3
    assert len(list(tmp_path.glob("computed by *"))) == 1


def compute_all(
    place: tuple[str, dict[str, str]], tmp: Path, name: str, videos: int, begun: Event
) -> None:
    """As `precompute` does, each machine beginning elsewhere."""
    with machine(*place, tmp) as store:
        for number in range(videos):
            wanted = {**IDENTITY, "video": {"digest": f"{(number + 4 * int(name)) % videos}"}}
            with store.computing(key_of(wanted), on_wait=lambda: None):
                if store.stored(wanted) is None:
                    time.sleep(0.05)
                    (tmp / f"{wanted['video']['digest']} by {name}").touch()
                    made = kv(int(wanted["video"]["digest"]), (6000, 6000, 2000))
                    assert store.save(wanted, pack(made), label={}) is not None
            if number == videos // 4:
                begun.set()


def test_a_killed_machine_and_a_bucket_that_fails_now_and_then_lose_no_video(
    processes: ForkServerContext, open_bucket: Open, proxy: Proxy, address: str, tmp_path: Path
) -> None:
    videos, place = 12, (address, environment(proxy.address))
    begun = [processes.Event() for _ in range(3)]
    started = [
        processes.Process(target=compute_all, args=(place, tmp_path, f"{n}", videos, begun[n]))
        for n in range(3)
    ]
    for process in started:
        process.start()
    assert begun[0].wait(120)
    started[0].kill()
    while any(process.is_alive() for process in started):
        proxy.status, proxy.times = random.choice((500, 503)), 2
        proxy.cut_read = proxy.cut_write = proxy.lost = 1
        time.sleep(0.5)
    assert [process.exitcode for process in started] == [-signal.SIGKILL, 0, 0]
    proxy.times = proxy.cut_read = proxy.cut_write = proxy.lost = 0
    store = open_bucket("a")
    assert store.verify() == (videos, [])
    assert len(store.entries()) == videos
    assert videos <= len(list(tmp_path.glob("* by *"))) <= videos + 1, "one may have been half done"
    for number in range(videos):
        wanted = {**IDENTITY, "video": {"digest": f"{number}"}}
        kept = store.load(store.find(wanted), device="cpu", room=0)
        assert same(kept, kv(number, (6000, 6000, 2000)))


@pytest.fixture(params=["bucket", "folder"])
def leases(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "folder":
        return FolderLeases(tmp_path / "locks")
    open_bucket: Open = request.getfixturevalue("open_bucket")
    from sttm_cli.store.bucket_lease import BucketLeases

    return BucketLeases(open_bucket("a")._bucket)


def test_a_lease_is_one_holders_until_it_is_taken_or_released(leases: Any) -> None:
    one = leases.create("a" * 64, "one")
    assert one is not None
    assert leases.create("a" * 64, "two") is None
    assert leases.replace("a" * 64, "one", one) is not None
    seen = leases.look("a" * 64)
    assert abs(leases.now() - seen.renewed) < 60
    two = leases.replace("a" * 64, "two", seen.version)
    assert two is not None
    assert leases.replace("a" * 64, "three", seen.version) is None, "it was taken by another"
    assert leases.replace("a" * 64, "one", one) is None, "it is lost"
    leases.release("a" * 64, one)
    assert leases.look("a" * 64) is not None
    leases.release("a" * 64, two)
    assert leases.look("a" * 64) is None
    assert leases.replace("a" * 64, "two", two) is None


def test_a_lease_that_another_took_in_the_same_moment_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = FolderLeases(tmp_path)
    leases.create("k", "dead")
    dead = leases.look("k")
    assert leases.replace("k", "two", "dead") == "two"
    monkeypatch.setattr(leases, "look", lambda key: dead)
    assert leases.replace("k", "three", "dead") is None
    assert (tmp_path / "k").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_whoever_waited_for_what_is_stored_by_then_takes_no_lease(
    leases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, waits = leases.create("a" * 64, "theirs"), list[int]()

    def release(seconds: float) -> None:
        leases.release("a" * 64, version)

    monkeypatch.setattr(leases_of.time, "sleep", release)
    with holding(leases, "a" * 64, lambda: waits.append(1), done=lambda: True):
        assert leases.look("a" * 64) is None
    assert waits == [1]


def test_leases_that_cannot_be_written_are_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with holding(FolderLeases(tmp_path / "file"), "a" * 64, pytest.fail, done=lambda: False):
        pass


def test_a_lease_whose_answer_was_lost_is_held(open_bucket: Open, proxy: Proxy) -> None:
    proxy.only, proxy.lost = "/leases/", 1
    with open_bucket("a").computing("a" * 64, on_wait=pytest.fail):
        assert proxy.lost == 0
    from sttm_cli.store.bucket_lease import BucketLeases

    assert BucketLeases(open_bucket("a")._bucket).look("a" * 64) is None


def test_a_folder_on_a_network_has_leases_and_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr("sttm_cli.store.local.on_network", lambda root: True)
    said: list[str] = []
    with LocalStore(tmp_path / "nfs", warn=said.append) as store:
        store.set("row", {"a": 1})
        with store.computing(key_of(IDENTITY), on_wait=pytest.fail):
            entry = store.save(IDENTITY, pack(kv()), label={})
            # A lease of a living process stays, though no lock tells.
            store.prune(1 << 40)
            assert (tmp_path / "nfs" / "locks" / key_of(IDENTITY)).exists()
        assert entry is not None
        before = os.stat(entry.location).st_mtime
        os.utime(entry.location, (before - 7200, before - 7200))
        store.count_use(entry, saved_s=1.0)
        assert os.stat(entry.location).st_mtime > before - 60
        assert store.get("row") == {"a": 1}
        assert store.entries()[0].uses.hits == 1
    assert not (tmp_path / "nfs" / "index").exists()
    assert list((tmp_path / "own").rglob("cache.db"))
    assert said == []


@pytest.mark.parametrize(
    ("mounts", "network"),
    [
        (["/ ext4", "/data nfs4"], True),
        (["/ ext4", "/data nfs4", "/data/PLACE xfs"], False),
        (["/ nfs", "/elsewhere ext4"], True),
        (["/ ext4", "/dat nfs4"], False),
        (["/ overlay", "/data fuse.sshfs"], True),
    ],
)
def test_a_network_file_system_is_recognised_by_the_nearest_mount(
    mounts: list[str], network: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sttm_cli.store.files import on_network

    lines = []
    for mount in mounts:
        where, kind = mount.split()
        where = where.replace("/data", str(tmp_path)).replace("PLACE", "place")
        lines.append(f"36 35 98:0 / {where} rw,noatime master:1 - {kind} /dev/root rw")
    read_text: Callable[..., str] = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, *a, **b: (
            "\n".join(lines) if str(path) == "/proc/self/mountinfo" else read_text(path, *a, **b)
        ),
    )
    if mounts[-1].startswith("/dat "):
        network = False
    assert on_network(tmp_path / "place" / "cache") is network
