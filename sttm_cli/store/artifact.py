"""One stored KV as one safetensors file, its own checksum inside; docs/cache-format.md.

safetensors has no checksum, and a KV half as long as its header says must not be read, so header
and sizes are checked here against the file before a byte of memory is taken.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from sttm_cli.base.types import Json, TokenCounts
from sttm_cli.store.identity import canonical, key_of
from sttm_cli.store.packing import SCALED, STORED, PackedKV

FORMAT = 2
"""Version of the file's layout; part of every identity, so that a file of another one is a miss."""

MOST_HEADER = 16 << 20
MOST_ROW = 1 << 16
"""Numbers in one token's key: bounds the memory that a header can ask for beyond its file."""
ALIGN = 64
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int8: "I8"}


class Damaged(Exception):
    """The file is not an artifact that may be used; the message says why."""


class Place(NamedTuple):
    """One tensor in the file: its name, type and shape, and the byte that it begins with,
    counted from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: list[int]
    begin: int

    @property
    def end(self) -> int:
        return self.begin + prod(self.shape) * self.dtype.itemsize

    @property
    def described(self) -> Json:
        """As safetensors has it in its header."""
        offsets = [self.begin, self.end]
        return {"dtype": NAMES[self.dtype], "shape": self.shape, "data_offsets": offsets}


@dataclass(frozen=True)
class Header:
    """What an artifact says of itself, checked against the file's real size.

    `meta` is the project's own record; the tensors in `places` lie one after another from byte
    `start` on and end with the file.
    """

    meta: Json
    start: int
    places: list[Place]

    @property
    def lengths(self) -> list[int]:
        return list(self.meta["lengths"])

    @property
    def tokens(self) -> TokenCounts:
        return TokenCounts(**self.meta["tokens"])

    @property
    def dtype(self) -> torch.dtype:
        """The type that keys and values are restored to."""
        return STORED[self.meta["dtype"]]

    @property
    def scales(self) -> list[Place]:
        """Scale and offset of each key and value, in their order; empty where there are none."""
        return self.places[: -2 * len(self.lengths)]

    @property
    def tensors(self) -> list[Place]:
        """Layer 0 key, layer 0 value, layer 1 key, ..."""
        return self.places[-2 * len(self.lengths) :]

    @property
    def saved_bytes(self) -> int:
        """How many fewer bytes the tensors take than as they are restored."""
        whole = sum(prod(place.shape) for place in self.tensors) * self.dtype.itemsize
        return whole - self.places[-1].end


def layout(lengths: list[int], heads: int, dim: int, kv_dtype: str) -> list[Place]:
    """All tensors in the order in which they are read: scales and offsets first, as float32,
    so that what follows can be turned into numbers at once."""
    named = [
        (f"layers.{layer}.{name}", length)
        for layer, length in enumerate(lengths)
        for name in ("key", "value")
    ]
    wanted = [(name, STORED[kv_dtype], [length, heads, dim]) for name, length in named]
    if STORED[kv_dtype] is SCALED:
        wanted = [
            (f"{name}.{part}", torch.float32, [1, heads, dim])
            for name, _ in named
            for part in ("scale", "offset")
        ] + wanted
    places, begin = list[Place](), 0
    for name, dtype, shape in wanted:
        places.append(Place(name, dtype, shape, begin))
        begin = places[-1].end
    return places


def write(file: IO[bytes], identity: Json, packed: PackedKV, label: Json) -> None:
    """Write a KV with its identity; the caller owns fsync and rename."""
    kv, parts = packed.kv, list(_parts(packed))
    meta = {
        "format": FORMAT,
        "identity": identity,
        "key": key_of(identity),
        "lengths": list(kv.lengths),
        "dtype": str(kv.keys[0].dtype).removeprefix("torch."),
        "kv_dtype": packed.kv_dtype,
        "merge_layer": kv.merge_layer,
        "next_positions": list(kv.next_positions),
        "tokens": asdict(kv.tokens),
        "grid": list(kv.grid),
        "facts": kv.facts,
        "label": label,
        "checksum": _checksum(parts),
    }
    record = canonical(meta)
    header: Json = {"__metadata__": {"sttm": record.decode(), "seal": _seal(record)}}
    _, heads, dim = kv.keys[0].shape
    places = layout(list(kv.lengths), heads, dim, packed.kv_dtype)
    header |= {place.name: place.described for place in places}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    file.write(len(text).to_bytes(8, "little") + text)
    for part in parts:
        file.write(flat(part))


def open_artifact(path: Path) -> IO[bytes]:
    """Open for reading; raises OSError, and Damaged for what is no plain file.

    A symbolic link is not followed, a pipe not waited for.
    """
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    descriptor = os.open(path, os.O_RDONLY | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged("it is not a plain file")
    # Unbuffered: tensors are read in one piece straight into their place.
    return os.fdopen(descriptor, "rb", buffering=0)


def read_header(file: IO[bytes], identity: Json | None = None) -> Header:
    """Read and check everything but the tensors' bytes; raises Damaged.

    With `identity`, the stored one must be equal to it in full.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        length = int.from_bytes(_exactly(file, 8), "little")
        if not 2 <= length <= min(MOST_HEADER, size - 8):
            raise Damaged(f"its header cannot be {length} bytes long")
        header = json.loads(_exactly(file, length))
        record = header["__metadata__"]["sttm"].encode()
        if header["__metadata__"]["seal"] != _seal(record):
            raise Damaged("its record does not have its checksum")
        meta = json.loads(record)
        _check_meta(meta, identity)
        return _check_tensors(header, meta, 8 + length, size)
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError, IndexError) as error:
        raise Damaged(f"its header is damaged ({type(error).__name__})") from error


