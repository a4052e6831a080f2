"""A user's own files in a cache folder, beside it, in place of its parts, or appearing while it is
used: none is ever changed or removed, and the answer is right."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sttm_cli.store.files import MARKER
from sttm_cli.store.index import FILES
from tests.attack.asking import Tried, answered, asked
from tests.attack.stored import FLAGS, Stored, store
from tests.cli.process import sttm_here

LONGEST_S = 30.0
LEVELS = ("", "kv", "kv/ab", "index", "locks", "deep/er")
Files = dict[str, tuple[int, int, bytes]]
"""By path: mode, time of modification, and content or target."""


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    stored = store(folder)
    while True:
        seed = rng.randrange(1 << 32)
        name, make = rng.choice(list(KINDS.items()))
        problem = make(random.Random(seed), stored, _empty(folder / "home"))
        yield Tried(f"{name} ({seed})", problem)


# ---- the kinds of cases


def _foreign(rng: random.Random, stored: Stored, home: Path) -> str:
    """A folder with files and without the marker is not used, and stays as it is."""
    own = home / "own"
    own.mkdir(0o700)
    # With a cache's own names alone, and nothing else, it would be one of an earlier version.
    while _plant(own, rng, home, named_as_ours=False) is None:
        pass
    for _ in range(rng.randrange(4)):
        _plant(own, rng, home, named_as_ours=True)
    before = _contents(home)
    problem = _commands(rng, stored, own)
    return problem or _changed(before, _contents(home))


def _beside(rng: random.Random, stored: Stored, home: Path) -> str:
    """Files in a folder that is a cache stay; the cache goes on."""
    own = home / "own"
    shutil.copytree(stored.cache, own, symlinks=True)
    ours = set(_contents(home))
    for _ in range(rng.randrange(1, 6)):
        _plant(own, rng, home, named_as_ours=False)
    before = {path: it for path, it in _contents(home).items() if path not in ours}
    problem = _commands(rng, stored, own)
    return problem or _lost(before, _contents(home))


def _appearing(rng: random.Random, stored: Stored, home: Path) -> str:
    """Files that appear at any moment, in a new folder or in a cache."""
    own = home / "own"
    if rng.random() < 0.5:
        shutil.copytree(stored.cache, own, symlinks=True)
    with _planting(own, rng, home) as planted:
        problem = _commands(rng, stored, own)
    return problem or _lost(planted, _contents(home))


def _replaced(rng: random.Random, stored: Stored, home: Path) -> str:
    """A part of the cache is a link to a user's folder, or a file, a pipe, another folder."""
    own, theirs = home / "own", home / "theirs"
    shutil.copytree(stored.cache, own, symlinks=True)
    shutil.copytree(stored.cache, theirs, symlinks=True)
    parts = ["kv", "index", "locks", MARKER]
    parts += [f"index/{name}" for name in FILES]
    parts += [str(path.relative_to(own)) for path in (*own.glob("kv/*"), *own.glob("kv/*/*"))]
    part = rng.choice(parts)
    if (own / part).is_dir():
        shutil.rmtree(own / part)
    else:
        (own / part).unlink(missing_ok=True)
    how = rng.choice(["link", "dangling", "file", "pipe", "folder"])
    if how in ("link", "dangling"):
        target = rng.choice([theirs / part, theirs / "index" / "thesis.txt"])
        (theirs / "index" / "thesis.txt").write_text("chapter 1")
        (own / part).symlink_to(target if how == "link" else theirs / "none")
    elif how == "file":
        (own / part).write_text("chapter 1")
    elif how == "pipe":
        os.mkfifo(own / part)
    else:
        (own / part / "a").mkdir(parents=True)
        (own / part / "a" / "thesis.txt").write_text("chapter 1")
    before = {p: it for p, it in _contents(home).items() if p.startswith("theirs/")}
    before |= {p: it for p, it in _contents(home).items() if p.endswith("thesis.txt")}
    problem = _commands(rng, stored, own)
    return f"{part}, {how}: {problem}" if problem else _lost(before, _contents(home))


KINDS: dict[str, Callable[[random.Random, Stored, Path], str]] = {
    "a folder of other files": _foreign,
    "files in a cache": _beside,
    "files that appear": _appearing,
    "a part replaced": _replaced,
}


# ---- what a user has


def _plant(own: Path, rng: random.Random, home: Path, *, named_as_ours: bool) -> Path | None:
    """One thing of a user's at a random place in `own`; None where something is in its way."""
    level = own / rng.choice(LEVELS).replace("ab", f"{rng.randrange(256):02x}")
    path = level / _name(rng, level, named_as_ours=named_as_ours)
    try:
        level.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.path.lexists(path):
            return None
        rng.choice(THINGS)(path, rng, home)
    except OSError:
        return None
    return path


