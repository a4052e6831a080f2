"""Only files that are provably the cache's are removed, changed or trusted."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from stat import S_ISFIFO

import diskcache
import pytest

from sttm_cli.store import LocalStore, pack
from sttm_cli.store.claim import MARKER
from sttm_cli.store.index import FILES
from tests.cli.process import Ended, sttm_here
from tests.store.made import IDENTITY, another, kv, restored

SAMPLE = Path(__file__).parents[2] / "docs" / "sample.mp4"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def thesis(own: Path) -> None:
    (own / "index").mkdir()
    (own / "index" / "thesis.txt").write_text("chapter 1")
    (own / "index" / "cache.db").write_bytes(b"not a database" * 100)


def movie(own: Path) -> None:
    (own / "kv" / "ab").mkdir(parents=True)
    (own / "kv" / "ab" / "movie.part").write_bytes(b"half a film")


def weights(own: Path) -> None:
    (own / "kv" / "ab").mkdir(parents=True)
    (own / "kv" / "ab" / f"{'cd' * 32}.safetensors").write_bytes(b"weights")


def another_programs_rows(own: Path) -> None:
    with diskcache.Cache(str(own / "index")) as cache:
        cache["theirs"] = "kept"


def another_programs_tables(own: Path) -> None:
    (own / "index").mkdir()
    with closing(sqlite3.connect(own / "index" / "cache.db")) as database:
        database.execute("CREATE TABLE theirs (x)")
        database.commit()


def another_programs_marker(own: Path) -> None:
    (own / MARKER).write_text("Signature: 8a477f597d28d172789f06886806bc55\n")


STRANGERS = [
    thesis,
    movie,
    weights,
    another_programs_rows,
    another_programs_tables,
    another_programs_marker,
]


@pytest.mark.parametrize("plant", STRANGERS)
def test_a_folder_of_other_files_is_refused_and_stays_as_it_is(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    plant(own)
    before = contents(own)
    at = ("--cache-dir", own)
    asked = sttm_here("ask", SAMPLE, "how many shapes are there?", *at)
    assert (asked.code, asked.out) == (0, "three\n")
    warnings = [line for line in asked.err.splitlines() if line.startswith("warning:")]
    assert ["contains" in line and str(own) in line for line in warnings] == [True]
    changing = (["precompute", SAMPLE], ["cache", "prune"], ["cache", "rm", "ab"])
    for command in (*changing, ["cache", "verify", "--repair"]):
        ended = sttm_here(*command, *at)
        assert ended.code == 1
        assert "the cache is not used" in ended.err
    assert sttm_here("cache", "ls", *at, "--json").json["entries"] == []
    assert contents(own) == before


def test_a_new_folder_gets_the_marker_of_a_cache(store: LocalStore) -> None:
    store.save(IDENTITY, pack(kv()), label={})
    marker = (store.path / MARKER).read_text()
    assert marker.startswith("Signature: 8a477f597d28d172789f06886806bc55\n")
    assert "sttm" in marker


def as_version_0_1(store: LocalStore, umask: int) -> None:
    """The folder as it was made before there were markers and seals."""
    store.close()
    (store.path / MARKER).unlink()
    shutil.rmtree(store.path / "index")
    with diskcache.Cache(
        str(store.path / "index"), cull_limit=0, eviction_policy="none", tag_index=0
    ) as cache:
        cache.set("video:d1", '{"keys": []}')
    for folder in (store.path / "kv", *(store.path / "kv").iterdir()):
        folder.chmod(0o777 & ~umask)


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_a_cache_of_version_0_1_is_adopted(
    store: LocalStore, warnings: list[str], umask: int
) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    as_version_0_1(store, umask)
    left = store.path / "kv" / entry.key[:2] / f"{entry.key[:8]}ab_12xyz.part"
    left.write_bytes(b"left by a killed process")
    adopted = another(store, warnings.append)
    assert restored(adopted) is not None
    assert (store.path / MARKER).exists()
    adopted.set("row", {"a": 1})
    assert another(store).get("row") == {"a": 1}
    assert len(adopted.prune(0)) == 1
    assert not left.exists()
    assert warnings == []


def test_a_damaged_index_takes_no_other_file_with_it(store: LocalStore) -> None:
    store.set("row", {"a": 1})
    store.close()
    theirs = store.path / "index" / "thesis.txt"
    theirs.write_text("chapter 1")
    for path in (store.path / "index").glob("cache.db*"):
        path.write_bytes(b"this is not a database" * 100)
    other = another(store)
    other.set("row", {"a": 2})
    assert another(store).get("row") == {"a": 2}
    assert theirs.read_text() == "chapter 1"


def test_another_programs_database_in_the_index_is_left_alone(store: LocalStore) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    store.close()
    shutil.rmtree(store.path / "index")
    another_programs_tables(store.path)
    before = contents(store.path / "index")
    other = another(store)
    assert restored(other) is not None
    other.count_use(entry, saved_s=1.0)
    assert other.get("row") is None
    assert len(other.prune(0)) == 1
    assert contents(store.path / "index") == before


@pytest.mark.parametrize("level", ["kv/ab", "kv"])
def test_nothing_behind_a_link_is_written_or_removed(
    store: LocalStore, warnings: list[str], tmp_path: Path, level: str
) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    folder = Path(entry.location).parent
    folder = folder if level == "kv/ab" else folder.parent
    theirs = folder.rename(tmp_path / "theirs")
    folder.symlink_to(theirs)
    before = contents(theirs)
    assert len(before) == 1
    assert store.save(IDENTITY, pack(kv(1)), label={}) is None
    assert store.remove([entry.key]) == []
    lock = store.path / "locks"
    shutil.rmtree(lock, ignore_errors=True)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / entry.key).touch()
    lock.symlink_to(tmp_path / "locks")
    assert store.prune(0) == []
    assert (tmp_path / "locks" / entry.key).exists()
    assert restored(store) is None
    assert {"is not a folder" in line for line in warnings} == {True}
    assert contents(theirs) == before


@pytest.mark.parametrize("content", [b"not a database" * 100, b""])
@pytest.mark.parametrize(
    "part", ["index", "index/cache.db", "index/cache.db-wal", "index/cache.db-shm"]
)
def test_rows_are_neither_written_nor_removed_behind_a_link(
    store: LocalStore, tmp_path: Path, part: str, content: bytes
) -> None:
    entry = store.save(IDENTITY, pack(kv()), label={})
    store.close()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "cache.db").write_bytes(content)
    if part == "index":
        shutil.rmtree(store.path / part)
        (store.path / part).symlink_to(theirs)
    else:
        (store.path / part).unlink(missing_ok=True)
        (store.path / part).symlink_to(theirs / "cache.db")
    before = contents(theirs)
    other = another(store)
    assert restored(other) is not None
    other.count_use(entry, saved_s=1.0)
    other.set("row", {"a": 1})
    assert other.get("row") is None
    other.close()
    assert contents(theirs) == before


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", FILES)
def test_no_pipe_in_place_of_the_index_is_waited_for(
    tmp_path: Path, name: str, marked: bool
) -> None:
    with LocalStore(tmp_path / "cache", warn=print) as store:
        store.save(IDENTITY, pack(kv()), label={})
    pipe = tmp_path / "cache" / "index" / name
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    if not marked:
        (tmp_path / "cache" / MARKER).unlink()
    with LocalStore(tmp_path / "cache", warn=print) as store:
        store.set("row", {"a": 1})
        assert store.get("row") is None
    assert S_ISFIFO(pipe.lstat().st_mode)


# ---- owner and mode


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def test_folders_and_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    root = tmp_path / "one" / "cache"
    store = LocalStore(root, warn=pytest.fail)
    with umask(0), store.computing("a" * 64, on_wait=pytest.fail):
        store.save(IDENTITY, pack(kv()), label={})
        shown = [root.parent, root, *root.rglob("*")]
        modes = {str(p): oct(p.stat().st_mode & 0o777) for p in shown}
    assert set(modes.values()) == {"0o700", "0o600"}, modes
    assert len(modes) >= 9


def exposed_by_mode(path: Path) -> None:
    path.chmod(path.stat().st_mode | 0o020)


def exposed_by_owner(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(path, 65534, -1)


@pytest.mark.parametrize("expose", [exposed_by_mode, exposed_by_owner])
@pytest.mark.parametrize("level", [".", "kv", "kv/ab", "file", "index", "locks"])
def test_what_others_can_write_is_not_trusted(
    store: LocalStore, warnings: list[str], level: str, expose: Callable[[Path], None]
) -> None:
    with store.computing("a" * 64, on_wait=pytest.fail):
        entry = store.save(IDENTITY, pack(kv()), label={})
    store.close()
    place = Path(entry.location)
    levels = {"kv/ab": place.parent, "file": place}
    expose(levels.get(level, store.path / level))
    other = another(store, warnings.append)
    assert restored(other) is None
    assert len(warnings) == 1
    assert "other users" in warnings[0] or "belongs to another user" in warnings[0]
    if level != "file":
        assert other.save(IDENTITY, pack(kv(1)), label={}) is None
        assert place.exists()


def test_the_marker_of_a_killed_process_is_swept(tmp_path: Path) -> None:
    with LocalStore(tmp_path / "cache", warn=print) as store:
        store.save(IDENTITY, pack(kv()), label={})
        left = store.path / f"CACHEDIR.TAG.{'0' * 16}.part"
        left.touch()
        mine = store.path / "CACHEDIR.TAG.notes.part"
        mine.touch()
        store.prune(store.max_bytes)
    assert not left.exists()
    assert mine.exists()


@pytest.mark.parametrize("network", [False, True])
def test_a_sign_is_seen_by_every_opening_of_the_folder_and_by_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: bool
) -> None:
    # On a network folder rows are each machine's own: another home stands for another machine.
    monkeypatch.setattr("sttm_cli.store.local.on_network", lambda path: network)
    with LocalStore(tmp_path / "cache", warn=print) as store, store.sign() as sign:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other-machine"))
        with another(store) as same, LocalStore(tmp_path / "elsewhere", warn=print) as other:
            assert sign
            assert same.sees(sign)
            assert not other.sees(sign)
    with another(store) as same:
        assert not same.sees(sign)


# ---- a disk that others have filled


def _asked_on_a_full_disk(place: Path, results: Connection) -> None:
    """In a process of its own, which alone sees the disk: ask before and while it is full."""
    from tests.attack.disks import FILLER, filled, small_disk

    disk = small_disk(place)
    if disk is None:
        results.send(None)
        return
    videos = []
    for number in range(3):
        videos.append(place.with_name(f"{number}.mp4"))
        videos[-1].write_bytes(SAMPLE.read_bytes() + bytes([number]))

    def ask(video: Path, *more: str) -> Ended:
        return sttm_here("ask", video, "how many shapes?", "--cache-dir", disk / "cache", *more)

    ended = [ask(videos[0]), ask(videos[1])]
    filled(disk, 1_000_000)
    ended += [ask(videos[2]), ask(videos[0], "--json"), ask(videos[1], "--json")]
    ended += [ask(videos[2], "--max-bytes", "1G"), ask(videos[2], "--json")]
    (disk / FILLER).unlink()
    results.send(ended)


def test_a_nearly_full_disk_removes_nothing_and_says_what_is_not_stored(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_asked_on_a_full_disk, args=(tmp_path / "disk", theirs)
    )
    process.start()
    theirs.close()
    ended = ours.recv()
    process.join()
    if ended is None:
        pytest.skip("only root mounts a small disk to be filled")
    _, second, full, *kept, given, last = ended
    assert second.err.count("warning") == 0
    assert (full.code, full.out) == (second.code, second.out)
    assert "not stored" in full.err
    assert "would leave less than 3,355,443 free" in full.err
    assert "removed" not in full.err
    assert [one.json["cache"]["hit"] for one in kept] == [True, True]
    # Who gives a bound has the disk filled.
    assert "not stored" not in given.err
    assert last.json["cache"]["hit"]
