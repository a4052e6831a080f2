"""Processes that are killed, and several at once: nothing is lost, nothing computed twice."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from sttm_cli.store import LocalStore, key_of, pack
from tests.store.made import IDENTITY, another, kv


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Processes that begin as forks of one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def identity(number: int) -> dict[str, object]:
    return {**IDENTITY, "video": {"digest": f"{number}"}}


def save_for_ever(root: Path, begun: Event) -> None:
    store = LocalStore(root, warn=print)
    begun.set()
    for number in itertools.count():
        made = kv(number % 5, (900, 900, 300))
        store.save(identity(number % 5), pack(made), label={})


def compute_four(root: Path) -> None:
    """As `ask` does; each computation leaves a file beside the cache."""
    store = LocalStore(root / "cache", warn=print)
    for number in range(4):
        wanted = identity(number)
        with store.computing(key_of(wanted), on_wait=lambda: None):
            if store.stored(wanted) is None:
                time.sleep(0.1)
                (root / f"{number} by {multiprocessing.current_process().pid}").touch()
                store.save(wanted, pack(kv(number)), label={})
            elif store.load(store.find(wanted), device="cpu", room=0) is None:
                raise AssertionError(f"{number} is stored and cannot be read")


def hold_for_ever(root: Path, begun: Event) -> None:
    with LocalStore(root, warn=print).computing("k", on_wait=print):
        begun.set()
        time.sleep(600)


def test_a_killed_writer_leaves_whole_entries_only(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    rng = random.Random(1)
    for _ in range(12):
        begun = processes.Event()
        process = processes.Process(target=save_for_ever, args=(tmp_path, begun))
        process.start()
        assert begun.wait(60)
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        process.join()
        with LocalStore(tmp_path, warn=pytest.fail) as store:
            assert not store.verify()[1]
    with LocalStore(tmp_path, warn=pytest.fail) as store:
        store.prune(store.max_bytes)
        assert not list(tmp_path.rglob("*.part"))
        store.save(IDENTITY, pack(kv()), label={})
        assert store.find(IDENTITY).entry is not None


def test_eight_processes_over_four_videos_compute_each_once(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    started = [processes.Process(target=compute_four, args=(tmp_path,)) for _ in range(8)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * 8
    assert sorted(path.name[0] for path in tmp_path.glob("* by *")) == ["0", "1", "2", "3"]


def test_whoever_waits_takes_over_when_the_holder_is_killed(
    processes: ForkServerContext, tmp_path: Path
) -> None:
    begun = processes.Event()
    holder = processes.Process(target=hold_for_ever, args=(tmp_path, begun))
    holder.start()
    assert begun.wait(60)
    with LocalStore(tmp_path, warn=print) as store, store.computing("k", on_wait=holder.kill):
        assert (tmp_path / "locks" / "k").exists()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL


def test_only_what_the_dead_left_behind_is_swept(store: LocalStore) -> None:
    store.save(IDENTITY, pack(kv()), label={})
    folder, part = store.path / "kv" / "ab", f"ab{'0' * 62}.{'1' * 16}.part"
    left = [folder / part, folder / "ab000000tmp_name.part", store.path / "locks" / ("d" * 64)]
    theirs = [folder / name for name in ("theirs.safetensors", "movie.part", "0" * 64 + ".part")]
    theirs += [store.path / "kv" / "zz" / part, store.path / "locks" / "theirs"]
    for path in left + theirs:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with store.computing("a" * 64, on_wait=pytest.fail):
        another(store).save({**IDENTITY, "video": {"digest": "d2"}}, pack(kv(1)), label={})
        assert (store.path / "locks" / ("a" * 64)).exists()
    assert not any(path.exists() for path in left)
    assert len(store.prune(0)) == 2
    assert all(path.exists() for path in theirs)
