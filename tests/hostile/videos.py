"""Damaged videos and files that only look like videos, made from a healthy one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

HEADER = 4096
"""Bytes at a file's start that the milder damages leave alone."""


def truncated(source: Path, target: Path, share: float = 0.5) -> Path:
    """The first `share` of the file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def zeroed(source: Path, target: Path, start: float = 0.4, end: float = 0.6) -> Path:
    """The file with the bytes between two shares of its length set to zero."""
    data = bytearray(source.read_bytes())
    first, last = int(len(data) * start), int(len(data) * end)
    data[first:last] = bytes(last - first)
    target.write_bytes(data)
    return target


def flipped(source: Path, target: Path, *, seed: int, count: int = 20, spare: int = HEADER) -> Path:
    """The file with `count` bits flipped at random behind its first `spare` bytes."""
    data, chance = bytearray(source.read_bytes()), random.Random(seed)
    for _ in range(count):
        data[chance.randrange(min(spare, len(data) - 1), len(data))] ^= 1 << chance.randrange(8)
    target.write_bytes(data)
    return target


def lying(source: Path, target: Path, *, seed: int, count: int = 3) -> Path:
    """The file with numbers in its header or index replaced: sizes, counts, rates, offsets."""
    data, chance = bytearray(source.read_bytes()), random.Random(seed)
    at = data.find(b"moov")
    span = (at, len(data)) if at > len(data) // 2 else (max(at, 0), max(at, 0) + HEADER)
    for _ in range(count):
        place = chance.randrange(span[0], min(span[1], len(data)) - 4)
        lie = chance.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, chance.getrandbits(32)])
        data[place : place + 4] = lie.to_bytes(4, "big")
    target.write_bytes(data)
    return target


def text(target: Path) -> Path:
    """A text with a video's name."""
    target.write_text("This is not a video.\n" * 50)
    return target


def empty(target: Path) -> Path:
    """A file without a byte."""
    target.write_bytes(b"")
    return target


def noise(target: Path, *, seed: int = 0, size: int = 50_000) -> Path:
    """Random bytes with a video's name."""
    target.write_bytes(random.Random(seed).randbytes(size))
    return target


def playlist(target: Path, names: str) -> Path:
    """A playlist that names another file."""
    target.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{names}\n#EXT-X-ENDLIST\n")
    return target


def audio_only(target: Path, seconds: float = 1.0) -> Path:
    """A video container with nothing but sound in it."""
    with av.open(str(target), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(int(seconds * 16000 / 1024)):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 16000, index * 1024
            frame.time_base = Fraction(1, 16000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target


def streams_without_frames(target: Path) -> Path:
    """A header that promises video, and not one packet of it."""
    with av.open(str(target), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return target


def mutated(source: Path, folder: Path, count: int) -> Iterator[Path]:
    """`count` different damages of one video, from mild to severe, the same at every call."""
    kinds: list[Callable[[Path, int], Path]] = [
        lambda to, i: truncated(source, to, 0.02 + 0.96 * (i % 17) / 17),
        lambda to, i: zeroed(source, to, 0.05 * (i % 19), 0.05 * (i % 19) + 0.04),
        lambda to, i: flipped(source, to, seed=i, count=1 + i % 60),
        lambda to, i: flipped(source, to, seed=i, count=1 + i % 30, spare=0),
        lambda to, i: lying(source, to, seed=i, count=1 + i % 5),
    ]
    for index in range(count):
        target = folder / f"{source.stem}-{index:03d}{source.suffix}"
        yield kinds[index % len(kinds)](target, index)