def _check_meta(meta: Json, identity: Json | None) -> None:
    if meta["format"] != FORMAT:
        raise Damaged(f"its format is {meta['format']!r}, not {FORMAT}")
    if key_of(meta["identity"]) != meta["key"]:
        raise Damaged("its key is not that of its identity")
    if identity is not None and canonical(meta["identity"]) != canonical(identity):
        raise Damaged("its identity is another's")
    numbers = [*meta["lengths"], *meta["next_positions"], *meta["grid"], meta["merge_layer"]]
    if not all(type(n) is int and 0 <= n < 2**40 for n in numbers):
        raise Damaged("its lengths are damaged")
    shapes = len(meta["next_positions"]) == 2 and len(meta["grid"]) == 3
    if not shapes or not meta["lengths"] or min(meta["lengths"]) < 1:
        raise Damaged("its lengths are damaged")
    facts, counts = meta["facts"], TokenCounts(**meta["tokens"])
    if not isinstance(facts, dict) or not isinstance(meta["identity"], dict):
        raise Damaged("its record is damaged")
    check_counts(counts)
    check_label(meta["label"])


def check_label(label: Json) -> None:
    """Raise Damaged unless it is a JSON object of plain values."""
    plain = (str, int, float, type(None))
    if not isinstance(label, dict) or not all(isinstance(v, plain) for v in label.values()):
        raise Damaged("its label is damaged")


def check_counts(counts: TokenCounts) -> None:
    """Raise Damaged unless they are counts that can be."""
    numbers = [counts.video_full, counts.video_kept, counts.prefix, counts.after_spatial or 0]
    thresholds = [counts.spatial_threshold, counts.temporal_threshold]
    if not all(type(n) is int and n >= 0 for n in numbers) or not counts.video_full:
        raise Damaged("its token counts are damaged")
    if not all(value is None or isinstance(value, (int, float)) for value in thresholds):
        raise Damaged("its thresholds are damaged")


def _check_tensors(header: Json, meta: Json, start: int, size: int) -> Header:
    lengths, kv_dtype = meta["lengths"], meta["kv_dtype"]
    heads, dim = header["layers.0.key"]["shape"][1:]
    if not (type(heads) is int and type(dim) is int and 0 < heads * dim <= MOST_ROW and heads > 0):
        raise Damaged("its tensors' shapes are damaged")
    if meta["dtype"] not in STORED or STORED[meta["dtype"]] is SCALED:
        raise Damaged("its numbers are of no known type")
    places = layout(lengths, heads, dim, kv_dtype)
    if [name for name in header if name != "__metadata__"] != [place.name for place in places]:
        raise Damaged("its tensors are not those of its layers")
    for place in places:
        if header[place.name] != place.described:
            raise Damaged(f"tensor {place.name} has another place or shape than it should")
    if start + places[-1].end != size:
        raise Damaged(f"it is {size} bytes long, its header says {start + places[-1].end}")
    return Header(meta, start, places)


def _parts(packed: PackedKV) -> Iterator[torch.Tensor]:
    """All tensors on the CPU, in the file's order."""
    scales = [part for tensor in packed.tensors for part in tensor.parts[:-1]]
    for part in (*scales, *(tensor.stored for tensor in packed.tensors)):
        yield part.contiguous().cpu()


def flat(tensor: torch.Tensor) -> Any:
    """The tensor's own memory as a flat array of bytes; bfloat16 has no numpy type."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


class Checksum:
    """blake3 over all tensor bytes in the file's order."""

    def __init__(self) -> None:
        from blake3 import blake3

        self._total = blake3(max_threads=blake3.AUTO)

    def add(self, data: Any) -> None:
        self._total.update(data)

    def __str__(self) -> str:
        return f"blake3:{self._total.hexdigest()}"


def _checksum(parts: list[torch.Tensor]) -> str:
    total = Checksum()
    for part in parts:
        total.add(flat(part))
    return str(total)


def _seal(record: bytes) -> str:
    from blake3 import blake3

    return f"blake3:{blake3(record).hexdigest()}"


def _exactly(file: IO[bytes], count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = file.read(count - len(data))
        if not piece:
            raise Damaged("it ends inside its header")
        data += piece
    return data
