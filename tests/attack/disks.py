"""Disks that are full at any byte: the answer comes, nothing stored is lost.

Files that cannot grow stand for them everywhere; where this process may mount, real ones are full
as well, in a view of the file system of its own, which ends with it.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from sttm_cli.store import LocalStore
from tests.attack.asking import QUESTION, SAMPLE, Tried
from tests.attack.kills import ANSWER
from tests.cli.process import Ended
from tests.cli.warm import Warm

CLONE_NEWNS = 0x00020000
ROOMY = 64 << 20
FILLER = "filler"


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    disk = small_disk(folder / "disk")
    if disk is None:
        print("  disks: nothing can be mounted here, so no disk is full, files alone", flush=True)
    # Forked after the mount, which it would not see otherwise.
    with Warm.start() as warm:
        groups = [_bounded(warm, rng, folder), *([_full(warm, rng, folder, disk)] if disk else [])]
        while True:
            yield next(rng.choice(groups))


def _bounded(warm: Warm, rng: random.Random, folder: Path) -> Iterator[Tried]:
    cache, other = folder / "cache", folder / "other.mp4"
    before = _kept(warm, folder, cache)
    with LocalStore(cache, warn=print) as store:
        size = store.bytes
    for number in range(1 << 62):
        other.write_bytes(SAMPLE.read_bytes() + number.to_bytes(8, "little"))
        # Its answer goes to a file as well, which must have room for it.
        room = 4096 + rng.choice([rng.randrange(size), rng.randrange(40_000), 0])
        ended, _ = warm.run("ask", other, QUESTION, cache=cache, file_bytes=room)
        yield Tried(f"files of at most {room:,} bytes", _problem(ended, cache, before))
        _forget(cache, before)


def _full(warm: Warm, rng: random.Random, folder: Path, disk: Path) -> Iterator[Tried]:
    cache, other = disk / "cache", folder / "another.mp4"
    before = _kept(warm, folder, cache)
    with LocalStore(cache, warn=print) as store:
        size = store.bytes
    for number in range(1 << 62):
        other.write_bytes(SAMPLE.read_bytes() + b"full" + number.to_bytes(8, "little"))
        bound = rng.choice([(), ("--max-bytes", "1G")])
        # Without --max-bytes a part of the disk is left alone.
        spare = 0 if bound or rng.random() < 0.5 else ROOMY // 20
        room = spare + rng.choice([rng.randrange(2 * size), rng.randrange(40_000), 0])
        filled(disk, room)
        ended, _ = warm.run("ask", other, QUESTION, *bound, cache=cache)
        problem = _problem(ended, cache, before)
        # What is stored answers, whatever the disk was.
        again, _ = warm.run("ask", folder / "kept.mp4", QUESTION, "--json", cache=cache)
        (disk / FILLER).unlink()
        if not problem and not (again.code == 0 and again.json["cache"]["hit"]):
            problem = f"the stored video is lost: {again.err[-300:]}"
        yield Tried(" ".join([f"a disk with {room:,} bytes free", *bound]), problem)
        _forget(cache, before)


def small_disk(place: Path) -> Path | None:
    """A small disk of its own; None where this process may not mount one."""
    place.mkdir()
    private = ["mount", "--make-rprivate", "/"]
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(place)]
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
            return None
        for command in (private, mount):
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, AttributeError, subprocess.CalledProcessError):
        return None
    return place


def filled(disk: Path, room: int) -> None:
    """Fill a disk with a file of others, but for so many bytes."""
    with (disk / FILLER).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - room)


def _kept(warm: Warm, folder: Path, cache: Path) -> set[str]:
    """The keys in a cache with one stored video, which no case may lose."""
    kept = Path(shutil.copy(SAMPLE, folder / "kept.mp4"))
    warm.run("ask", kept, QUESTION, cache=cache)
    keys = _keys(cache)
    if len(keys) != 1:
        raise AssertionError(keys)
    return keys


def _keys(cache: Path) -> set[str]:
    with LocalStore(cache, warn=print) as store:
        return {entry.key for entry in store.entries()}


def _forget(cache: Path, before: set[str]) -> None:
    """What did fit is taken away again, so that the next case has something to store."""
    with LocalStore(cache, warn=print) as store:
        store.remove({entry.key for entry in store.entries()} - before)


def _problem(ended: Ended, cache: Path, before: set[str]) -> str:
    if (ended.code, ended.out) != (0, ANSWER):
        return f"exit code {ended.code}: {ended.out!r} {ended.err[-300:]}"
    if "Traceback" in ended.err:
        return ended.err[-300:]
    with LocalStore(cache, warn=print) as store:
        damaged = [finding.problem for finding in store.verify()[1]]
        keys = {entry.key for entry in store.entries()}
        lost = before - keys
    if keys <= before and "not stored" not in ended.err:
        damaged.append("not stored, without a word")
    return "; ".join([*damaged, *(f"{key[:12]} is lost" for key in sorted(lost))])