def _name(rng: random.Random, level: Path, *, named_as_ours: bool) -> str:
    """A name, also one that is nearly a cache's own, or is one."""
    key, part = rng.randbytes(32).hex(), rng.randbytes(8).hex()
    pair = level.name if len(level.name) == 2 else "ab"
    near = [
        "thesis.txt", "movie.part", "model.safetensors", "ab", "a", "own", "cache.db.bak",
        "cache.sqlite", "cache.db2", "cache.db-wal2", ".hidden", "-rf", "a b\n", "\xff", "tag~",
        "CACHEDIR.TAG.part", f"CACHEDIR.TAG.{part[:-1]}.part", f"{key}.safetensors.bak",
        f"{key[:-1]}.safetensors", f"{key}x", f"{key.upper()}A.safetensors", f"{key}.{part}.part~",
        f"{key}.{part[:-1]}.part", f"{pair}{key}.part", f"{key[:8]}ABCDEFGH.part",
    ]  # fmt: skip
    ours = [
        f"{pair}{key[2:]}.safetensors", f"{pair}{key[2:]}.{part}.part", key, MARKER, "cache.db",
        f"{pair}{key[2:8]}ab_12xyz.part", f"{MARKER}.{part}.part", "cache.db-wal", "kv", "index",
    ]  # fmt: skip
    return rng.choice([*near, *ours] if named_as_ours else near)


def _file(path: Path, rng: random.Random, home: Path) -> None:
    path.write_bytes(rng.choice([b"", b"chapter 1", rng.randbytes(5000)]))
    path.chmod(rng.choice([0o600, 0o644, 0o400, 0o000]))


def _folder(path: Path, rng: random.Random, home: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("chapter 1")


def _link(path: Path, rng: random.Random, home: Path) -> None:
    target = home / f"{secrets.token_hex(4)}.txt"
    if rng.random() < 0.8:
        target.write_text("chapter 2")
    path.symlink_to(target)


def _pipe(path: Path, rng: random.Random, home: Path) -> None:
    os.mkfifo(path)


def _database(path: Path, rng: random.Random, home: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")
        database.commit()


THINGS = (_file, _file, _folder, _link, _pipe, _database)


@contextmanager
def _planting(own: Path, rng: random.Random, home: Path) -> Iterator[Files]:
    """Within this context a thread makes such things; yields what there is of them."""
    planted, done, drawn = Files(), threading.Event(), random.Random(rng.random())

    def run() -> None:
        while not done.wait(drawn.choice([0, 0.001, 0.01, 0.05])):
            # Not before the first command: a folder that has them already is not a cache.
            if own.is_dir() and (path := _plant(own, drawn, home, named_as_ours=False)):
                planted.update(_contents(home, [path]))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield planted
    finally:
        done.set()
        thread.join()


# ---- what is done with the folder, and what came of it


def _commands(rng: random.Random, stored: Stored, own: Path) -> str:
    """Ask, and run commands that remove, in any order; the reason why one failed."""
    key = next(stored.cache.glob("kv/*/*")).name[:8]
    words = (
        "prune --max-bytes 0", "prune --max-bytes 1K", "rm --all --yes", f"rm {key}", f"show {key}",
        "verify --repair", "verify", "ls", "path", "rm --older-than 0d --yes",
    )  # fmt: skip
    for step in range(rng.randrange(1, 4)):
        if step == 0 or rng.random() < 0.4:
            more = rng.choice([(), ("--refresh",), ("--max-bytes", "1K"), ("--max-bytes", "1G")])
            ended, problem = asked(*FLAGS, *more, stored.video, cache=own, codes=(0,))
            if not problem and answered(ended) != stored.right:
                problem = f"another answer: {answered(ended)}"
        else:
            command, started = rng.choice(words).split(), time.monotonic()
            ended = sttm_here("cache", *command, "--cache-dir", own)
            seconds = time.monotonic() - started
            late = f"cache {command[0]} took {seconds:.0f} s" if seconds > LONGEST_S else ""
            wrong = ended.code not in (0, 1, 2) or "Traceback" in ended.err
            problem = f"cache {command[0]}: {ended.code} {ended.err[-300:]}" if wrong else late
        if problem:
            return problem
    return ""


def _contents(home: Path, paths: list[Path] | None = None) -> Files:
    """All files, links and pipes, by their path below `home`."""
    found = Files()
    for path in (
        home.rglob("*") if paths is None else [q for p in paths for q in (p, *p.rglob("*"))]
    ):
        with suppress(OSError):
            status = path.lstat()
            content = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.fsencode(os.readlink(path))
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            if not stat.S_ISDIR(status.st_mode):
                name = str(path.relative_to(home))
                found[name] = (status.st_mode, status.st_mtime_ns, content)
    return found


def _changed(before: Files, after: Files) -> str:
    if new := sorted(after.keys() - before.keys()):
        return f"made in a user's folder: {new[:3]}"
    return _lost(before, after)


def _lost(before: Files, after: Files) -> str:
    """What of a user's is gone or changed."""
    gone = sorted(path for path, it in before.items() if after.get(path) != it)
    return f"changed or removed: {gone[:3]}" if gone else ""


def _empty(home: Path) -> Path:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(mode=0o700)
    return home
