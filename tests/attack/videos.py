"""Mutated videos: each is answered or refused, in bounded time and memory; asked again, it has the
same answer from the cache, or is refused again."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sttm_cli.decode.isolated import end_children
from tests.attack.asking import SAMPLE, Tried, answered, asked
from tests.cli.process import Ended
from tests.decode.made import Make
from tests.hostile.videos import flipped, lying, truncated, zeroed

MOST_BYTES = 4 << 30
ATOMS = (b"moov", b"mdat", b"trak", b"stts", b"stsc", b"stsz", b"stco", b"stss", b"mdhd", b"tkhd")
SOURCES: dict[str, Make] = {
    "plain.mp4": Make(pts=range(40)),
    "fragmented.mov": Make(pts=range(40), container={"movflags": "frag_keyframe+empty_moov"}),
    "vp9.webm": Make(
        "libvpx-vp9", pts=range(20), options={"deadline": "realtime", "cpu-used": "8"}
    ),
    "stream.ts": Make(pts=range(40)),
    "old.avi": Make("mpeg4", pts=range(40)),
    "flash.flv": Make("flv", pts=range(40)),
    "small.gif": Make("gif", pixels="rgb8", pts=range(8), size=(80, 48)),
}


def attack(rng: random.Random, folder: Path) -> Iterator[Tried]:
    sound = [Path(shutil.copy(SAMPLE, folder / "sample.mp4"))]
    sound += [make.write(folder / name) for name, make in SOURCES.items()]
    while True:
        source, (kind, mutate) = rng.choice(sound), rng.choice(list(MUTATIONS.items()))
        target, seed = folder / f"mutated{source.suffix}", rng.randrange(1 << 32)
        mutate(source, target, random.Random(seed))
        problem = _problem(target, folder / "cache")
        yield Tried(f"{source.name}: {kind} ({seed})", problem or _too_large())


def _problem(video: Path, cache: Path) -> str:
    shutil.rmtree(cache, ignore_errors=True)
    cold, problem = asked("--frames", 2, video, cache=cache)
    if problem:
        return problem
    again, problem = asked("--frames", 2, video, cache=cache)
    return problem or differs(cold, again)


def differs(cold: Ended, again: Ended) -> str:
    """What of the second run is not as the first one promises; "" where nothing is."""
    if again.code != cold.code:
        return f"exit code {again.code} after {cold.code}: {again.err[-300:]}"
    if cold.code:
        return ""
    if answered(again) != answered(cold):
        return f"another answer: {answered(again)} after {answered(cold)}"
    # A reader that failed may do better the next time: its video is read again, and this is said.
    if not again.json["cache"]["hit"] and "not stored" not in cold.err:
        return f"the answer was not stored: {cold.err[-300:]}"
    return ""


def _too_large() -> str:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = 1024 * max(resource.getrusage(kind).ru_maxrss for kind in kinds)
    if peak < MOST_BYTES:
        return ""
    end_children()
    return f"{peak:,} bytes of memory at the peak"


def _swapped_atoms(source: Path, target: Path, rng: random.Random) -> None:
    """Two parts of the file exchanged, or one name of an atom put in place of another."""
    data = source.read_bytes()
    known = [atom for atom in ATOMS if atom in data]
    if known and rng.random() < 0.5:
        target.write_bytes(data.replace(rng.choice(known), rng.choice(ATOMS), 1))
        return
    one, two, three, four = sorted(rng.randrange(len(data)) for _ in range(4))
    target.write_bytes(
        data[:one] + data[three:four] + data[two:three] + data[one:two] + data[four:]
    )


def _grown(source: Path, target: Path, rng: random.Random) -> None:
    """Bytes repeated or inserted."""
    data = source.read_bytes()
    at, length = rng.randrange(len(data)), rng.randrange(1, 20_000)
    more = rng.choice([data[at : at + length], bytes(length), rng.randbytes(length)])
    target.write_bytes(data[:at] + more + data[at:])


def _size_field(source: Path, target: Path, rng: random.Random) -> None:
    """A 4-byte number before a known atom, or anywhere, replaced."""
    data = bytearray(source.read_bytes())
    places = [at - 4 for atom in ATOMS if (at := data.find(atom)) >= 4]
    place = rng.choice(places) if places else rng.randrange(len(data) - 4)
    lie = rng.choice([0, 1, 7, 8, 0x7FFFFFFF, 0xFFFFFFFF, len(data), rng.getrandbits(32)])
    data[place : place + 4] = lie.to_bytes(4, "big")
    target.write_bytes(data)


MUTATIONS: dict[str, Callable[[Path, Path, random.Random], object]] = {
    "cut off": lambda s, t, r: truncated(s, t, r.random()),
    "zeroes": lambda s, t, r: zeroed(s, t, a := r.random() * 0.9, a + r.random() * 0.1),
    "bits behind the header": lambda s, t, r: flipped(
        s, t, seed=r.getrandbits(32), count=r.randrange(1, 200)
    ),
    "bits anywhere": lambda s, t, r: flipped(
        s, t, seed=r.getrandbits(32), count=r.randrange(1, 60), spare=0
    ),
    "numbers of the header": lambda s, t, r: lying(
        s, t, seed=r.getrandbits(32), count=r.randrange(1, 8)
    ),
    "a size": _size_field,
    "parts exchanged": _swapped_atoms,
    "longer": _grown,
}
